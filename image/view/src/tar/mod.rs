//! A merged tree as a tar archive.
//!
//! POSIX pax format: attributes as `SCHILY.xattr.*`, times to the nanosecond, owners of 32 bits, names of any length
//! and any bytes, hard links, and files with holes as GNU sparse 1.0. Directories come before what is in them, names
//! in byte order; equal trees give equal archives. The `tar` crate's builder can write neither sparse files nor most
//! of these records, so only its header type is used.
//!
//! Memory: the walk (see [`crate::merged`]), the path of every file with several names, and 256 KiB of buffer.

mod header;

use std::collections::HashMap;
use std::collections::hash_map::Entry as Slot;
use std::io::{BufWriter, Write};

use cloister_layer::erofs::format::{S_IFBLK, S_IFCHR, S_IFIFO, S_IFMT};
use tar::EntryType;

use crate::error::{Error, Result};
use crate::merged::{Limits, Merged, Node, NodeId, Walk};
use crate::reader::Run;
use header::Entry;

const BLOCK: u64 = 512;
const BUFFER: usize = 1 << 18;

/// What was written.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Summary {
    /// Entries in the archive.
    pub entries: u64,
    /// Sockets left out: tar has no type for them, and their owners make them anew.
    pub sockets: u64,
}

/// Writes `tree` as a tar archive to `out`.
///
/// # Errors
/// When a layer is damaged or passes `limits`, or a write fails.
pub fn write(out: impl Write, tree: &Merged, limits: Limits) -> Result<Summary> {
    let out = BufWriter::with_capacity(BUFFER, out);
    let mut writer = Writer { out, tree, links: HashMap::new(), summary: Summary::default() };
    let mut walk = Walk::new(tree, limits, ())?;
    while let Some(folder) = walk.next_folder() {
        let mut path = folder.path.join(b"");
        if path.is_empty() {
            path = b"./".to_vec();
        }
        writer.entry(&path, &walk.node(&folder)?, EntryType::Directory, b"")?;
        for child in walk.children(&folder)? {
            let child = child?;
            if child.node.is_dir() {
                walk.push(&folder, child, ())?;
            } else {
                writer.leaf(&mut walk, folder.path.join(&child.name), &child.node)?;
            }
        }
    }
    writer.put(&[0; 2 * BLOCK as usize])?;
    writer.out.flush().map_err(failed)?;
    Ok(writer.summary)
}

struct Writer<'a, W: Write> {
    out: BufWriter<W>,
    tree: &'a Merged,
    /// Path of the first name of files that may have more.
    links: HashMap<NodeId, Vec<u8>>,
    summary: Summary,
}

impl<W: Write> Writer<'_, W> {
    /// Writes anything but a directory.
    fn leaf(&mut self, walk: &mut Walk<'_, ()>, path: Vec<u8>, node: &Node) -> Result<()> {
        let kind = match node.meta().mode as u16 & S_IFMT {
            _ if node.is_file() => EntryType::Regular,
            _ if node.is_symlink() => EntryType::Symlink,
            S_IFCHR => EntryType::Char,
            S_IFBLK => EntryType::Block,
            S_IFIFO => EntryType::Fifo,
            _ => {
                self.summary.sockets += 1;
                return Ok(());
            }
        };
        if node.may_have_links() {
            match self.links.entry(node.id()) {
                Slot::Occupied(first) => {
                    let first = first.get().clone();
                    return self.entry(&path, node, EntryType::Link, &first);
                }
                Slot::Vacant(slot) => {
                    slot.insert(path.clone());
                }
            }
        }
        if node.is_file() {
            return self.file(walk, &path, node);
        }
        let target = if node.is_symlink() { self.tree.link_target(node)? } else { Vec::new() };
        self.entry(&path, node, kind, &target)
    }

    /// Writes an entry without contents.
    fn entry(&mut self, path: &[u8], node: &Node, kind: EntryType, link: &[u8]) -> Result<()> {
        self.header(path, node, kind, link, 0, None)
    }

    fn file(&mut self, walk: &mut Walk<'_, ()>, path: &[u8], node: &Node) -> Result<()> {
        let (mut data, mut holes) = (0u64, 0u64);
        for run in self.tree.runs(node) {
            let run = run?;
            *if run.source.is_some() { &mut data } else { &mut holes } += run.len;
        }
        walk.count_data(data)?;
        if holes == 0 {
            self.header(path, node, EntryType::Regular, b"", data, None)?;
        } else {
            let map = self.map_len(node)?;
            let sparse = Some(node.meta().size);
            self.header(path, node, EntryType::Regular, b"", map + data, sparse)?;
            self.map(node)?;
        }
        let mut buffer = vec![0; BUFFER.min(usize::try_from(data).unwrap_or(BUFFER))];
        for run in self.tree.runs(node) {
            let run = run?;
            if run.source.is_some() {
                self.copy(node, &run, &mut buffer)?;
            }
        }
        self.pad(data)
    }

    fn header(
        &mut self,
        path: &[u8],
        node: &Node,
        kind: EntryType,
        link: &[u8],
        stored: u64,
        sparse: Option<u64>,
    ) -> Result<()> {
        // Attributes of a link are those of the first name.
        let xattrs = if kind == EntryType::Link { Vec::new() } else { self.tree.xattrs(node)? };
        let entry = Entry { path, kind, meta: node.meta(), xattrs: &xattrs, link, stored, sparse };
        self.summary.entries += 1;
        self.put(&entry.encode())
    }

    /// Calls `each` with the lines of the sparse map: the number of segments, then offset and length of each. The last
    /// is empty and stands at the end of the file.
    fn map_lines(&self, node: &Node, mut each: impl FnMut(u64) -> Result<()>) -> Result<()> {
        let mut count = 1;
        for run in self.tree.runs(node) {
            count += u64::from(run?.source.is_some());
        }
        each(count)?;
        for run in self.tree.runs(node) {
            let run = run?;
            if run.source.is_some() {
                each(run.offset)?;
                each(run.len)?;
            }
        }
        each(node.meta().size)?;
        each(0)
    }

    fn map_len(&self, node: &Node) -> Result<u64> {
        let mut length = 0;
        self.map_lines(node, |number| {
            length += u64::from(number.checked_ilog10().unwrap_or(0)) + 2;
            Ok(())
        })?;
        Ok(length.next_multiple_of(BLOCK))
    }

    fn map(&mut self, node: &Node) -> Result<()> {
        // At most 20 digits per number; the map of our own files has at most 2¹⁷ numbers.
        let mut lines = Vec::new();
        self.map_lines(node, |number| {
            lines.extend_from_slice(number.to_string().as_bytes());
            lines.push(b'\n');
            Ok(())
        })?;
        let length = lines.len() as u64;
        self.put(&lines)?;
        self.pad(length)
    }

    fn copy(&mut self, node: &Node, run: &Run, buffer: &mut [u8]) -> Result<()> {
        let mut done = 0;
        while done < run.len {
            let now = (run.len - done).min(buffer.len() as u64) as usize;
            self.tree.image(node).read_run(run, done, &mut buffer[..now])?;
            self.put(&buffer[..now])?;
            done += now as u64;
        }
        Ok(())
    }

    fn pad(&mut self, written: u64) -> Result<()> {
        let pad = written.next_multiple_of(BLOCK) - written;
        self.put(&[0; BLOCK as usize][..pad as usize])
    }

    fn put(&mut self, bytes: &[u8]) -> Result<()> {
        self.out.write_all(bytes).map_err(failed)
    }
}

fn failed(e: std::io::Error) -> Error {
    Error::io("write the tar archive", e)
}
