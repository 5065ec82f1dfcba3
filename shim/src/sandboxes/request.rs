//! The CRI's `PodSandboxConfig`, as far as a pod's machine depends on it.
//!
//! The messages are written down here with their field numbers of
//! `k8s.io/cri-api/pkg/apis/runtime/v1/api.proto`; what is not named is skipped.

use std::collections::HashMap;
use std::path::{Path, PathBuf};

use containerd_shim::protos::sandbox_api::CreateSandboxRequest;
use prost::Message;

use crate::failure::{Failure, Result};
use crate::pod::{Files, Refused, Setup};
use crate::spec::{Limits, millis};

/// The type of the message, after the last slash of its URL.
const TYPE: &str = "runtime.v1.PodSandboxConfig";
/// `NamespaceMode.NODE`.
const NODE: i32 = 2;

#[derive(Clone, PartialEq, Message)]
struct PodSandboxConfig {
    #[prost(message, optional, tag = "1")]
    metadata: Option<PodSandboxMetadata>,
    #[prost(string, tag = "2")]
    hostname: String,
    #[prost(message, optional, tag = "4")]
    dns_config: Option<DnsConfig>,
    #[prost(map = "string, string", tag = "7")]
    annotations: HashMap<String, String>,
    #[prost(message, optional, tag = "8")]
    linux: Option<LinuxPodSandboxConfig>,
}

#[derive(Clone, PartialEq, Message)]
struct PodSandboxMetadata {
    #[prost(string, tag = "1")]
    name: String,
    #[prost(string, tag = "3")]
    namespace: String,
}

#[derive(Clone, PartialEq, Message)]
struct DnsConfig {
    #[prost(string, repeated, tag = "1")]
    servers: Vec<String>,
    #[prost(string, repeated, tag = "2")]
    searches: Vec<String>,
    #[prost(string, repeated, tag = "3")]
    options: Vec<String>,
}

#[derive(Clone, PartialEq, Message)]
struct LinuxPodSandboxConfig {
    #[prost(string, tag = "1")]
    cgroup_parent: String,
    #[prost(message, optional, tag = "2")]
    security_context: Option<LinuxSandboxSecurityContext>,
    #[prost(map = "string, string", tag = "3")]
    sysctls: HashMap<String, String>,
    #[prost(message, optional, tag = "5")]
    resources: Option<LinuxContainerResources>,
}

#[derive(Clone, PartialEq, Message)]
struct LinuxSandboxSecurityContext {
    #[prost(message, optional, tag = "1")]
    namespace_options: Option<NamespaceOption>,
    #[prost(bool, tag = "6")]
    privileged: bool,
}

#[derive(Clone, Copy, PartialEq, Message)]
struct NamespaceOption {
    #[prost(int32, tag = "1")]
    network: i32,
    #[prost(int32, tag = "3")]
    ipc: i32,
    #[prost(message, optional, tag = "5")]
    userns_options: Option<UserNamespace>,
}

#[derive(Clone, Copy, PartialEq, Message)]
struct UserNamespace {
    #[prost(int32, tag = "1")]
    mode: i32,
}

#[derive(Clone, PartialEq, Message)]
struct LinuxContainerResources {
    #[prost(int64, tag = "1")]
    cpu_period: i64,
    #[prost(int64, tag = "2")]
    cpu_quota: i64,
    #[prost(int64, tag = "4")]
    memory_limit_in_bytes: i64,
}

/// What the pod is to be.
///
/// # Errors
/// When it wants of the host what a machine of its own does not have, or the message is not the CRI's.
pub fn setup(request: &CreateSandboxRequest) -> Result<Setup> {
    let any = request.options.as_ref();
    let config = match any {
        Some(any) if any.type_url.rsplit('/').next() == Some(TYPE) => {
            PodSandboxConfig::decode(any.value.as_slice())
                .map_err(|error| Failure::Invalid(format!("the pod's configuration is damaged: {error}")))?
        }
        // A sandbox that is not the CRI's says nothing about itself.
        _ => PodSandboxConfig::default(),
    };
    let linux = config.linux.unwrap_or_default();
    let security = linux.security_context.unwrap_or_default();
    let namespaces = security.namespace_options.unwrap_or_default();
    if namespaces.network == NODE || (any.is_some() && request.netns_path.is_empty()) {
        return Err(Refused::Network.into());
    }
    if namespaces.ipc == NODE {
        return Err(Refused::Ipc.into());
    }
    if namespaces.userns_options.is_some_and(|users| users.mode != NODE) {
        return Err(Refused::Users.into());
    }
    let mut annotations = config.annotations;
    annotations.extend(request.annotations.clone());
    let resources = linux.resources.unwrap_or_default();
    let period = u64::try_from(resources.cpu_period).ok().filter(|period| *period > 0);
    Ok(Setup {
        name: config.metadata.map(|metadata| format!("{}/{}", metadata.namespace, metadata.name)),
        files: Some(Files { hostname: config.hostname.clone(), resolv_conf: resolv_conf(config.dns_config) }),
        hostname: config.hostname,
        sysctls: linux.sysctls,
        netns: (!request.netns_path.is_empty()).then(|| PathBuf::from(&request.netns_path)),
        cgroup: cgroup(&linux.cgroup_parent, &request.sandbox_id),
        limits: Limits {
            memory: u64::try_from(resources.memory_limit_in_bytes).ok().filter(|bytes| *bytes > 0),
            cpu: millis(resources.cpu_quota, period.unwrap_or(100_000)),
        },
        privileged: security.privileged,
        annotations,
    })
}

