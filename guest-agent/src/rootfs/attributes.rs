//! What overlayfs takes from the root folders of layers.

use std::ffi::CString;
use std::fs;
use std::os::unix::fs::{MetadataExt, PermissionsExt, chown};
use std::path::Path;

use rustix::fs::{AtFlags, CWD, Timespec, Timestamps, XattrFlags, getxattr, listxattr, setxattr, utimensat};
use rustix::io::Errno;

use crate::error::{Context, Result};

/// Set to `y` on a folder that hides what lower layers have in it (Documentation/filesystems/overlayfs.rst).
const OPAQUE: &str = "trusted.overlay.opaque";

/// What begins so is between overlayfs and its layers.
const OVERLAY: &[u8] = b"trusted.overlay.";

/// Bytes of a name or value (`XATTR_SIZE_MAX` in the kernel's `limits.h`).
const LARGEST: usize = 65_536;

/// Whether a layer hides all layers below it. overlayfs itself looks at this on folders in the root only.
pub fn is_opaque(layer: &Path) -> Result<bool> {
    let mut value = [0; 2];
    match getxattr(layer, OPAQUE, &mut value) {
        Ok(length) => Ok(value[..length] == *b"y"),
        Err(Errno::NODATA | Errno::OPNOTSUPP | Errno::RANGE) => Ok(false),
        Err(e) => Err(e).context(|| format!("read {OPAQUE} of {}", layer.display())),
    }
}

/// overlayfs shows the upper folder's own owner, mode, times and attributes as those of `/`: they are the top layer's.
pub fn copy(from: &Path, to: &Path) -> Result<()> {
    let what = || format!("copy the attributes of / from {}", from.display());
    let source = fs::metadata(from).context(what)?;
    chown(to, Some(source.uid()), Some(source.gid())).context(what)?;
    fs::set_permissions(to, fs::Permissions::from_mode(source.mode() & 0o7777)).context(what)?;
    extended(from, to).context(what)?;
    let time = |seconds, nanos| Timespec { tv_sec: seconds, tv_nsec: nanos };
    let times = Timestamps {
        last_access: time(source.atime(), source.atime_nsec()),
        last_modification: time(source.mtime(), source.mtime_nsec()),
    };
    utimensat(CWD, to, &times, AtFlags::empty()).context(what)
}

fn extended(from: &Path, to: &Path) -> rustix::io::Result<()> {
    let mut names = vec![0; LARGEST];
    let length = match listxattr(from, &mut names) {
        Err(Errno::OPNOTSUPP) => return Ok(()),
        other => other?,
    };
    for name in names[..length].split(|byte| *byte == 0) {
        if name.is_empty() || name.starts_with(OVERLAY) {
            continue;
        }
        let name = CString::new(name).map_err(|_| Errno::INVAL)?;
        let mut value = vec![0; LARGEST];
        let length = getxattr(from, &name, &mut value)?;
        setxattr(to, &name, &value[..length], XattrFlags::empty())?;
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_root_has_its_top_layers_attributes() {
        let (from, to) = (tempfile::tempdir().unwrap(), tempfile::tempdir().unwrap());
        fs::set_permissions(from.path(), fs::Permissions::from_mode(0o1751)).unwrap();
        let set = |name: &str, value: &str| {
            setxattr(from.path(), name, value.as_bytes(), XattrFlags::empty()).is_ok()
        };
        let attributes = set("user.note", "kept") && set(OPAQUE, "y");
        copy(from.path(), to.path()).unwrap();
        let (source, copied) = (fs::metadata(from.path()).unwrap(), fs::metadata(to.path()).unwrap());
        assert_eq!(copied.mode() & 0o7777, 0o1751);
        assert_eq!((copied.mtime(), copied.mtime_nsec()), (source.mtime(), source.mtime_nsec()));
        if attributes {
            let mut value = [0; 16];
            let length = getxattr(to.path(), "user.note", &mut value).unwrap();
            assert_eq!(&value[..length], b"kept");
            assert!(is_opaque(from.path()).unwrap() && !is_opaque(to.path()).unwrap());
        }
    }
}
