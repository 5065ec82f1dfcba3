//! What `spec.source` of an `ImageBuild` means: files on the host's side that a build may ask for, nothing of which
//! the build's machine has to fetch or to know a credential of.

mod archive;
mod claim;
mod dockerfile;
mod error;
mod files;
mod folder;
#[doc(hidden)]
pub mod fuzzing;
mod git;
mod hash;
mod http;
mod inputs;
mod limits;
mod oci;
mod trust;
mod upload;
mod watch;

use std::fs::File;
use std::path::Path;

use cloister_build::context::Context;
use cloister_crds::{BuildReason, BuildSource};

use crate::archive::Kind;
use crate::folder::Folder;
use crate::watch::{Watch, blocking};

pub use error::{Error, Result};
pub use inputs::Inputs;
pub use limits::Limits;

/// A source that is there.
#[derive(Debug)]
pub struct Prepared {
    /// Its files.
    pub context: Context,
    /// The Dockerfile by its name, and the ignore file that belongs to it.
    pub dockerfile: Vec<(String, Vec<u8>)>,
    /// What it turned out to be.
    pub facts: Facts,
}

/// What a name in the spec stood for.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Facts {
    /// The git commit.
    pub commit: Option<String>,
    /// Digest of the archive or the manifest.
    pub digest: Option<String>,
}

/// Makes a source's files ready to be asked for. `dockerfile` is the Dockerfile's path in it; below `work`, a folder of
/// this build alone, is what has to be kept on disk, until the caller removes it.
///
/// # Errors
/// What is wrong with the source, with its reason.
pub async fn prepare(
    source: &BuildSource,
    dockerfile: &str,
    inputs: &mut Inputs,
    work: &Path,
) -> Result<Prepared> {
    let watch = Watch::new(inputs.limits.time);
    let (context, facts) = files(source, dockerfile, inputs, work, &watch).await?;
    let path = dockerfile.to_owned();
    blocking(&watch, move || {
        let dockerfile = dockerfile::read(&context, &path)?;
        Ok(Prepared { context, dockerfile, facts })
    })
    .await
}

async fn files(
    source: &BuildSource,
    dockerfile: &str,
    inputs: &mut Inputs,
    work: &Path,
    watch: &Watch,
) -> Result<(Context, Facts)> {
    if let Some(inline) = &source.inline {
        return Ok((files::inline(inline, dockerfile)?, Facts::default()));
    }
    if let Some(map) = &source.config_map {
        return Ok((files::config_map(map, inputs)?, Facts::default()));
    }
    if let Some(claim) = &source.persistent_volume_claim {
        return Ok((claim::open(claim, inputs)?, Facts::default()));
    }
    let (limits, work, own) = (inputs.limits, work.to_owned(), watch.clone());
    if let Some(upload) = &source.upload {
        let digest = Some(upload.digest.clone());
        let archive = upload::receive(upload, inputs, &work, watch).await?;
        return blocking(watch, move || {
            let archive = upload::open(&archive)?;
            let facts = Facts { digest, ..Facts::default() };
            Ok((whole("source.upload", archive, None, &work, &limits, &own)?, facts))
        })
        .await;
    }
    if let Some(http) = &source.http {
        let (what, inner) = (format!("source.http: {}", http.url), http.subdir.clone());
        let facts = Facts { digest: Some(http.checksum.clone()), ..Facts::default() };
        let download = http::Download::new(http, inputs)?;
        return blocking(watch, move || {
            let archive = download.run(&work, &own)?;
            Ok((whole(&what, archive, inner.as_deref(), &work, &limits, &own)?, facts))
        })
        .await;
    }
    if let Some(oci) = &source.oci {
        let (what, inner) = (format!("source.oci: {}", oci.reference), oci.subdir.clone());
        let pull = oci::Pull::new(oci, inputs)?;
        return blocking(watch, move || {
            let fill = |folder: &mut Folder| pull.run(folder, &work, &own);
            let (context, digest) = filled(&what, inner.as_deref(), &work, &limits, fill)?;
            Ok((context, Facts { digest: Some(digest), ..Facts::default() }))
        })
        .await;
    }
    if let Some(git) = &source.git {
        let (what, inner) = (format!("source.git: {}", git.url), git.subdir.clone());
        let fetch = git::Fetch::new(git, inputs)?;
        return blocking(watch, move || {
            let fill = |folder: &mut Folder| fetch.run(folder, &work, &own);
            let (context, commit) = filled(&what, inner.as_deref(), &work, &limits, fill)?;
            Ok((context, Facts { commit: Some(commit), ..Facts::default() }))
        })
        .await;
    }
    Err(Error::new(BuildReason::InvalidSpec, "spec.source: none of its members is set"))
}

/// The files of one archive.
fn whole(
    what: &str,
    archive: File,
    inner: Option<&str>,
    work: &Path,
    limits: &Limits,
    watch: &Watch,
) -> Result<Context> {
    let tar = archive::plain(what, archive, work, limits, watch)?;
    let fill = |folder: &mut Folder| archive::unpack(&tar, Kind::Archive, folder, b"", watch);
    Ok(filled(what, inner, work, limits, fill)?.0)
}

/// A new folder below `work`, filled, and its folder `inner` as a context.
fn filled<T>(
    what: &str,
    inner: Option<&str>,
    work: &Path,
    limits: &Limits,
    fill: impl FnOnce(&mut Folder) -> Result<T>,
) -> Result<(Context, T)> {
    // Mode 0700: what is set-user-ID in there is of no use to anybody else.
    let made = tempfile::Builder::new().prefix("source-").tempdir_in(work);
    let path = made.map_err(|error| archive::local("making a folder", &error))?;
    let root = path.path().join("root");
    std::fs::create_dir(&root).map_err(|error| archive::local("making a folder", &error))?;
    let mut folder = Folder::new(what, &root, limits)?;
    let found = fill(&mut folder)?;
    folder.end()?;
    let context = claim::folder(what, &root, inner)?;
    // From here on it is the caller's, with all of `work`.
    let _ = path.keep();
    Ok((context, found))
}
