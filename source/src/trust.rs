//! Certificates that a build brings along.

use std::io::Write;
use std::path::Path;

use tempfile::NamedTempFile;

use crate::archive::local;
use crate::{Inputs, Result};

/// The bundle of `spec.caBundle`, in PEM.
#[derive(Debug)]
pub(crate) struct Trust(Option<Vec<u8>>);

impl Trust {
    pub(crate) fn new(inputs: &Inputs) -> Result<Self> {
        inputs.certificates().map(Self)
    }

    /// A file with it below `work`, as long as the result lives; `None` without a bundle.
    pub(crate) fn file(&self, work: &Path) -> Result<Option<NamedTempFile>> {
        let Some(pem) = &self.0 else { return Ok(None) };
        let made = NamedTempFile::new_in(work).and_then(|mut file| file.write_all(pem).map(|()| file));
        made.map(Some).map_err(|error| local("writing the certificates", &error))
    }

    pub(crate) fn pem(&self) -> Option<&[u8]> {
        self.0.as_deref()
    }
}
