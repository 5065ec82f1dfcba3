//! Folders and files whose content is copied into the guest: packing them.

use std::fs;
use std::io;
use std::path::{Path, PathBuf};

use anyhow::{Context, Result, bail};

/// Most bytes of one copied volume: what kubelet allows a projected volume, with room to spare.
pub const BYTES: u64 = 32 << 20;
/// Most entries of one copied volume.
const ENTRIES: usize = 10_000;

/// What a copied volume is made of.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Content {
    /// Everything below a folder.
    Folder(PathBuf),
    /// Files, each under its number.
    Files(Vec<PathBuf>),
}

/// Packs the content as it is now.
pub fn pack(content: &Content) -> Result<Vec<u8>> {
    let mut archive = tar::Builder::new(Bounded(Vec::new()));
    archive.follow_symlinks(false);
    archive.sparse(false);
    match content {
        Content::Folder(folder) => {
            let mut left = ENTRIES;
            add(&mut archive, folder, Path::new(""), &mut left)?;
        }
        Content::Files(files) => {
            for (number, file) in files.iter().enumerate() {
                let mut opened =
                    fs::File::open(file).with_context(|| format!("cannot open {}", file.display()))?;
                archive
                    .append_file(number.to_string(), &mut opened)
                    .with_context(|| format!("cannot copy {}", file.display()))?;
            }
        }
    }
    Ok(archive.into_inner().context("cannot pack a volume")?.0)
}

/// Adds what is in a folder, in the order of the names.
fn add(archive: &mut tar::Builder<Bounded>, root: &Path, below: &Path, left: &mut usize) -> Result<()> {
    let folder = root.join(below);
    let failed = || format!("cannot copy {}", folder.display());
    let mut names: Vec<_> = fs::read_dir(&folder)
        .with_context(failed)?
        .map(|entry| Ok(entry?.file_name()))
        .collect::<io::Result<_>>()
        .with_context(failed)?;
    names.sort();
    for name in names {
        *left = left.checked_sub(1).with_context(|| format!("{} holds too many files", root.display()))?;
        let inside = below.join(&name);
        let path = root.join(&inside);
        let kind = match fs::symlink_metadata(&path) {
            Ok(meta) => meta.file_type(),
            // Kubelet replaces content at any time; the next look will be complete.
            Err(error) if error.kind() == io::ErrorKind::NotFound => continue,
            Err(error) => return Err(error).with_context(failed),
        };
        if kind.is_dir() {
            archive.append_dir(&inside, &path).with_context(failed)?;
            add(archive, root, &inside, left)?;
        } else if kind.is_file() || kind.is_symlink() {
            archive.append_path_with_name(&path, &inside).with_context(failed)?;
        } else {
            bail!("{} is neither file, folder nor link", path.display());
        }
    }
    Ok(())
}

/// A buffer that does not grow for ever.
struct Bounded(Vec<u8>);

impl io::Write for Bounded {
    fn write(&mut self, bytes: &[u8]) -> io::Result<usize> {
        if (self.0.len() + bytes.len()) as u64 > BYTES {
            return Err(io::Error::new(
                io::ErrorKind::FileTooLarge,
                format!("it is larger than {BYTES} bytes"),
            ));
        }
        self.0.extend_from_slice(bytes);
        Ok(bytes.len())
    }

    fn flush(&mut self) -> io::Result<()> {
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn names(archive: &[u8]) -> Vec<String> {
        let mut archive = tar::Archive::new(archive);
        archive.entries().unwrap().map(|e| e.unwrap().path().unwrap().display().to_string()).collect()
    }

    #[test]
    fn kubelets_links_travel_as_links() {
        let folder = tempfile::tempdir().unwrap();
        fs::create_dir(folder.path().join("..2026")).unwrap();
        fs::write(folder.path().join("..2026/key"), "value").unwrap();
        std::os::unix::fs::symlink("..2026", folder.path().join("..data")).unwrap();
        std::os::unix::fs::symlink("..data/key", folder.path().join("key")).unwrap();
        let packed = pack(&Content::Folder(folder.path().to_owned())).unwrap();
        assert_eq!(names(&packed), ["..2026", "..2026/key", "..data", "key"]);
    }

    #[test]
    fn single_files_travel_under_numbers() {
        let folder = tempfile::tempdir().unwrap();
        let paths: Vec<PathBuf> = ["a", "b"].map(|name| folder.path().join(name)).to_vec();
        paths.iter().for_each(|path| fs::write(path, "x").unwrap());
        assert_eq!(names(&pack(&Content::Files(paths)).unwrap()), ["0", "1"]);
    }

    #[test]
    fn a_volume_that_is_too_large_is_refused() {
        let folder = tempfile::tempdir().unwrap();
        let big = fs::File::create(folder.path().join("big")).unwrap();
        big.set_len(BYTES + 1).unwrap();
        let error = format!("{:#}", pack(&Content::Folder(folder.path().to_owned())).unwrap_err());
        assert!(error.contains("larger than"), "{error}");
    }
}
