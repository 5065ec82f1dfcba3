//! OCI image layouts (image-spec `image-layout.md`), as a folder or inside an archive.

use oci_spec::image::{Descriptor, ImageIndex};
use serde::Deserialize;

use super::files::{Files, blob_path};
use super::found::Found;
use crate::error::{Error, Result};
use crate::import::Plan;
use crate::limits::Limits;
use crate::oci::{self, BlobRef, Documents, Wish};
use crate::platform::Platform;
use crate::reference::Reference;

/// Annotations that carry a name: containerd's is a full reference, the OCI one may be just a tag.
const FULL_NAME: &str = "io.containerd.image.name";
const REF_NAME: &str = "org.opencontainers.image.ref.name";

/// An OCI layout in a set of files.
pub(super) struct Layout<'a> {
    files: &'a dyn Files,
    limits: &'a Limits,
}

/// One image of a layout: the descriptors that carry its names, one for each platform when they are not in an index.
#[derive(Debug, Clone)]
pub(super) struct LayoutImage {
    entries: Vec<Descriptor>,
}

impl<'a> Layout<'a> {
    /// `None` when the files are not an OCI layout.
    pub(super) fn open(files: &'a dyn Files, limits: &'a Limits) -> Result<Option<Self>> {
        #[derive(Deserialize)]
        #[serde(rename_all = "camelCase")]
        struct Marker {
            image_layout_version: String,
        }
        if files.open("oci-layout")?.is_none() || files.open("index.json")?.is_none() {
            return Ok(None);
        }
        let subject = || format!("{}: oci-layout", files.name());
        let marker: Marker = serde_json::from_slice(&files.read("oci-layout", 4096)?)
            .map_err(|error| Error::invalid(subject(), error.to_string()))?;
        if marker.image_layout_version != "1.0.0" {
            return Err(Error::invalid(
                subject(),
                format!("layout version {} is not 1.0.0", oci::short(&marker.image_layout_version)),
            ));
        }
        Ok(Some(Self { files, limits }))
    }

    /// The images of the layout, each with all its names.
    pub(super) fn images(&self) -> Result<Vec<Found<LayoutImage>>> {
        let subject = || format!("{}: index.json", self.files.name());
        let index: ImageIndex = serde_json::from_slice(&self.files.read("index.json", self.limits.manifest)?)
            .map_err(|error| Error::invalid(subject(), format!("not an image index: {error}")))?;
        self.limits.index(subject(), index.manifests().len())?;
        let mut images: Vec<Found<LayoutImage>> = Vec::new();
        for entry in index.manifests() {
            let annotations = entry.annotations().clone().unwrap_or_default();
            // What belongs to an image (attestations, signatures) is not one.
            if annotations.contains_key("vnd.docker.reference.type") {
                continue;
            }
            let label = annotations.get(FULL_NAME).or_else(|| annotations.get(REF_NAME)).cloned();
            // `latest` alone would parse, as docker.io/library/latest; it is a tag.
            let name = label
                .as_deref()
                .filter(|label| label.contains(['/', ':']))
                .and_then(|label| label.parse::<Reference>().ok());
            let same_digest = images
                .iter_mut()
                .find(|image| image.image.entries.iter().any(|known| known.digest() == entry.digest()));
            if let Some(image) = same_digest {
                image.add(name, label);
                continue;
            }
            // Several platforms of one image may stand side by side instead of in an index of their own.
            let same_name = images.iter_mut().find(|image| {
                entry.platform().is_some()
                    && image.image.entries.iter().all(|known| known.platform().is_some())
                    && image.labels == label.iter().cloned().collect::<Vec<_>>()
            });
            if let Some(image) = same_name {
                image.image.entries.push(entry.clone());
                continue;
            }
            let mut image =
                Found::new(LayoutImage { entries: vec![entry.clone()] }, entry.digest().to_string());
            image.add(name, label);
            images.push(image);
        }
        Ok(images)
    }

    /// Chooses the platform and reads manifest and config.
    pub(super) fn plan(&self, image: &LayoutImage, platform: Option<&Platform>) -> Result<Plan> {
        let wish = Wish { platform, limits: self.limits };
        let [single] = image.entries.as_slice() else { return self.plan_flat(image, wish) };
        Ok(oci::resolve(self, &BlobRef::of(single)?, None, wish)?.into())
    }

    fn plan_flat(&self, image: &LayoutImage, wish: Wish<'_>) -> Result<Plan> {
        let host = Platform::host();
        let wanted = wish.platform.unwrap_or(&host);
        let said = |entry: &Descriptor| {
            entry.platform().as_ref().map(|p| {
                Platform::new(
                    &p.os().to_string(),
                    &p.architecture().to_string(),
                    p.variant().as_deref().unwrap_or_default(),
                )
            })
        };
        let best = image
            .entries
            .iter()
            .filter_map(|entry| Some((said(entry).and_then(|said| wanted.score(&said))?, entry)))
            .max_by_key(|(score, _)| *score)
            .map(|(_, entry)| entry);
        let Some(best) = best else {
            let offered: Vec<String> = image
                .entries
                .iter()
                .filter_map(said)
                .map(|platform| oci::short(&platform.to_string()))
                .collect();
            return Err(Error::invalid(
                self.files.name(),
                format!("no image for {wanted}; offered: {}", offered.join(", ")),
            ));
        };
        Ok(oci::resolve(self, &BlobRef::of(best)?, None, wish)?.into())
    }
}

impl Documents for Layout<'_> {
    fn document(&self, blob: &BlobRef, limit: u64) -> Result<Vec<u8>> {
        self.files.read(&blob_path(&blob.digest), limit)
    }
}
