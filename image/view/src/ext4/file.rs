//! A file's contents: extents for its data, nothing for its holes.

use super::extent::ExtentTree;
use super::layout::BLOCK;
use super::output::Output;
use crate::error::{Error, Result};
use crate::reader::{Image, Run, Runs};

/// Blocks a file may have: logical block numbers have 32 bits, the last is reserved.
const MAX_BLOCKS: u64 = u32::MAX as u64 - 1;
/// Bytes copied at a time.
const BUFFER: usize = 1 << 18;

/// What became of a file.
pub(crate) struct Written {
    /// Root of the extent tree.
    pub root: [u8; 60],
    /// Blocks held, tree blocks included.
    pub blocks: u64,
    /// Bytes of contents copied, holes not counted.
    pub bytes: u64,
}

/// Blocks under construction: first logical block, first physical block, length.
struct Open {
    logical: u64,
    physical: u64,
    len: u64,
}

/// Copies the contents of a file of `size` bytes, given by `runs` of `image`.
///
/// # Errors
/// When the file is too big, the file system is full, or reading or writing fails.
pub(crate) fn write(out: &mut Output<'_>, image: &Image, runs: Runs<'_>, size: u64) -> Result<Written> {
    if size.div_ceil(BLOCK) > MAX_BLOCKS {
        return Err(Error::Invalid(format!("a file of {size} bytes is too big for ext4 (16 TiB)")));
    }
    let mut tree = ExtentTree::default();
    let mut open: Option<Open> = None;
    let (mut blocks, mut bytes) = (0, 0);
    for run in runs {
        let run = run?;
        if run.source.is_none() {
            continue;
        }
        bytes += run.len;
        let (first, end) = (run.offset / BLOCK, (run.offset + run.len).div_ceil(BLOCK));
        // Holes are as fine as 512 bytes, so runs may share a block or stand in adjacent ones.
        let current = match open.take() {
            Some(mut current) if first <= current.logical + current.len => {
                let more = end.saturating_sub(current.logical + current.len);
                out.allocate(more)?;
                current.len += more;
                blocks += more;
                current
            }
            done => {
                if let Some(done) = done {
                    tree.push(out, done.logical as u32, done.physical, done.len)?;
                }
                blocks += end - first;
                Open { logical: first, physical: out.allocate(end - first)?, len: end - first }
            }
        };
        copy(out, image, &run, current.physical * BLOCK + (run.offset - current.logical * BLOCK))?;
        open = Some(current);
    }
    if let Some(done) = open {
        tree.push(out, done.logical as u32, done.physical, done.len)?;
    }
    let (root, tree_blocks) = tree.finish(out)?;
    Ok(Written { root, blocks: blocks + tree_blocks, bytes })
}

fn copy(out: &Output<'_>, image: &Image, run: &Run, to: u64) -> Result<()> {
    if !out.is_writing() {
        return Ok(());
    }
    let mut buffer = vec![0; BUFFER.min(usize::try_from(run.len).unwrap_or(BUFFER))];
    let mut done = 0;
    while done < run.len {
        let now = (run.len - done).min(buffer.len() as u64) as usize;
        image.read_run(run, done, &mut buffer[..now])?;
        out.write_at(to + done, &buffer[..now])?;
        done += now as u64;
    }
    Ok(())
}
