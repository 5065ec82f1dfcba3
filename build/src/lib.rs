//! Building images with BuildKit: so far, which files of a context a build gets to see.

mod clean;
mod glob;
mod ignore_file;
mod patterns;

pub use clean::clean;
pub use ignore_file::{MAX_FILE, MAX_LINE, read_ignore_file};
pub use patterns::{Below, PatternError, Patterns};
