//! A pod's volumes: each bind mount of the host becomes a bind mount of something in the guest.

mod copies;
mod empty_dir;
mod files;
mod kind;
mod staging;
mod watch;

use std::collections::HashMap;
use std::os::unix::fs::MetadataExt;
use std::path::{Path, PathBuf};
use std::sync::Arc;

use cloister_sandbox::{BlockDevice, Sandbox, Share};
use oci_spec::runtime::Mount;
use tokio::sync::Mutex;
use tokio::task::JoinSet;

pub use self::empty_dir::sizes;
use self::kind::Kind;
use self::staging::{Access, Staging};
use crate::failure::{Failure, Result};

/// The tag of the one share.
const TAG: &str = "pod";
/// The guest's shared memory folder.
const SHM: &str = "/run/cloister/shm";

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
                Some(Kind::Share) => self.share(&mut inner, container, &source, access(mount)).await?,
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

    async fn share(
        &self,
        inner: &mut Inner,
        container: &str,
        source: &Path,
        access: Access,
    ) -> Result<String> {
        let guest = self.staged(inner).await?;
        let (staging, _) = inner.staging.as_mut().ok_or_else(unshared)?;
        let name = staging.bind(source, access)?;
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
    if has(mount, &["shared", "rshared"]) {
        return Err(Failure::Invalid(format!(
            "cannot mount {} with mountPropagation Bidirectional: mounts made in a microVM are not the host's; use HostToContainer or another runtime class",
            source.display()
        )));
    }
    kind::of(&source, mount.destination(), read_only(mount)).map(Some)
}

/// Whether a mount is of something on the host.
pub fn is_bind(mount: &Mount) -> bool {
    mount.typ().as_deref() == Some("bind") || has(mount, &["bind", "rbind"])
}

fn read_only(mount: &Mount) -> bool {
    has(mount, &["ro", "rro"])
}

fn access(mount: &Mount) -> Access {
    Access {
        read_only: read_only(mount),
        recursive: has(mount, &["rro"]),
        follow: has(mount, &["slave", "rslave"]),
    }
}

/// Whether a mount has one of these options.
fn has(mount: &Mount, names: &[&str]) -> bool {
    mount.options().iter().flatten().any(|option| names.contains(&option.as_str()))
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
