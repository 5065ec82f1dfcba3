//! The parts of a bundle's OCI specification that say what a container is to its pod.

use std::collections::HashMap;
use std::fs::File;
use std::io::Read;
use std::path::Path;

use anyhow::{Context, Result, bail};
use oci_spec::runtime::Spec;

/// Most bytes of a `config.json`.
const SPEC_BYTES: u64 = 16 << 20;

/// Annotation of containerd's CRI plugin: `sandbox` or `container`.
const CONTAINER_TYPE: &str = "io.kubernetes.cri.container-type";
/// Annotation of containerd's CRI plugin: the pod's id.
const SANDBOX_ID: &str = "io.kubernetes.cri.sandbox-id";

/// What a container is to its pod.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Kind {
    /// The pod itself: no process runs for it.
    Sandbox,
    /// One container of a pod.
    Member,
    /// A container without a pod (`ctr run`): a pod of its own.
    Single,
}

/// Reads the specification of a bundle.
pub fn read(bundle: &Path) -> Result<Spec> {
    let path = bundle.join("config.json");
    let mut text = Vec::new();
    let file = File::open(&path).with_context(|| format!("cannot open {}", path.display()))?;
    file.take(SPEC_BYTES + 1)
        .read_to_end(&mut text)
        .with_context(|| format!("cannot read {}", path.display()))?;
    if text.len() as u64 > SPEC_BYTES {
        bail!("{} is larger than {SPEC_BYTES} bytes", path.display());
    }
    serde_json::from_slice(&text).with_context(|| format!("{} is no OCI specification", path.display()))
}

/// Annotations of a specification.
pub fn annotations(spec: &Spec) -> HashMap<String, String> {
    spec.annotations().clone().unwrap_or_default()
}

/// What a container with these annotations is, and the id of its pod.
pub fn kind(id: &str, annotations: &HashMap<String, String>) -> (Kind, String) {
    let pod = annotations.get(SANDBOX_ID).filter(|pod| !pod.is_empty());
    match (annotations.get(CONTAINER_TYPE).map(String::as_str), pod) {
        (Some("sandbox"), _) => (Kind::Sandbox, id.to_owned()),
        (Some("container"), Some(pod)) => (Kind::Member, pod.clone()),
        _ => (Kind::Single, id.to_owned()),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_container_belongs_to_the_pod_its_annotations_name() {
        let map = |kind: &str| {
            HashMap::from([
                (CONTAINER_TYPE.to_owned(), kind.to_owned()),
                (SANDBOX_ID.to_owned(), "pod".to_owned()),
            ])
        };
        assert_eq!(kind("c", &map("container")), (Kind::Member, "pod".to_owned()));
        assert_eq!(kind("pod", &map("sandbox")), (Kind::Sandbox, "pod".to_owned()));
        assert_eq!(kind("c", &HashMap::new()), (Kind::Single, "c".to_owned()));
    }
}
