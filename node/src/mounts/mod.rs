//! What containerd is told to mount.
//!
//! | snapshot | answer |
//! | --- | --- |
//! | being unpacked | `cloister` with option `unpack`: only our differ knows what to do with it |
//! | of a container of the microVM runtime | `cloister`: the shim reads `layers.json` in the folder |
//! | of a container of another runtime, a view, or one whose key is the path to mount on | layers mounted here, one overlay or bind |
//! | of a container that containerd does not know yet | a read-only folder with `etc/passwd`, `etc/group` and the image's volumes |

mod accounts;
mod erofs;
pub mod host;
mod path;
#[cfg(test)]
mod tests;
mod volumes;

use std::path::{Path, PathBuf};
use std::sync::{Arc, Mutex, PoisonError};

use cloister_image::{Digest, LayerFile, Store};

use crate::api::types::Mount;
use crate::blocking;
use crate::containerd::{Containerd, Owner};
use crate::error::{Error, IoContext, Result};
use crate::snapshots::record::{Kind, client_key};
use crate::snapshots::state::{Found, State};
use host::HostMounts;

/// Mount type that only the shim and the differ know.
pub const TYPE: &str = "cloister";
/// Option of a mount that is being unpacked.
pub const UNPACK: &str = "unpack";

/// Folder of what is shown while a container is not known.
const ACCOUNTS: &str = "accounts";

/// Decides and prepares mounts.
#[derive(Debug)]
pub struct Mounts {
    /// The snapshots.
    pub state: Arc<State>,
    /// Layers mounted on the host.
    pub host: HostMounts,
    /// Knows the containers.
    pub containerd: Containerd,
    /// One at a time makes what a mount shows.
    turn: Mutex<()>,
}

impl Mounts {
    /// Nothing is mounted that was not before.
    pub fn new(state: Arc<State>, host: HostMounts, containerd: Containerd) -> Self {
        Self { state, host, containerd, turn: Mutex::new(()) }
    }

    /// The mounts of snapshot `name`. With `ask`, containerd is asked whose it is.
    pub async fn of(self: &Arc<Self>, name: &str, ask: bool) -> Result<Vec<Mount>> {
        let found = self.state.find(name)?;
        if found.record.kind == Kind::Committed {
            return Err(Error::Precondition(format!("snapshot {name} is committed: make a view of it")));
        }
        if found.record.is_unpack() {
            return Ok(vec![cloister(&found.dir, &[UNPACK])]);
        }
        let (namespace, key) = client_key(name);
        let owner = if key.starts_with('/') {
            // The caller is about to mount it on that very path.
            Owner::Other
        } else if ask {
            self.containerd.owner(namespace, key).await?
        } else {
            Owner::Unknown
        };
        let volumes = match (owner, found.record.kind, found.chain) {
            (Owner::Unknown, Kind::Active, Some(chain)) if !found.dir.join(ACCOUNTS).exists() => {
                self.containerd.volumes(namespace, &chain).await?
            }
            _ => Vec::new(),
        };
        let this = self.clone();
        blocking::run(move || match (owner, found.record.kind) {
            (Owner::MicroVm, _) => Ok(vec![cloister(&found.dir, &[])]),
            (Owner::Unknown, Kind::Active) => this.accounts(&found, &volumes),
            _ => this.on_host(&found),
        })
        .await
    }

    fn accounts(&self, found: &Found, volumes: &[String]) -> Result<Vec<Mount>> {
        let dir = found.dir.join(ACCOUNTS);
        let _turn = self.turn.lock().unwrap_or_else(PoisonError::into_inner);
        accounts::make(&dir, open_layers(self.state.store(), &found.layers)?, volumes)?;
        Ok(vec![bind(&dir, "ro")])
    }

    fn on_host(&self, found: &Found) -> Result<Vec<Mount>> {
        let layers = open_layers(self.state.store(), &found.layers)?;
        let _turn = self.turn.lock().unwrap_or_else(PoisonError::into_inner);
        self.state.set_host(&found.record.name)?;
        let mut lower = self.host.ensure(&layers)?;
        lower.reverse();
        if found.record.kind == Kind::View {
            return Ok(match lower.as_slice() {
                [] => vec![bind(&make_upper(&found.dir, "fs", None)?, "ro")],
                [only] => vec![bind(only, "ro")],
                _ => vec![overlay(vec![lowerdir(&lower)])],
            });
        }
        let upper = make_upper(&found.dir, "fs", lower.first())?;
        if lower.is_empty() {
            return Ok(vec![bind(&upper, "rw")]);
        }
        let work = make_upper(&found.dir, "work", None)?;
        Ok(vec![overlay(vec![
            format!("workdir={}", work.display()),
            format!("upperdir={}", upper.display()),
            lowerdir(&lower),
        ])])
    }

    /// Takes down mounts that no snapshot needs any more.
    pub fn cleanup(&self) -> Result<()> {
        self.host.cleanup(|| self.state.host_layers())
    }
}

/// Opens layers, lowest first, locked against removal.
fn open_layers(store: &Store, layers: &[Digest]) -> Result<Vec<LayerFile>> {
    layers
        .iter()
        .map(|layer| {
            store.open_layer(layer)?.ok_or_else(|| {
                Error::Precondition(format!(
                    "layer {layer} is not in the image store; remove the image and pull it again"
                ))
            })
        })
        .collect()
}

/// A folder of the writable part, with the attributes of the root it covers.
fn make_upper(dir: &Path, name: &str, like: Option<&PathBuf>) -> Result<PathBuf> {
    use std::os::unix::fs::{MetadataExt, PermissionsExt};
    let path = dir.join(name);
    if path.exists() {
        return Ok(path);
    }
    let new = dir.join(format!("{name}.new"));
    std::fs::create_dir_all(&new).at("make", &new)?;
    let (mode, uid, gid) = match like {
        Some(root) => {
            let meta = std::fs::metadata(root).at("read", root)?;
            (meta.mode() & 0o7777, meta.uid(), meta.gid())
        }
        None => (0o755, 0, 0),
    };
    std::os::unix::fs::chown(&new, Some(uid), Some(gid)).at("change the owner of", &new)?;
    std::fs::set_permissions(&new, std::fs::Permissions::from_mode(mode)).at("change the mode of", &new)?;
    std::fs::rename(&new, &path).at("publish", &path)?;
    Ok(path)
}

fn cloister(dir: &Path, options: &[&str]) -> Mount {
    mount(TYPE, dir, options.iter().map(|option| (*option).to_owned()).collect())
}

fn bind(dir: &Path, access: &str) -> Mount {
    mount("bind", dir, vec![access.to_owned(), "rbind".to_owned()])
}

fn overlay(mut options: Vec<String>) -> Mount {
    // As containerd's own snapshotter: inode indexes would refuse an upper folder that was used with other lower ones.
    if Path::new("/sys/module/overlay/parameters/index").exists() {
        options.push("index=off".to_owned());
    }
    mount("overlay", Path::new("overlay"), options)
}

/// `highest` first.
fn lowerdir(highest: &[PathBuf]) -> String {
    let paths: Vec<String> = highest.iter().map(|path| path.display().to_string()).collect();
    format!("lowerdir={}", paths.join(":"))
}

fn mount(kind: &str, source: &Path, options: Vec<String>) -> Mount {
    Mount { r#type: kind.to_owned(), source: source.display().to_string(), target: String::new(), options }
}
