//! A set of named files, wherever they are: a folder, or a tar archive.

use std::fs::File;
use std::io::{self, Read};
use std::os::unix::fs::FileExt;
use std::sync::Arc;

use cloister_layer::digest::Digest;

use crate::error::{Error, Result};
use crate::import::{LayerSource, LayerSpec, Stop};
use crate::progress::Progress;

/// Part of a file, read from its start without moving anyone's position.
#[derive(Debug, Clone)]
pub(crate) struct Section {
    file: Arc<File>,
    offset: u64,
    left: u64,
}

impl Section {
    pub(crate) fn new(file: Arc<File>, offset: u64, len: u64) -> Self {
        Self { file, offset, left: len }
    }

    /// Bytes not read yet.
    pub(crate) fn len(&self) -> u64 {
        self.left
    }
}

impl Read for Section {
    fn read(&mut self, buffer: &mut [u8]) -> io::Result<usize> {
        let want = usize::try_from(self.left).map_or(buffer.len(), |left| left.min(buffer.len()));
        let n = self.file.read_at(&mut buffer[..want], self.offset)?;
        if n == 0 && want > 0 {
            return Err(io::Error::new(
                io::ErrorKind::UnexpectedEof,
                "the file became shorter while it was read",
            ));
        }
        self.offset += n as u64;
        self.left -= n as u64;
        Ok(n)
    }
}

/// Regular files by relative path, such as `blobs/sha256/…`.
pub(crate) trait Files: Sync {
    /// `None` when there is no such file. Links never lead out of the set.
    fn open(&self, path: &str) -> Result<Option<Section>>;

    /// What to call the set in messages.
    fn name(&self) -> &str;

    /// A file that must be there.
    fn require(&self, path: &str) -> Result<Section> {
        self.open(path)?
            .ok_or_else(|| Error::invalid(self.name(), format!("there is no {}", crate::oci::short(path))))
    }

    /// Reads a small file whole.
    fn read(&self, path: &str, limit: u64) -> Result<Vec<u8>> {
        let mut section = self.require(path)?;
        let subject = || format!("{}: {}", self.name(), crate::oci::short(path));
        if section.len() > limit {
            return Err(Error::Limit { subject: subject(), got: section.len(), limit, unit: "bytes" });
        }
        let mut content = Vec::with_capacity(usize::try_from(section.len()).unwrap_or(0));
        section.read_to_end(&mut content).map_err(|error| Error::invalid(subject(), error.to_string()))?;
        Ok(content)
    }
}

/// Where a layout keeps a blob.
pub(super) fn blob_path(digest: &Digest) -> String {
    format!("blobs/sha256/{}", digest.hex())
}

/// The layers of an archive or layout: by digest where a manifest names one, else by the path that is the layer's name.
pub(super) struct FileLayers<'a>(pub(super) &'a dyn Files);

impl LayerSource for FileLayers<'_> {
    fn layer<'a>(
        &'a self,
        layer: &LayerSpec,
        _: &'a Stop,
        _: &'a dyn Progress,
    ) -> Result<Box<dyn Read + Send + 'a>> {
        let path = layer.blob.as_ref().map(|blob| blob_path(&blob.digest));
        Ok(Box::new(self.0.require(path.as_ref().unwrap_or(&layer.name))?))
    }
}
