//! The pod of one attempt, and the ConfigMap with the spec that it builds: the contract with the node's build driver,
//! as the room's README has it.

mod observe;
mod volumes;

use std::collections::BTreeMap;

use cloister_crds::{Attempt, ImageBuild, Network, ResourceList};
use k8s_openapi::api::core::v1::{
    Affinity, ConfigMap, Container, NodeAffinity, NodeSelector, NodeSelectorRequirement, NodeSelectorTerm,
    Pod, PodSpec, ResourceRequirements,
};
use k8s_openapi::apimachinery::pkg::api::resource::Quantity;
use k8s_openapi::apimachinery::pkg::apis::meta::v1::{ObjectMeta, OwnerReference};
use kube::Resource;

pub use observe::{observe, owner};

/// Label with the name of the `ImageBuild`.
pub const IMAGE_BUILD: &str = "cloister.dev/image-build";
/// Label with the number of the attempt.
pub const ATTEMPT: &str = "cloister.dev/attempt";
/// Label with the generation that the attempt builds.
pub const GENERATION: &str = "cloister.dev/generation";
/// Annotation that makes a pod a builder's: privileged inside its VM, with [`HOST`] kept outside.
pub const BUILDER: &str = "cloister.dev/builder";
/// Annotation with the network that the VM gets: `None` or `Egress`.
pub const NETWORK: &str = "cloister.dev/network";
/// Where the pod mounts what only the host's side reads.
pub const HOST: &str = "/run/cloister/host";
/// What the operator's pods are found by.
pub const SELECTOR: &str = "app.kubernetes.io/managed-by=cloister-operator,app.kubernetes.io/component=build";
/// Key of the spec in the ConfigMap.
pub const SPEC: &str = "spec.json";

/// What an administrator may set about pods.
#[derive(Debug, Clone)]
pub struct PodSettings {
    /// The builder's image.
    pub image: String,
    /// The RuntimeClass of its VM.
    pub runtime_class: String,
    /// Limits of a build that sets none.
    pub limits: ResourceList,
}

/// The name of an attempt's pod and of its ConfigMap: always the same, so that no attempt has two.
pub fn name(build: &str, attempt: i64) -> String {
    format!("{build}-{attempt}")
}

/// The spec of the attempt, frozen; its owner is the build.
///
/// # Errors
/// When the spec is no JSON, which no spec that came from an API server is.
pub fn config_map(build: &ImageBuild, attempt: &Attempt) -> serde_json::Result<ConfigMap> {
    let spec = serde_json::to_string(&build.spec)?;
    Ok(ConfigMap {
        metadata: metadata(build, attempt),
        data: Some([(SPEC.to_owned(), spec)].into()),
        immutable: Some(true),
        ..ConfigMap::default()
    })
}

/// The pod of the attempt. `full` are nodes that it must not go to.
pub fn pod(build: &ImageBuild, attempt: &Attempt, settings: &PodSettings, full: &[String]) -> Pod {
    let spec = &build.spec;
    let (volumes, mounts) = volumes::volumes(build, attempt);
    let mut metadata = metadata(build, attempt);
    metadata.annotations = Some(
        [
            // A build that is moved starts again.
            ("cluster-autoscaler.kubernetes.io/safe-to-evict", "false"),
            (BUILDER, "true"),
            (NETWORK, if spec.network == Network::None { "None" } else { "Egress" }),
        ]
        .map(|(key, value)| (key.to_owned(), value.to_owned()))
        .into(),
    );
    let timeout = i64::try_from(std::time::Duration::from(spec.timeout).as_secs()).unwrap_or(i64::MAX);
    let container = Container {
        name: "builder".to_owned(),
        image: Some(settings.image.clone()),
        image_pull_policy: Some("IfNotPresent".to_owned()),
        resources: Some(resources(build, settings)),
        volume_mounts: Some(mounts),
        // Kubelet shows it when the container wrote nothing of its own.
        termination_message_policy: Some("FallbackToLogsOnError".to_owned()),
        ..Container::default()
    };
    Pod {
        metadata,
        spec: Some(PodSpec {
            runtime_class_name: Some(settings.runtime_class.clone()),
            restart_policy: Some("Never".to_owned()),
            active_deadline_seconds: Some(timeout),
            termination_grace_period_seconds: Some(30),
            automount_service_account_token: Some(false),
            enable_service_links: Some(false),
            node_selector: (!spec.node_selector.is_empty()).then(|| spec.node_selector.clone()),
            tolerations: (!spec.tolerations.is_empty()).then(|| spec.tolerations.clone()),
            affinity: affinity(spec.affinity.clone(), full),
            priority_class_name: spec.priority_class_name.clone(),
            containers: vec![container],
            volumes: Some(volumes),
            ..PodSpec::default()
        }),
        status: None,
    }
}

