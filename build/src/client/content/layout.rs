//! A folder in the form of an OCI image layout that a build reads and writes: caches, and results blob by blob.
//!
//! ```text
//! ROOT/oci-layout, ROOT/index.json   what is in it by name; written when a build has succeeded
//! ROOT/blobs/sha256/HEX              complete and checked
//! ROOT/ingest/…                      on their way; nameless for everybody else
//! ```

use std::fs::{self, File};
use std::io::{self, Read, Write};
use std::path::{Path, PathBuf};
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Arc, Mutex, PoisonError};

use cloister_image::export::Blob;
use cloister_image::source::registry::Blobs;
use cloister_image::{Digest, Whole};
use serde_json::{Value, json};
use tonic::Status;

use super::offer::Offer;
use super::write::failed;
use crate::client::error::{Error, Result};
use crate::client::solved::Descriptor;
use crate::output::OutputError;

/// Longest index, in bytes.
const MAX_INDEX: u64 = 4 << 20;
const TAG: &str = "org.opencontainers.image.ref.name";

/// A folder of blobs. Clones share its bound.
#[derive(Debug, Clone)]
pub struct Layout {
    root: PathBuf,
    /// Bytes that may still be written.
    room: Arc<AtomicU64>,
    limit: u64,
    /// Why something was not taken, the first time.
    refused: Arc<Mutex<Option<OutputError>>>,
    /// What need not be written, as it is there already.
    beside: Vec<Offer>,
    /// The blob that was written last, or would have been had it not been there.
    newest: Arc<Mutex<Option<Digest>>>,
}

impl Layout {
    /// Opens the folder, made when it is not there. At most `room` bytes are written to it, all builds together.
    pub fn open(root: impl Into<PathBuf>, room: u64) -> Result<Self> {
        let root = root.into();
        let ingest = root.join("ingest");
        let blobs = root.join("blobs/sha256");
        let made = fs::create_dir_all(&blobs).and_then(|()| fs::create_dir_all(&ingest));
        made.map_err(|error| Error::io(format!("make the folder {}", root.display()), error))?;
        Ok(Self {
            root,
            room: Arc::new(AtomicU64::new(room)),
            limit: room,
            refused: Arc::default(),
            beside: Vec::new(),
            newest: Arc::default(),
        })
    }

    /// With the blobs of `offers` as if they were in the folder: a build that was offered them does not send them back.
    #[must_use]
    pub fn beside(mut self, offers: impl IntoIterator<Item = Offer>) -> Self {
        self.beside.extend(offers);
        self
    }

    /// The manifest with this name.
    pub fn find(&self, name: &str) -> Result<Option<Digest>> {
        let index = self.index()?;
        let named = |entry: &&Value| entry["annotations"][TAG] == name;
        let found = index["manifests"].as_array().and_then(|list| list.iter().find(named));
        Ok(found.and_then(|entry| entry["digest"].as_str()).and_then(|digest| digest.parse().ok()))
    }

