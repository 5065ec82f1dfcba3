//! The result as an archive in a volume, whose files are a tenant's and may change at any time: no link is followed, and the
//! archive appears as a whole or not at all.

use std::fs::File;
use std::io::{self, BufWriter, ErrorKind, Write};
use std::os::fd::OwnedFd;
use std::path::{Path, PathBuf};

use cloister_crds::{ArchiveFormat, BuildReason, Failure, ImageBuildSpec};
use cloister_image::export::{docker_archive, oci_archive};
use cloister_image::{Error, Reference};
use rustix::fs::{AtFlags, Mode, OFlags, ResolveFlags, fsync, mkdirat, openat2, renameat, unlinkat};
use rustix::io::Errno;

use super::failure::failure;
use super::inputs::Mounts;
use super::leftovers::{self, ON_ITS_WAY};
use super::result::Image;

/// Bytes written at a time.
const BUFFER: usize = 1 << 20;
/// Nothing outside of the volume, and nothing through a link.
const WITHIN: ResolveFlags =
    ResolveFlags::BENEATH.union(ResolveFlags::NO_SYMLINKS).union(ResolveFlags::NO_MAGICLINKS);

/// An archive to write.
#[derive(Debug)]
pub struct Archive {
    claim: String,
    root: PathBuf,
    /// Below the root.
    path: PathBuf,
    /// Name of the file on its way: the same for every attempt, so that what a lost one left is written over.
    temporary: String,
    format: ArchiveFormat,
}

impl Archive {
    /// What there is to know before the build; `None` when nothing is archived. `name` and `uid` are the build's.
    ///
    /// # Errors
    /// When the volume is not mounted, or the format can't hold the image.
    pub fn prepare(
        spec: &ImageBuildSpec,
        mounts: &Mounts,
        name: &str,
        uid: &str,
    ) -> Result<Option<Self>, Failure> {
        let Some(wanted) = &spec.output.archive else { return Ok(None) };
        if wanted.format == ArchiveFormat::Docker && spec.platforms.len() > 1 {
            let why = "spec.output.archive: the format Docker holds one platform's image";
            return Err(failure(BuildReason::InvalidSpec, why));
        }
        let claim = wanted.claim_name.clone();
        let root = mounts.all().get(&Path::new("claims").join(&claim));
        let missing = || failed(&claim, "its volume is not mounted");
        let path = wanted.path.clone().unwrap_or_else(|| format!("{name}.tar"));
        Ok(Some(Self {
            root: root.ok_or_else(missing)?.clone(),
            path: path.into(),
            temporary: format!("{ON_ITS_WAY}{uid}"),
            format: wanted.format,
            claim,
        }))
    }

    /// Where it is, for people.
    pub fn place(&self) -> String {
        format!("{} of claim {}", self.path.display(), self.claim)
    }

    /// Writes it. Blocks.
    ///
    /// # Errors
    /// When the volume does not take it; then nothing new is in it but folders on the way.
    pub fn write(&self, image: &Image, names: &[Reference]) -> Result<(), Failure> {
        let wrong = |what: &str, error: &dyn std::fmt::Display| {
            failed(&self.claim, &format!("{what} {}: {error}", self.path.display()))
        };
        let name = self.path.file_name().ok_or_else(|| wrong("write", &"not a file's name"))?;
        let folder = self.folder().map_err(|errno| wrong("make the folder of", &errno))?;
        match leftovers::sweep(&folder) {
            Ok(0) => {}
            Ok(swept) => tracing::info!(claim = self.claim, swept, "removed what interrupted archives left"),
            Err(errno) => tracing::debug!(claim = self.claim, "cannot look for leftovers: {errno}"),
        }
        let temporary = Temporary::new(&folder, &self.temporary).map_err(|error| wrong("write", &error))?;
        let mut out = BufWriter::with_capacity(BUFFER, &temporary.file);
        let written = match self.format {
            ArchiveFormat::Oci => oci_archive(image.whole(), image, names, &mut out),
            ArchiveFormat::Docker => docker_archive(image.whole(), image, names, &mut out),
        };
        let flushed = |source| Error::Io { what: "write", path: self.path.clone(), source };
        let written = written.and_then(|()| out.flush().map_err(flushed));
        // What is left in it after an error does not matter.
        let (_, _) = out.into_parts();
        match written {
            Ok(()) => {}
            Err(Error::Io { source, .. })
                if matches!(source.kind(), ErrorKind::StorageFull | ErrorKind::QuotaExceeded) =>
            {
                let bytes: u64 = image.whole().blobs.values().sum();
                return Err(wrong(
                    "write",
                    &format!("{source}; it has about {} MiB", bytes.div_ceil(1 << 20)),
                ));
            }
            Err(error) => return Err(wrong("write", &error)),
        }
        temporary.publish(name).map_err(|error| wrong("write", &error))
    }

    /// The folder that it goes into, made when it is not there.
    fn folder(&self) -> Result<OwnedFd, Errno> {
        let flags = OFlags::RDONLY | OFlags::DIRECTORY | OFlags::CLOEXEC;
        let mut folder = rustix::fs::open(&self.root, flags, Mode::empty())?;
        for part in self.path.parent().into_iter().flat_map(Path::components) {
            match mkdirat(&folder, part.as_os_str(), Mode::from_raw_mode(0o755)) {
                Ok(()) | Err(Errno::EXIST) => {}
                Err(errno) => return Err(errno),
            }
            folder = openat2(&folder, part.as_os_str(), flags, Mode::empty(), WITHIN)?;
        }
        Ok(folder)
    }
}

/// A file on its way; gone when it is dropped before it has its name.
struct Temporary<'a> {
    folder: &'a OwnedFd,
    name: &'a str,
    file: File,
}

