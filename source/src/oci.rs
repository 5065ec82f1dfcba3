//! The files of an OCI artifact or image.
//!
//! A layer with the annotation `org.opencontainers.image.title` is one file of that name, as ORAS writes it, unless
//! `io.deis.oras.content.unpack` says that it is a folder's tar. Every other layer is a tar, as Flux writes it; those of an
//! image take names away by whiteouts.

use std::collections::HashMap;
use std::fs::File;
use std::io::{self, Seek, SeekFrom};
use std::path::Path;
use std::sync::Arc;

use cloister_crds::{BuildReason, OciSource};
use cloister_image::source::registry::{DockerConfig, Layer, Remote};
use cloister_image::{Error as ImageError, Reference};

use crate::archive::{self, Kind, copy, local, scratch};
use crate::folder::{Attributes, Folder};
use crate::hash::fraction;
use crate::trust::Trust;
use crate::watch::Watch;
use crate::{Error, Inputs, Limits, Result};

/// A layer's name as a file (image-spec, "Pre-Defined Annotation Keys").
const TITLE: &str = "org.opencontainers.image.title";
/// ORAS: the file is the tar of a folder.
const UNPACK: &str = "io.deis.oras.content.unpack";

/// What is needed to pull an artifact.
#[derive(Debug)]
pub(crate) struct Pull {
    reference: Reference,
    config: Arc<DockerConfig>,
    trust: Trust,
    limits: Limits,
}

impl Pull {
    /// Reads the Secrets.
    pub(crate) fn new(source: &OciSource, inputs: &Inputs) -> Result<Self> {
        let invalid = |error: &dyn std::fmt::Display| {
            Error::new(BuildReason::InvalidSpec, format!("source.oci.reference: {error}"))
        };
        Ok(Self {
            reference: source.reference.parse().map_err(|error| invalid(&error))?,
            config: Arc::new(inputs.docker()?),
            trust: Trust::new(inputs)?,
            limits: inputs.limits,
        })
    }

    /// Pulls into `folder` and gives the manifest's digest. Blocks.
    pub(crate) fn run(self, folder: &mut Folder, work: &Path, watch: &Watch) -> Result<String> {
        let certificates = self.trust.file(work)?;
        let path = certificates.as_ref().map(tempfile::NamedTempFile::path);
        let failed = |error| self.failed(&error);
        let remote = Remote::reaching(
            &self.reference,
            self.config.clone(),
            path,
            self.limits.plain_http,
            self.limits.reach,
        )
        .map_err(failed)?;
        let artifact = remote.artifact().map_err(failed)?;
        let total = artifact.layers.iter().fold(0_u64, |sum, layer| sum.saturating_add(layer.blob.size));
        if total > self.limits.packed {
            let why = format!("source.oci: {} has more than {} bytes", self.reference, self.limits.packed);
            return Err(Error::invalid(why));
        }
        for layer in &artifact.layers {
            watch.check()?;
            let mut file = scratch(work)?;
            remote.copy(&layer.blob, &mut file, || watch.check().is_ok()).map_err(failed)?;
            watch.check()?;
            file.seek(SeekFrom::Start(0)).map_err(|error| local("reading a file", &error))?;
            self.add(layer, file, artifact.image, folder, work, watch)?;
        }
        Ok(artifact.digest.to_string())
    }

    fn add(
        &self,
        layer: &Layer,
        mut file: File,
        image: bool,
        folder: &mut Folder,
        work: &Path,
        watch: &Watch,
    ) -> Result<()> {
        if let Some(title) = title(&layer.annotations) {
            let Some(place) = folder.place(title.as_bytes())? else {
                return Err(Error::invalid(format!("{}: a layer's title is no name", folder.what())));
            };
            let mut out = folder.make_file(&place, layer.blob.size)?;
            let read = |error: io::Error| local("reading a file", &error);
            copy(&mut file, &mut out, u64::MAX, watch, read)?;
            let nanoseconds = fraction(&layer.blob.digest);
            let last = Attributes { mode: 0o644, nanoseconds, ..Attributes::default() };
            return folder.finish(&place, &out, &last);
        }
        let what = format!("source.oci: layer {} of {}", layer.blob.digest, self.reference);
        let tar = archive::plain(&what, file, work, &self.limits, watch)?;
        folder.call(&what);
        archive::unpack(&tar, if image { Kind::Layer } else { Kind::Archive }, folder, b"", watch)
    }

    fn failed(&self, error: &ImageError) -> Error {
        let reason = match error.status() {
            Some(401 | 403) => BuildReason::AccessDenied,
            Some(404) => BuildReason::SourceNotFound,
            Some(_) => BuildReason::SourceUnavailable,
            None => match error {
                ImageError::Registry { .. } | ImageError::Io { .. } => BuildReason::SourceUnavailable,
                ImageError::Digest { .. } => BuildReason::SourceMismatch,
                _ => BuildReason::SourceInvalid,
            },
        };
        let hint = if reason == BuildReason::AccessDenied { ": look at spec.imagePullSecrets" } else { "" };
        Error::new(reason, format!("source.oci: {}: {error}{hint}", self.reference))
    }
}

/// The name of a layer that is a single file.
fn title(annotations: &HashMap<String, String>) -> Option<&str> {
    let folder = annotations.get(UNPACK).is_some_and(|value| value == "true");
    annotations.get(TITLE).filter(|_| !folder).map(String::as_str)
}
