//! What is kept of a snapshot.

use std::collections::BTreeMap;
use std::path::PathBuf;
use std::time::SystemTime;

use cloister_image::Digest;
use serde::{Deserialize, Serialize};

use crate::error::{Error, Result};

/// The label by which containerd says what a snapshot will be once it is committed: a chain ID.
pub const TARGET: &str = "containerd.io/snapshot.ref";

/// State of a snapshot, as containerd's `snapshots.Kind`.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum Kind {
    /// Read-only, for one user.
    View,
    /// Writable, for one user.
    Active,
    /// A layer with everything below it.
    Committed,
}

impl Kind {
    /// The name in filters.
    pub fn name(self) -> &'static str {
        match self {
            Self::View => "view",
            Self::Active => "active",
            Self::Committed => "committed",
        }
    }
}

/// Time since 1970.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
pub struct Time {
    /// Seconds.
    pub seconds: i64,
    /// Nanoseconds below 10⁹.
    pub nanos: i32,
}

impl Time {
    /// Now.
    pub fn now() -> Self {
        let since = SystemTime::now().duration_since(SystemTime::UNIX_EPOCH).unwrap_or_default();
        Self { seconds: since.as_secs().cast_signed(), nanos: since.subsec_nanos().cast_signed() }
    }
}

/// One snapshot.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Record {
    /// containerd's key, `NAMESPACE/NUMBER/KEY`.
    pub name: String,
    /// Name of the committed snapshot below; empty: none.
    #[serde(default)]
    pub parent: String,
    /// State.
    pub kind: Kind,
    /// When it was made.
    pub created: Time,
    /// When its labels last changed.
    pub updated: Time,
    /// containerd's labels.
    #[serde(default)]
    pub labels: BTreeMap<String, String>,
    /// Diff ID of its own layer: of a committed snapshot, or of one that is being unpacked and has its layer by now.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub layer: Option<Digest>,
    /// Of a committed snapshot: the chain ID of its own layer and all below.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub chain: Option<Digest>,
    /// The layers below are mounted on the host for it.
    #[serde(default)]
    pub host: bool,
}

/// What became of a request for a new snapshot.
#[derive(Debug, PartialEq, Eq)]
pub enum Made {
    /// It was made.
    New,
    /// What it was to become is there already, or was made at once from a layer in the store.
    Known,
}

/// A snapshot and where it is.
#[derive(Debug, Clone)]
pub struct Found {
    /// Its folder.
    pub dir: PathBuf,
    /// Its record.
    pub record: Record,
    /// Diff IDs of the committed layers it stands on (and is, if it is committed), lowest first.
    pub layers: Vec<Digest>,
    /// Chain ID of the committed snapshot it stands on.
    pub chain: Option<Digest>,
}

impl Record {
    /// The same with other labels: those named by `paths` (`labels` or `labels.KEY`), all if there are none.
    ///
    /// # Errors
    /// When another field is named.
    pub fn relabelled(&self, labels: BTreeMap<String, String>, paths: &[String]) -> Result<Self> {
        let mut record = Self { updated: Time::now(), ..self.clone() };
        if paths.is_empty() {
            record.labels = labels.clone();
        }
        for path in paths {
            if path == "labels" {
                record.labels = labels.clone();
            } else if let Some(key) = path.strip_prefix("labels.") {
                match labels.get(key) {
                    Some(value) => record.labels.insert(key.to_owned(), value.clone()),
                    None => record.labels.remove(key),
                };
            } else {
                return Err(Error::Invalid(format!("field {path} of a snapshot cannot be changed")));
            }
        }
        Ok(record)
    }

    /// The key as the client of containerd chose it.
    pub fn key(&self) -> &str {
        client_key(&self.name).1
    }

    /// Whether this is a layer that is being unpacked: clients use keys of a common form for them
    /// (`UnpackKeyFormat` in containerd's `snapshots` package).
    pub fn is_unpack(&self) -> bool {
        self.kind == Kind::Active && self.key().starts_with("extract-")
    }

    /// The chain ID that an unpacking client expects, from the label or the key.
    pub fn target(&self) -> Option<Digest> {
        let label = self.labels.get(TARGET).map(String::as_str);
        let text = label.or_else(|| self.is_unpack().then(|| self.key().rsplit(' ').next()).flatten())?;
        text.parse().ok()
    }
}

/// Splits `NAMESPACE/NUMBER/KEY`. Keys may contain slashes, namespaces not.
pub fn client_key(name: &str) -> (&str, &str) {
    let mut parts = name.splitn(3, '/');
    match (parts.next(), parts.next(), parts.next()) {
        (Some(namespace), Some(number), Some(key)) if number.bytes().all(|b| b.is_ascii_digit()) => {
            (namespace, key)
        }
        _ => ("", name),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_clients_key_is_what_follows_namespace_and_number() {
        assert_eq!(client_key("k8s.io/12/abc"), ("k8s.io", "abc"));
        assert_eq!(client_key("default/3//run/a/b"), ("default", "/run/a/b"));
        assert_eq!(client_key("default/3/extract-1-x sha256:00"), ("default", "extract-1-x sha256:00"));
        assert_eq!(client_key("plain"), ("", "plain"));
        assert_eq!(client_key("a/b/c"), ("", "a/b/c"));
    }
}
