//! What matters of a pod that an API server shows.

use cloister_crds::ImageBuild;
use cloister_crds::build_pod::ATTEMPT;
use jiff::Timestamp;
use k8s_openapi::api::core::v1::{ContainerStatus, Pod};
use kube::Resource;

use crate::plan::{BuildPod, PodPhase};

/// Name and uid of the build that controls the pod, if one does.
pub fn owner(pod: &Pod) -> Option<(&str, &str)> {
    let owners = pod.metadata.owner_references.iter().flatten();
    let ours = |owner: &&k8s_openapi::apimachinery::pkg::apis::meta::v1::OwnerReference| {
        owner.controller == Some(true) && owner.kind == ImageBuild::kind(&())
    };
    owners.into_iter().find(ours).map(|owner| (owner.name.as_str(), owner.uid.as_str()))
}

/// What matters of a build's pod; none when it has no number of an attempt.
pub fn observe(pod: &Pod) -> Option<BuildPod> {
    let attempt = pod.metadata.labels.as_ref()?.get(ATTEMPT)?.parse().ok()?;
    let status = pod.status.clone().unwrap_or_default();
    let containers = status.container_statuses.as_deref().unwrap_or_default();
    let ended = containers.iter().find_map(|one| one.state.as_ref()?.terminated.as_ref());
    let phase = match status.phase.as_deref() {
        Some("Running") => PodPhase::Running,
        Some("Succeeded") => PodPhase::Succeeded,
        Some("Failed") => PodPhase::Failed,
        _ => PodPhase::Pending,
    };
    let condition = |kind: &str, value: &str| {
        let conditions = status.conditions.iter().flatten();
        conditions.into_iter().find(|one| one.type_ == kind && one.status == value)
    };
    let unscheduled = condition("PodScheduled", "False");
    // Since 1.26 whoever evicts says so, also where the pod has no reason of its own.
    let disrupted = condition("DisruptionTarget", "True").map(|_| "Evicted".to_owned());
    let killed = ended.and_then(|ended| ended.reason.clone()).filter(|reason| reason == "OOMKilled");
    let message = status
        .message
        .clone()
        .or_else(|| ended.and_then(|ended| ended.message.clone()))
        .or_else(|| containers.iter().find_map(waits))
        .or_else(|| unscheduled.and_then(|condition| condition.message.clone()));
    let deleting = pod.metadata.deletion_timestamp.as_ref().map(|time| time.0);
    Some(BuildPod {
        name: pod.metadata.name.clone()?,
        uid: pod.metadata.uid.clone()?,
        attempt,
        created: pod.metadata.creation_timestamp.as_ref().map_or(Timestamp::UNIX_EPOCH, |time| time.0),
        deleting,
        node: pod.spec.as_ref().and_then(|spec| spec.node_name.clone()).filter(|name| !name.is_empty()),
        scheduled: condition("PodScheduled", "True")
            .and_then(|condition| condition.last_transition_time.as_ref().map(|time| time.0)),
        started: status.start_time.as_ref().map(|time| time.0),
        phase,
        reason: status.reason.clone().or(killed).or(disrupted.filter(|_| phase == PodPhase::Failed)),
        message: message.map(|text| text.chars().take(512).collect()),
        finished: ended.and_then(|ended| ended.finished_at.as_ref().map(|time| time.0)),
        exit_code: ended.map(|ended| ended.exit_code),
    })
}

/// What a container waits for, such as its image.
fn waits(container: &ContainerStatus) -> Option<String> {
    let waiting = container.state.as_ref()?.waiting.as_ref()?;
    match (&waiting.reason, &waiting.message) {
        (Some(reason), Some(message)) => Some(format!("{reason}: {message}")),
        (reason, message) => reason.clone().or_else(|| message.clone()),
    }
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;

    fn pod(status: serde_json::Value) -> BuildPod {
        let pod = json!({
            "metadata": {"name": "app-2", "uid": "p", "labels": {ATTEMPT: "2"}, "creationTimestamp": "2027-01-01T00:00:00Z"},
            "spec": {"containers": [], "nodeName": "n1"},
            "status": status,
        });
        observe(&serde_json::from_value(pod).unwrap()).unwrap()
    }

    #[test]
    fn what_ended_a_pod_is_found() {
        let ended = |reason: &str| {
            json!({"phase": "Failed", "containerStatuses": [{
                "name": "builder", "image": "i", "imageID": "", "ready": false, "restartCount": 0,
                "state": {"terminated": {"exitCode": 137, "reason": reason, "finishedAt": "2027-01-01T00:01:00Z"}},
            }]})
        };
        let killed = pod(ended("OOMKilled"));
        assert_eq!((killed.reason.as_deref(), killed.exit_code), (Some("OOMKilled"), Some(137)));
        assert_eq!(killed.finished, Some("2027-01-01T00:01:00Z".parse().unwrap()));
        assert_eq!(pod(ended("Error")).reason, None);
        let evicted = pod(json!({"phase": "Failed", "reason": "Evicted", "message": "low on memory"}));
        assert_eq!(
            (evicted.reason.as_deref(), evicted.message.as_deref()),
            (Some("Evicted"), Some("low on memory"))
        );
        let disrupted =
            pod(json!({"phase": "Failed", "conditions": [{"type": "DisruptionTarget", "status": "True"}]}));
        assert_eq!(disrupted.reason.as_deref(), Some("Evicted"));
    }

    #[test]
    fn what_a_pod_waits_for_is_found() {
        let image = pod(json!({"phase": "Pending", "containerStatuses": [{
            "name": "builder", "image": "i", "imageID": "", "ready": false, "restartCount": 0,
            "state": {"waiting": {"reason": "ImagePullBackOff", "message": "no such image"}},
        }]}));
        assert_eq!(image.message.as_deref(), Some("ImagePullBackOff: no such image"));
        let node = pod(json!({"phase": "Pending", "conditions": [
            {"type": "PodScheduled", "status": "False", "reason": "Unschedulable", "message": "0/2 nodes"},
        ]}));
        assert_eq!((node.message.as_deref(), node.scheduled), (Some("0/2 nodes"), None));
    }

    #[test]
    fn a_pod_without_a_number_is_none_of_ours() {
        assert_eq!(observe(&Pod::default()), None);
    }
}
