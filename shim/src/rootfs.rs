//! Where a container's root filesystem comes from: what containerd's `Create` says, made fit for the guest.
//!
//! The `cloister` snapshotter names a snapshot's folder, whose `layers.json` lists layers of a store: these reach the
//! guest as one read-only disk. What any other snapshotter says is mounted in the shim's own mount namespace and
//! shared. A folder is never taken for a block device.

use std::fs::File;
use std::io::Read;
use std::path::{Path, PathBuf};

use anyhow::{Context, Result, bail};
use cloister_image::{Digest, LayerFile, Store};
use cloister_sandbox::Layer;
use containerd_shim::protos::types::mount::Mount;
use serde::Deserialize;

/// The type of the mount that the `cloister` snapshotter answers.
const TYPE: &str = "cloister";
/// The list in a snapshot's folder.
const LAYERS: &str = "layers.json";
/// The folder that stands for a snapshot while containerd reads its users.
const ACCOUNTS: &str = "accounts";
/// The disk of what a container writes, in a snapshot's folder.
pub const SCRATCH: &str = "scratch";
/// Most bytes of the list.
const LIST_BYTES: u64 = 1 << 20;

/// What `layers.json` says.
#[derive(Debug, Deserialize)]
struct List {
    store: PathBuf,
    layers: Vec<String>,
}

/// What `Create` asks for.
#[derive(Debug, PartialEq, Eq)]
pub enum Wanted {
    /// The layers of a snapshot's folder.
    Snapshot(PathBuf),
    /// Mounts of the host.
    Mounts,
    /// A folder of the host as it stands.
    Folder(PathBuf),
}

/// Finds out what is wanted. `folder` is where a container without mounts has its root filesystem.
pub fn wanted(mounts: &[Mount], folder: PathBuf) -> Wanted {
    match mounts {
        [] => Wanted::Folder(folder),
        [mount] if mount.type_ == TYPE => Wanted::Snapshot(PathBuf::from(&mount.source)),
        [mount] if mount.type_ == "bind" => {
            let source = Path::new(&mount.source);
            match source.parent().filter(|_| source.ends_with(ACCOUNTS)) {
                Some(snapshot) if snapshot.join(LAYERS).is_file() => Wanted::Snapshot(snapshot.to_owned()),
                _ => Wanted::Mounts,
            }
        }
        _ => Wanted::Mounts,
    }
}

/// Opens the layers of a snapshot, lowest first. They can't be removed from their store while they are open.
pub fn layers(snapshot: &Path) -> Result<Vec<LayerFile>> {
    let path = snapshot.join(LAYERS);
    let mut text = Vec::new();
    let file = File::open(&path).with_context(|| format!("cannot open {}", path.display()))?;
    file.take(LIST_BYTES)
        .read_to_end(&mut text)
        .with_context(|| format!("cannot read {}", path.display()))?;
    let list: List =
        serde_json::from_slice(&text).with_context(|| format!("{} is damaged", path.display()))?;
    if list.layers.is_empty() {
        return Ok(Vec::new());
    }
    let store = Store::open(&list.store).context("cannot use the layer store")?;
    let open = |name: &String| {
        let digest: Digest = name.parse().with_context(|| format!("{} is damaged", path.display()))?;
        match store.open_layer(&digest).context("cannot use the layer store")? {
            Some(layer) => Ok(layer),
            None => bail!("the layer {digest} is not in the store {} any more", list.store.display()),
        }
    };
    list.layers.iter().map(open).collect()
}

/// The layers for the sandbox.
pub fn share(layers: &[LayerFile]) -> Result<Vec<Layer>> {
    let shared =
        layers.iter().map(|layer| Ok(Layer { diff_id: layer.diff_id, file: layer.file.try_clone()? }));
    shared.collect::<std::io::Result<_>>().context("cannot use the image's layers")
}

/// Mounts the host's mounts one over the other at `target`, in this process's mount namespace.
pub fn mount(mounts: &[Mount], target: &Path) -> Result<()> {
    for mount in mounts {
        let filled = |text: &str| (!text.is_empty()).then(|| text.to_owned());
        containerd_shim::mount::mount_rootfs(
            filled(&mount.type_).as_deref(),
            filled(&mount.source).as_deref(),
            &mount.options,
            target,
        )
        .with_context(|| format!("cannot mount the root filesystem ({} of {})", mount.type_, mount.source))?;
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;

    fn mount(kind: &str, source: &str) -> Mount {
        Mount { type_: kind.to_owned(), source: source.to_owned(), ..Mount::default() }
    }

    #[test]
    fn a_snapshot_is_known_by_its_type_or_its_accounts() {
        let folder = tempfile::tempdir().unwrap();
        let accounts = folder.path().join("accounts");
        let bind = [mount("bind", accounts.to_str().unwrap())];
        let want = |mounts: &[Mount]| wanted(mounts, "/b/rootfs".into());
        assert_eq!(want(&bind), Wanted::Mounts, "without a list it is a folder like any other");
        std::fs::write(folder.path().join(LAYERS), "{}").unwrap();
        assert_eq!(want(&bind), Wanted::Snapshot(folder.path().to_owned()));
        assert_eq!(want(&[mount("cloister", "/s/7")]), Wanted::Snapshot("/s/7".into()));
        assert_eq!(want(&[]), Wanted::Folder("/b/rootfs".into()));
    }

    #[test]
    fn a_layerless_image_is_an_empty_filesystem_and_never_a_block_device() {
        // CVE-2026-24054: a bind mounted folder was taken for the block device it lies on.
        assert_eq!(wanted(&[mount("bind", "/snapshots/1/fs")], "/r".into()), Wanted::Mounts);
        let folder = tempfile::tempdir().unwrap();
        std::fs::write(folder.path().join(LAYERS), r#"{"store":"/nowhere","layers":[]}"#).unwrap();
        assert!(layers(folder.path()).unwrap().is_empty());
    }

    #[test]
    fn a_damaged_list_is_an_error_that_names_it() {
        let folder = tempfile::tempdir().unwrap();
        std::fs::write(folder.path().join(LAYERS), r#"{"store":"/s","layers":["../x"]}"#).unwrap();
        let error = format!("{:#}", layers(folder.path()).unwrap_err());
        assert!(error.contains("layer"), "{error}");
    }
}
