//! The images a build begins from, on this node's side of the session: the build has neither network nor credentials.
//!
//! Looked for in containerd (what pods of this node can run, which includes the images of other builds), then in the
//! image store, then at their registry. What is here is used as kubelet uses it with `IfNotPresent`: whoever may build on a
//! node may begin from the images that it has.

use std::collections::BTreeMap;
use std::path::PathBuf;
use std::sync::Arc;
use std::time::Instant;

use cloister_build::client::Offer;
use cloister_build::dockerfile;
use cloister_build::job::Base;
use cloister_crds::{BaseImage, BuildReason, Failure};
use cloister_image::source::registry::{self, DockerConfig, PullOptions, pull};
use cloister_image::{Digest, Error, LayerFile, Platform, Reference, Silent, Store, export, import};

use super::events::Voice;
use super::failure::{failure, of_pull};
use super::log::Log;
use crate::blocking;
use crate::containerd::CRI;
use crate::containerd::scope::Scope;
use crate::differ::convert::{Converter, Wanted};
use crate::import::local;
use crate::import::record::BUILD;

/// Most images of one build.
const MOST: usize = 64;

/// Where images come from.
#[derive(Debug)]
pub struct Sources {
    /// This node's containerd.
    pub scope: Scope,
    /// Makes layers of containerd's blobs.
    pub converter: Arc<Converter>,
    /// This node's image store.
    pub store: Store,
    /// Credentials of registries.
    pub credentials: Arc<DockerConfig>,
    /// Certificates to trust beside the system's.
    pub certificates: Option<PathBuf>,
    /// Whether registries are asked what a name stands for by now although it is here.
    pub fresh: bool,
}

/// Images to offer, and what they were.
#[derive(Debug, Default)]
pub struct Bases {
    /// For the session.
    pub offered: Vec<Base>,
    /// For the status.
    pub observed: Vec<BaseImage>,
}

impl Sources {
    /// Every image that the Dockerfile names. `log` and `voice` hear of what takes time.
    ///
    /// # Errors
    /// When one is nowhere, or can't be pulled.
    pub async fn find(
        &self,
        text: &str,
        args: &BTreeMap<String, String>,
        log: &mut Log,
        voice: &Voice,
    ) -> Result<Bases, Failure> {
        let mut bases = Bases::default();
        for name in dockerfile::images(text, args).into_iter().take(MOST) {
            // What is no reference, BuildKit refuses with the line it stands in.
            let Ok(reference) = name.parse::<Reference>() else { continue };
            let here = match self.here(&reference).await? {
                Some((.., digest)) if self.fresh && self.moved(&reference, digest, log).await => None,
                here => here,
            };
            let (offer, manifest, digest) = match here {
                Some(found) => found,
                None => {
                    log.write(format!("cloister: pulling {reference}\n").as_bytes()).await;
                    let (name, begun) = (reference.to_string(), Instant::now());
                    voice.say("Pulling", &name, &format!("Pulling base image {name}"));
                    let pulled = self.pull(&reference).await?;
                    let took = begun.elapsed().as_secs_f64();
                    voice.say("Pulled", &name, &format!("Pulled base image {name} in {took:.1} s"));
                    pulled
                }
            };
            bases.observed.push(BaseImage { image: reference.to_string(), digest: digest.to_string() });
            bases.offered.push(Base { reference, offer, manifest });
        }
        Ok(bases)
    }

    /// Whether the registry has another image by now. When it does not answer, what is here has to do.
    async fn moved(&self, reference: &Reference, here: Digest, log: &mut Log) -> bool {
        match self.latest(reference).await {
            Ok(latest) => latest != here,
            Err(error) => {
                log.write(format!("cloister: using {reference} as it is here: {error}\n").as_bytes()).await;
                false
            }
        }
    }

    /// What a name stands for now: at its registry, or here when it is another build's.
    ///
    /// # Errors
    /// When the registry does not say.
    pub async fn latest(&self, reference: &Reference) -> crate::error::Result<Digest> {
        let named = self.scope.image(&reference.to_string()).await?;
        if let Some(built) = named.filter(|named| named.labels.contains_key(BUILD)) {
            return built
                .digest
                .parse()
                .map_err(|error| crate::error::Error::Invalid(format!("{reference}: {error}")));
        }
        let (wanted, options) = (reference.clone(), self.options());
        blocking::run(move || Ok(registry::digest(&wanted, &options)?)).await
    }

    fn options(&self) -> PullOptions {
        PullOptions {
            ca_cert: self.certificates.clone(),
            credentials: Some(self.credentials.clone()),
            import: import::Options { threads: Some(1), ..import::Options::default() },
            ..PullOptions::default()
        }
    }

    /// The image, the manifest to ask for, and the digest that its name stands for.
    async fn here(&self, reference: &Reference) -> Result<Option<(Offer, Digest, Digest)>, Failure> {
        let unusable = |error: &dyn std::fmt::Display| {
            failure(BuildReason::ImportFailed, format!("base image {reference}: {error}"))
        };
        let found = local::find(&self.scope, &reference.to_string(), &Platform::host()).await;
        if let Some(image) = found.map_err(|error| unusable(&error))? {
            match self.layers(&image).await {
                Ok(layers) => {
                    let offered = Offer::blobs(
                        export::of_layers(image.config, &layers).map_err(|error| unusable(&error))?,
                    );
                    return Ok(Some((offered.0, offered.1, image.top)));
                }
                // Its blobs may have stayed at their registry.
                Err(error) => tracing::debug!(%error, image = %reference, "not whole in containerd"),
            }
        }
        let (store, name) = (self.store.clone(), reference.to_string());
        let offered = blocking::run(move || match store.open_image(&name) {
            Ok(image) => offer(&store, &image).map(Some),
            Err(Error::NoSuchImage(_)) => Ok(None),
            Err(error) => Err(error.into()),
        });
        offered.await.map_err(|error| unusable(&error))
    }

    /// The layers of an image of containerd: of the store, or made now.
    async fn layers(&self, image: &local::Local) -> crate::error::Result<Vec<LayerFile>> {
        let mut layers = Vec::with_capacity(image.layers.len());
        for layer in &image.layers {
            let (store, diff_id) = (self.store.clone(), layer.diff_id);
            let found = blocking::run(move || Ok(store.open_layer(&diff_id)?)).await?;
            layers.push(match found {
                Some(found) => found,
                None => {
                    let wanted = Wanted { namespace: CRI, digest: layer.blob, size: layer.size };
                    self.converter.layer(wanted).await?
                }
            });
        }
        Ok(layers)
    }

    async fn pull(&self, reference: &Reference) -> Result<(Offer, Digest, Digest), Failure> {
        let (store, wanted, options) = (self.store.clone(), reference.clone(), self.options());
        let pulled = blocking::run(move || {
            let record = pull(&store, &wanted, None, &options, &Silent)?;
            offer(&store, &store.open_image(&record.name)?)
        });
        pulled.await.map_err(|error| {
            let why = format!("base image {reference} is not on this node, and pulling it failed: {error}");
            failure(of_pull(&error), why)
        })
    }
}

fn offer(store: &Store, image: &cloister_image::Image) -> crate::error::Result<(Offer, Digest, Digest)> {
    let digest = image.record.index.unwrap_or(image.record.manifest);
    let (offer, manifest) = Offer::blobs(export::blobs(store, image)?);
    Ok((offer, manifest, digest))
}
