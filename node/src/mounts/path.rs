//! Paths inside an image.

use cloister_view::merged::{Merged, Node};

use crate::error::Result;

/// Symlinks followed for one path, as in the kernel.
const MAX_LINKS: usize = 40;
/// Names in one path, after links.
const MAX_STEPS: usize = 1024;

/// What is at `path`, following symlinks inside the image; `None` if there is nothing, or only a
/// chain of links without end.
pub fn find(merged: &Merged, path: &[u8]) -> Result<Option<Node>> {
    let root = merged.root()?;
    // The folders from the root to where we are, for `..`.
    let mut way: Vec<Node> = vec![root];
    let mut ahead: Vec<Vec<u8>> = split(path);
    let (mut links, mut steps) = (0, 0);
    while let Some(name) = ahead.pop() {
        steps += 1;
        if steps > MAX_STEPS {
            return Ok(None);
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
                return Ok(None);
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
pub fn split(path: &[u8]) -> Vec<Vec<u8>> {
    let names = path.split(|byte| *byte == b'/').filter(|name| !matches!(*name, b"" | b"."));
    names.rev().map(<[u8]>::to_vec).collect()
}
