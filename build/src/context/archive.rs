//! A context as one tar archive, for a build that runs where its folder is not: the same entries that a session would
//! send, in the same order. The same files give the same bytes.

use std::fs::File;
use std::io::{self, Read, Write};

use bollard_buildkit_proto::fsutil::types::Stat;
use tar::{Builder, EntryType, Header};

use super::filter::Filter;
use super::tree::Content;
use super::walk::{Walk, gone};
use super::{Context, ContextError, disk, mode};

/// What went into an archive.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Archived {
    /// Files, folders and links.
    pub entries: u64,
    /// Bytes of the files.
    pub bytes: u64,
}

/// Writes the context into `out`, without what it [ignores](Context::ignoring); `more` are files that come first and must
/// not be in the context. Blocks.
///
/// Owners are root, as in every context; times of change are kept to the second, modes and links as they are. Devices and
/// FIFOs are left out: no archive brings them to another machine.
///
/// # Errors
/// When the context can't be read, or is changed meanwhile, or `out` fails.
pub fn archive(
    context: &Context,
    more: &[(String, Vec<u8>)],
    out: impl Write,
) -> Result<Archived, ContextError> {
    let mut tar = Builder::new(out);
    let mut sum = Archived::default();
    for (path, bytes) in more {
        let mut header = header(EntryType::Regular, 0o644, 0);
        header.set_size(bytes.len() as u64);
        tar.append_data(&mut header, path, bytes.as_slice()).map_err(ContextError::Archive)?;
        sum.add(bytes.len() as u64);
    }
    let exclude = context.ignored().cloned().into_iter().collect();
    let mut walk = Walk::new(context.tree(), Filter { include: None, exclude })?;
    while let Some(stat) = walk.step()? {
        if stat.mode & (mode::KIND ^ mode::FOLDER ^ mode::LINK) == 0 {
            sum.add(append(&mut tar, context, &stat)?);
        }
    }
    tar.finish().map_err(ContextError::Archive)?;
    Ok(sum)
}

impl Archived {
    fn add(&mut self, bytes: u64) {
        self.entries += 1;
        self.bytes += bytes;
    }
}

/// Adds one entry; returns the bytes of its file.
fn append(tar: &mut Builder<impl Write>, context: &Context, stat: &Stat) -> Result<u64, ContextError> {
    let write = ContextError::Archive;
    let seconds = u64::try_from(stat.mod_time.div_euclid(1_000_000_000)).unwrap_or_default();
    let mut attributes: Vec<_> =
        stat.xattrs.iter().map(|(key, value)| (format!("SCHILY.xattr.{key}"), value)).collect();
    attributes.sort();
    let link = stat.mode & mode::LINK != 0;
    // A further name of a file that came before has its attributes, too.
    let hard = !link && !stat.linkname.is_empty();
    if !attributes.is_empty() && !hard {
        let pairs = attributes.iter().map(|(key, value)| (key.as_str(), value.as_slice()));
        tar.append_pax_extensions(pairs).map_err(write)?;
    }
    let bits = mode::to_unix(stat.mode);
    if stat.mode & mode::FOLDER != 0 {
        let mut header = header(EntryType::Directory, bits, seconds);
        tar.append_data(&mut header, format!("{}/", stat.path), io::empty()).map_err(write)?;
    } else if link || hard {
        let kind = if link { EntryType::Symlink } else { EntryType::Link };
        let mut header = header(kind, bits, seconds);
        tar.append_link(&mut header, &stat.path, &stat.linkname).map_err(write)?;
    } else {
        return file(tar, context, stat, header(EntryType::Regular, bits, seconds));
    }
    Ok(0)
}

/// Adds a file's bytes: just those of the file that was walked over.
fn file(
    tar: &mut Builder<impl Write>,
    context: &Context,
    stat: &Stat,
    mut header: Header,
) -> Result<u64, ContextError> {
    let read = |error| {
        let path = stat.path.clone();
        if gone(&error) { ContextError::Changed(path) } else { ContextError::Read(path, error) }
    };
    let size = u64::try_from(stat.size).unwrap_or_default();
    header.set_size(size);
    match context.tree().open_file(&stat.path).map_err(read)? {
        Content::Bytes(bytes) => {
            tar.append_data(&mut header, &stat.path, &*bytes).map_err(ContextError::Archive)?;
        }
        Content::File(open) => {
            let same = |open: &File| -> Result<(), ContextError> {
                let (kind, size, modified) = disk::modified(open).map_err(read)?;
                let same = mode::is_regular(kind) && size == stat.size && modified == stat.mod_time;
                if same { Ok(()) } else { Err(ContextError::Changed(stat.path.clone())) }
            };
            same(&open)?;
            // A file that shrinks must not shift what follows; the second look then refuses it.
            let padded = (&open).take(size).chain(io::repeat(0)).take(size);
            tar.append_data(&mut header, &stat.path, padded).map_err(ContextError::Archive)?;
            same(&open)?;
        }
    }
    Ok(size)
}

