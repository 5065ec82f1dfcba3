//! Small images made on the spot, and the files they come in.
#![allow(dead_code)]

use std::collections::BTreeMap;
use std::io::Write;
use std::path::Path;

use cloister_image::source::{Input, Request};
use cloister_image::{Digest, ImageRecord, Result, Silent, Store};
use serde_json::{Value, json};

pub const OCI_MANIFEST: &str = "application/vnd.oci.image.manifest.v1+json";
pub const OCI_INDEX: &str = "application/vnd.oci.image.index.v1+json";
pub const OCI_CONFIG: &str = "application/vnd.oci.image.config.v1+json";
pub const TAR: &str = "application/vnd.oci.image.layer.v1.tar";
pub const TAR_GZIP: &str = "application/vnd.oci.image.layer.v1.tar+gzip";
pub const TAR_ZSTD: &str = "application/vnd.oci.image.layer.v1.tar+zstd";

/// A tar of regular files.
pub fn tar(files: &[(&str, &[u8])]) -> Vec<u8> {
    let mut builder = tar::Builder::new(Vec::new());
    for (name, content) in files {
        add(&mut builder, name, content);
    }
    builder.into_inner().unwrap()
}

pub fn add(builder: &mut tar::Builder<Vec<u8>>, name: &str, content: &[u8]) {
    let mut header = tar::Header::new_gnu();
    header.set_size(content.len() as u64);
    header.set_mode(0o644);
    header.set_mtime(1_700_000_000);
    builder.append_data(&mut header, name, content).unwrap();
}

pub fn gzip(bytes: &[u8]) -> Vec<u8> {
    let mut out = flate2::write::GzEncoder::new(Vec::new(), flate2::Compression::fast());
    out.write_all(bytes).unwrap();
    out.finish().unwrap()
}

pub fn zstd(bytes: &[u8]) -> Vec<u8> {
    zstd::encode_all(bytes, 1).unwrap()
}

/// Bytes that do not compress, the same for the same seed.
pub fn noise(len: usize, seed: u64) -> Vec<u8> {
    let mut state = seed * 2 + 1;
    (0..len)
        .map(|_| {
            state ^= state << 13;
            state ^= state >> 7;
            state ^= state << 17;
            (state >> 32) as u8
        })
        .collect()
}

pub fn descriptor(media_type: &str, bytes: &[u8]) -> Value {
    json!({"mediaType": media_type, "digest": Digest::of(bytes).to_string(), "size": bytes.len()})
}

/// One image: its blobs, and what is said about it.
#[derive(Clone)]
pub struct TestImage {
    pub blobs: BTreeMap<Digest, Vec<u8>>,
    pub config: Vec<u8>,
    pub manifest: Vec<u8>,
    /// Uncompressed, lowest first.
    pub tars: Vec<Vec<u8>>,
}

impl TestImage {
    /// From layers as (tar, media type); the media type decides the compression.
    pub fn new(architecture: &str, layers: &[(Vec<u8>, &str)]) -> Self {
        let mut blobs = BTreeMap::new();
        let mut put = |bytes: &[u8]| drop(blobs.insert(Digest::of(bytes), bytes.to_vec()));
        let diff_ids: Vec<String> = layers.iter().map(|(tar, _)| Digest::of(tar).to_string()).collect();
        let config = json!({
            "architecture": architecture, "os": "linux", "created": "2024-01-02T03:04:05Z",
            "config": {"Env": ["PATH=/bin"], "Entrypoint": ["/init"], "Labels": {"a": "b"}},
            "rootfs": {"type": "layers", "diff_ids": diff_ids},
        });
        let config = serde_json::to_vec(&config).unwrap();
        put(&config);
        let descriptors: Vec<Value> = layers
            .iter()
            .map(|(tar, media_type)| {
                let blob = match *media_type {
                    TAR_GZIP => gzip(tar),
                    TAR_ZSTD => zstd(tar),
                    _ => tar.clone(),
                };
                put(&blob);
                descriptor(media_type, &blob)
            })
            .collect();
        let manifest = json!({"schemaVersion": 2, "mediaType": OCI_MANIFEST, "config": descriptor(OCI_CONFIG, &config), "layers": descriptors});
        let manifest = serde_json::to_vec(&manifest).unwrap();
        put(&manifest);
        Self { blobs, config, manifest, tars: layers.iter().map(|(tar, _)| tar.clone()).collect() }
    }

