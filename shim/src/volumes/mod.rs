//! A pod's volumes: each bind mount of the host becomes a bind mount of something in the guest.

mod files;
mod kind;
mod staging;
mod watch;

use std::collections::HashMap;
use std::os::unix::fs::MetadataExt;
use std::path::{Path, PathBuf};
use std::sync::Arc;

use anyhow::Context;
use cloister_protocol::v1::{self, mount_volume_request};
use cloister_sandbox::{BlockDevice, Sandbox, Share};
use oci_spec::runtime::Mount;
use tokio::sync::Mutex;
use tokio::task::JoinSet;

use self::files::Content;
use self::kind::Kind;
use self::staging::Staging;
use self::watch::Watch;
use crate::failure::{Failure, Result};

/// The tag of the one share.
const TAG: &str = "pod";
/// The guest's shared memory folder.
const SHM: &str = "/run/cloister/shm";
/// Pod annotations that give an emptyDir its size in bytes are called this and the volume's name.
const EMPTY_DIR_SIZE: &str = "cloister.dev/empty-dir.";

/// The volumes of one pod.
pub struct Volumes {
    sandbox: Arc<Sandbox>,
    /// Where the staging folder is made.
    folder: PathBuf,
    /// Where scratch disks are made.
    disks: PathBuf,
    /// Bytes of an emptyDir without a size of its own.
    empty_dir: u64,
    /// Sizes of emptyDirs by name, in bytes.
    sizes: HashMap<String, u64>,
    inner: Mutex<Inner>,
}

#[derive(Default)]
struct Inner {
    staging: Option<(Staging, String)>,
    /// Guest paths of volumes that all containers share, by what they are on the host.
    folders: HashMap<PathBuf, String>,
    files: HashMap<PathBuf, String>,
    /// Entries of the staging folder and disks, by container.
    used: HashMap<String, Used>,
    next: u64,
    watches: JoinSet<()>,
}

#[derive(Default)]
struct Used {
    entries: Vec<String>,
    disks: Vec<String>,
}

/// The mounts of a container, for the guest.
#[derive(Default)]
pub struct Prepared {
    /// In the order of the host's.
    pub mounts: Vec<Mount>,
    /// Block devices that were named as mounts.
    pub blocks: Vec<BlockDevice>,
}

/// The sizes of emptyDirs that a pod's annotations give.
pub fn sizes(annotations: &HashMap<String, String>) -> HashMap<String, u64> {
    let size = |(key, value): (&String, &String)| {
        let name = key.strip_prefix(EMPTY_DIR_SIZE)?;
        Some((name.to_owned(), quantity(value)?))
    };
    annotations.iter().filter_map(size).collect()
}

/// Bytes in Kubernetes' notation: a number with an optional binary or decimal suffix.
fn quantity(text: &str) -> Option<u64> {
    let digits = text.trim_end_matches(|c: char| c.is_ascii_alphabetic());
    let unit = match text.get(digits.len()..)? {
        "" => 1,
        "k" => 1000,
        "M" => 1_000_000,
        "G" => 1_000_000_000,
        "T" => 1_000_000_000_000,
        "Ki" => 1 << 10,
        "Mi" => 1 << 20,
        "Gi" => 1 << 30,
        "Ti" => 1u64 << 40,
        _ => return None,
    };
    digits.parse::<u64>().ok()?.checked_mul(unit)
}

impl Volumes {
    /// A pod without volumes.
    pub fn new(
        sandbox: Arc<Sandbox>,
        folder: PathBuf,
        disks: PathBuf,
        empty_dir: u64,
        sizes: HashMap<String, u64>,
    ) -> Self {
        Self { sandbox, folder, disks, empty_dir, sizes, inner: Mutex::default() }
    }

    /// Makes everything ready that a container mounts.
    ///
    /// # Errors
    /// The first mount that can't work, by its source.
    pub async fn prepare(&self, container: &str, mounts: &[Mount]) -> Result<Prepared> {
        let mut inner = self.inner.lock().await;
        let kinds: Vec<Option<Kind>> = mounts.iter().map(kind_of).collect::<Result<_>>()?;
        self.copy_files(&mut inner, mounts, &kinds).await?;
        let mut prepared = Prepared::default();
        for (mount, kind) in mounts.iter().zip(kinds) {
            let source = mount.source().clone().unwrap_or_default();
            let guest = match kind {
                None => {
                    prepared.mounts.push(mount.clone());
                    continue;
                }
                Some(Kind::Block) => {
                    prepared.blocks.push(self.block(&mut inner, container, &source, mount).await?);
                    continue;
                }
                Some(Kind::Shm) => SHM.to_owned(),
                Some(Kind::Device(name)) => format!("/dev/{name}"),
                Some(Kind::File) => inner
                    .files
                    .get(&source)
                    .cloned()
                    .ok_or_else(|| Failure::Other(format!("{} was not copied", source.display())))?,
                Some(Kind::Files(folder, part)) => below(self.files_volume(&mut inner, folder).await?, &part),
                Some(Kind::EmptyDir(folder, part)) => below(self.empty_dir(&mut inner, folder).await?, &part),
                Some(Kind::Share) => self.share(&mut inner, container, &source, read_only(mount)).await?,
            };
            let mut moved = mount.clone();
            moved.set_source(Some(guest.into()));
            prepared.mounts.push(moved);
        }
        Ok(prepared)
    }

