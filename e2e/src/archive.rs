//! Small images made by hand: docker-archives whose every byte a test decides.

use std::fs::File;
use std::io::{self, Write};
use std::path::Path;

use anyhow::Result;
use sha2::{Digest, Sha256};

/// The `sha256:…` of some bytes.
pub fn digest(bytes: &[u8]) -> String {
    let hex: String = Sha256::digest(bytes).iter().map(|b| format!("{b:02x}")).collect();
    format!("sha256:{hex}")
}

/// One layer as it stands in the archive, with the diff ID its config claims.
pub struct Layer {
    /// The blob: a tar, compressed or not.
    pub blob: Vec<u8>,
    /// What the config says the tar's digest is.
    pub diff_id: String,
}

impl Layer {
    /// An uncompressed layer that tells the truth.
    pub fn plain(tar: Vec<u8>) -> Layer {
        Layer { diff_id: digest(&tar), blob: tar }
    }
}

/// A tar made of the entries that `fill` appends.
pub fn tar(fill: impl FnOnce(&mut tar::Builder<Vec<u8>>) -> io::Result<()>) -> Result<Vec<u8>> {
    let mut builder = tar::Builder::new(Vec::new());
    fill(&mut builder)?;
    Ok(builder.into_inner()?)
}

/// Appends an entry whose name is written as it is: absolute, with `..`, or anything else a writer would refuse.
pub fn raw_entry(
    builder: &mut tar::Builder<Vec<u8>>,
    kind: tar::EntryType,
    name: &[u8],
    link: &[u8],
    data: &[u8],
) -> io::Result<()> {
    let mut header = tar::Header::new_ustar();
    header.set_entry_type(kind);
    header.set_size(data.len() as u64);
    header.set_mode(0o644);
    header.set_uid(0);
    header.set_gid(0);
    header.set_mtime(0);
    let old = header.as_old_mut();
    old.name[..name.len()].copy_from_slice(name);
    old.linkname[..link.len()].copy_from_slice(link);
    header.set_cksum();
    builder.append(&header, data)
}

/// The image config for layers with these diff IDs.
pub fn config(layers: &[Layer]) -> String {
    let ids: Vec<String> = layers.iter().map(|l| format!("\"{}\"", l.diff_id)).collect();
    format!(
        r#"{{"architecture":"amd64","os":"linux","config":{{}},"rootfs":{{"type":"layers","diff_ids":[{}]}}}}"#,
        ids.join(",")
    )
}

/// Writes a docker-archive of these layers.
pub fn docker_archive(path: &Path, layers: &[Layer]) -> Result<()> {
    let config = config(layers);
    let config_name = format!("{}.json", digest(config.as_bytes()).trim_start_matches("sha256:"));
    let names: Vec<String> = (0..layers.len()).map(|i| format!("\"{i}.tar\"")).collect();
    let manifest = format!(
        r#"[{{"Config":"{config_name}","RepoTags":["test:latest"],"Layers":[{}]}}]"#,
        names.join(",")
    );
    let mut archive = tar::Builder::new(io::BufWriter::new(File::create(path)?));
    let mut add = |name: &str, bytes: &[u8]| -> io::Result<()> {
        let mut header = tar::Header::new_gnu();
        header.set_size(bytes.len() as u64);
        header.set_mode(0o644);
        archive.append_data(&mut header, name, bytes)
    };
    add("manifest.json", manifest.as_bytes())?;
    add(&config_name, config.as_bytes())?;
    for (index, layer) in layers.iter().enumerate() {
        add(&format!("{index}.tar"), &layer.blob)?;
    }
    archive.into_inner()?.flush()?;
    Ok(())
}
