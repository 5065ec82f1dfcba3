//! A pod that is a builder: its one container is buildkitd, privileged in the guest, driven by the node's build driver.

mod desk;
mod log;
mod wish;

use std::collections::BTreeMap;
use std::path::{Component, Path, PathBuf};

use cloister_builder::STATE;
use cloister_builder::pod::HOST;
use oci_spec::runtime::Mount;
use tokio::sync::watch;

pub use self::desk::Desk;
pub use self::wish::Wish;
use crate::failure::{Failure, Result};
use crate::volumes::is_bind;

/// Where the kubelet mounts a file that buildkitd never writes, and the CRI the pod's shared memory.
const UNUSED: [&str; 2] = ["/dev/termination-log", "/dev/shm"];
/// What the CRI mounts so that names are found, of which there are none without a network.
const NAMES: [&str; 3] = ["/etc/hosts", "/etc/hostname", "/etc/resolv.conf"];

/// What somebody asks a builder to end with.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Ask {
    /// The container's exit code.
    pub code: u8,
    /// Whether buildkitd gets the time to end by itself.
    pub kind: bool,
}

/// How to end a builder, and to wait for its end.
#[derive(Debug, Clone)]
pub struct Handle {
    /// The container's id.
    pub container: String,
    asks: watch::Sender<Option<Ask>>,
    done: watch::Receiver<bool>,
}

/// The other end of a [`Handle`]: who looks after the builder.
#[derive(Debug)]
pub struct Keeper {
    asked: watch::Receiver<Option<Ask>>,
    done: watch::Sender<bool>,
}

impl Handle {
    /// A handle of this container, and its other end.
    pub fn new(container: String) -> (Self, Keeper) {
        let (asks, asked) = watch::channel(None);
        let (done, ended) = watch::channel(false);
        (Self { container, asks, done: ended }, Keeper { asked, done })
    }

    /// Asks for the end. The first one counts.
    pub fn ask(&self, ask: Ask) {
        self.asks.send_if_modified(|asked| {
            let first = asked.is_none();
            asked.get_or_insert(ask);
            first
        });
    }

    /// Waits for the end, its disk written back. The caller bounds the time.
    pub async fn done(&self) {
        let _ = self.done.clone().wait_for(|done| *done).await;
    }
}

impl Keeper {
    /// Waits until somebody asks for the end.
    pub async fn asked(&mut self) -> Ask {
        match self.asked.wait_for(Option::is_some).await.map(|asked| *asked) {
            Ok(Some(ask)) => ask,
            // Nobody is left who could.
            _ => std::future::pending().await,
        }
    }

    /// Tells that it has ended.
    pub fn done(&self) {
        self.done.send_replace(true);
    }
}

/// Mounts of a builder's container.
#[derive(Debug, Default, PartialEq, Eq)]
pub struct Mounts {
    /// Where on the host is what only the host's side reads, by the path below [`HOST`].
    pub host: BTreeMap<PathBuf, PathBuf>,
    /// What buildkitd sees of the host.
    pub guest: Vec<Mount>,
}

impl Mounts {
    /// Tells them apart. What buildkitd has anyway, or has no use for, is left out.
    ///
    /// # Errors
    /// When a mount leads out of [`HOST`] again.
    pub fn split(all: Vec<Mount>, network: bool) -> Result<Self> {
        let mut mounts = Self::default();
        let is = |place: &Path, names: &[&str]| names.iter().any(|name| place == Path::new(name));
        for mount in all.into_iter().filter(is_bind) {
            let place = mount.destination();
            if let Ok(below) = place.strip_prefix(HOST) {
                if !below.components().all(|part| matches!(part, Component::Normal(_))) {
                    return Err(Failure::Invalid(format!("cannot mount at {}", place.display())));
                }
                let source = mount.source().clone().unwrap_or_default();
                mounts.host.insert(below.to_owned(), source);
            } else if !place.starts_with(STATE) && !is(place, &UNUSED) && (network || !is(place, &NAMES)) {
                mounts.guest.push(mount);
            }
        }
        Ok(mounts)
    }
}

#[cfg(test)]
mod tests {
    use oci_spec::runtime::MountBuilder;

    use super::*;

    fn mount(destination: &str, kind: &str) -> Mount {
        let source = format!("/host{destination}");
        MountBuilder::default().destination(destination).typ(kind).source(source).build().unwrap()
    }

    #[test]
    fn what_is_for_the_host_never_enters_the_guest() {
        let all = vec![
            mount("/proc", "proc"),
            mount("/run/cloister/host/spec", "bind"),
            mount("/run/cloister/host/secrets/hub", "bind"),
            mount("/run/cloister/hosts", "bind"),
            mount("/etc/resolv.conf", "bind"),
            mount("/dev/termination-log", "bind"),
            mount("/dev/shm", "bind"),
            mount("/var/lib/buildkit", "bind"),
        ];
        let mounts = Mounts::split(all.clone(), true).unwrap();
        let host: Vec<_> = mounts.host.keys().map(|path| path.display().to_string()).collect();
        assert_eq!(host, ["secrets/hub", "spec"]);
        assert_eq!(mounts.host[Path::new("spec")], Path::new("/host/run/cloister/host/spec"));
        let guest: Vec<_> = mounts.guest.iter().map(|one| one.destination().display().to_string()).collect();
        assert_eq!(guest, ["/run/cloister/hosts", "/etc/resolv.conf"]);
        assert_eq!(Mounts::split(all, false).unwrap().guest.len(), 1);
        assert!(Mounts::split(vec![mount("/run/cloister/host/../x", "bind")], true).is_err());
    }

    #[tokio::test]
    async fn the_first_ask_counts() {
        let (handle, mut keeper) = Handle::new("c".to_owned());
        handle.ask(Ask { code: 3, kind: true });
        handle.ask(Ask { code: 137, kind: false });
        assert_eq!(keeper.asked().await, Ask { code: 3, kind: true });
        keeper.done();
        handle.done().await;
    }
}
