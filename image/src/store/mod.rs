//! The node-local image store.
//!
//! ```text
//! ROOT/oci-layout                    OCI image layout marker
//! ROOT/index.json                    names: one manifest descriptor each, with our record as an annotation
//! ROOT/blobs/sha256/HEX              manifests, configs and compressed layer blobs
//! ROOT/layers/vN/HEX.erofs           one file system per layer, named by diff ID; N is the converter's output version
//! ROOT/tmp/job-…/                    work in progress, one locked folder per live process
//! ROOT/locks/                        lock files
//! ROOT/holds/HEX/OWNER               layers that something besides names needs, such as a snapshot
//! ```
//!
//! Rules that hold at every moment, also after a kill or a full disk:
//! - A file under `blobs` or `layers` is complete and was checked against its name before it was renamed there.
//! - A name is written last, so it never points at something missing.
//! - Whoever uses a layer or a blob holds a shared lock on that very file; removing one needs the exclusive lock.
//! - Readers take no lock that a writer holds while it works: `index.json` is replaced by rename.
//!
//! Compressed layer blobs are kept unless [`Options::keep_blobs`] is off: they make an export or a push byte-equal to
//! what was pulled, at the price of roughly a third more disk. An uncompressed layer is never kept twice, because its
//! file system holds the tar verbatim; exports read it back from there.

mod blob;
mod hold;
mod index;
mod layer;
mod lock;
mod pin;
mod prune;
mod record;
mod temp;

use std::fs::File;
use std::io;
use std::path::{Path, PathBuf};
use std::time::Duration;

use cloister_layer::digest::Digest;

use crate::error::{Error, IoContext, Result};

pub use blob::BlobWriter;
pub use layer::LayerFile;
pub(crate) use lock::NamedLock;
pub use pin::{Image, Pin};
pub use prune::{PruneReport, Usage};
pub use record::{ImageRecord, LayerRecord};
pub(crate) use temp::TempDir;

/// Version of what the converter writes. A change of its output for the same tar needs a new one: files of other versions
/// are never used, and pruned.
const LAYER_FORMAT: u32 = 1;
/// How long a short critical section of another process may take before we give up.
const LOCK_WAIT: Duration = Duration::from_secs(30);
/// How long another process may convert one layer before we give up waiting for it.
const LAYER_WAIT: Duration = Duration::from_secs(3600);
const LAYOUT: &str = r#"{"imageLayoutVersion":"1.0.0"}"#;

/// Choices made when a store is opened.
#[derive(Debug, Clone, Copy)]
pub struct Options {
    /// Keep compressed layer blobs, so that an export has the digests of the pull. On by default.
    pub keep_blobs: bool,
}

impl Default for Options {
    fn default() -> Self {
        Self { keep_blobs: true }
    }
}

/// An image store in one folder. Cheap to open; any number of processes may have it open.
#[derive(Debug, Clone)]
pub struct Store {
    root: PathBuf,
    options: Options,
}

impl Store {
    /// Opens the store at `root`, making it if needed, and removes what killed processes left.
    pub fn open(root: impl Into<PathBuf>) -> Result<Self> {
        Self::open_with(root, Options::default())
    }

    /// Like [`Store::open`], with choices.
    pub fn open_with(root: impl Into<PathBuf>, options: Options) -> Result<Self> {
        let store = Self { root: root.into(), options };
        let marker = store.root.join("oci-layout");
        match std::fs::read_to_string(&marker) {
            Ok(text) => check_marker(&marker, &text)?,
            Err(error) if error.kind() == io::ErrorKind::NotFound => {}
            Err(error) => return Err(error).at("read", &marker),
        }
        for dir in [store.blob_dir(), store.layer_dir(), store.tmp_dir(), store.lock_dir()] {
            // Images may hold secrets: what we make is the owner's alone.
            use std::os::unix::fs::DirBuilderExt;
            std::fs::DirBuilder::new().recursive(true).mode(0o700).create(&dir).at("make", &dir)?;
        }
        if !marker.exists() {
            let _lock = store.index_lock()?;
            if !marker.exists() {
                index::create(&store)?;
                store.replace_file(&marker, LAYOUT.as_bytes())?;
            }
        }
        temp::clean(&store.tmp_dir(), &store.tmp_guard())?;
        lock::sweep(&store.lock_dir(), &store.tmp_guard())?;
        Ok(store)
    }

