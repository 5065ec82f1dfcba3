//! Pods of the containerd shim, as they are on disk: `DIR/NAMESPACE/ID/state.json`, containerd's namespace and the sandbox's id.

use std::fs;
use std::path::{Path, PathBuf};

use anyhow::{Context, Result, bail};
use serde::Deserialize;

use super::record::process_start;

/// Fewest characters of an id that stand for it.
const SHORT: usize = 6;

/// A process by a name that is never used twice.
#[derive(Debug, Clone, Copy, Deserialize)]
pub struct ProcessId {
    /// Its number.
    pub pid: u32,
    /// When it started, in clock ticks since the boot.
    started: u64,
}

/// The part of the state that matters here.
#[derive(Debug, Deserialize)]
struct State {
    /// Kubernetes' namespace, a slash, the pod's name.
    name: Option<String>,
    shim: ProcessId,
}

/// A pod.
#[derive(Debug)]
pub struct Pod {
    /// Its folder of state.
    pub folder: PathBuf,
    /// The process that serves it.
    pub shim: ProcessId,
    id: String,
    name: Option<String>,
}

impl Pod {
    /// Whether its shim lives.
    pub fn is_alive(&self) -> bool {
        process_start(self.shim.pid) == Some(self.shim.started)
    }

    fn is(&self, wanted: &str) -> bool {
        let short = wanted.len() >= SHORT && self.id.starts_with(wanted);
        let named = self.name.as_deref().is_some_and(|name| {
            name == wanted || name.split_once('/').is_some_and(|(_, name)| name == wanted)
        });
        short || self.id == wanted || named
    }
}

/// The pod that a name, a namespace and name, or an id stands for.
///
/// # Errors
/// When it stands for several, or `dir` can't be read.
pub fn find(dir: &Path, wanted: &str) -> Result<Option<Pod>> {
    let mut found: Vec<Pod> = list(dir)?.into_iter().filter(|pod| pod.is(wanted)).collect();
    if found.len() > 1 {
        let all: Vec<&str> =
            found.iter().map(|pod| pod.name.as_deref().unwrap_or(pod.id.as_str())).take(8).collect();
        bail!("{wanted} stands for {} pods ({}): use NAMESPACE/NAME or the id", found.len(), all.join(", "));
    }
    Ok(found.pop())
}

/// Every pod whose state can be read.
pub fn list(dir: &Path) -> Result<Vec<Pod>> {
    let namespaces = match fs::read_dir(dir) {
        Ok(namespaces) => namespaces,
        Err(error) if error.kind() == std::io::ErrorKind::NotFound => return Ok(Vec::new()),
        Err(error) => return Err(error).with_context(|| format!("cannot read {}", dir.display())),
    };
    let folders = namespaces.flatten().filter_map(|namespace| fs::read_dir(namespace.path()).ok());
    let pods = folders.flat_map(Iterator::flatten).filter_map(|entry| {
        let folder = entry.path();
        // Half a state is that of a pod that comes or goes.
        let state: State = serde_json::from_slice(&fs::read(folder.join("state.json")).ok()?).ok()?;
        let id = entry.file_name().into_string().ok()?;
        Some(Pod { folder, shim: state.shim, id, name: state.name })
    });
    Ok(pods.collect())
}

#[cfg(test)]
mod tests {
    use super::*;

    fn pod(dir: &Path, id: &str, name: Option<&str>) {
        let folder = dir.join("k8s.io").join(id);
        fs::create_dir_all(&folder).unwrap();
        let state = serde_json::json!({"phase": "running", "name": name, "shim": {"pid": 1, "started": 0}});
        fs::write(folder.join("state.json"), state.to_string()).unwrap();
    }

    #[test]
    fn names_and_ids_stand_for_pods_unless_for_several() {
        let dir = std::env::temp_dir().join(format!("cloister-pods-unit-{}", std::process::id()));
        pod(&dir, "abcdef0123", Some("shop/web"));
        pod(&dir, "abcdef9999", Some("bank/web"));
        pod(&dir, "fedcba0000", None);
        let id = |wanted: &str| find(&dir, wanted).unwrap().map(|pod| pod.id);
        assert_eq!(id("shop/web").as_deref(), Some("abcdef0123"));
        assert_eq!(id("fedcba").as_deref(), Some("fedcba0000"));
        assert_eq!((id("fed"), id("nothing"), id("")), (None, None, None));
        for several in ["web", "abcdef"] {
            assert!(find(&dir, several).unwrap_err().to_string().contains("2 pods"));
        }
        assert!(!find(&dir, "shop/web").unwrap().unwrap().is_alive());
        fs::remove_dir_all(&dir).unwrap();
        assert!(find(&dir, "web").unwrap().is_none());
    }
}
