//! What can go wrong with a builder, one line each.

use std::io;
use std::path::PathBuf;
use std::time::Duration;

/// The result of an operation on a builder.
pub type Result<T, E = Error> = std::result::Result<T, E>;

/// A failure of a builder.
#[derive(Debug, thiserror::Error)]
pub enum Error {
    /// The machine, or its agent.
    #[error("the builder: {0}")]
    Sandbox(#[from] cloister_sandbox::Error),
    /// buildkitd did not listen in time, or ended before.
    #[error("buildkitd did not come up: {cause}; its log ends with: {}", if .log.is_empty() { "nothing" } else { .log })]
    NotReady {
        /// What happened.
        cause: String,
        /// The last it wrote, on one printable line.
        log: String,
    },
    /// The builder image.
    #[error("the builder image: {0}")]
    Image(#[from] cloister_image::Error),
    /// A builder image that is none.
    #[error("the builder image {}: {why}", .path.display())]
    NotAnImage {
        /// The archive.
        path: PathBuf,
        /// What is wrong with it.
        why: String,
    },
    /// buildkitd's configuration can't be written.
    #[error("cannot write buildkitd's configuration: {0}")]
    Config(#[source] io::Error),
    /// A layer of the builder image can't be used.
    #[error("cannot use a layer of the builder image: {0}")]
    Layers(#[source] io::Error),
    /// A cache disk can't be made or used.
    #[error("the build cache: cannot {what} {}: {cause}", .path.display())]
    Cache {
        /// What was tried.
        what: &'static str,
        /// On which file.
        path: PathBuf,
        /// Why it failed.
        cause: io::Error,
    },
    /// A cache disk that can never be had here; the operator knows it by the first word.
    #[error(
        "CacheTooLarge: a build cache of {} MiB is more than the {} MiB of all on this machine: ask for less (spec.cache.size, --cache-size), or raise `size` or `disks` of [caches] in config.toml",
        .bytes.div_ceil(1 << 20), .most >> 20
    )]
    CacheTooLarge {
        /// Bytes that were asked for.
        bytes: u64,
        /// Bytes of all disks together.
        most: u64,
    },
    /// A cache disk that can't be had as long as others are in use.
    #[error(
        "no room for a build cache of {} MiB: the {disks} in use may take {} of {} MiB; try again when a build has ended, or raise `size` or `disks` of [caches] in config.toml",
        .bytes.div_ceil(1 << 20), .taken >> 20, .most >> 20
    )]
    CachesInUse {
        /// Disks in use.
        disks: u64,
        /// Bytes they may take.
        taken: u64,
        /// Bytes of all disks together.
        most: u64,
        /// Bytes that were asked for.
        bytes: u64,
    },
    /// The disk with buildkitd's state is still mounted.
    #[error("buildkitd's disk was not unmounted within {} s", .0.as_secs())]
    Busy(Duration),
    /// The host could not write to the disk with buildkitd's state, or not read it.
    #[error("the disk under buildkitd failed: is there no room left on this machine?")]
    DiskFailed,
    /// A name that can't be a cache's.
    #[error(
        "{0:?} cannot name a build cache: use 1 to 127 letters, digits, '.', '_' or '-', not starting with '.'"
    )]
    CacheKey(String),
}
