//! What the host may see of a microVM's image before containerd knows the container.
//!
//! While it generates a container's spec, a client of containerd mounts the container's root file system on the host to look
//! up users. For a microVM it gets a folder with just the two files it looks into, read by our own reader.

use std::path::Path;

use cloister_image::LayerFile;
use cloister_view::merged::{Merged, Node};
use cloister_view::reader::Image;

use crate::error::{Error, IoContext, Result};
use crate::snapshots::disk::{make_private_dir, remove_tree};

/// The files; containerd looks into no others.
const FILES: [&str; 2] = ["etc/passwd", "etc/group"];
/// Most bytes of such a file; what is larger is left out.
const MAX_BYTES: u64 = 4 << 20;
/// Symlinks followed for one path, as in the kernel.
const MAX_LINKS: usize = 40;
/// Names in one path, after links.
const MAX_STEPS: usize = 1024;

/// Makes `dir` with the account files of the image made of `layers` (lowest first), unless it is there. One caller at a time.
pub fn make(dir: &Path, layers: Vec<LayerFile>) -> Result<()> {
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

/// The content of the regular file at `path`, following symlinks inside the image; `None` if there is none.
fn read(merged: &Merged, path: &[u8]) -> Result<Option<Vec<u8>>> {
    let Some(node) = find(merged, path)? else { return Ok(None) };
    let size = node.meta().size;
    if !node.is_file() {
        return Ok(None);
    }
    if size > MAX_BYTES {
        tracing::warn!(path = %String::from_utf8_lossy(path), size, "account file too large; the image's user names are not known");
        return Ok(None);
    }
    let mut content = vec![0; usize::try_from(size).unwrap_or_default()];
    let read = merged.image(&node).read_at(&node.inode(), 0, &mut content)?;
    content.truncate(read);
    Ok(Some(content))
}

fn find(merged: &Merged, path: &[u8]) -> Result<Option<Node>> {
    let root = merged.root()?;
    // The folders from the root to where we are, for `..`.
    let mut way: Vec<Node> = vec![root];
    let mut ahead: Vec<Vec<u8>> = split(path);
    let (mut links, mut steps) = (0, 0);
    while let Some(name) = ahead.pop() {
        steps += 1;
        if steps > MAX_STEPS {
            return Err(too_long(path));
        }
        if name == b".." {
            if way.len() > 1 {
                way.pop();
            }
            continue;
        }
        let Some(folder) = way.last().filter(|node| node.is_dir()) else { return Ok(None) };
        let Some(node) = merged.lookup(folder, &name)? else { return Ok(None) };
        if node.is_symlink() {
            links += 1;
            if links > MAX_LINKS {
                return Err(too_long(path));
            }
            let target = merged.link_target(&node)?;
            if target.starts_with(b"/") {
                way.truncate(1);
            }
            ahead.extend(split(&target));
        } else {
            way.push(node);
        }
    }
    Ok(way.pop())
}

/// The names of a path, last first.
fn split(path: &[u8]) -> Vec<Vec<u8>> {
    let names = path.split(|byte| *byte == b'/').filter(|name| !matches!(*name, b"" | b"."));
    names.rev().map(<[u8]>::to_vec).collect()
}

fn too_long(path: &[u8]) -> Error {
    Error::Invalid(format!("{}: too many symlinks in the image", String::from_utf8_lossy(path)))
}
