//! Images out of the store: archives other tools load, or the whole file system a container sees.

mod archive;
mod blobs;
mod output;
mod view;
mod whole;

use std::str::FromStr;

use cloister_layer::digest::Digest;

use crate::error::{Error, Result};
use crate::store::{Image, Store};

pub use blobs::{Blob, Blobs, blobs, of_layers};
pub use output::Output;
pub use whole::{docker_archive, oci_archive};

/// What to write.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Format {
    /// The merged file system as EROFS.
    Erofs,
    /// The merged file system as ext4.
    Ext4,
    /// The merged file system as a tar.
    Tar,
    /// An OCI image layout in a tar; with the digests of the pull when the compressed blobs were kept.
    OciArchive,
    /// What `docker load` reads.
    DockerArchive,
}

impl Format {
    /// All of them, by the names users type.
    pub const NAMES: [(&'static str, Self); 5] = [
        ("erofs", Self::Erofs),
        ("ext4", Self::Ext4),
        ("tar", Self::Tar),
        ("oci-archive", Self::OciArchive),
        ("docker-archive", Self::DockerArchive),
    ];
}

impl FromStr for Format {
    type Err = Error;

    fn from_str(text: &str) -> Result<Self> {
        Self::NAMES.iter().find(|(name, _)| *name == text).map(|(_, format)| *format).ok_or_else(|| {
            let names: Vec<&str> = Self::NAMES.iter().map(|(name, _)| *name).collect();
            Error::invalid(crate::oci::short(text), format!("not a format; there are {}", names.join(", ")))
        })
    }
}

/// What was written.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Exported {
    /// Bytes.
    pub bytes: u64,
    /// For an OCI archive: digest of the manifest in it. It differs from the image's own when compressed layers were not kept.
    pub manifest: Option<Digest>,
}

/// Writes `image` to `output`. A file appears under its name only when it is complete.
pub fn export(store: &Store, image: &Image, format: Format, output: Output) -> Result<Exported> {
    match format {
        Format::OciArchive => {
            let contents = archive::oci(store, image)?;
            let bytes = output.stream(|out| archive::write(store, image, &contents.entries, out))?;
            Ok(Exported { bytes, manifest: contents.manifest })
        }
        Format::DockerArchive => {
            let contents = archive::docker(store, image)?;
            let bytes = output.stream(|out| archive::write(store, image, &contents.entries, out))?;
            Ok(Exported { bytes, manifest: None })
        }
        Format::Tar => {
            let merged = view::merge(image)?;
            let bytes = output.stream(|out| view::tar(image, &merged, out))?;
            Ok(Exported { bytes, manifest: None })
        }
        Format::Erofs | Format::Ext4 => {
            let merged = view::merge(image)?;
            let bytes = output.file(store, |file| match format {
                Format::Ext4 => view::ext4(image, &merged, file),
                _ => view::erofs(image, &merged, file),
            })?;
            Ok(Exported { bytes, manifest: None })
        }
    }
}
