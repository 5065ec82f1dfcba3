//! An image of an archive that may hold several.

use crate::reference::Reference;

/// An image found in an archive.
#[derive(Debug, Clone)]
pub(super) struct Found<T> {
    pub(super) image: T,
    /// Its names that are references.
    pub(super) names: Vec<Reference>,
    /// Its names as written.
    pub(super) labels: Vec<String>,
    id: String,
}

impl<T> Found<T> {
    pub(super) fn new(image: T, id: String) -> Self {
        Self { image, names: Vec::new(), labels: Vec::new(), id }
    }

    /// What the archive knows it by: a digest, or the path of a config.
    pub(super) fn id(&self) -> &str {
        &self.id
    }

    pub(super) fn add(&mut self, name: Option<Reference>, label: Option<String>) {
        self.names.extend(name);
        self.labels.extend(label);
    }

    pub(super) fn is(&self, wanted: &str) -> bool {
        self.id == wanted
            || self.id.trim_start_matches("sha256:").trim_end_matches(".json") == wanted
            || self.labels.iter().any(|label| label == wanted)
            || wanted.parse().is_ok_and(|wanted: Reference| self.names.contains(&wanted))
    }

    /// What to call it in messages.
    pub(super) fn title(&self) -> String {
        crate::oci::short(self.labels.first().unwrap_or(&self.id))
    }
}
