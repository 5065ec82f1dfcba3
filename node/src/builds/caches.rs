//! Caches at registries: read blob by blob while a build asks, written to this node's disk and pushed from there. The build
//! knows no registry. A cache is a help: one that can't be had, or not be pushed, is told in the log and fails nothing.

use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::time::Duration;

use cloister_build::client::{Layout, Remote as Offered};
use cloister_build::job::{self, cache};
use cloister_crds::{BuildReason, CacheMode, Failure, ImageBuildSpec};
use cloister_image::source::registry::{Blobs, DockerConfig, PushOptions, Remote, push};
use cloister_image::{Reference, Silent};
use tokio_util::sync::CancellationToken;

use super::failure::failure;
use super::inputs::Mounts;
use super::log::Log;
use super::result::Wanted;
use crate::blocking;

/// How long all pushes of one build may take together.
const PATIENCE: Duration = Duration::from_secs(300);
/// What the credentials are called in messages.
const CREDENTIALS: &str = "imagePullSecrets";

/// The caches of one build.
#[derive(Debug)]
pub struct Caches {
    credentials: Arc<DockerConfig>,
    certificates: Option<PathBuf>,
    from: Vec<Reference>,
    /// With the names to push each to: of one mode there is one.
    to: Vec<(cache::Target, Vec<Reference>)>,
    work: PathBuf,
}

impl Caches {
    /// What there is to know before the build; at most `room` bytes are written to `work` for each mode.
    ///
    /// # Errors
    /// When a name is none, or credentials are missing.
    pub fn prepare(spec: &ImageBuildSpec, mounts: &Mounts, work: &Path, room: u64) -> Result<Self, Failure> {
        let from = spec.cache.from.iter().map(|name| parse("from", name)).collect::<Result<_, _>>()?;
        let mut to = Vec::new();
        for (mode, folder) in [(CacheMode::Min, "cache-min"), (CacheMode::Max, "cache-max")] {
            let names = spec.cache.to.iter().filter(|export| export.mode == mode);
            let names: Vec<_> = names.map(|export| parse("to", &export.image)).collect::<Result<_, _>>()?;
            if !names.is_empty() {
                let layout = Layout::open(work.join(folder), room);
                let layout =
                    layout.map_err(|error| failure(BuildReason::ImportFailed, format!("cache: {error}")))?;
                to.push((cache::Target { layout, max: mode == CacheMode::Max }, names));
            }
        }
        let (credentials, certificates) = (mounts.registries(spec)?.into(), mounts.certificates(spec, work)?);
        Ok(Self { credentials, certificates, from, to, work: work.to_owned() })
    }

    /// The caches for the build to use: those that are there.
    pub async fn offer(&self, log: &mut Log) -> job::Caches {
        let mut caches = job::Caches::default();
        for name in &self.from {
            let (reference, credentials, certificates) =
                (name.clone(), self.credentials.clone(), self.certificates.clone());
            let found = blocking::run(move || {
                Ok(Remote::new(&reference, credentials, certificates.as_deref(), false)?.cache()?)
            });
            match found.await {
                Ok(found) => {
                    let store = Offered::new(found, &self.work);
                    caches.from.push(cache::Source { manifest: store.top(), store: store.into() });
                }
                Err(error) => log.write(format!("cloister: no cache {name}: {error}\n").as_bytes()).await,
            }
        }
        caches.to = self.to.iter().map(|(target, _)| target.clone()).collect();
        caches
    }

    /// Pushes what the build has written.
    pub async fn push(&self, log: &mut Log) {
        let unwanted = CancellationToken::new();
        let _guard = unwanted.clone().drop_guard();
        let until = tokio::time::Instant::now() + PATIENCE;
        for (target, names) in &self.to {
            for name in names {
                let work = self.push_one(target.layout.clone(), name.clone(), unwanted.clone());
                let told = match tokio::time::timeout_at(until, work).await {
                    Ok(Ok(bytes)) => format!("pushed as {name}, {} MiB", bytes.div_ceil(1 << 20)),
                    Ok(Err(failure)) => failure.message,
                    Err(_) => format!("{name}: not pushed within {} s", PATIENCE.as_secs()),
                };
                log.write(format!("cloister: cache: {told}\n").as_bytes()).await;
            }
        }
    }

    /// Gives the bytes that the cache has.
    async fn push_one(
        &self,
        layout: Layout,
        name: Reference,
        unwanted: CancellationToken,
    ) -> Result<u64, Failure> {
        let options = PushOptions {
            ca_cert: self.certificates.clone(),
            credentials: Some(self.credentials.clone()),
            ..PushOptions::default()
        };
        super::deliver::blocking(move || {
            let unusable =
                |why: &dyn std::fmt::Display| failure(BuildReason::ImportFailed, format!("{name}: {why}"));
            let whole = layout.cache().map_err(|error| unusable(&error))?;
            let whole = whole.ok_or_else(|| unusable(&"BuildKit has written none"))?;
            let blobs = Wanted::new(&layout as &dyn Blobs, &unwanted);
            push(&whole, &blobs, &name, &options, &Silent)
                .map_err(|error| super::push::refused("push", CREDENTIALS, &error))?;
            Ok(whole.blobs.values().sum())
        })
        .await
    }
}

fn parse(field: &str, name: &str) -> Result<Reference, Failure> {
    let invalid = |error| failure(BuildReason::InvalidSpec, format!("spec.cache.{field}: {name}: {error}"));
    name.parse().map_err(invalid)
}