    /// The store's folder.
    pub fn root(&self) -> &Path {
        &self.root
    }

    /// Whether compressed layer blobs are kept.
    pub fn keeps_blobs(&self) -> bool {
        self.options.keep_blobs
    }

    fn blob_dir(&self) -> PathBuf {
        self.root.join("blobs/sha256")
    }

    /// The folder of layer file systems of this converter's output version.
    fn layer_dir(&self) -> PathBuf {
        self.root.join(format!("layers/v{}", LAYER_FORMAT))
    }

    fn tmp_dir(&self) -> PathBuf {
        self.root.join("tmp")
    }

    fn lock_dir(&self) -> PathBuf {
        self.root.join("locks")
    }

    fn hold_dir(&self) -> PathBuf {
        self.root.join("holds")
    }

    fn tmp_guard(&self) -> PathBuf {
        self.lock_dir().join("tmp")
    }

    fn index_path(&self) -> PathBuf {
        self.root.join("index.json")
    }

    fn blob_path(&self, digest: &Digest) -> PathBuf {
        self.blob_dir().join(digest.hex())
    }

    fn layer_path(&self, diff_id: &Digest) -> PathBuf {
        self.layer_dir().join(format!("{}.erofs", diff_id.hex()))
    }

    /// A private folder in the store's file system.
    pub(crate) fn temp(&self) -> Result<TempDir> {
        TempDir::new(&self.tmp_dir(), &self.tmp_guard())
    }

    fn index_lock(&self) -> Result<NamedLock> {
        NamedLock::acquire(&self.lock_dir().join("index"), "image names", LOCK_WAIT)
    }

    /// The right to make one layer. Whoever gets it looks again whether the layer exists by now.
    pub(crate) fn layer_lock(&self, diff_id: &Digest) -> Result<NamedLock> {
        let path = self.lock_dir().join(format!("layer-{}", diff_id.hex()));
        NamedLock::acquire(&path, &format!("layer {diff_id}"), LAYER_WAIT)
    }

    /// Replaces a small file of the store as one step.
    fn replace_file(&self, path: &Path, content: &[u8]) -> Result<()> {
        use std::io::Write;
        let temp = self.temp()?;
        let (mut file, temp_path) = temp.file("state")?;
        file.write_all(content).at("write", &temp_path)?;
        publish(&file, &temp_path, path)
    }
}

/// Makes a finished temporary file durable and visible under its final name.
fn publish(file: &File, from: &Path, to: &Path) -> Result<()> {
    file.sync_all().at("write to disk", from)?;
    std::fs::rename(from, to).at("publish", to)?;
    let dir = to.parent().unwrap_or(Path::new("/"));
    File::open(dir).and_then(|dir| dir.sync_all()).at("write to disk", dir)
}

fn check_marker(path: &Path, text: &str) -> Result<()> {
    #[derive(serde::Deserialize)]
    #[serde(rename_all = "camelCase")]
    struct Marker {
        image_layout_version: String,
    }
    match serde_json::from_str::<Marker>(text) {
        Ok(marker) if marker.image_layout_version == "1.0.0" => Ok(()),
        Ok(marker) => Err(Error::Damaged {
            path: path.to_owned(),
            why: format!(
                "layout version {} is not the 1.0.0 this program knows",
                marker.image_layout_version
            ),
        }),
        Err(error) => Err(Error::Damaged { path: path.to_owned(), why: error.to_string() }),
    }
}
