//! What a pod is to be: read from the sandbox container's specification, or from the CRI's own message where containerd
//! asks for a sandbox without a container.

use std::collections::HashMap;
use std::fs::Permissions;
use std::os::unix::fs::PermissionsExt;
use std::path::{Path, PathBuf};

use oci_spec::runtime::{LinuxNamespaceType, Mount, MountBuilder, Spec};

use crate::failure::{Failure, Result};
use crate::options::Kind;
use crate::spec::{self, Limits};

/// Annotations of containerd's CRI plugin with what Kubernetes calls a pod.
const NAMESPACE: &str = "io.kubernetes.cri.sandbox-namespace";
const NAME: &str = "io.kubernetes.cri.sandbox-name";
/// Annotations of containerd's CRI plugin about the sum of a pod's limits.
const MEMORY: &str = "io.kubernetes.cri.sandbox-memory";
const CPU_QUOTA: &str = "io.kubernetes.cri.sandbox-cpu-quota";
const CPU_PERIOD: &str = "io.kubernetes.cri.sandbox-cpu-period";

/// Names in the pod's folder, and what they are in a container.
const FILES: [(&str, &str); 3] =
    [("hostname", "/etc/hostname"), ("hosts", "/etc/hosts"), ("resolv.conf", "/etc/resolv.conf")];
/// Shared memory in a container.
const SHM: &str = "/dev/shm";

/// What a pod is to be.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Setup {
    /// What Kubernetes calls it: its namespace, a slash, its name.
    pub name: Option<String>,
    /// The name its containers see.
    pub hostname: String,
    /// Kernel settings of the pod.
    pub sysctls: HashMap<String, String>,
    /// Its network namespace; `None` for a pod without any network.
    pub netns: Option<PathBuf>,
    /// Its cgroup, as a runtime specification names one.
    pub cgroup: String,
    /// What its containers may use together, as far as is known.
    pub limits: Limits,
    /// Whether privileged containers may run in it.
    pub privileged: bool,
    /// Its annotations.
    pub annotations: HashMap<String, String>,
    /// What containerd leaves to the shim when there is no sandbox container.
    pub files: Option<Files>,
}

/// Files that every container of a pod has, and that nobody else makes.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Files {
    /// For `/etc/hostname`.
    pub hostname: String,
    /// For `/etc/resolv.conf`; the node's own if absent.
    pub resolv_conf: Option<String>,
}

impl Files {
    /// Writes the files into the pod's folder.
    pub fn write(&self, folder: &Path) -> Result<()> {
        let nodes = |path: &str| std::fs::read(path).unwrap_or_default();
        let resolv_conf = self.resolv_conf.as_ref().map(|text| text.clone().into_bytes());
        let contents = [
            format!("{}\n", self.hostname).into_bytes(),
            nodes("/etc/hosts"),
            resolv_conf.unwrap_or_else(|| nodes("/etc/resolv.conf")),
        ];
        for ((name, _), content) in FILES.iter().zip(contents) {
            let path = folder.join(name);
            std::fs::write(&path, content)
                .and_then(|()| std::fs::set_permissions(&path, Permissions::from_mode(0o644)))
                .map_err(|error| Failure::Other(format!("cannot write {}: {error}", path.display())))?;
        }
        Ok(())
    }

    /// Adds to a container's mounts what it does not mount itself, the pod's shared memory included.
    pub fn mount(folder: &Path, mounts: &mut Vec<Mount>) -> Result<()> {
        mounts.retain(|mount| mount.destination() != Path::new(SHM) || crate::volumes::is_bind(mount));
        let files = FILES.iter().map(|(name, destination)| (folder.join(name), *destination));
        for (source, destination) in files.chain([(PathBuf::from(SHM), SHM)]) {
            if mounts.iter().any(|mount| mount.destination() == Path::new(destination)) {
                continue;
            }
            let options = ["rbind", "rprivate", "rw"].map(str::to_owned).to_vec();
            let mount =
                MountBuilder::default().destination(destination).typ("bind").source(source).options(options);
            mounts.push(mount.build().map_err(Failure::other)?);
        }
        Ok(())
    }
}

impl Setup {
    /// Reads the specification of a sandbox container, or of a container that is a pod of its own.
    ///
    /// # Errors
    /// When it wants of the host what a machine of its own does not have.
    pub fn from_spec(kind: Kind, spec: &Spec) -> Result<Self> {
        let linux = spec.linux().clone().unwrap_or_default();
        let annotations = crate::options::annotations(spec);
        let network = spec::namespace(spec, LinuxNamespaceType::Network);
        let netns =
            network.and_then(|network| network.path().clone()).filter(|path| !path.as_os_str().is_empty());
        // One without a path is new: nothing leads out of it. The CRI plugin names the one that CNI plugins filled.
        if network.is_none() {
            return Err(Refused::Network.into());
        }
        if kind == Kind::Sandbox && spec::namespace(spec, LinuxNamespaceType::Ipc).is_none() {
            return Err(Refused::Ipc.into());
        }
        if spec::namespace(spec, LinuxNamespaceType::User).is_some() {
            return Err(Refused::Users.into());
        }
        let limits = match kind {
            Kind::Sandbox => annotated(&annotations),
            Kind::Member | Kind::Single => spec::limits(linux.resources().as_ref()),
        };
        Ok(Self {
            name: name(&annotations),
            hostname: spec.hostname().clone().unwrap_or_default(),
            sysctls: linux.sysctl().clone().unwrap_or_default(),
            netns,
            cgroup: linux.cgroups_path().as_ref().map(|path| path.display().to_string()).unwrap_or_default(),
            limits,
            // A sandbox container's specification does not tell whether privileged containers will come; containerd
            // itself refuses them in other pods.
            privileged: kind == Kind::Sandbox || spec::is_privileged(spec),
            annotations,
            files: None,
        })
    }
}

