//! Blobs by sha256.

use std::fs::File;
use std::io::{self, Read, Write};
use std::path::PathBuf;

use cloister_layer::digest::Digest;

use super::{LOCK_WAIT, NamedLock, Store, TempDir, lock, publish};
use crate::error::{Error, IoContext, Result};

/// A blob on its way into the store: a temporary file that only `publish` makes visible.
#[derive(Debug)]
pub struct BlobWriter {
    file: File,
    path: PathBuf,
}

impl BlobWriter {
    pub(crate) fn new(temp: &TempDir, name: &str) -> Result<Self> {
        let (file, path) = temp.file(name)?;
        Ok(Self { file, path })
    }

    /// Makes the blob visible and returns it open and locked against removal. The caller has checked its digest.
    pub(crate) fn publish(self, store: &Store, digest: &Digest) -> Result<File> {
        // Locked before it is visible, so that no prune can take it before a name is written.
        lock::shared(&self.file, "blob", &self.path, LOCK_WAIT)?;
        publish(&self.file, &self.path, &store.blob_path(digest))?;
        Ok(self.file)
    }
}

impl Write for BlobWriter {
    fn write(&mut self, bytes: &[u8]) -> io::Result<usize> {
        self.file.write(bytes)
    }

    fn flush(&mut self) -> io::Result<()> {
        Ok(())
    }
}

impl Store {
    /// Opens a blob and locks it against removal for as long as the file is open.
    pub fn open_blob(&self, digest: &Digest) -> Result<Option<File>> {
        open_pinned(&self.blob_path(digest))
    }

    /// Reads a whole small blob, such as a manifest or a config, and checks it again.
    pub fn read_blob(&self, digest: &Digest, limit: u64) -> Result<Vec<u8>> {
        let path = self.blob_path(digest);
        let Some(file) = self.open_blob(digest)? else {
            return Err(Error::Damaged {
                path,
                why: "the blob is missing; pull or import the image again".to_owned(),
            });
        };
        let mut content = Vec::new();
        file.take(limit + 1).read_to_end(&mut content).at("read", &path)?;
        if content.len() as u64 > limit || Digest::of(&content) != *digest {
            return Err(Error::Damaged {
                path,
                why: "the content no longer has its digest; pull or import the image again".to_owned(),
            });
        }
        Ok(content)
    }

    /// Stores a small blob whose digest was already checked, and returns it locked against removal.
    pub(crate) fn put_blob(&self, temp: &TempDir, digest: &Digest, content: &[u8]) -> Result<File> {
        // One at a time: of two files renamed to one name the first would be lost, and with it its owner's lock on it.
        let lock = self.lock_dir().join(format!("blob-{}", digest.hex()));
        let _lock = NamedLock::acquire(&lock, &format!("blob {digest}"), LOCK_WAIT)?;
        if let Some(file) = self.open_blob(digest)?
            && file.metadata().at("read", &self.blob_path(digest))?.len() == content.len() as u64
        {
            return Ok(file);
        }
        let mut blob = BlobWriter::new(temp, &format!("blob-{}", digest.hex()))?;
        blob.write_all(content).at("write", &blob.path)?;
        blob.publish(self, digest)
    }
}

/// Opens a published file with a shared lock; `None` when it is not there (any more).
pub(super) fn open_pinned(path: &std::path::Path) -> Result<Option<File>> {
    use std::os::unix::fs::MetadataExt;
    loop {
        let file = match File::open(path) {
            Ok(file) => file,
            Err(error) if error.kind() == io::ErrorKind::NotFound => return Ok(None),
            Err(error) => return Err(error).at("open", path),
        };
        lock::shared(&file, "file in the store", path, LOCK_WAIT)?;
        // A prune may have removed it between open and lock, and another import may have put it back.
        if file.metadata().at("read", path)?.nlink() > 0 {
            return Ok(Some(file));
        }
    }
}
