//! An OCI archive on disk that somebody hostile has made: exactly one image, proven before any of it is used.

use std::fs::File;
use std::io::Read;

use cloister_layer::digest::{Digest, Hasher};
use oci_spec::image::ImageIndex;

use super::files::{Files, blob_path};
use super::registry::Blobs;
use super::tarfile::TarFile;
use crate::error::{Error, Result};
use crate::limits::Limits;
use crate::oci::{self, BlobRef};
use crate::tree::{Tree, Whole};

/// Bytes hashed at a time.
const PIECE: usize = 256 << 10;

/// What a build has made.
#[derive(Debug)]
pub struct Built {
    files: TarFile,
    whole: Whole,
}

impl Built {
    /// Reads the archive from its beginning to its end, and compares every digest.
    ///
    /// # Errors
    /// When it is not an archive of the image with this digest, or a part of it is missing or is not what it says.
    pub fn open(file: File, digest: &Digest) -> Result<Self> {
        let limits = Limits::default();
        let files = TarFile::scan(file, "the result", limits.archive_entries)?;
        let mut tree = Tree::new(top(&files, digest, &limits)?, limits)?;
        while let Some(wanted) = tree.wanted().cloned() {
            tree.supply(&files.read(&blob_path(&wanted.digest), wanted.size)?)?;
        }
        let whole = tree.finish()?;
        whole.blobs.iter().try_for_each(|(digest, size)| check(&files, digest, *size))?;
        Ok(Self { files, whole })
    }

    /// The image.
    pub fn whole(&self) -> &Whole {
        &self.whole
    }
}

impl Blobs for Built {
    fn open(&self, digest: &Digest) -> Result<Box<dyn Read + Send + '_>> {
        Ok(Box::new(self.files.require(&blob_path(digest))?))
    }
}

/// The image with this digest, as the archive's index has it.
fn top(files: &TarFile, digest: &Digest, limits: &Limits) -> Result<BlobRef> {
    let fail = |why: String| Error::invalid("the result's index.json", why);
    let text = files.read("index.json", limits.manifest)?;
    let index: ImageIndex = serde_json::from_slice(&text).map_err(|error| fail(error.to_string()))?;
    limits.index("the result's index.json", index.manifests().len())?;
    for entry in index.manifests() {
        let top = BlobRef::of(entry)?;
        if top.digest == *digest {
            return Ok(top);
        }
    }
    Err(fail(format!("there is no image {digest} in it")))
}

fn check(files: &TarFile, digest: &Digest, size: u64) -> Result<()> {
    let subject = || format!("blob {digest} of the result");
    let mut blob = files.require(&blob_path(digest))?;
    if blob.len() != size {
        let why = format!("it has {} bytes, its descriptor says {size}", blob.len());
        return Err(Error::invalid(subject(), why));
    }
    let (mut hasher, mut piece) = (Hasher::new(), vec![0; PIECE]);
    loop {
        match blob
            .read(&mut piece)
            .map_err(|error| Error::invalid(subject(), oci::short(&error.to_string())))?
        {
            0 => break,
            n => hasher.update(&piece[..n]),
        }
    }
    let got = hasher.finish();
    if got == *digest { Ok(()) } else { Err(Error::Digest { subject: subject(), got, expected: *digest }) }
}
