//! What BuildKit asks of the side that has the files: folders named by the build, filtered by the patterns it sends,
//! one entry after the other, and the bytes of the files it lacks.

mod clean;
mod glob;
mod ignore_file;
mod patterns;
mod service;
mod tree;

pub use clean::clean;
pub use ignore_file::{MAX_FILE, MAX_LINE, read_ignore_file};
pub use patterns::{Below, PatternError, Patterns};
pub use service::FileSyncService;
pub use tree::{Context, ContextError};
