//! What the host may see of a microVM's image before containerd knows the container.
//!
//! While it generates a container's spec, a client of containerd mounts the container's root file system on the host to look
//! up users, and the CRI to copy what the image has in its volumes. For a microVM they get a folder with just the two files
//! and those folders, read by our own reader.

use std::path::Path;

use cloister_image::LayerFile;
use cloister_view::merged::Merged;
use cloister_view::reader::Image;

use super::{path, volumes};
use crate::error::{IoContext, Result};
use crate::snapshots::disk::{make_private_dir, remove_tree};

/// The files; containerd looks into no others.
const FILES: [&str; 2] = ["etc/passwd", "etc/group"];
/// Most bytes of such a file; what is larger is left out.
const MAX_BYTES: u64 = 4 << 20;

/// Makes `dir` with the account files of the image made of `layers` (lowest first) and with the contents of `volumes`, unless
/// it is there. One caller at a time.
pub fn make(dir: &Path, layers: Vec<LayerFile>, volumes: &[String]) -> Result<()> {
    if dir.exists() {
        return Ok(());
    }
    let new = dir.with_extension("new");
    remove_tree(&new)?;
    make_private_dir(&new.join("etc"))?;
    if !layers.is_empty() {
        let merged = merged(layers)?;
        for path in FILES {
            if let Some(content) = read(&merged, path.as_bytes())? {
                let to = new.join(path);
                std::fs::write(&to, content).at("write", &to)?;
            }
        }
        // After the files, which it leaves alone: it makes symlinks, which nothing here may follow.
        volumes::copy(&merged, volumes, &new);
    }
    std::fs::rename(&new, dir).at("publish", dir)
}

fn merged(layers: Vec<LayerFile>) -> Result<Merged> {
    let images: Vec<Image> = layers
        .into_iter()
        .map(|layer| Image::open(layer.file, layer.diff_id.to_string()))
        .collect::<Result<_, _>>()?;
    Ok(Merged::new(images)?)
}

/// The content of the regular file at `at`, following symlinks inside the image; `None` if there is none.
fn read(merged: &Merged, at: &[u8]) -> Result<Option<Vec<u8>>> {
    let Some(node) = path::find(merged, at)? else { return Ok(None) };
    let size = node.meta().size;
    if !node.is_file() {
        return Ok(None);
    }
    if size > MAX_BYTES {
        tracing::warn!(path = %String::from_utf8_lossy(at), size, "account file too large; the image's user names are not known");
        return Ok(None);
    }
    let mut content = vec![0; usize::try_from(size).unwrap_or_default()];
    let read = merged.image(&node).read_at(&node.inode(), 0, &mut content)?;
    content.truncate(read);
    Ok(Some(content))
}