fn metadata(build: &ImageBuild, attempt: &Attempt) -> ObjectMeta {
    let owner = build.metadata.name.clone().unwrap_or_default();
    let labels = [
        ("app.kubernetes.io/name", "cloister".to_owned()),
        ("app.kubernetes.io/component", "build".to_owned()),
        ("app.kubernetes.io/managed-by", "cloister-operator".to_owned()),
        ("app.kubernetes.io/instance", owner.clone()),
        (IMAGE_BUILD, owner.clone()),
        (ATTEMPT, attempt.number.to_string()),
        (GENERATION, attempt.generation.to_string()),
    ];
    ObjectMeta {
        name: Some(name(&owner, attempt.number)),
        namespace: build.metadata.namespace.clone(),
        labels: Some(labels.map(|(key, value)| (key.to_owned(), value)).into()),
        owner_references: Some(vec![OwnerReference {
            api_version: ImageBuild::api_version(&()).into_owned(),
            kind: ImageBuild::kind(&()).into_owned(),
            name: owner,
            uid: build.metadata.uid.clone().unwrap_or_default(),
            controller: Some(true),
            block_owner_deletion: Some(true),
        }]),
        ..ObjectMeta::default()
    }
}

/// Limits as the spec or the configuration says; requests only as the spec says: Kubernetes takes the limits for what
/// is absent.
fn resources(build: &ImageBuild, settings: &PodSettings) -> ResourceRequirements {
    let asked = build.spec.resources.clone().unwrap_or_default();
    let own = asked.limits.unwrap_or_default();
    let limits = ResourceList {
        cpu: own.cpu.or_else(|| settings.limits.cpu.clone()),
        memory: own.memory.or_else(|| settings.limits.memory.clone()),
        ephemeral_storage: own.ephemeral_storage.or_else(|| settings.limits.ephemeral_storage.clone()),
    };
    ResourceRequirements {
        limits: amounts(limits),
        requests: asked.requests.and_then(amounts),
        ..ResourceRequirements::default()
    }
}

fn amounts(list: ResourceList) -> Option<BTreeMap<String, Quantity>> {
    let all = [("cpu", list.cpu), ("memory", list.memory), ("ephemeral-storage", list.ephemeral_storage)];
    let set: BTreeMap<_, _> =
        all.into_iter().filter_map(|(name, amount)| Some((name.to_owned(), amount?))).collect();
    (!set.is_empty()).then_some(set)
}

/// The spec's affinity, without the nodes that are full: every alternative gets the requirement, as alternatives are or-ed.
fn affinity(affinity: Option<Affinity>, full: &[String]) -> Option<Affinity> {
    if full.is_empty() {
        return affinity;
    }
    let elsewhere = NodeSelectorRequirement {
        key: "metadata.name".to_owned(),
        operator: "NotIn".to_owned(),
        values: Some(full.to_vec()),
    };
    let mut affinity = affinity.unwrap_or_default();
    let node = affinity.node_affinity.get_or_insert_with(NodeAffinity::default);
    let required =
        node.required_during_scheduling_ignored_during_execution.get_or_insert_with(NodeSelector::default);
    if required.node_selector_terms.is_empty() {
        required.node_selector_terms.push(NodeSelectorTerm::default());
    }
    for term in &mut required.node_selector_terms {
        // A field takes one value in such a requirement.
        for name in elsewhere.values.iter().flatten() {
            let one = NodeSelectorRequirement { values: Some(vec![name.clone()]), ..elsewhere.clone() };
            term.match_fields.get_or_insert_default().push(one);
        }
    }
    Some(affinity)
}

#[cfg(test)]
mod tests {
    use cloister_crds::Resources;

    use super::*;
    use crate::fixture;

    fn settings() -> PodSettings {
        let limits = ResourceList { memory: Some(Quantity("2Gi".into())), ..ResourceList::default() };
        PodSettings { image: "builder@sha256:1".into(), runtime_class: "cloister".into(), limits }
    }

    fn attempt() -> Attempt {
        Attempt { number: 3, generation: 7, ..Attempt::default() }
    }

