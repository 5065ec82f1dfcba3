//! Files of this machine as a tar stream.

use std::fs::{self, File};
use std::io::{self, BufWriter, Read, Write};
use std::net::Shutdown;
use std::os::unix::ffi::OsStrExt;
use std::os::unix::fs::{MetadataExt, PermissionsExt};
use std::os::unix::net::UnixStream;
use std::path::{Path, PathBuf};

use tar::{Builder, EntryType, Header};

/// Sends `source`, called `name`, and half-closes the stream. In the container everything belongs to root, as with
/// docker; links are sent as links.
pub fn pack(source: &Path, name: &str, stream: UnixStream) -> io::Result<()> {
    let mut tar = Builder::new(BufWriter::with_capacity(256 << 10, stream));
    let mut waiting: Vec<(PathBuf, PathBuf)> = vec![(source.to_owned(), PathBuf::from(name))];
    while let Some((path, name)) = waiting.pop() {
        append(&mut tar, &path, &name)
            .map_err(|error| io::Error::new(error.kind(), format!("{}: {error}", path.display())))?;
        if fs::symlink_metadata(&path)?.is_dir() {
            for entry in fs::read_dir(&path)? {
                let entry = entry?;
                waiting.push((entry.path(), name.join(entry.file_name())));
            }
        }
    }
    let mut out = tar.into_inner()?;
    out.flush()?;
    out.get_ref().shutdown(Shutdown::Write)
}

fn append(tar: &mut Builder<impl Write>, path: &Path, name: &Path) -> io::Result<()> {
    let meta = fs::symlink_metadata(path)?;
    let mut header = Header::new_gnu();
    header.set_mode(meta.permissions().mode() & 0o7777);
    header.set_mtime(u64::try_from(meta.mtime()).unwrap_or_default());
    header.set_uid(0);
    header.set_gid(0);
    header.set_size(0);
    if meta.is_dir() {
        header.set_entry_type(EntryType::Directory);
        tar.append_data(&mut header, name.join(""), io::empty())
    } else if meta.is_symlink() {
        header.set_entry_type(EntryType::Symlink);
        tar.append_link(&mut header, name, fs::read_link(path)?)
    } else if meta.is_file() {
        let file = File::open(path)?;
        header.set_entry_type(EntryType::Regular);
        header.set_size(meta.len());
        // A file that changes meanwhile must not break the archive.
        tar.append_data(&mut header, name, file.take(meta.len()).chain(io::repeat(0)).take(meta.len()))
    } else {
        tracing::warn!(path = %path.display(), "not copied: neither file, folder nor link");
        Ok(())
    }
}

/// The last name of a path, as the container is to see it.
pub fn own_name(path: &Path) -> io::Result<String> {
    let real = path.file_name().map(|name| Ok(name.to_owned())).unwrap_or_else(|| {
        let full = path.canonicalize()?;
        full.file_name()
            .map(std::ffi::OsStr::to_owned)
            .ok_or_else(|| io::Error::other("the root of this machine has no name"))
    })?;
    std::str::from_utf8(real.as_bytes())
        .map(str::to_owned)
        .map_err(|_| io::Error::other(format!("the name of {} is not UTF-8", path.display())))
}
