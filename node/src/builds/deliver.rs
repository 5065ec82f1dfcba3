//! Where a result goes from the folder that it left the machine in: registry, archive, containerd. In this order, as an import
//! takes the image before it away.

use std::path::Path;
use std::sync::Arc;

use cloister_build::client::{Descriptor, Layout};
use cloister_crds::{BuildReason, Failure, ImageBuildSpec, Sizes, StageName};
use cloister_image::{Digest, Reference, Store};
use tokio_util::sync::CancellationToken;

use super::failure::{failure, of_import};
use super::inputs::Mounts;
use super::log::Log;
use super::pod::BuildPod;
use super::push::{self, Push};
use super::result::Image;
use super::solve;
use super::status::Status;
use super::volume::Archive;
use crate::import::{Importer, Request, names};

/// Most bytes of an image with what an archive adds.
const MOST: u64 = 128 << 30;

/// Everything that wants the result, with what it needs.
#[derive(Debug)]
pub struct Outputs {
    push: Option<Arc<Push>>,
    archive: Option<Arc<Archive>>,
}

/// Where it is now.
#[derive(Debug, Default)]
pub struct Delivered {
    /// Names at registries.
    pub pushed: Vec<String>,
    /// The archive.
    pub archive: Option<String>,
    /// Names in containerd, when that has it.
    pub imported: Vec<String>,
    /// How large it is, where that does not follow from what containerd has.
    pub sizes: Option<Sizes>,
}

impl Outputs {
    /// Finds what is needed, so that what is missing is known before anything is built.
    ///
    /// # Errors
    /// When something is.
    pub fn prepare(
        spec: &ImageBuildSpec,
        mounts: &Mounts,
        pod: &BuildPod,
        work: &Path,
    ) -> Result<Self, Failure> {
        let archive = Archive::prepare(spec, mounts, &pod.build, &pod.owner)?;
        Ok(Self { push: Push::prepare(spec, mounts, work)?.map(Arc::new), archive: archive.map(Arc::new) })
    }

    /// Brings the image in `result` to everybody who wants it. What goes on when this is dropped ends soon, without a name.
    ///
    /// # Errors
    /// The first that does not take it; the others before have it.
    pub async fn deliver(&self, job: &Job<'_>, result: Layout, log: &mut Log) -> Result<Delivered, Failure> {
        let Job { spec, top, status, .. } = job;
        let digest = top.digest;
        let lost = |error: std::io::Error| failure(BuildReason::ImportFailed, format!("the result: {error}"));
        let mut done = Delivered::default();
        let unwanted = CancellationToken::new();
        let _guard = unwanted.clone().drop_guard();
        let described = top.clone();
        let image = Arc::new(blocking(move || Image::open(result, &described, unwanted)).await?);
        if let (Some(push), Some(to)) = (&self.push, &spec.output.push) {
            status.enter(StageName::Push);
            let names = push::targets(&spec.output, to, &digest)?;
            done.pushed = names.iter().map(ToString::to_string).collect();
            let (push, image) = (push.clone(), image.clone());
            blocking(move || push.run(&image, &names)).await?;
            let note = format!("Pushed {digest} as {}", done.pushed.join(", "));
            status.voice().say("Pushed", "Push", &note);
        }
        if let Some(archive) = &self.archive {
            status.enter(StageName::Archive);
            done.archive = Some(archive.place());
            let (archive, image, names) = (archive.clone(), image.clone(), named(spec, &digest)?);
            blocking(move || archive.write(&image, &names)).await?;
            let note = format!("Archived {digest} in {}", done.archive.as_deref().unwrap_or_default());
            status.voice().say("Archived", "Archive", &note);
        }
        if solve::imported(&spec.output) {
            status.enter(StageName::Import);
            let request = Request {
                build: job.pod.build_name(),
                object: Some(job.pod.owner.clone()),
                names: spec.output.images.clone(),
                digest,
                pin: spec.output.pin.unwrap_or(true),
                replace: false,
            };
            let ready = job.importer.import(&request, image.stream().map_err(lost)?, MOST).await;
            let ready = ready.map_err(|error| of_import(&error))?;
            if let Some(objection) = &ready.objection {
                log.write(format!("cloister: {objection}\n").as_bytes()).await;
            }
            let note = format!("Imported {digest} as {}", ready.names.join(", "));
            status.voice().say("Imported", "Import", &note);
            done.imported = ready.names;
        } else {
            let store = job.store.clone();
            done.sizes = blocking(move || Ok(sizes(&image, &store))).await?;
        }
        Ok(done)
    }
}

/// What is delivered, for whom.
pub struct Job<'a> {
    /// The spec.
    pub spec: &'a ImageBuildSpec,
    /// The pod.
    pub pod: &'a BuildPod,
    /// The image's index or manifest.
    pub top: Descriptor,
    /// What the world is told.
    pub status: &'a Status,
    /// The way into containerd.
    pub importer: &'a Importer,
    /// What this node has of other images.
    pub store: &'a Store,
}

/// How large an image is, as far as that can be told: nobody waits for it.
fn sizes(image: &Image, store: &Store) -> Option<Sizes> {
    let known = |diff_id: &Digest| Some(store.open_layer(diff_id).ok()??.tar().ok()?.len);
    image.sizes(known).inspect_err(|error| tracing::debug!("sizes of a result: {error}")).ok()?
}

/// The names that the image has in an archive.
fn named(spec: &ImageBuildSpec, digest: &Digest) -> Result<Vec<Reference>, Failure> {
    if spec.output.images.is_empty() {
        return Ok(Vec::new());
    }
    let invalid = |why: String| failure(BuildReason::InvalidSpec, format!("spec.output.images: {why}"));
    let full = names::canonical(&spec.output.images, digest).map_err(|error| invalid(error.to_string()))?;
    full.iter().map(|name| name.parse().map_err(|error| invalid(format!("{name}: {error}")))).collect()
}

/// Runs `work` on a thread that may block.
pub async fn blocking<T: Send + 'static>(
    work: impl FnOnce() -> Result<T, Failure> + Send + 'static,
) -> Result<T, Failure> {
    let died = |error| failure(BuildReason::BuilderLost, format!("a thread of the driver ended: {error}"));
    tokio::task::spawn_blocking(work).await.map_err(died)?
}
