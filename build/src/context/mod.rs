//! What BuildKit asks of the side that has the files: folders named by the build, filtered by the patterns it sends,
//! one entry after the other, and the bytes of the files it lacks.

mod archive;
mod clean;
mod disk;
mod error;
mod filter;
mod follow;
mod glob;
mod ignore_file;
mod inline;
pub(crate) mod mode;
mod patterns;
mod request;
mod send;
mod service;
mod tree;
mod walk;

pub use archive::{Archived, archive};
pub use clean::clean;
pub use error::ContextError;
pub use ignore_file::{MAX_FILE, MAX_LINE, read_ignore_file};
pub use inline::InlineFile;
pub use patterns::{Below, PatternError, Patterns};
pub use service::FileSyncService;
pub use tree::Context;

/// Most entries of a folder tree that are looked at.
pub const MAX_ENTRIES: u32 = 1 << 21;
/// Most folders within each other; each needs a descriptor while it is read.
pub const MAX_DEPTH: usize = 200;
/// Bytes of all patterns and paths of one request, with 32 for each.
pub const MAX_PATTERNS: usize = 1 << 20;
/// Bytes of a request's metadata that a session's server has to take (`http2_max_header_list_size`), so that large
/// `.dockerignore` files work.
pub const MAX_METADATA: u32 = 4 << 20;
