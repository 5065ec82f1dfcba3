//! What containerd asks the runtime about itself (`-info`).
//!
//! The answer is a `containerd.types.RuntimeInfo` with the features of the OCI runtime specification
//! (`features.md`), from which the CRI learns what a handler's mounts can do.

use anyhow::Result;
use containerd_shim::protos::protobuf::Message;
use containerd_shim::protos::protobuf::well_known_types::any::Any;
use containerd_shim::protos::types::introspection::{RuntimeInfo, RuntimeVersion};
use oci_spec::runtime::{Features, FeaturesBuilder, LinuxFeatureBuilder, LinuxNamespaceType};

/// What containerd calls this runtime.
const RUNTIME: &str = "io.containerd.cloister.v2";
/// The name under which containerd knows the document.
const TYPE: &str = "types.containerd.io/opencontainers/runtime-spec/1/features/Features";
/// Options of bind mounts that hold in the guest.
const MOUNT_OPTIONS: [&str; 12] = [
    "bind", "nodev", "noexec", "nosuid", "private", "rbind", "ro", "rprivate", "rro", "rslave", "rw", "slave",
];

/// The message.
pub fn message() -> Result<Vec<u8>> {
    let features =
        Any { type_url: TYPE.to_owned(), value: serde_json::to_vec(&features()?)?, ..Any::default() };
    let version =
        RuntimeVersion { version: env!("CARGO_PKG_VERSION").to_owned(), ..RuntimeVersion::default() };
    let info = RuntimeInfo {
        name: RUNTIME.to_owned(),
        version: Some(version).into(),
        features: Some(features).into(),
        ..RuntimeInfo::default()
    };
    Ok(info.write_to_bytes()?)
}

/// The network, IPC and names are the pod's; user namespaces and mounts with other ids there are none.
fn features() -> Result<Features> {
    use LinuxNamespaceType::{Cgroup, Ipc, Mount, Network, Pid, Uts};
    // containerd takes this part for granted.
    let linux = LinuxFeatureBuilder::default().namespaces([Cgroup, Ipc, Mount, Network, Pid, Uts]).build()?;
    Ok(FeaturesBuilder::default()
        .oci_version_min("1.0.0")
        .oci_version_max("1.1.0")
        .mount_options(MOUNT_OPTIONS.map(str::to_owned))
        .linux(linux)
        .build()?)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn recursive_read_only_mounts_are_offered_and_user_namespaces_are_not() {
        let info = RuntimeInfo::parse_from_bytes(&message().unwrap()).unwrap();
        let features: serde_json::Value = serde_json::from_slice(&info.features.value).unwrap();
        let has = |list: &serde_json::Value, word: &str| list.as_array().unwrap().iter().any(|w| w == word);
        assert!(has(&features["mountOptions"], "rro"));
        assert!(!has(&features["linux"]["namespaces"], "user"));
    }
}
