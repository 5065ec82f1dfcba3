//! What to do with a build's result.

use std::collections::BTreeMap;

use bollard_buildkit_proto::moby::buildkit::v1::Exporter;

/// An exporter. Streams and trees arrive in the order of a session's outputs.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Output {
    kind: &'static str,
    attributes: BTreeMap<String, String>,
}

impl Output {
    fn new(kind: &'static str) -> Self {
        Self { kind, attributes: BTreeMap::new() }
    }

    /// An OCI archive as a stream.
    pub fn oci() -> Self {
        Self::new("oci")
    }

    /// An OCI image, blob by blob, into the store that the session provides by `content("export", …)`. Blobs that are
    /// there are not sent.
    pub fn oci_store() -> Self {
        Self::new("oci").with("tar", "false")
    }

    /// What `docker load` reads, as a stream.
    pub fn docker() -> Self {
        Self::new("docker")
    }

    /// The root filesystem as a stream in tar's form.
    pub fn tar() -> Self {
        Self::new("tar")
    }

    /// The root filesystem as a tree.
    pub fn local() -> Self {
        Self::new("local")
    }

    /// An image that the builder pushes to its registry.
    pub fn push() -> Self {
        Self::new("image").with("push", "true")
    }

    /// Under this name; several are told apart by commas.
    #[must_use]
    pub fn named(self, name: &str) -> Self {
        self.with("name", name)
    }

    /// With an annotation on the manifest.
    #[must_use]
    pub fn annotation(self, key: &str, value: &str) -> Self {
        self.with(&format!("annotation.{key}"), value)
    }

    /// With the files' times cut to the source date as well.
    #[must_use]
    pub fn rewrite_timestamps(self) -> Self {
        self.with("rewrite-timestamp", "true")
    }

    /// With any other of the exporter's attributes.
    #[must_use]
    pub fn with(mut self, key: &str, value: &str) -> Self {
        self.attributes.insert(key.to_owned(), value.to_owned());
        self
    }

    pub(super) fn exporter(&self) -> Exporter {
        Exporter { r#type: self.kind.to_owned(), attrs: self.attributes.clone().into_iter().collect() }
    }
}
