//! Where the shim of a pod is: its folder, what it says there, and the line to it.

use std::collections::BTreeSet;
use std::fs::File;
use std::io::Read;
use std::path::{Path, PathBuf};
use std::time::Duration;

use cloister_builder::pod::{Control, Facts};
use serde::Deserialize;

/// How often the folders are looked at. There is a bounded number of pods on a node, and each is read once.
const LOOK: Duration = Duration::from_millis(40);
/// Most bytes of a pod's state.
const MAX_STATE: u64 = 1 << 20;
/// The shim's file, and containerd's namespace of Kubernetes' pods.
const STATE: &str = "state.json";
const NAMESPACE: &str = "k8s.io";

/// A builder's shim.
#[derive(Debug)]
pub struct Place {
    /// Its private folder.
    pub folder: PathBuf,
    /// What it says.
    pub facts: Facts,
    /// The line to it.
    pub control: Control,
}

#[derive(Deserialize)]
struct State {
    name: Option<String>,
}

/// Waits until the shim of the pod `name`, `NAMESPACE/NAME`, listens; the caller bounds the time. `pods` is the folder of
/// all pods.
pub async fn find(pods: &Path, name: &str) -> Place {
    let folder = pods.join(NAMESPACE);
    // Sandboxes by id that are others'.
    let mut others = BTreeSet::new();
    loop {
        for id in ids(&folder) {
            if others.contains(&id) {
                continue;
            }
            let of = folder.join(&id);
            match state(&of).and_then(|state| state.name) {
                Some(found) if found == name => {
                    if let Some(place) = open(of, name).await {
                        return place;
                    }
                }
                Some(_) => drop(others.insert(id)),
                // A shim writes its first state before it knows the pod's name.
                None => {}
            }
        }
        tokio::time::sleep(LOOK).await;
    }
}

fn ids(folder: &Path) -> Vec<std::ffi::OsString> {
    std::fs::read_dir(folder).into_iter().flatten().flatten().map(|entry| entry.file_name()).collect()
}

fn state(folder: &Path) -> Option<State> {
    let mut text = Vec::new();
    File::open(folder.join(STATE)).ok()?.take(MAX_STATE).read_to_end(&mut text).ok()?;
    serde_json::from_slice(&text).ok()
}

/// A sandbox of this name that ended does not listen; kubelet may have made another.
async fn open(folder: PathBuf, name: &str) -> Option<Place> {
    let facts = Facts::read(&folder).ok()?.filter(|facts| facts.pod == name)?;
    let control = Control::connect(&folder).await.ok()?;
    Some(Place { folder, facts, control })
}

#[cfg(test)]
mod tests {
    use cloister_builder::pod::socket;
    use tokio::net::UnixListener;

    use super::*;

    #[tokio::test]
    async fn the_sandbox_that_listens_is_found_among_others() {
        let pods = tempfile::tempdir().unwrap();
        let make = |id: &str, name: &str| {
            let folder = pods.path().join(NAMESPACE).join(id);
            std::fs::create_dir_all(&folder).unwrap();
            std::fs::write(folder.join(STATE), format!(r#"{{"name":"{name}"}}"#)).unwrap();
            folder
        };
        let facts = |folder: &Path| {
            let facts = Facts {
                pod: "team/app-1".into(),
                container: "c".into(),
                memory_bytes: 1,
                disk_bytes: 1,
                warm: false,
                mounts: Default::default(),
                dialer: serde_json::from_str("\"/door\"").unwrap(),
            };
            facts.write(folder).unwrap();
        };
        make("a", "team/other");
        facts(&make("b", "team/app-1"));
        let search = find(pods.path(), "team/app-1");
        let appear = async {
            tokio::time::sleep(2 * LOOK).await;
            let folder = make("c", "");
            std::fs::write(folder.join(STATE), r#"{"name":null}"#).unwrap();
            tokio::time::sleep(2 * LOOK).await;
            make("c", "team/app-1");
            facts(&folder);
            UnixListener::bind(socket(&folder)).unwrap()
        };
        let (place, _listener) =
            tokio::time::timeout(Duration::from_secs(5), async { tokio::join!(search, appear) })
                .await
                .unwrap();
        assert!(place.folder.ends_with("c"));
    }
}
