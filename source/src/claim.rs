//! A folder of a persistent volume. Its content is the tenant's, and may change while it is read.

use std::io;

use cloister_build::context::{Context, ContextError};
use cloister_crds::ClaimSource;

use crate::{Error, Inputs, Result};

/// Opens the folder; links on the way to it, or in it, do not lead out of the volume.
pub(crate) fn open(source: &ClaimSource, inputs: &Inputs) -> Result<Context> {
    let name = &source.claim_name;
    let field = format!("source.persistentVolumeClaim: claim {name}");
    let root =
        inputs.mount("claims", name).ok_or_else(|| Error::missing(format!("{field} is not mounted")))?;
    folder(&field, root, source.sub_path.as_deref())
}

/// The folder `inner` of `root`, or `root` itself.
pub(crate) fn folder(field: &str, root: &std::path::Path, inner: Option<&str>) -> Result<Context> {
    let inner = inner.unwrap_or_default();
    Context::within(root, inner).map_err(|error| match error {
        ContextError::Open(_, error) => match error.kind() {
            io::ErrorKind::NotFound => Error::missing(format!("{field} has no folder {inner:?}")),
            io::ErrorKind::NotADirectory => Error::missing(format!("{field}: {inner:?} is not a folder")),
            _ => Error::unavailable(format!("{field}: opening {inner:?}: {error}")),
        },
        other => Error::invalid(format!("{field}: {other}")),
    })
}

#[cfg(test)]
mod tests {
    use std::fs;
    use std::os::unix::fs::symlink;

    use cloister_crds::BuildReason;

    use super::*;

    #[test]
    fn links_of_a_volume_stay_in_it() {
        let volume = tempfile::tempdir().unwrap();
        let root = volume.path().join("volume");
        fs::create_dir_all(root.join("etc/app")).unwrap();
        fs::create_dir_all(volume.path().join("etc/app")).unwrap();
        fs::write(root.join("etc/app/Dockerfile"), "inside").unwrap();
        fs::write(volume.path().join("etc/app/Dockerfile"), "outside").unwrap();
        symlink("/etc/app", root.join("absolute")).unwrap();
        symlink("../../../etc/app", root.join("climbing")).unwrap();
        symlink("loop", root.join("loop")).unwrap();
        let mounts = [("claims/files".into(), root.clone())].into();
        let inputs = Inputs { mounts, ..Inputs::default() };
        let read = |path: Option<&str>, file: &str| {
            let claim = ClaimSource { claim_name: "files".into(), sub_path: path.map(str::to_owned) };
            open(&claim, &inputs).map(|context| context.read(file, 100).unwrap())
        };
        assert_eq!(read(None, "etc/app/Dockerfile").unwrap(), b"inside");
        // Through links of files and folders too.
        assert_eq!(read(None, "climbing/Dockerfile").unwrap(), b"inside");
        for path in ["etc/app", "absolute", "climbing", "../etc/app"] {
            assert_eq!(read(Some(path), "Dockerfile").unwrap(), b"inside", "{path}");
        }
        for path in ["none", "etc/app/Dockerfile"] {
            assert_eq!(
                read(Some(path), "Dockerfile").unwrap_err().reason(),
                BuildReason::SourceNotFound,
                "{path}"
            );
        }
        assert!(read(Some("loop"), "Dockerfile").is_err());
    }

    #[test]
    fn a_claim_that_is_not_mounted_is_missing() {
        let claim = ClaimSource { claim_name: "files".into(), sub_path: None };
        let error = open(&claim, &Inputs::default()).unwrap_err();
        assert_eq!(error.to_string(), "source.persistentVolumeClaim: claim files is not mounted");
    }
}
