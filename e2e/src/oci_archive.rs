//! OCI archives as a build exports them, whose every byte a test decides.

use std::fs::File;
use std::io::Write;
use std::path::Path;

use anyhow::Result;
use serde_json::{Value, json};

use crate::archive::{Layer, config, digest, raw_entry};

const MANIFEST: &str = "application/vnd.oci.image.manifest.v1+json";
const INDEX: &str = "application/vnd.oci.image.index.v1+json";
const CONFIG: &str = "application/vnd.oci.image.config.v1+json";
const LAYER: &str = "application/vnd.oci.image.layer.v1.tar";

/// An archive: files in the order in which they are written.
#[derive(Debug, Clone)]
pub struct OciArchive {
    /// Names and contents.
    pub files: Vec<(String, Vec<u8>)>,
    /// Digest of the manifest.
    pub digest: String,
    /// Digest of the config: the CRI's image ID.
    pub id: String,
}

impl OciArchive {
    /// An image of these layers. Blobs come before the index, as BuildKit writes them.
    pub fn new(layers: &[Layer]) -> OciArchive {
        Self::with_config(layers, &config(layers))
    }

    /// An image of these layers with a config of its own.
    pub fn with_config(layers: &[Layer], config: &str) -> OciArchive {
        let mut files: Vec<(String, Vec<u8>)> = Vec::new();
        let mut add = |media_type: &str, bytes: &[u8]| -> Value {
            let digest = digest(bytes);
            let path = blob_path(&digest);
            if !files.iter().any(|(known, _)| *known == path) {
                files.push((path, bytes.to_vec()));
            }
            json!({"mediaType": media_type, "digest": digest, "size": bytes.len()})
        };
        let blobs: Vec<Value> = layers
            .iter()
            .map(|layer| {
                let gzip = if layer.blob.starts_with(&[0x1f, 0x8b]) { "+gzip" } else { "" };
                add(&format!("{LAYER}{gzip}"), &layer.blob)
            })
            .collect();
        let config = add(CONFIG, config.as_bytes());
        let manifest = json!({"schemaVersion": 2, "mediaType": MANIFEST, "config": config, "layers": blobs});
        let top = add(MANIFEST, manifest.to_string().as_bytes());
        let index = json!({"schemaVersion": 2, "manifests": [top]});
        files.push(("index.json".to_owned(), index.to_string().into_bytes()));
        files.push(("oci-layout".to_owned(), br#"{"imageLayoutVersion":"1.0.0"}"#.to_vec()));
        let text = |value: &Value| value["digest"].as_str().unwrap_or_default().to_owned();
        OciArchive { digest: text(&top), id: text(&config), files }
    }

    /// The same image in an index, with a statement about it, as BuildKit exports one with provenance.
    pub fn with_attestation(mut self) -> OciArchive {
        let mut add = |media_type: &str, bytes: Vec<u8>| {
            let entry = json!({"mediaType": media_type, "digest": digest(&bytes), "size": bytes.len()});
            self.files.insert(0, (blob_path(&digest(&bytes)), bytes));
            entry
        };
        let statement = add("application/vnd.in-toto+json", br#"{"_type":"statement"}"#.to_vec());
        let config = add(CONFIG, br#"{"architecture":"unknown","os":"unknown"}"#.to_vec());
        let about =
            json!({"schemaVersion": 2, "mediaType": MANIFEST, "config": config, "layers": [statement]});
        let mut about = add(MANIFEST, about.to_string().into_bytes());
        about["annotations"] = json!({"vnd.docker.reference.type": "attestation-manifest",
            "vnd.docker.reference.digest": self.digest});
        about["platform"] = json!({"architecture": "unknown", "os": "unknown"});
        let path = blob_path(&self.digest);
        let size = self.files.iter().find(|(name, _)| *name == path).map_or(0, |(_, bytes)| bytes.len());
        let image = json!({"mediaType": MANIFEST, "digest": self.digest, "size": size,
            "platform": {"architecture": "amd64", "os": "linux"}});
        let index = json!({"schemaVersion": 2, "mediaType": INDEX, "manifests": [image, about]}).to_string();
        self.digest = digest(index.as_bytes());
        let top = json!({"mediaType": INDEX, "digest": self.digest, "size": index.len()});
        self.files.insert(0, (blob_path(&self.digest), index.into_bytes()));
        let list = json!({"schemaVersion": 2, "manifests": [top]}).to_string();
        *self.file("index.json") = list.into_bytes();
        self
    }

    /// The content of a file.
    ///
    /// # Panics
    /// When there is no such file.
    #[allow(clippy::panic, reason = "a mistake of the test")]
    pub fn file(&mut self, path: &str) -> &mut Vec<u8> {
        let found = self.files.iter_mut().find(|(name, _)| name == path);
        found.map_or_else(|| panic!("no {path}"), |(_, content)| content)
    }

    /// The archive as a tar.
    pub fn bytes(&self) -> Result<Vec<u8>> {
        let mut builder = tar::Builder::new(Vec::new());
        for (name, content) in &self.files {
            raw_entry(&mut builder, tar::EntryType::Regular, name.as_bytes(), b"", content)?;
        }
        Ok(builder.into_inner()?)
    }

    /// Writes it.
    pub fn write(&self, path: &Path) -> Result<()> {
        Ok(File::create(path)?.write_all(&self.bytes()?)?)
    }
}

/// Where a blob is in an archive.
pub fn blob_path(digest: &str) -> String {
    format!("blobs/sha256/{}", digest.trim_start_matches("sha256:"))
}