/// resolv.conf(5) of these settings; `None` for the node's own.
fn resolv_conf(dns: Option<DnsConfig>) -> Option<String> {
    let dns = dns.filter(|dns| *dns != DnsConfig::default())?;
    let mut text = String::new();
    if !dns.searches.is_empty() {
        text += &format!("search {}\n", dns.searches.join(" "));
    }
    for server in &dns.servers {
        text += &format!("nameserver {server}\n");
    }
    if !dns.options.is_empty() {
        text += &format!("options {}\n", dns.options.join(" "));
    }
    Some(text)
}

/// As containerd names the cgroup of a sandbox container.
fn cgroup(parent: &str, id: &str) -> String {
    match parent {
        "" => format!("/k8s.io/{id}"),
        parent if parent.ends_with(".slice") => {
            let slice = Path::new(parent).file_name().map(|name| name.to_string_lossy().into_owned());
            format!("{}:cri-containerd:{id}", slice.unwrap_or_default())
        }
        parent => format!("{}/{id}", parent.trim_end_matches('/')),
    }
}

#[cfg(test)]
mod tests {
    use containerd_shim::protos::protobuf::well_known_types::any::Any;

    use super::*;

    fn request(config: &PodSandboxConfig, netns: &str) -> CreateSandboxRequest {
        let any = Any { type_url: TYPE.to_owned(), value: config.encode_to_vec(), ..Any::default() };
        CreateSandboxRequest {
            sandbox_id: "pod1".to_owned(),
            netns_path: netns.to_owned(),
            options: Some(any).into(),
            ..CreateSandboxRequest::default()
        }
    }

    fn config(namespaces: NamespaceOption) -> PodSandboxConfig {
        PodSandboxConfig {
            metadata: Some(PodSandboxMetadata { name: "web-0".to_owned(), namespace: "shop".to_owned() }),
            hostname: "web".to_owned(),
            dns_config: Some(DnsConfig {
                servers: vec!["10.0.0.1".to_owned()],
                searches: vec!["a.b".to_owned(), "b".to_owned()],
                options: vec!["ndots:5".to_owned()],
            }),
            annotations: HashMap::from([("a".to_owned(), "b".to_owned())]),
            linux: Some(LinuxPodSandboxConfig {
                cgroup_parent: "/kubepods/podx".to_owned(),
                security_context: Some(LinuxSandboxSecurityContext {
                    namespace_options: Some(namespaces),
                    privileged: true,
                }),
                sysctls: HashMap::new(),
                resources: Some(LinuxContainerResources {
                    cpu_period: 100_000,
                    cpu_quota: 250_000,
                    memory_limit_in_bytes: 1 << 30,
                }),
            }),
        }
    }

    #[test]
    fn the_message_tells_what_the_pod_is() {
        let setup = setup(&request(&config(NamespaceOption::default()), "/run/netns/x")).unwrap();
        assert_eq!((setup.hostname.as_str(), setup.privileged), ("web", true));
        assert_eq!(setup.name.as_deref(), Some("shop/web-0"));
        assert_eq!(setup.limits, Limits { memory: Some(1 << 30), cpu: Some(2500) });
        assert_eq!(setup.cgroup, "/kubepods/podx/pod1");
        let names = setup.files.unwrap().resolv_conf.unwrap();
        assert_eq!(names, "search a.b b\nnameserver 10.0.0.1\noptions ndots:5\n");
    }

    #[test]
    fn what_is_the_hosts_is_refused() {
        let pod = NamespaceOption::default();
        let users = |mode| NamespaceOption { userns_options: Some(UserNamespace { mode }), ..pod };
        for (namespaces, netns, name) in [
            (NamespaceOption { network: NODE, ..pod }, "/run/netns/x", "hostNetwork"),
            (pod, "", "hostNetwork"),
            (NamespaceOption { ipc: NODE, ..pod }, "/run/netns/x", "hostIPC"),
            (users(0), "/run/netns/x", "hostUsers: false"),
        ] {
            let error = setup(&request(&config(namespaces), netns)).unwrap_err().to_string();
            assert!(error.starts_with(name), "{error}");
        }
        assert!(setup(&request(&config(users(NODE)), "/run/netns/x")).is_ok());
    }

    #[test]
    fn cgroups_are_named_as_containerd_does() {
        assert_eq!(cgroup("", "i"), "/k8s.io/i");
        assert_eq!(
            cgroup("/kubepods.slice/kubepods-pod1.slice", "i"),
            "kubepods-pod1.slice:cri-containerd:i"
        );
    }
}
