//! The pod of one attempt, and the ConfigMap with the spec that it builds: the contract with the node's build driver,
//! as the room's README has it.

mod observe;
mod volumes;

use std::collections::BTreeMap;

use cloister_crds::build_pod::{
    ATTEMPT, BUILDER, CACHE_BYTES, CACHE_KEY, DEADLINE, GENERATION, IMAGE_BUILD, NETWORK, SPEC,
};
use cloister_crds::{Attempt, ImageBuild, Network, ResourceList};
use k8s_openapi::api::core::v1::{
    Affinity, ConfigMap, Container, NodeAffinity, NodeSelector, NodeSelectorRequirement, NodeSelectorTerm,
    Pod, PodSpec, ResourceRequirements,
};
use k8s_openapi::apimachinery::pkg::api::resource::Quantity;
use k8s_openapi::apimachinery::pkg::apis::meta::v1::{ObjectMeta, OwnerReference};
use kube::Resource;

use crate::quantity::thousandths;

pub use observe::{observe, owner};

/// Key of a cache disk when the spec names none.
const DEFAULT_KEY: &str = "default";
/// Seconds that a VM has on top of the build's own deadline: operator and kubelet end it before, when they can.
const WATCHDOG: u64 = 120;

/// What an administrator may set about pods.
#[derive(Debug, Clone)]
pub struct PodSettings {
    /// The builder's image.
    pub image: String,
    /// The RuntimeClass of its VM.
    pub runtime_class: String,
    /// Limits of a build that sets none.
    pub limits: ResourceList,
    /// Size of a cache disk whose build sets none.
    pub cache: Quantity,
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
    metadata.annotations = Some(annotations(build, settings));
    // What is uploaded arrives on the container's standard input, once.
    let upload = spec.source.upload.is_some().then_some(true);
    let container = Container {
        name: "builder".to_owned(),
        image: Some(settings.image.clone()),
        image_pull_policy: Some("IfNotPresent".to_owned()),
        resources: Some(resources(build, settings)),
        volume_mounts: Some(mounts),
        stdin: upload,
        stdin_once: upload,
        // Kubelet shows it when the container wrote nothing of its own.
        termination_message_policy: Some("FallbackToLogsOnError".to_owned()),
        ..Container::default()
    };
    Pod {
        metadata,
        spec: Some(PodSpec {
            runtime_class_name: Some(settings.runtime_class.clone()),
            restart_policy: Some("Never".to_owned()),
            active_deadline_seconds: Some(i64::try_from(timeout(build)).unwrap_or(i64::MAX)),
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

/// What the shim reads.
fn annotations(build: &ImageBuild, settings: &PodSettings) -> BTreeMap<String, String> {
    let spec = &build.spec;
    let network = if spec.network == Network::None { "None" } else { "Egress" };
    let mut all = vec![
        // A build that is moved starts again.
        ("cluster-autoscaler.kubernetes.io/safe-to-evict", "false".to_owned()),
        (BUILDER, "true".to_owned()),
        (NETWORK, network.to_owned()),
        (DEADLINE, timeout(build).saturating_add(WATCHDOG).to_string()),
    ];
    let size = if spec.cache.disabled {
        limits(build, settings).ephemeral_storage
    } else {
        all.push((CACHE_KEY, spec.cache.key.clone().unwrap_or_else(|| DEFAULT_KEY.to_owned())));
        Some(spec.cache.size.clone().unwrap_or_else(|| settings.cache.clone()))
    };
    if let Some(thousandths) = size.as_ref().and_then(thousandths) {
        all.push((CACHE_BYTES, (thousandths / 1000).to_string()));
    }
    all.into_iter().map(|(key, value)| (key.to_owned(), value)).collect()
}

/// Seconds that the build may take.
fn timeout(build: &ImageBuild) -> u64 {
    std::time::Duration::from(build.spec.timeout).as_secs()
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
    let requests = build.spec.resources.clone().and_then(|asked| asked.requests);
    ResourceRequirements {
        limits: amounts(limits(build, settings)),
        requests: requests.and_then(amounts),
        ..ResourceRequirements::default()
    }
}

fn limits(build: &ImageBuild, settings: &PodSettings) -> ResourceList {
    let own = build.spec.resources.clone().and_then(|asked| asked.limits).unwrap_or_default();
    ResourceList {
        cpu: own.cpu.or_else(|| settings.limits.cpu.clone()),
        memory: own.memory.or_else(|| settings.limits.memory.clone()),
        ephemeral_storage: own.ephemeral_storage.or_else(|| settings.limits.ephemeral_storage.clone()),
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
mod tests;
