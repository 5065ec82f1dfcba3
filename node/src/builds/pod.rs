//! What matters of a build's pod, from the API server: names that anybody may have written.

use cloister_crds::ImageBuild;
use cloister_crds::build_pod::{ATTEMPT, IMAGE_BUILD};
use jiff::Timestamp;
use k8s_openapi::api::core::v1::Pod;
use kube::{Resource, ResourceExt};

/// A pod that says it is an attempt's.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct BuildPod {
    /// Its namespace, which is the build's.
    pub namespace: String,
    /// Its name.
    pub name: String,
    /// Its uid.
    pub uid: String,
    /// The build's name.
    pub build: String,
    /// The build's uid.
    pub owner: String,
    /// The number of the attempt.
    pub attempt: i64,
    /// When kubelet took it on.
    pub started: Option<Timestamp>,
}

/// What a pod asks of the driver.
#[derive(Debug, PartialEq, Eq)]
pub enum Wish {
    /// It runs, or will.
    Drive(BuildPod),
    /// It has ended, or has to.
    Leave,
}

impl Wish {
    /// What `pod` asks for.
    pub fn of(pod: &Pod) -> Self {
        let phase = pod.status.as_ref().and_then(|status| status.phase.as_deref());
        let over = matches!(phase, Some("Succeeded" | "Failed")) || pod.metadata.deletion_timestamp.is_some();
        match BuildPod::of(pod) {
            Some(pod) if !over => Self::Drive(pod),
            _ => Self::Leave,
        }
    }
}

impl BuildPod {
    fn of(pod: &Pod) -> Option<Self> {
        let owner = pod.metadata.owner_references.iter().flatten().find(|owner| {
            owner.controller == Some(true)
                && owner.kind == ImageBuild::kind(&())
                && owner.api_version == ImageBuild::api_version(&())
        })?;
        let label = |key: &str| pod.labels().get(key);
        let build = label(IMAGE_BUILD).filter(|name| **name == owner.name)?;
        Some(Self {
            namespace: pod.namespace()?,
            name: pod.name_any(),
            uid: pod.uid()?,
            build: build.clone(),
            owner: owner.uid.clone(),
            attempt: label(ATTEMPT)?.parse().ok().filter(|number| *number > 0)?,
            started: pod.status.as_ref().and_then(|status| status.start_time.as_ref()).map(|time| time.0),
        })
    }

    /// The build as the importer and the logs know it.
    pub fn build_name(&self) -> String {
        format!("{}/{}", self.namespace, self.build)
    }

    /// The pod as the shim knows it.
    pub fn full_name(&self) -> String {
        format!("{}/{}", self.namespace, self.name)
    }
}

#[cfg(test)]
pub mod tests {
    use serde_json::{Value, json};

    use super::*;

    /// A pod as the operator makes it.
    pub fn made() -> Value {
        json!({
            "metadata": {
                "namespace": "team", "name": "app-1", "uid": "p1",
                "labels": {"cloister.dev/image-build": "app", "cloister.dev/attempt": "1"},
                "ownerReferences": [{
                    "apiVersion": "cloister.dev/v1alpha1", "kind": "ImageBuild", "name": "app", "uid": "b1",
                    "controller": true,
                }],
            },
            "status": {"phase": "Pending"},
        })
    }

    fn wish(pod: Value) -> Wish {
        Wish::of(&serde_json::from_value(pod).unwrap())
    }

    #[test]
    fn only_a_pod_of_a_build_that_is_not_over_is_driven() {
        let Wish::Drive(pod) = wish(made()) else { panic!("not driven") };
        assert_eq!((pod.full_name().as_str(), pod.build_name().as_str()), ("team/app-1", "team/app"));
        assert_eq!((pod.attempt, pod.owner.as_str()), (1, "b1"));
        let changes: [fn(&mut Value); 6] = [
            |pod| pod["status"]["phase"] = "Failed".into(),
            |pod| pod["metadata"]["deletionTimestamp"] = "2027-01-01T00:00:00Z".into(),
            |pod| pod["metadata"]["labels"]["cloister.dev/image-build"] = "other".into(),
            |pod| pod["metadata"]["labels"]["cloister.dev/attempt"] = "0".into(),
            |pod| pod["metadata"]["ownerReferences"][0]["kind"] = "Job".into(),
            |pod| pod["metadata"]["ownerReferences"][0]["controller"] = false.into(),
        ];
        for change in changes {
            let mut pod = made();
            change(&mut pod);
            assert_eq!(wish(pod.clone()), Wish::Leave, "{pod}");
        }
    }
}