    /// Two gzip layers, one zstd, one plain.
    pub fn usual() -> Self {
        Self::new(
            host_arch(),
            &[
                (tar(&[("bin/sh", b"#!"), ("etc/passwd", b"root:x:0:0::/:/bin/sh\n")]), TAR_GZIP),
                (tar(&[("etc/passwd", b"other\n"), ("data", &noise(300_000, 1))]), TAR_GZIP),
                (tar(&[("z", &noise(5000, 2))]), TAR_ZSTD),
                (tar(&[("p", b"plain")]), TAR),
            ],
        )
    }

    pub fn descriptor(&self) -> Value {
        descriptor(OCI_MANIFEST, &self.manifest)
    }

    pub fn digest(&self) -> Digest {
        Digest::of(&self.manifest)
    }
}

pub fn host_arch() -> &'static str {
    if cfg!(target_arch = "aarch64") { "arm64" } else { "amd64" }
}

/// With platform and name.
pub fn entry(image: &TestImage, name: Option<&str>, architecture: Option<&str>) -> Value {
    let mut entry = image.descriptor();
    if let Some(name) = name {
        entry["annotations"] = json!({"org.opencontainers.image.ref.name": name});
    }
    if let Some(architecture) = architecture {
        entry["platform"] = json!({"os": "linux", "architecture": architecture});
    }
    entry
}

/// The files of an OCI layout, by path.
pub fn layout(entries: &[Value], blobs: &[&BTreeMap<Digest, Vec<u8>>]) -> Vec<(String, Vec<u8>)> {
    let mut files = vec![("oci-layout".to_owned(), br#"{"imageLayoutVersion":"1.0.0"}"#.to_vec())];
    for (digest, bytes) in blobs.iter().flat_map(|blobs| blobs.iter()) {
        files.push((format!("blobs/sha256/{}", digest.hex()), bytes.clone()));
    }
    let index = json!({"schemaVersion": 2, "mediaType": OCI_INDEX, "manifests": entries});
    files.push(("index.json".to_owned(), serde_json::to_vec(&index).unwrap()));
    files
}

/// The files of a docker archive, by path; layers compressed by `pack`.
pub fn docker(images: &[(&TestImage, &[&str])], pack: impl Fn(&[u8]) -> Vec<u8>) -> Vec<(String, Vec<u8>)> {
    let mut files = BTreeMap::new();
    let mut list = Vec::new();
    for (image, tags) in images {
        let config = format!("{}.json", Digest::of(&image.config).hex());
        let layers: Vec<String> =
            image.tars.iter().map(|tar| format!("{}/layer.tar", Digest::of(tar).hex())).collect();
        for (path, tar) in layers.iter().zip(&image.tars) {
            files.insert(path.clone(), pack(tar));
        }
        list.push(json!({"Config": config, "RepoTags": tags, "Layers": layers}));
        files.insert(config, image.config.clone());
    }
    let mut files: Vec<_> = files.into_iter().collect();
    files.push(("manifest.json".to_owned(), serde_json::to_vec(&list).unwrap()));
    files
}

pub fn write_dir(dir: &Path, files: &[(String, Vec<u8>)]) {
    for (path, content) in files {
        let path = dir.join(path);
        std::fs::create_dir_all(path.parent().unwrap()).unwrap();
        std::fs::write(path, content).unwrap();
    }
}

pub fn archive(files: &[(String, Vec<u8>)]) -> Vec<u8> {
    let list: Vec<(&str, &[u8])> =
        files.iter().map(|(path, content)| (path.as_str(), content.as_slice())).collect();
    tar(&list)
}

pub fn named(name: &str) -> Request {
    Request { name: Some(name.parse().unwrap()), ..Request::default() }
}

pub fn import_bytes(store: &Store, bytes: &[u8], request: &Request) -> Result<Vec<ImageRecord>> {
    let input = Input::Stream(Box::new(std::io::Cursor::new(bytes.to_vec())), "test input".to_owned());
    cloister_image::source::archive::import(store, input, request, &Silent)
}

pub fn import_path(store: &Store, path: &Path, request: &Request) -> Result<Vec<ImageRecord>> {
    cloister_image::source::archive::import(store, Input::Path(path.to_owned()), request, &Silent)
}

/// Everything in the store that a user can see or that takes room, by path.
pub fn contents(store: &Store) -> Vec<String> {
    let mut out = Vec::new();
    let mut todo = vec![store.root().to_owned()];
    while let Some(dir) = todo.pop() {
        for entry in std::fs::read_dir(dir).unwrap() {
            let entry = entry.unwrap();
            if entry.file_type().unwrap().is_dir() {
                todo.push(entry.path());
            } else {
                out.push(entry.path().strip_prefix(store.root()).unwrap().display().to_string());
            }
        }
    }
    out.retain(|path| !path.starts_with("locks/tmp"));
    out.sort();
    out
}