/// What a pod cannot share with the host, or leave to it.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Refused {
    /// `hostNetwork: true`.
    Network,
    /// `hostIPC: true`.
    Ipc,
    /// `hostUsers: false`: a user namespace.
    Users,
}

impl From<Refused> for Failure {
    fn from(refused: Refused) -> Self {
        let (field, why) = match refused {
            Refused::Network => ("hostNetwork", "its network is not the host's"),
            Refused::Ipc => ("hostIPC", "its kernel has no shared memory or queues of the host"),
            Refused::Users => (
                "hostUsers: false",
                "its users are not the host's anyway, and its volumes cannot be mapped to others",
            ),
        };
        Self::Invalid(format!(
            "{field} pods cannot run in a microVM: {why}; remove it from the pod or use another runtime class"
        ))
    }
}

fn name(annotations: &HashMap<String, String>) -> Option<String> {
    Some(format!("{}/{}", annotations.get(NAMESPACE)?, annotations.get(NAME)?))
}

/// The limits that annotations give; 0 means none.
fn annotated(annotations: &HashMap<String, String>) -> Limits {
    let number = |name: &str| annotations.get(name).and_then(|text| text.parse::<i64>().ok());
    let period =
        number(CPU_PERIOD).and_then(|period| u64::try_from(period).ok()).filter(|period| *period > 0);
    Limits {
        memory: number(MEMORY).and_then(|bytes| u64::try_from(bytes).ok()).filter(|bytes| *bytes > 0),
        cpu: number(CPU_QUOTA).and_then(|quota| spec::millis(quota, period.unwrap_or(100_000))),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn spec(namespaces: &str, annotations: &str) -> Spec {
        let json = format!(
            r#"{{"ociVersion":"1.1.0","hostname":"web-0","annotations":{{{annotations}}},
                "linux":{{"cgroupsPath":"/kubepods/pod1/abc","sysctl":{{"net.ipv4.ip_forward":"1"}},
                "namespaces":[{{"type":"mount"}}{namespaces}]}}}}"#
        );
        serde_json::from_str(&json).unwrap()
    }

    #[test]
    fn a_sandbox_containers_specification_tells_what_the_pod_is() {
        let annotations = r#""io.kubernetes.cri.sandbox-namespace":"shop","io.kubernetes.cri.sandbox-name":"web-0","io.kubernetes.cri.sandbox-memory":"67108864","io.kubernetes.cri.sandbox-cpu-quota":"150000","io.kubernetes.cri.sandbox-cpu-period":"100000""#;
        let spec = spec(r#",{"type":"ipc"},{"type":"network","path":"/var/run/netns/cni-1"}"#, annotations);
        let setup = Setup::from_spec(Kind::Sandbox, &spec).unwrap();
        assert_eq!((setup.name.as_deref(), setup.hostname.as_str()), (Some("shop/web-0"), "web-0"));
        assert_eq!(setup.netns.as_deref(), Some(std::path::Path::new("/var/run/netns/cni-1")));
        assert_eq!(setup.limits, Limits { memory: Some(64 << 20), cpu: Some(1500) });
        assert_eq!(setup.cgroup, "/kubepods/pod1/abc");
        assert_eq!(setup.sysctls.len(), 1);
    }

    #[test]
    fn what_is_the_hosts_is_refused_by_its_name() {
        let network = r#",{"type":"network","path":"/n"}"#;
        let user = format!(r#"{network},{{"type":"ipc"}},{{"type":"user"}}"#);
        for (namespaces, name) in [("", "hostNetwork"), (network, "hostIPC"), (&user, "hostUsers: false")] {
            let error = Setup::from_spec(Kind::Sandbox, &spec(namespaces, "")).unwrap_err().to_string();
            assert!(error.starts_with(name) && error.contains("another runtime class"), "{error}");
        }
        let none = spec(r#",{"type":"ipc"},{"type":"network"}"#, "");
        assert_eq!(Setup::from_spec(Kind::Sandbox, &none).unwrap().netns, None);
        assert!(Setup::from_spec(Kind::Single, &spec(r#",{"type":"network"}"#, "")).is_ok());
        assert!(Setup::from_spec(Kind::Single, &spec(&user, "")).is_err());
    }

    #[test]
    fn containers_get_the_pods_files_unless_they_bring_their_own() {
        let folder = tempfile::tempdir().unwrap();
        Files { hostname: "web".to_owned(), resolv_conf: None }.write(folder.path()).unwrap();
        assert_eq!(std::fs::read_to_string(folder.path().join("hostname")).unwrap(), "web\n");
        let own = |destination: &str, kind: &str| {
            MountBuilder::default().destination(destination).typ(kind).source("x").build().unwrap()
        };
        let mut mounts = vec![own("/etc/hosts", "bind"), own("/dev/shm", "tmpfs")];
        Files::mount(folder.path(), &mut mounts).unwrap();
        let places: Vec<_> = mounts.iter().map(|mount| mount.destination().display().to_string()).collect();
        assert_eq!(places, ["/etc/hosts", "/etc/hostname", "/etc/resolv.conf", "/dev/shm"]);
        assert!(crate::volumes::is_bind(&mounts[3]));
    }

    #[test]
    fn annotations_of_0_are_no_limits() {
        let annotations =
            r#""io.kubernetes.cri.sandbox-memory":"0","io.kubernetes.cri.sandbox-cpu-quota":"0""#;
        let spec = spec(r#",{"type":"ipc"},{"type":"network","path":"/n"}"#, annotations);
        assert_eq!(Setup::from_spec(Kind::Sandbox, &spec).unwrap().limits, Limits::default());
    }
}
