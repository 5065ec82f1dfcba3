//! Holding what is in use.

use std::fs::File;
use std::time::SystemTime;

use super::{ImageRecord, LayerFile, Store};
use crate::config::ImageConfig;
use crate::error::{Error, Result};

/// Keeps an image's files from being pruned while it lives.
#[derive(Debug)]
pub struct Pin {
    layers: Vec<LayerFile>,
    _blobs: Vec<File>,
}

/// An image opened for use: its layers lowest first, pinned, and its configuration.
#[derive(Debug)]
pub struct Image {
    /// What the store knows about it.
    pub record: ImageRecord,
    /// How to run it.
    pub config: ImageConfig,
    pin: Pin,
}

impl Image {
    /// The layer file systems, lowest first.
    pub fn layer_files(&self) -> &[LayerFile] {
        &self.pin.layers
    }

    /// Gives up the configuration and keeps the files in use.
    pub fn into_pin(self) -> Pin {
        self.pin
    }
}

impl Pin {
    /// The layer file systems, lowest first.
    pub fn layer_files(&self) -> &[LayerFile] {
        &self.layers
    }
}

impl Store {
    /// Opens the image a user means (see [`Store::find`]) for running or exporting.
    pub fn open_image(&self, text: &str) -> Result<Image> {
        let record = self.find(text)?;
        let pin = match self.pin(&record) {
            Ok(pin) => pin,
            // Removed and pruned between our two looks: then the name is gone as well.
            Err(error) => {
                return Err(if self.find(text).is_err() {
                    Error::NoSuchImage(text.to_owned())
                } else {
                    error
                });
            }
        };
        let config = ImageConfig::parse(
            &self.read_blob(&record.config, crate::limits::Limits::default().config)?,
            &record.config,
        )?;
        Ok(Image { record, config, pin })
    }

    /// Keeps everything an image needs from being pruned. Hold it for as long as a VM uses the layers.
    pub fn pin(&self, record: &ImageRecord) -> Result<Pin> {
        let mut layers = Vec::with_capacity(record.layers.len());
        let mut blobs = Vec::new();
        for digest in [record.manifest, record.config] {
            let blob = self.open_blob(&digest)?.ok_or_else(|| Error::Damaged {
                path: self.blob_path(&digest),
                why: format!("{} needs this blob; pull or import it again", record.name),
            })?;
            // Use is what `prune` calls recent; a store of another owner is read all the same.
            let _ = blob.set_modified(SystemTime::now());
            blobs.push(blob);
        }
        for layer in &record.layers {
            layers.push(self.open_layer(&layer.diff_id)?.ok_or_else(|| Error::Damaged {
                path: self.layer_path(&layer.diff_id),
                why: format!("{} needs this layer; pull or import it again", record.name),
            })?);
        }
        Ok(Pin { layers, _blobs: blobs })
    }
}
