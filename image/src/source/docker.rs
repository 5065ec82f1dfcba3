//! Archives of `docker save` (moby `image/spec/v1.2.md`, "Combined Image JSON + Filesystem Changeset Format").

use cloister_layer::digest::Digest;
use serde::Deserialize;

use super::files::Files;
use super::found::Found;
use crate::config::ParsedConfig;
use crate::error::{Error, Result};
use crate::import::{LayerSpec, Plan};
use crate::limits::Limits;
use crate::oci;
use crate::reference::Reference;

/// A docker archive in a set of files.
pub(super) struct DockerArchive<'a> {
    files: &'a dyn Files,
    limits: &'a Limits,
}

/// One image of the archive, as `manifest.json` lists it.
#[derive(Debug, Clone, Deserialize)]
#[serde(rename_all = "PascalCase")]
pub(super) struct DockerImage {
    config: String,
    #[serde(default)]
    repo_tags: Option<Vec<String>>,
    #[serde(default)]
    layers: Option<Vec<String>>,
}

impl<'a> DockerArchive<'a> {
    /// `None` when the files are not a docker archive.
    pub(super) fn open(files: &'a dyn Files, limits: &'a Limits) -> Result<Option<Self>> {
        if files.open("manifest.json")?.is_some() {
            return Ok(Some(Self { files, limits }));
        }
        if files.open("repositories")?.is_some() {
            return Err(Error::invalid(
                files.name(),
                "written by a docker older than 1.10 (no manifest.json); load and save it once with a current docker",
            ));
        }
        Ok(None)
    }

    /// The images of the archive, each with all its names.
    pub(super) fn images(&self) -> Result<Vec<Found<DockerImage>>> {
        let subject = || format!("{}: manifest.json", self.files.name());
        let list: Vec<DockerImage> =
            serde_json::from_slice(&self.files.read("manifest.json", self.limits.manifest)?)
                .map_err(|error| Error::invalid(subject(), error.to_string()))?;
        self.limits.index(subject(), list.len())?;
        Ok(list
            .into_iter()
            .map(|image| {
                let tags = image.repo_tags.clone().unwrap_or_default();
                let mut found = Found::new(image.clone(), image.config.clone());
                for tag in tags {
                    found.add(tag.parse::<Reference>().ok(), Some(tag));
                }
                found
            })
            .collect())
    }

    /// Reads the config and finds the layers.
    pub(super) fn plan(&self, image: &DockerImage) -> Result<Plan> {
        let subject = || format!("{}: image {}", self.files.name(), oci::short(&image.config));
        let paths = image.layers.as_deref().unwrap_or_default();
        if paths.len() > self.limits.layers {
            return Err(Error::Limit {
                subject: subject(),
                got: paths.len() as u64,
                limit: self.limits.layers as u64,
                unit: "layers",
            });
        }
        let config_bytes = self.files.read(&image.config, self.limits.config)?;
        let config_digest = Digest::of(&config_bytes);
        if let Some(named) = named_digest(&image.config) {
            oci::check_digest(&subject(), &named, &config_bytes)?;
        }
        let config = ParsedConfig::parse(&config_bytes, &config_digest)?;
        if config.platform.os != "linux" {
            return Err(Error::invalid(
                subject(),
                format!(
                    "an image for {}, only Linux images run here",
                    oci::short(&config.platform.to_string())
                ),
            ));
        }
        if config.diff_ids.len() != paths.len() {
            return Err(Error::invalid(
                subject(),
                format!("{} layers, but its config lists {} diff IDs", paths.len(), config.diff_ids.len()),
            ));
        }
        let layers = paths
            .iter()
            .zip(&config.diff_ids)
            .map(|(path, diff_id)| {
                let section = self.files.require(path)?;
                Ok(LayerSpec { diff_id: *diff_id, blob: None, size: Some(section.len()), name: path.clone() })
            })
            .collect::<Result<Vec<_>>>()?;
        oci::check_total(&subject(), layers.iter().filter_map(|layer| layer.size), self.limits.total_bytes)?;
        Ok(Plan { manifest: None, index: None, config_bytes, config_digest, config, layers })
    }
}

/// The digest in `HEX.json` and `blobs/sha256/HEX`, the two names a config has.
fn named_digest(path: &str) -> Option<Digest> {
    let hex = path.strip_suffix(".json").or_else(|| path.strip_prefix("blobs/sha256/"))?;
    format!("sha256:{hex}").parse().ok()
}
