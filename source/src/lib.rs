//! What `spec.source` of an `ImageBuild` means: files on the host's side that a build may ask for, nothing of which
//! the build's machine has to fetch or to know a credential of.

mod claim;
mod dockerfile;
mod error;
mod files;
mod inputs;
mod limits;

use std::path::Path;

use cloister_build::context::Context;
use cloister_crds::{BuildReason, BuildSource};

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
    inputs: &Inputs,
    _work: &Path,
) -> Result<Prepared> {
    let (context, facts) = if let Some(inline) = &source.inline {
        (files::inline(inline, dockerfile)?, Facts::default())
    } else if let Some(map) = &source.config_map {
        (files::config_map(map, inputs)?, Facts::default())
    } else if let Some(claim) = &source.persistent_volume_claim {
        (claim::open(claim, inputs)?, Facts::default())
    } else {
        return Err(Error::new(BuildReason::InvalidSpec, "spec.source: none of its members is set"));
    };
    let path = dockerfile.to_owned();
    blocking(move || {
        let dockerfile = dockerfile::read(&context, &path)?;
        Ok(Prepared { context, dockerfile, facts })
    })
    .await
}

/// Runs what blocks on a thread of its own.
async fn blocking<T: Send + 'static>(work: impl FnOnce() -> Result<T> + Send + 'static) -> Result<T> {
    let ended = tokio::task::spawn_blocking(work).await;
    ended.unwrap_or_else(|error| Err(Error::unavailable(format!("preparing the source: {error}"))))
}
