//! The pipeline every source feeds: layers in parallel, each read once, checked, converted, published; the name last.

mod layers;
mod reader;

use std::collections::BTreeMap;

use cloister_layer::digest::Digest;
use oci_spec::image::{Descriptor, ImageManifest, ImageManifestBuilder, MediaType};

use crate::config::ParsedConfig;
use crate::error::{Error, Result};
use crate::limits::Limits;
use crate::oci::{BlobRef, OCI_CONFIG, OCI_LAYER, OCI_MANIFEST, Resolved};
use crate::platform::Platform;
use crate::progress::Progress;
use crate::reference::Reference;
use crate::store::{ImageRecord, LayerRecord, Store};

pub(crate) use layers::{LayerSource, LayerSpec};
pub(crate) use reader::Stop;

/// What an import is asked to do, whatever the source.
#[derive(Debug, Clone, Default)]
pub struct Options {
    /// Platform to take from an index; `None`: the host's.
    pub platform: Option<Platform>,
    /// Bounds.
    pub limits: Limits,
    /// Layers worked on at a time; `None`: one for each processor.
    pub threads: Option<usize>,
    /// Facts to keep with the names (see [`ImageRecord::build`]).
    pub build: BTreeMap<String, String>,
}

/// An image ready to be read.
#[derive(Debug)]
pub(crate) struct Plan {
    /// `None`: the source has no OCI manifest, and one is made from the config and the uncompressed layers.
    pub(crate) manifest: Option<(Vec<u8>, BlobRef)>,
    pub(crate) index: Option<Digest>,
    pub(crate) config_bytes: Vec<u8>,
    pub(crate) config_digest: Digest,
    pub(crate) config: ParsedConfig,
    /// Lowest first.
    pub(crate) layers: Vec<LayerSpec>,
}

impl From<Resolved> for Plan {
    fn from(image: Resolved) -> Self {
        let layers = image
            .layers
            .into_iter()
            .zip(&image.config.diff_ids)
            .map(|(blob, diff_id)| LayerSpec {
                diff_id: *diff_id,
                name: blob.digest.to_string(),
                size: Some(blob.size),
                blob: Some(blob),
            })
            .collect();
        Self {
            manifest: Some((image.manifest, image.reference)),
            index: image.index,
            config_bytes: image.config_bytes,
            config_digest: image.config_digest,
            config: image.config,
            layers,
        }
    }
}

/// Brings an image into the store under `names` and returns one record for each.
pub(crate) fn import(
    store: &Store,
    source: &dyn LayerSource,
    plan: Plan,
    names: &[Reference],
    options: &Options,
    progress: &dyn Progress,
) -> Result<Vec<ImageRecord>> {
    let host = Platform::host();
    if host.score(&plan.config.platform).is_none() {
        progress.message(&format!("the image is for {}, this machine is {host}", plan.config.platform));
    }
    let temp = store.temp()?;
    // Everything returned here is locked against pruning until the names are written.
    let done = layers::import_all(store, &temp, source, &plan.layers, options, progress)?;
    let (manifest, reference) = match plan.manifest {
        Some(given) => given,
        None => synthesize(&plan.config_bytes, &plan.config_digest, &done)?,
    };
    let _config = store.put_blob(&temp, &plan.config_digest, &plan.config_bytes)?;
    let _manifest = store.put_blob(&temp, &reference.digest, &manifest)?;
    let records: Vec<LayerRecord> = done.iter().map(|layer| layer.record.clone()).collect();
    let imported = jiff::Timestamp::now();
    let named: Vec<ImageRecord> = names
        .iter()
        .map(|name| ImageRecord {
            name: name.to_string(),
            manifest: reference.digest,
            media_type: reference.media_type.clone(),
            manifest_size: reference.size,
            config: plan.config_digest,
            index: plan.index,
            platform: plan.config.platform.clone(),
            created: plan.config.created,
            imported,
            compressed_size: reference.size
                + plan.config_bytes.len() as u64
                + records.iter().map(|layer| layer.blob_size).sum::<u64>(),
            unpacked_size: records.iter().map(|layer| layer.size).sum(),
            layers: records.clone(),
            build: options.build.clone(),
        })
        .collect();
    store.publish_names(&named)?;
    Ok(named)
}

/// Makes the manifest of an image that came without one. The same image always gets the same manifest: its layers are
/// the uncompressed tars, whatever compression the archive used.
fn synthesize(
    config: &[u8],
    config_digest: &Digest,
    layers: &[layers::Imported],
) -> Result<(Vec<u8>, BlobRef)> {
    let failed = |why: String| Error::invalid("manifest", why);
    let descriptor = |media_type: &str, size: u64, digest: &Digest| {
        let digest: oci_spec::image::Digest =
            digest.to_string().parse().map_err(|e: oci_spec::OciSpecError| failed(e.to_string()))?;
        Ok::<_, Error>(Descriptor::new(MediaType::from(media_type), size, digest))
    };
    let manifest: ImageManifest = ImageManifestBuilder::default()
        .schema_version(2_u32)
        .media_type(MediaType::ImageManifest)
        .config(descriptor(OCI_CONFIG, config.len() as u64, config_digest)?)
        .layers(
            layers
                .iter()
                .map(|layer| descriptor(OCI_LAYER, layer.record.blob_size, &layer.record.diff_id))
                .collect::<Result<Vec<_>>>()?,
        )
        .build()
        .map_err(|error| failed(error.to_string()))?;
    let json = serde_json::to_vec(&manifest).map_err(|error| failed(error.to_string()))?;
    let reference =
        BlobRef { digest: Digest::of(&json), size: json.len() as u64, media_type: OCI_MANIFEST.to_owned() };
    Ok((json, reference))
}