    /// Makes a root filesystem on the host visible in the guest: `mount` puts it into the folder it is given.
    ///
    /// # Errors
    /// Those of `mount`, and when nothing can be shared.
    pub async fn share_rootfs(
        &self,
        container: &str,
        mount: impl FnOnce(&Path) -> anyhow::Result<()>,
    ) -> Result<String> {
        let mut inner = self.inner.lock().await;
        let guest = self.staged(&mut inner).await?;
        let (staging, _) = inner.staging.as_mut().ok_or_else(unshared)?;
        let name = staging.folder_entry()?;
        if let Err(error) = mount(&staging.folder().join(&name)) {
            staging.remove(&name);
            return Err(error.into());
        }
        let path = format!("{guest}/{name}");
        inner.used.entry(container.to_owned()).or_default().entries.push(name);
        Ok(path)
    }

    /// Plugs a block device of the host for a container; gives what the guest finds it by.
    ///
    /// # Errors
    /// When it can't be opened or plugged.
    pub async fn plug(&self, container: &str, source: &Path, read_only: bool) -> Result<String> {
        let mut inner = self.inner.lock().await;
        self.plug_block(&mut inner, container, source, read_only).await
    }

    /// Lets go of what only this container used; the guest must be done with it.
    pub async fn release(&self, container: &str) {
        let mut inner = self.inner.lock().await;
        let Some(used) = inner.used.remove(container) else { return };
        for serial in used.disks {
            self.sandbox.unplug_disk(&serial).await;
        }
        if let Some((staging, _)) = &inner.staging {
            used.entries.iter().for_each(|name| staging.remove(name));
        }
    }

    fn number(inner: &mut Inner) -> u64 {
        inner.next += 1;
        inner.next
    }

    /// Copies the small files of a container that are not in the guest yet, all in one volume.
    async fn copy_files(&self, inner: &mut Inner, mounts: &[Mount], kinds: &[Option<Kind>]) -> Result<()> {
        let mut fresh: Vec<PathBuf> = Vec::new();
        for (mount, kind) in mounts.iter().zip(kinds) {
            let source = mount.source().clone().unwrap_or_default();
            if *kind == Some(Kind::File) && !inner.files.contains_key(&source) && !fresh.contains(&source) {
                fresh.push(source);
            }
        }
        if fresh.is_empty() {
            return Ok(());
        }
        let guest = self.copied(inner, Content::Files(fresh.clone())).await?;
        for (number, source) in fresh.into_iter().enumerate() {
            inner.files.insert(source, format!("{guest}/{number}"));
        }
        Ok(())
    }

    async fn files_volume(&self, inner: &mut Inner, folder: PathBuf) -> Result<String> {
        if let Some(guest) = inner.folders.get(&folder) {
            return Ok(guest.clone());
        }
        let guest = self.copied(inner, Content::Folder(folder.clone())).await?;
        inner.folders.insert(folder, guest.clone());
        Ok(guest)
    }

    /// Makes a volume that holds a copy, and keeps it like the original.
    async fn copied(&self, inner: &mut Inner, content: Content) -> Result<String> {
        let id = format!("files{}", Self::number(inner));
        let watch = Watch::new(&content).context("cannot watch a volume").map_err(Failure::from)?;
        let reading = content.clone();
        let packed = tokio::task::spawn_blocking(move || files::pack(&reading));
        let (mode, gid) = match &content {
            Content::Folder(folder) => owner(folder)?,
            Content::Files(_) => (0o755, 0),
        };
        let kind = mount_volume_request::Kind::Files(v1::FilesVolume { bytes: 2 * files::BYTES });
        let request = v1::MountVolumeRequest { id: id.clone(), kind: Some(kind), mode, gid };
        let agent = self.sandbox.agent();
        let guest = self.sandbox.while_alive(agent.mount_volume(request)).await?;
        let packed = packed.await.map_err(Failure::other)??;
        self.sandbox.while_alive(agent.sync_volume(&id, &packed)).await?;
        inner.watches.spawn(watch.follow(agent.clone(), id, content, packed));
        Ok(guest)
    }