    #[test]
    fn the_pod_is_as_the_contract_says() {
        let pod = pod(&fixture::build(), &attempt(), &settings(), &[]);
        assert_eq!(pod.metadata.name.as_deref(), Some("app-3"));
        assert_eq!(pod.metadata.namespace.as_deref(), Some("team"));
        let labels = pod.metadata.labels.unwrap();
        assert_eq!(labels[IMAGE_BUILD], "app");
        assert_eq!((labels[ATTEMPT].as_str(), labels[GENERATION].as_str()), ("3", "7"));
        for requirement in SELECTOR.split(',') {
            let (key, value) = requirement.split_once('=').unwrap();
            assert_eq!(labels[key], value);
        }
        let annotations = pod.metadata.annotations.unwrap();
        assert_eq!(annotations["cluster-autoscaler.kubernetes.io/safe-to-evict"], "false");
        assert_eq!((annotations[BUILDER].as_str(), annotations[NETWORK].as_str()), ("true", "None"));
        let owner = &pod.metadata.owner_references.unwrap()[0];
        assert_eq!(
            (owner.kind.as_str(), owner.uid.as_str(), owner.controller),
            ("ImageBuild", "u1", Some(true))
        );
        let spec = pod.spec.unwrap();
        assert_eq!(spec.runtime_class_name.as_deref(), Some("cloister"));
        assert_eq!(spec.active_deadline_seconds, Some(3600));
        assert_eq!(spec.automount_service_account_token, Some(false));
        assert_eq!(spec.restart_policy.as_deref(), Some("Never"));
    }

    /// The fields that Pod Security's `baseline` level looks at are all absent.
    #[test]
    fn the_pod_asks_for_nothing_that_baseline_forbids() {
        let spec = pod(&fixture::build(), &attempt(), &settings(), &[]).spec.unwrap();
        assert_eq!((spec.host_network, spec.host_pid, spec.host_ipc), (None, None, None));
        assert!(spec.security_context.is_none());
        assert!(spec.containers.iter().all(|one| one.security_context.is_none() && one.ports.is_none()));
        assert!(spec.volumes.unwrap().iter().all(|volume| volume.host_path.is_none()));
    }

    #[test]
    fn requests_are_never_limits() {
        let mut build = fixture::build();
        let list = |cpu: &str| ResourceList { cpu: Some(Quantity(cpu.into())), ..ResourceList::default() };
        build.spec.resources = Some(Resources { requests: Some(list("500m")), limits: None });
        let resources = resources(&build, &settings());
        assert_eq!(resources.requests.unwrap()["cpu"].0, "500m");
        let limits = resources.limits.unwrap();
        assert_eq!((limits.len(), limits["memory"].0.as_str()), (1, "2Gi"));
    }

    #[test]
    fn full_nodes_are_left_out_of_every_alternative() {
        let term = |key: &str| NodeSelectorTerm {
            match_expressions: Some(vec![NodeSelectorRequirement {
                key: key.into(),
                operator: "Exists".into(),
                values: None,
            }]),
            match_fields: None,
        };
        let asked = Affinity {
            node_affinity: Some(NodeAffinity {
                required_during_scheduling_ignored_during_execution: Some(NodeSelector {
                    node_selector_terms: vec![term("a"), term("b")],
                }),
                ..NodeAffinity::default()
            }),
            ..Affinity::default()
        };
        assert_eq!(affinity(Some(asked.clone()), &[]), Some(asked.clone()));
        for asked in [Some(asked), None] {
            let node = affinity(asked, &["x".into(), "y".into()]).unwrap().node_affinity.unwrap();
            let terms = node.required_during_scheduling_ignored_during_execution.unwrap().node_selector_terms;
            assert!(!terms.is_empty());
            for term in terms {
                let fields = term.match_fields.unwrap();
                assert_eq!(fields.len(), 2);
                assert!(fields.iter().all(|field| field.values.as_ref().unwrap().len() == 1));
            }
        }
    }

    #[test]
    fn the_spec_is_frozen_in_a_config_map() {
        let map = config_map(&fixture::build(), &attempt()).unwrap();
        assert_eq!((map.metadata.name.as_deref(), map.immutable), (Some("app-3"), Some(true)));
        let spec: cloister_crds::ImageBuildSpec = serde_json::from_str(&map.data.unwrap()[SPEC]).unwrap();
        assert_eq!(spec, fixture::build().spec);
    }
}