impl<'a> Temporary<'a> {
    fn new(folder: &'a OwnedFd, name: &'a str) -> io::Result<Self> {
        match unlinkat(folder, name, AtFlags::empty()) {
            Ok(()) | Err(Errno::NOENT) => {}
            Err(errno) => return Err(errno.into()),
        }
        let flags = OFlags::WRONLY | OFlags::CREATE | OFlags::EXCL | OFlags::NOFOLLOW | OFlags::CLOEXEC;
        // For everybody who can see the volume.
        let file = File::from(openat2(folder, name, flags, Mode::from_raw_mode(0o644), WITHIN)?);
        Ok(Self { folder, name, file })
    }

    /// Replaces what has the name, be it a link.
    fn publish(self, name: &std::ffi::OsStr) -> io::Result<()> {
        fsync(&self.file)?;
        renameat(self.folder, self.name, self.folder, name)?;
        Ok(fsync(self.folder)?)
    }
}

impl Drop for Temporary<'_> {
    fn drop(&mut self) {
        // Published, it has another name.
        let _ = unlinkat(self.folder, self.name, AtFlags::empty());
    }
}

fn failed(claim: &str, why: &str) -> Failure {
    failure(BuildReason::ArchiveFailed, format!("claim {claim}: {why}"))
}

#[cfg(test)]
mod tests {
    use std::fs;
    use std::os::unix::fs::symlink;

    use serde_json::json;
    use tokio_util::sync::CancellationToken;

    use super::super::result::tests::one_layer;
    use super::*;

    /// An image of one layer.
    fn image(folder: &Path, unwanted: &CancellationToken) -> Image {
        one_layer(folder, unwanted, &[0; 1024], "tar")
    }

    fn archive(root: &Path, path: &str, format: &str) -> Archive {
        let spec = json!({"source": {}, "output": {"images": ["app:1"],
            "archive": {"claimName": "c", "path": path, "format": format}}});
        let mounts = Mounts::new([("claims/c".into(), root.to_owned())].into());
        Archive::prepare(&serde_json::from_value(spec).unwrap(), &mounts, "app", "u1").unwrap().unwrap()
    }

    fn names(root: &Path) -> Vec<String> {
        let mut names: Vec<_> = fs::read_dir(root)
            .unwrap()
            .map(|entry| entry.unwrap().file_name().into_string().unwrap())
            .collect();
        names.sort();
        names
    }

    #[test]
    fn an_archive_replaces_what_has_its_name_and_leaves_nothing_else() {
        let root = tempfile::tempdir().unwrap();
        let blobs = tempfile::tempdir().unwrap();
        let (image, name) = (image(blobs.path(), &CancellationToken::new()), ["app:1".parse().unwrap()]);
        // Left by an attempt that was lost.
        fs::write(root.path().join(".cloister-archive-u1"), "half").unwrap();
        let outside = tempfile::NamedTempFile::new().unwrap();
        symlink(outside.path(), root.path().join("app.tar")).unwrap();
        for format in ["Oci", "Docker"] {
            archive(root.path(), "app.tar", format).write(&image, &name).unwrap();
            archive(root.path(), "a/b/app.tar", format).write(&image, &name).unwrap();
        }
        assert_eq!(names(root.path()), ["a", "app.tar"]);
        assert_eq!(fs::metadata(outside.path()).unwrap().len(), 0);
        let mut read = tar::Archive::new(File::open(root.path().join("app.tar")).unwrap());
        let paths: Vec<_> =
            read.entries().unwrap().map(|e| e.unwrap().path().unwrap().display().to_string()).collect();
        assert_eq!((paths.len(), paths[2].as_str()), (6, "manifest.json"));
    }

    #[test]
    fn what_cannot_be_written_leaves_nothing() {
        let root = tempfile::tempdir().unwrap();
        let unwanted = CancellationToken::new();
        let blobs = tempfile::tempdir().unwrap();
        let image = image(blobs.path(), &unwanted);
        symlink("/tmp", root.path().join("link")).unwrap();
        fs::create_dir_all(root.path().join("folder/full")).unwrap();
        for path in ["link/app.tar", "folder"] {
            let failure = archive(root.path(), path, "Oci").write(&image, &[]).unwrap_err();
            assert_eq!(failure.reason, BuildReason::ArchiveFailed, "{}", failure.message);
        }
        unwanted.cancel();
        archive(root.path(), "app.tar", "Oci").write(&image, &[]).unwrap_err();
        assert_eq!(names(root.path()), ["folder", "link"]);
    }

    #[test]
    fn a_full_volume_is_told_with_the_size_that_was_wanted() {
        let root = tempfile::tempdir().unwrap();
        let blobs = tempfile::tempdir().unwrap();
        let image = image(blobs.path(), &CancellationToken::new());
        let archive = archive(root.path(), "app.tar", "Oci");
        let full = |bytes: &str| {
            rustix::mount::mount(
                "none",
                root.path(),
                "tmpfs",
                rustix::mount::MountFlags::empty(),
                Some(std::ffi::CString::new(format!("size={bytes}")).unwrap().as_c_str()),
            )
        };
        // A namespace of mounts of this thread's own.
        let told = std::thread::scope(|scope| {
            let work = || {
                // SAFETY: no other thread shares this one's mounts, and none looks at descriptors.
                unsafe { rustix::thread::unshare_unsafe(rustix::thread::UnshareFlags::NEWNS) }.unwrap();
                full("4k").unwrap();
                let told = archive.write(&image, &[]).unwrap_err();
                assert_eq!(names(root.path()).len(), 0);
                told
            };
            scope.spawn(work).join().unwrap()
        });
        assert!(told.message.contains("space") && told.message.contains("1 MiB"), "{}", told.message);
    }
}
