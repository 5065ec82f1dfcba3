//! A folder for one build, Secrets as kubelet shows them, and what `prepare` makes of a source.

use std::fs;
use std::path::{Path, PathBuf};

use cloister_crds::{BuildSource, KeyRef};
use cloister_image::source::registry::Reach;
use cloister_source::{Error, Inputs, Limits, Prepared, prepare};

/// Where a build's files and mounts are.
pub struct Site {
    dir: tempfile::TempDir,
    pub inputs: Inputs,
}

impl Site {
    pub fn new() -> Self {
        let dir = tempfile::tempdir().unwrap();
        fs::create_dir(dir.path().join("work")).unwrap();
        let reach = Reach::Anywhere;
        let limits = Limits { bytes: 64 << 20, packed: 64 << 20, reach, ..Limits::default() };
        Self { dir, inputs: Inputs { limits, ..Inputs::default() } }
    }

    pub fn work(&self) -> PathBuf {
        self.dir.path().join("work")
    }

    /// A mounted object: `secrets/NAME` or `config-maps/NAME`.
    pub fn mount(&mut self, place: &str, values: &[(&str, &str)]) {
        let folder = self.dir.path().join(place);
        fs::create_dir_all(&folder).unwrap();
        for (key, value) in values {
            fs::write(folder.join(key), value).unwrap();
        }
        self.inputs.mounts.insert(place.into(), folder);
    }

    /// Certificates to trust.
    pub fn trust(&mut self, ca: &Path) {
        self.mount("config-maps/trust", &[("ca.pem", &fs::read_to_string(ca).unwrap())]);
        self.inputs.ca_bundle = Some(KeyRef { name: "trust".into(), key: "ca.pem".into() });
    }

    pub async fn prepare(&mut self, source: &BuildSource) -> Result<Prepared, Error> {
        prepare(source, "Dockerfile", &mut self.inputs, &self.dir.path().join("work")).await
    }

    /// Where the files of the newest source are on disk.
    pub fn root(&self) -> PathBuf {
        let mut found: Vec<_> = fs::read_dir(self.work())
            .unwrap()
            .map(|entry| entry.unwrap().path())
            .filter(|path| path.file_name().unwrap().to_str().unwrap().starts_with("source-"))
            .collect();
        found.sort_by_key(|path| fs::metadata(path).unwrap().modified().unwrap());
        found.pop().unwrap().join("root")
    }

    /// What was left in the build's folder.
    pub fn left(&self) -> Vec<String> {
        let names = fs::read_dir(self.work()).unwrap();
        names.map(|entry| entry.unwrap().file_name().into_string().unwrap()).collect()
    }
}

/// One entry of a tar, written as it is said, whatever it means.
#[derive(Clone, Copy)]
pub struct Entry<'a> {
    pub path: &'a str,
    pub kind: tar::EntryType,
    pub link: &'a str,
    pub bytes: &'a [u8],
    pub mode: u32,
}

pub fn file<'a>(path: &'a str, bytes: &'a [u8]) -> Entry<'a> {
    Entry { path, kind: tar::EntryType::Regular, link: "", bytes, mode: 0o644 }
}

pub fn link<'a>(path: &'a str, link: &'a str) -> Entry<'a> {
    Entry { path, kind: tar::EntryType::Symlink, link, bytes: b"", mode: 0o777 }
}

/// A tar of these entries.
pub fn tar(entries: &[Entry<'_>]) -> Vec<u8> {
    let mut builder = tar::Builder::new(Vec::new());
    for entry in entries {
        let mut header = tar::Header::new_gnu();
        header.as_old_mut().name[..entry.path.len()].copy_from_slice(entry.path.as_bytes());
        header.as_old_mut().linkname[..entry.link.len()].copy_from_slice(entry.link.as_bytes());
        header.set_entry_type(entry.kind);
        header.set_size(entry.bytes.len() as u64);
        header.set_mode(entry.mode);
        header.set_mtime(1_700_000_000);
        if matches!(entry.kind, tar::EntryType::Char | tar::EntryType::Block) {
            header.set_device_major(1).unwrap();
            header.set_device_minor(3).unwrap();
        }
        header.set_cksum();
        builder.append(&header, entry.bytes).unwrap();
    }
    builder.into_inner().unwrap()
}

pub fn gzip(bytes: &[u8]) -> Vec<u8> {
    use std::io::Write;
    let mut encoder = flate2::write::GzEncoder::new(Vec::new(), flate2::Compression::fast());
    encoder.write_all(bytes).unwrap();
    encoder.finish().unwrap()
}

pub fn digest(bytes: &[u8]) -> String {
    cloister_image::Digest::of(bytes).to_string()
}