    /// Gives a manifest in the folder a name, in place of the one that had it.
    pub fn name(&self, name: &str, manifest: &Descriptor) -> Result<()> {
        let has = self.blob(&manifest.digest).map_err(|error| self.error("read", error))?.is_some();
        if !has {
            return Err(Error::Answer(format!(
                "{} was not written to {}",
                manifest.digest,
                self.root.display()
            )));
        }
        let mut index = self.index()?;
        let mut list = index["manifests"].as_array().cloned().unwrap_or_default();
        list.retain(|entry| entry["annotations"][TAG] != name);
        list.push(json!({
            "mediaType": manifest.media_type, "digest": manifest.digest, "size": manifest.size,
            "annotations": {TAG: name},
        }));
        index["manifests"] = Value::Array(list);
        self.replace("oci-layout", br#"{"imageLayoutVersion":"1.0.0"}"#)?;
        self.replace("index.json", index.to_string().as_bytes())
    }

    /// The cache that was written since this was opened, if one was: its manifest comes after all that it names.
    ///
    /// # Errors
    /// When the manifest can't be read, or is of another kind, or something of what it names is not there.
    pub fn cache(&self) -> Result<Option<Whole>> {
        let newest = *self.newest.lock().unwrap_or_else(PoisonError::into_inner);
        let Some(newest) = newest else { return Ok(None) };
        let mut text = Vec::new();
        let read =
            File::open(self.path(&newest)).and_then(|file| file.take(MAX_INDEX).read_to_end(&mut text));
        read.map_err(|error| self.error("read the cache in", error))?;
        let whole = cloister_image::source::registry::cache(&text)
            .map_err(|error| Error::Answer(format!("the exported cache: {error}")))?;
        self.check(&whole)?;
        Ok(Some(whole))
    }

    /// Makes sure that every blob of `whole` is here.
    ///
    /// # Errors
    /// When one is not, or has another size than it should have.
    pub fn check(&self, whole: &Whole) -> Result<()> {
        for (digest, size) in &whole.blobs {
            let blob = self.blob(digest).map_err(|error| self.error("read", error))?;
            if blob.is_none_or(|blob| blob.size() != *size) {
                return Err(Error::Answer(format!("blob {digest} of {size} bytes was not sent")));
            }
        }
        Ok(())
    }

    pub(super) fn wrote(&self, digest: Digest) {
        *self.newest.lock().unwrap_or_else(PoisonError::into_inner) = Some(digest);
    }

    fn index(&self) -> Result<Value> {
        let path = self.root.join("index.json");
        let mut text = Vec::new();
        match File::open(&path).and_then(|file| file.take(MAX_INDEX).read_to_end(&mut text)) {
            Ok(_) => serde_json::from_slice(&text).map_err(|error| {
                Error::invalid(path.display().to_string(), format!("not an index: {error}"))
            }),
            Err(error) if error.kind() == io::ErrorKind::NotFound => Ok(json!({"schemaVersion": 2})),
            Err(error) => Err(self.error("read the index of", error)),
        }
    }

    fn replace(&self, name: &str, content: &[u8]) -> Result<()> {
        let work = || {
            let mut file = tempfile::NamedTempFile::new_in(self.ingest())?;
            file.write_all(content)?;
            file.as_file().sync_all()?;
            file.persist(self.root.join(name)).map(drop).map_err(io::Error::from)
        };
        work().map_err(|error| self.error("write the index of", error))
    }

    fn error(&self, what: &str, error: io::Error) -> Error {
        Error::io(format!("{what} {}", self.root.display()), error)
    }

    pub(super) fn ingest(&self) -> PathBuf {
        self.root.join("ingest")
    }

    pub(super) fn path(&self, digest: &Digest) -> PathBuf {
        self.root.join("blobs/sha256").join(digest.hex())
    }

    pub(super) fn blob(&self, digest: &Digest) -> io::Result<Option<Arc<Blob>>> {
        if let Some(blob) = self.beside.iter().find_map(|offer| offer.blob(digest)) {
            return Ok(Some(blob));
        }
        match open(&self.path(digest)) {
            Ok(blob) => Ok(Some(Arc::new(blob))),
            Err(error) if error.kind() == io::ErrorKind::NotFound => Ok(None),
            Err(error) => Err(error),
        }
    }

    /// Takes some of the room there is; `false` when that is too little.
    pub(super) fn take(&self, bytes: u64) -> bool {
        let took = self
            .room
            .fetch_update(Ordering::Relaxed, Ordering::Relaxed, |room| room.checked_sub(bytes))
            .is_ok();
        if !took {
            self.refuse(OutputError::TooLarge(self.limit));
        }
        took
    }

    /// Why something was not taken, if it was for our sake; told once.
    pub(crate) fn refused(&self) -> Option<OutputError> {
        self.refused.lock().unwrap_or_else(PoisonError::into_inner).take()
    }

    fn refuse(&self, why: OutputError) {
        self.refused.lock().unwrap_or_else(PoisonError::into_inner).get_or_insert(why);
    }

    /// A blob could not be written, for this reason of the disk's.
    pub(super) fn failed(&self, error: io::Error) -> Status {
        let status = failed(&error);
        self.refuse(OutputError::Write(self.root.display().to_string(), error));
        status
    }

    /// Gives back what was taken.
    pub(super) fn give(&self, bytes: u64) {
        self.room.fetch_add(bytes, Ordering::Relaxed);
    }
}

impl Blobs for Layout {
    fn open(&self, digest: &Digest) -> cloister_image::Result<Box<dyn Read + Send + '_>> {
        let failed = |source| cloister_image::Error::Io { what: "open", path: self.path(digest), source };
        let blob = self.blob(digest).map_err(failed)?;
        let blob = blob.ok_or_else(|| failed(io::ErrorKind::NotFound.into()))?;
        Ok(Box::new(Reader { blob, at: 0 }))
    }
}

struct Reader {
    blob: Arc<Blob>,
    at: u64,
}

impl Read for Reader {
    fn read(&mut self, buffer: &mut [u8]) -> io::Result<usize> {
        let n = self.blob.read_at(buffer, self.at)?;
        self.at += n as u64;
        Ok(n)
    }
}

fn open(path: &Path) -> io::Result<Blob> {
    let file = File::open(path)?;
    let len = file.metadata()?.len();
    Ok(Blob::part(file, 0, len))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn names_are_kept_in_the_index_and_point_at_what_is_there() {
        let dir = tempfile::tempdir().unwrap();
        let layout = Layout::open(dir.path(), 0).unwrap();
        let digest = Digest::of(b"{}");
        let manifest = Descriptor { media_type: "application/x".to_owned(), digest, size: 2 };
        assert_eq!(layout.find("latest").unwrap(), None);
        assert!(layout.name("latest", &manifest).is_err());
        std::fs::write(layout.path(&digest), b"{}").unwrap();
        layout.name("latest", &manifest).unwrap();
        layout.name("latest", &manifest).unwrap();
        layout.name("other", &manifest).unwrap();
        assert_eq!(layout.find("latest").unwrap(), Some(digest));
        assert_eq!(layout.index().unwrap()["manifests"].as_array().unwrap().len(), 2);
    }
}