    async fn empty_dir(&self, inner: &mut Inner, folder: PathBuf) -> Result<String> {
        if let Some(guest) = inner.folders.get(&folder) {
            return Ok(guest.clone());
        }
        let (mode, gid) = owner(&folder)?;
        let name = folder.file_name().and_then(|name| name.to_str()).unwrap_or_default();
        let memory = watch::tmpfs_size(&folder)
            .map_err(|error| Failure::Other(format!("cannot read {}: {error}", folder.display())))?;
        let kind = match memory {
            // Kubelet gives a volume without a limit half of the node's memory or all of it.
            Some(bytes) => mount_volume_request::Kind::Memory(v1::MemoryVolume {
                bytes: self.sizes.get(name).copied().unwrap_or(if bytes >= node_memory() / 2 {
                    0
                } else {
                    bytes
                }),
            }),
            None => {
                let bytes = self.sizes.get(name).copied().unwrap_or(self.empty_dir);
                let serial = self.sandbox.plug_scratch(bytes, self.disks.clone()).await?;
                mount_volume_request::Kind::Disk(v1::DiskVolume { serial, read_only: false })
            }
        };
        let id = format!("empty{}", Self::number(inner));
        let request = v1::MountVolumeRequest { id, kind: Some(kind), mode, gid };
        let guest = self.sandbox.while_alive(self.sandbox.agent().mount_volume(request)).await?;
        inner.folders.insert(folder, guest.clone());
        Ok(guest)
    }

    async fn share(
        &self,
        inner: &mut Inner,
        container: &str,
        source: &Path,
        read_only: bool,
    ) -> Result<String> {
        let guest = self.staged(inner).await?;
        let (staging, _) = inner.staging.as_mut().ok_or_else(unshared)?;
        let name = staging.bind(source, read_only)?;
        let path = format!("{guest}/{name}");
        inner.used.entry(container.to_owned()).or_default().entries.push(name);
        Ok(path)
    }

    /// Where the staging folder is in the guest; it is made and shared at its first use.
    async fn staged(&self, inner: &mut Inner) -> Result<String> {
        if let Some((_, guest)) = &inner.staging {
            return Ok(guest.clone());
        }
        let staging = Staging::create(self.folder.join("share"))?;
        let share = Share { tag: TAG.to_owned(), path: staging.folder().to_owned(), read_only: false };
        let guest = self.sandbox.share(&share).await?;
        inner.staging = Some((staging, guest.clone()));
        Ok(guest)
    }

    async fn block(
        &self,
        inner: &mut Inner,
        container: &str,
        source: &Path,
        mount: &Mount,
    ) -> Result<BlockDevice> {
        let read_only = read_only(mount);
        let serial = self.plug_block(inner, container, source, read_only).await?;
        let path = mount.destination().display().to_string();
        Ok(BlockDevice { serial, path, read_only, mode: 0o660, uid: 0, gid: 0 })
    }

    async fn plug_block(
        &self,
        inner: &mut Inner,
        container: &str,
        source: &Path,
        read_only: bool,
    ) -> Result<String> {
        let file = std::fs::OpenOptions::new()
            .read(true)
            .write(!read_only)
            .open(source)
            .map_err(|error| Failure::Other(format!("cannot open {}: {error}", source.display())))?;
        let serial = self.sandbox.plug_disk(file.into(), read_only).await?;
        inner.used.entry(container.to_owned()).or_default().disks.push(serial.clone());
        Ok(serial)
    }
}

fn unshared() -> Failure {
    Failure::Other("the pod's shared folder is gone".to_owned())
}

fn kind_of(mount: &Mount) -> Result<Option<Kind>> {
    if !is_bind(mount) {
        return Ok(None);
    }
    let source = mount.source().clone().unwrap_or_default();
    kind::of(&source, mount.destination(), read_only(mount)).map(Some)
}

/// Whether a mount is of something on the host.
pub fn is_bind(mount: &Mount) -> bool {
    let options = mount.options().as_deref().unwrap_or_default();
    mount.typ().as_deref() == Some("bind")
        || options.iter().any(|option| matches!(option.as_str(), "bind" | "rbind"))
}

fn read_only(mount: &Mount) -> bool {
    mount.options().iter().flatten().any(|option| matches!(option.as_str(), "ro" | "rro"))
}

fn below(guest: String, part: &Path) -> String {
    if part.as_os_str().is_empty() { guest } else { format!("{guest}/{}", part.display()) }
}

/// Mode and group of a volume's folder.
fn owner(folder: &Path) -> Result<(u32, u32)> {
    let meta = std::fs::metadata(folder)
        .map_err(|error| Failure::Other(format!("cannot read {}: {error}", folder.display())))?;
    Ok((meta.mode() & 0o7777, meta.gid()))
}

/// Bytes of memory of the node.
fn node_memory() -> u64 {
    let info = rustix::system::sysinfo();
    info.totalram.saturating_mul(info.mem_unit.into())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn annotations_give_empty_dirs_their_size() {
        let map = HashMap::from([
            ("cloister.dev/empty-dir.cache".to_owned(), "64Mi".to_owned()),
            ("cloister.dev/empty-dir.bad".to_owned(), "lots".to_owned()),
            ("other".to_owned(), "1".to_owned()),
        ]);
        assert_eq!(sizes(&map), HashMap::from([("cache".to_owned(), 64 << 20)]));
    }

    #[test]
    fn quantities_are_read_as_kubernetes_writes_them() {
        assert_eq!(quantity("1000"), Some(1000));
        assert_eq!(quantity("2G"), Some(2_000_000_000));
        assert_eq!(quantity("1Ti"), Some(1 << 40));
        assert_eq!(quantity("99999999999Ti"), None);
        assert_eq!(quantity("1.5Gi"), None);
    }
}
