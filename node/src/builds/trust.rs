//! Which pods are believed. Anybody who may make pods can give one our labels, name a build as its owner and mount a
//! spec of his own; only the operator writes a build's status.

use cloister_crds::fingerprint::fingerprint;
use cloister_crds::{Attempt, ImageBuild, ImageBuildSpec};

use super::pod::BuildPod;

/// What is to be done with a pod.
#[derive(Debug, PartialEq)]
pub enum Verdict<'a> {
    /// It is the pod of this attempt, which runs.
    Trusted(&'a Attempt),
    /// The attempt is over: the driver said so before it died.
    Over {
        /// Whether it ended well.
        well: bool,
    },
    /// It is not, for this reason.
    Refused(&'static str),
}

/// Judges a pod by the build that it names.
pub fn judge<'a>(pod: &BuildPod, build: &'a ImageBuild, spec: &ImageBuildSpec) -> Verdict<'a> {
    if build.metadata.uid.as_deref() != Some(&pod.owner) {
        return Verdict::Refused("the build of this name is another one");
    }
    let attempts = build.status.iter().flat_map(|status| &status.attempts);
    let Some(attempt) = attempts.into_iter().find(|attempt| attempt.number == pod.attempt) else {
        return Verdict::Refused("its build has no such attempt");
    };
    if attempt.pod.as_deref() != Some(&pod.name) {
        return Verdict::Refused("the attempt has another pod");
    }
    if attempt.fingerprint.as_deref() != Some(&fingerprint(spec)) {
        return Verdict::Refused("its spec is not the one that the attempt was started with");
    }
    if attempt.completion_time.is_some() || attempt.failure.is_some() || attempt.digest.is_some() {
        return Verdict::Over { well: attempt.failure.is_none() };
    }
    Verdict::Trusted(attempt)
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::super::pod::{Wish, tests::made};
    use super::*;

    fn world() -> (BuildPod, ImageBuild, ImageBuildSpec) {
        let Wish::Drive(pod) = Wish::of(&serde_json::from_value(made()).unwrap()) else { panic!("no pod") };
        let spec: ImageBuildSpec = serde_json::from_value(json!({
            "source": {"inline": {"dockerfile": "FROM scratch\n"}}, "output": {"images": ["app:1"]},
        }))
        .unwrap();
        let build = serde_json::from_value(json!({
            "apiVersion": "cloister.dev/v1alpha1", "kind": "ImageBuild",
            "metadata": {"namespace": "team", "name": "app", "uid": "b1"}, "spec": spec,
            "status": {"attempts": [
                {"number": 1, "generation": 1, "trigger": "Spec", "pod": "app-1", "fingerprint": fingerprint(&spec)},
            ]},
        }))
        .unwrap();
        (pod, build, spec)
    }

    fn refused(pod: &BuildPod, build: &ImageBuild, spec: &ImageBuildSpec) -> bool {
        matches!(judge(pod, build, spec), Verdict::Refused(_))
    }

    #[test]
    fn the_pod_of_the_running_attempt_is_trusted() {
        let (pod, mut build, spec) = world();
        assert!(matches!(judge(&pod, &build, &spec), Verdict::Trusted(attempt) if attempt.number == 1));
        build.status.as_mut().unwrap().attempts[0].digest = Some("sha256:x".into());
        assert_eq!(judge(&pod, &build, &spec), Verdict::Over { well: true });
        build.status.as_mut().unwrap().attempts[0].failure = Some(Default::default());
        assert_eq!(judge(&pod, &build, &spec), Verdict::Over { well: false });
    }

    #[test]
    fn everything_else_is_refused() {
        let (pod, build, spec) = world();
        let other = ImageBuildSpec { target: Some("x".into()), ..spec.clone() };
        assert!(refused(&pod, &build, &other));
        assert!(refused(&BuildPod { owner: "b2".into(), ..pod.clone() }, &build, &spec));
        assert!(refused(&BuildPod { name: "mine".into(), ..pod.clone() }, &build, &spec));
        assert!(refused(&BuildPod { attempt: 2, ..pod.clone() }, &build, &spec));
        let bare = ImageBuild { status: None, ..build };
        assert!(refused(&pod, &bare, &spec));
    }
}
