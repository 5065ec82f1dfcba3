//! A folder that `kubectl cloister build` uploads as an archive, through the pod's standard input. It is kept by its digest,
//! so that another attempt needs no other upload.

use std::fs;
use std::io::Write;
use std::path::{Path, PathBuf};
use std::time::Duration;

use cloister_crds::{BuildReason, UploadSource};
use cloister_image::Digest;
use tempfile::NamedTempFile;
use tokio::io::{AsyncRead, AsyncReadExt};
use tokio::time::timeout;

use crate::archive::local;
use crate::hash::Hashing;
use crate::watch::Watch;
use crate::{Error, Inputs, Result};

/// Bytes that are read at a time.
const CHUNK: usize = 64 << 10;
/// How long nothing may arrive.
const STALL: Duration = Duration::from_secs(300);

/// The file with the uploaded archive, which has the digest that the spec says.
pub(crate) async fn receive(
    source: &UploadSource,
    inputs: &mut Inputs,
    work: &Path,
    watch: &Watch,
) -> Result<PathBuf> {
    let invalid = |_| Error::new(BuildReason::InvalidSpec, "source.upload.digest is none");
    let wanted: Digest = source.digest.parse().map_err(invalid)?;
    let folder = inputs.uploads.clone().unwrap_or_else(|| work.to_owned());
    let kept = folder.join(format!("upload-{}", wanted.hex()));
    // It got this name when it was whole and had been checked.
    if kept.exists() {
        return Ok(kept);
    }
    let missing = "source.upload: nothing was uploaded: run `kubectl cloister build` again";
    let mut stream = inputs.upload.take().ok_or_else(|| Error::missing(missing))?;
    let file = NamedTempFile::new_in(&folder).map_err(|error| local("making a file", &error))?;
    let mut out = Hashing::new(file);
    let bytes = copy(&mut stream, &mut out, inputs.limits.packed, watch).await?;
    if bytes == 0 {
        return Err(Error::missing(missing));
    }
    let (file, digest) = out.end();
    if digest != wanted {
        let why = format!(
            "source.upload: {bytes} bytes arrived that are {digest}, source.upload.digest says {wanted}: \
             run `kubectl cloister build` again"
        );
        return Err(Error::new(BuildReason::SourceMismatch, why));
    }
    file.as_file().sync_all().map_err(|error| local("keeping the upload", &error))?;
    file.persist(&kept).map_err(|error| local("keeping the upload", &error.error))?;
    Ok(kept)
}

/// Opens what [`receive`] has kept.
pub(crate) fn open(path: &Path) -> Result<fs::File> {
    fs::File::open(path).map_err(|error| local("opening the upload", &error))
}

async fn copy(
    stream: &mut (impl AsyncRead + Unpin + ?Sized),
    out: &mut impl Write,
    limit: u64,
    watch: &Watch,
) -> Result<u64> {
    let mut buffer = vec![0; CHUNK];
    let mut total = 0;
    loop {
        let wait = watch.left()?.min(STALL);
        let length = timeout(wait, stream.read(&mut buffer))
            .await
            .map_err(|_| {
                Error::unavailable(format!("source.upload: nothing arrived for {} s", wait.as_secs()))
            })?
            .map_err(|error| Error::unavailable(format!("source.upload: {error}")))?;
        if length == 0 {
            return Ok(total);
        }
        total += length as u64;
        if total > limit {
            return Err(Error::invalid(format!("source.upload: more than {limit} bytes")));
        }
        out.write_all(&buffer[..length]).map_err(|error| local("writing the upload", &error))?;
    }
}