fn header(kind: EntryType, bits: u32, seconds: u64) -> Header {
    let mut header = Header::new_gnu();
    header.set_entry_type(kind);
    header.set_mode(bits);
    header.set_mtime(seconds);
    header.set_uid(0);
    header.set_gid(0);
    header.set_size(0);
    header
}

#[cfg(test)]
mod tests {
    use std::fs;
    use std::os::unix::fs::{PermissionsExt, symlink};
    use std::path::Path;

    use super::super::Patterns;
    use super::*;

    fn names(bytes: &[u8]) -> Vec<(String, EntryType, u32)> {
        let mut archive = tar::Archive::new(bytes);
        let entry = |entry: io::Result<tar::Entry<'_, &[u8]>>| {
            let entry = entry.unwrap();
            let header = entry.header();
            (entry.path().unwrap().display().to_string(), header.entry_type(), header.mode().unwrap())
        };
        archive.entries().unwrap().map(entry).collect()
    }

    fn packed(folder: &Path, ignore: &[&str], more: &[(String, Vec<u8>)]) -> (Vec<u8>, Archived) {
        let patterns = Patterns::parse(ignore.iter().copied()).unwrap();
        let context = Context::folder(folder).unwrap().ignoring(patterns);
        let mut bytes = Vec::new();
        let sum = archive(&context, more, &mut bytes).unwrap();
        (bytes, sum)
    }

    #[test]
    fn an_archive_holds_what_a_session_would_send_in_one_order() {
        let folder = tempfile::tempdir().unwrap();
        let at = |name: &str| folder.path().join(name);
        for name in ["b", "a.log", "Dockerfile", "sub/deep/file", "sub/x.log"] {
            fs::create_dir_all(at(name).parent().unwrap()).unwrap();
            fs::write(at(name), name).unwrap();
        }
        fs::set_permissions(at("b"), fs::Permissions::from_mode(0o4750)).unwrap();
        fs::hard_link(at("b"), at("c")).unwrap();
        symlink("../b", at("sub/link")).unwrap();
        let long = format!("sub/{}", "l".repeat(200));
        fs::write(at(&long), "").unwrap();
        let more = [(".extra".to_owned(), b"text".to_vec())];
        let (bytes, sum) = packed(folder.path(), &["*.log", "**/*.log"], &more);
        let mut found = names(&bytes);
        let folders: Vec<_> = found.extract_if(.., |one| one.1.is_dir()).map(|one| one.0).collect();
        assert_eq!(folders, ["sub/", "sub/deep/"]);
        let expected = [
            (".extra", EntryType::Regular),
            ("Dockerfile", EntryType::Regular),
            ("b", EntryType::Regular),
            ("c", EntryType::Link),
            ("sub/deep/file", EntryType::Regular),
            ("sub/link", EntryType::Symlink),
            (&long, EntryType::Regular),
        ];
        assert_eq!(found.iter().map(|one| (one.0.as_str(), one.1)).collect::<Vec<_>>(), expected);
        assert_eq!(found[2].2, 0o4750);
        assert_eq!(sum, Archived { entries: 9, bytes: 4 + 10 + 1 + 13 });
        assert_eq!(packed(folder.path(), &["*.log", "**/*.log"], &more).0, bytes);
    }

    #[test]
    fn what_is_no_file_folder_or_link_stays_here() {
        let folder = tempfile::tempdir().unwrap();
        rustix::fs::mknodat(
            rustix::fs::CWD,
            folder.path().join("fifo"),
            rustix::fs::FileType::Fifo,
            0o600.into(),
            0,
        )
        .unwrap();
        assert_eq!(packed(folder.path(), &[], &[]).1, Archived::default());
    }
}
