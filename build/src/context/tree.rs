//! Where the files of a context come from.

use std::path::Path;

use super::Patterns;

/// A context that can't be offered to a build.
#[derive(Debug, thiserror::Error)]
pub enum ContextError {
    /// The folder can't be opened.
    #[error("opening the context {0}: {1}")]
    Open(String, std::io::Error),
    /// A file made of bytes has a name that isn't relative, clean and at most 4096 bytes.
    #[error("{0:?} is no name for a file of a context: {1}")]
    Name(String, &'static str),
}

/// A tree of files that a build may ask for by name. Cheap to clone.
#[derive(Clone, Debug)]
pub struct Context {}

impl Context {
    /// The folder `path`: held open from now on, and never left through a link.
    pub fn folder(_path: impl AsRef<Path>) -> Result<Self, ContextError> {
        Ok(Self {})
    }

    /// Files made of bytes: relative names with `/` between their parts; folders come from the names.
    pub fn inline(_files: impl IntoIterator<Item = (String, Vec<u8>)>) -> Result<Self, ContextError> {
        Ok(Self {})
    }

    /// The same without what `patterns` mean, whatever a build asks for.
    pub fn ignoring(self, _patterns: Patterns) -> Self {
        self
    }
}
