//! Where a build stands, as its status says: pure.

use cloister_crds::{Attempt, BuildReason, ConditionType, Failure, ImageBuild, REBUILD};
use k8s_openapi::apimachinery::pkg::apis::meta::v1::Condition;

/// What is waited for: the result of this version of the spec, or of a later one.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Wanted {
    /// `metadata.generation`.
    pub generation: i64,
    /// The value of the annotation that asked for another attempt, if one did.
    pub rebuild: Option<String>,
}

/// Where a build stands.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Stand {
    /// It waits; one line says for what.
    Waits(String),
    /// An attempt runs.
    Runs {
        /// Its number.
        attempt: i64,
        /// Its pod.
        pod: String,
        /// What it does, in one line.
        message: String,
    },
    /// The image is everywhere.
    Done,
    /// It has ended otherwise.
    Failed {
        /// Why.
        reason: String,
        /// In one line.
        message: String,
    },
}

/// The annotation whose value starts an attempt.
pub fn rebuild_annotation(build: &ImageBuild) -> &str {
    build.spec.triggers.as_ref().and_then(|triggers| triggers.annotation.as_deref()).unwrap_or(REBUILD)
}

/// Says where the build stands with what is wanted.
pub fn stand(build: &ImageBuild, wanted: &Wanted) -> Stand {
    let Some(status) = build.status.as_ref().filter(|status| {
        status.observed_generation.is_some_and(|generation| generation >= wanted.generation)
    }) else {
        return Stand::Waits("the operator has not looked at it yet".to_owned());
    };
    let condition = |kind: ConditionType| {
        status.conditions.iter().find(|one| one.type_ == kind.as_str() && one.status == "True")
    };
    let stalled = condition(ConditionType::Stalled);
    let seen = status.triggers.as_ref().and_then(|triggers| triggers.annotation.as_deref());
    let asked = wanted.rebuild.as_deref().is_none_or(|value| seen == Some(value));
    let held = [BuildReason::Suspended, BuildReason::Cancelled, BuildReason::InvalidSpec];
    if !asked && !stalled.is_some_and(|stalled| held.iter().any(|reason| reason.as_str() == stalled.reason)) {
        return Stand::Waits("the operator has not seen yet that it is to be built again".to_owned());
    }
    if let Some(running) = status.attempts.last().filter(|attempt| attempt.completion_time.is_none()) {
        let message = condition(ConditionType::Reconciling).map(line).unwrap_or_default();
        return match &running.pod {
            Some(pod) if running.generation >= wanted.generation => {
                Stand::Runs { attempt: running.number, pod: pod.clone(), message }
            }
            Some(_) => Stand::Waits(format!("attempt {} of an older version still runs", running.number)),
            None => Stand::Waits(message),
        };
    }
    if let Some(stalled) = stalled {
        let failure = status.attempts.last().and_then(|attempt| attempt.failure.as_ref());
        let message = match failure.filter(|failure| failure.reason.as_str() == stalled.reason) {
            Some(failure) => described(failure),
            None => stalled.message.clone(),
        };
        return Stand::Failed { reason: stalled.reason.clone(), message };
    }
    match condition(ConditionType::Ready) {
        Some(_) => Stand::Done,
        None => Stand::Waits(condition(ConditionType::Reconciling).map(line).unwrap_or_default()),
    }
}

/// The attempt that somebody means: this one, or the newest.
pub fn attempt(build: &ImageBuild, number: Option<i64>) -> Option<&Attempt> {
    let attempts = build.status.as_ref().map(|status| status.attempts.as_slice()).unwrap_or_default();
    match number {
        Some(number) => attempts.iter().find(|attempt| attempt.number == number),
        None => attempts.last(),
    }
}

fn line(condition: &Condition) -> String {
    format!("{}: {}", condition.reason, condition.message)
}

/// Everything that an attempt says about its failure.
fn described(failure: &Failure) -> String {
    let mut text = failure.message.clone();
    if let Some(step) = failure.step.as_ref().filter(|step| !text.contains(step.as_str())) {
        text.push_str(&format!(" (step {step})"));
    }
    if let Some(line) = failure.line {
        text.push_str(&format!(" (line {line})"));
    }
    if let Some(peak) = failure.memory_peak_bytes.and_then(|peak| u64::try_from(peak).ok()) {
        text.push_str(&format!(" (memory used: {})", crate::output::bytes(peak)));
    }
    text
}

#[cfg(test)]
mod tests {
    use serde_json::{Value, json};

    use super::*;

    fn at(status: Value, wanted: &Wanted) -> Stand {
        let build = json!({"apiVersion": "cloister.dev/v1alpha1", "kind": "ImageBuild",
            "metadata": {"name": "app"}, "spec": {"source": {}, "output": {}}, "status": status});
        stand(&serde_json::from_value(build).unwrap(), wanted)
    }

    fn condition(kind: &str, reason: &str, message: &str) -> Value {
        json!({"type": kind, "status": "True", "reason": reason, "message": message,
            "lastTransitionTime": "2026-01-01T00:00:00Z"})
    }

    fn attempt(number: i64, generation: i64, more: Value) -> Value {
        let mut attempt = json!({"number": number, "generation": generation, "trigger": "Spec",
            "pod": format!("app-{number}")});
        attempt.as_object_mut().unwrap().extend(more.as_object().unwrap().clone());
        attempt
    }

    fn ended() -> Value {
        json!({"completionTime": "2026-01-01T00:00:00Z"})
    }

    const SECOND: Wanted = Wanted { generation: 2, rebuild: None };

    #[test]
    fn what_is_said_of_an_older_version_does_not_count() {
        let ready = json!([condition("Ready", "ImageReady", "")]);
        let old = json!({"observedGeneration": 1, "conditions": ready});
        assert!(matches!(at(old, &SECOND), Stand::Waits(_)));
        let new = json!({"observedGeneration": 2, "conditions": ready});
        assert_eq!(at(new, &SECOND), Stand::Done);
        let older = json!({"observedGeneration": 2, "attempts": [attempt(1, 1, json!({}))]});
        let Stand::Waits(said) = at(older, &SECOND) else { panic!() };
        assert!(said.contains("older version"), "{said}");
    }

    #[test]
    fn the_newest_attempt_is_the_one_that_runs() {
        let conditions = json!([condition("Reconciling", "Starting", "pod app-2 starts on node n1")]);
        let attempts = json!([attempt(1, 1, ended()), attempt(2, 2, json!({}))]);
        let status = json!({"observedGeneration": 2, "conditions": conditions, "attempts": attempts});
        let message = "Starting: pod app-2 starts on node n1".to_owned();
        assert_eq!(at(status, &SECOND), Stand::Runs { attempt: 2, pod: "app-2".to_owned(), message });
    }

    #[test]
    fn an_image_that_is_there_is_not_the_result_of_what_was_asked_for_again() {
        let wanted = Wanted { generation: 1, rebuild: Some("now".to_owned()) };
        let conditions = json!([condition("Ready", "ImageReady", "")]);
        let seen = |value: &str| json!({"observedGeneration": 1, "conditions": conditions, "triggers": {"annotation": value}});
        assert!(matches!(at(seen("before"), &wanted), Stand::Waits(_)));
        assert_eq!(at(seen("now"), &wanted), Stand::Done);
        let held = json!([condition("Stalled", "Suspended", "spec.suspend is true")]);
        assert!(matches!(
            at(json!({"observedGeneration": 1, "conditions": held}), &wanted),
            Stand::Failed { .. }
        ));
    }

    #[test]
    fn a_failure_is_told_with_what_its_attempt_knows() {
        let failure = json!({"completionTime": "2026-01-01T00:00:00Z", "failure": {"reason": "StepFailed",
            "message": "exit code: 7", "step": "[2/3] RUN make", "line": 4}});
        let conditions = json!([condition("Stalled", "StepFailed", "attempt 1: StepFailed: exit code: 7")]);
        let status =
            json!({"observedGeneration": 2, "conditions": conditions, "attempts": [attempt(1, 2, failure)]});
        let message = "exit code: 7 (step [2/3] RUN make) (line 4)".to_owned();
        assert_eq!(at(status, &SECOND), Stand::Failed { reason: "StepFailed".to_owned(), message });
    }

    #[test]
    fn a_retry_is_waited_for() {
        let failure = json!({"completionTime": "2026-01-01T00:00:00Z",
            "failure": {"reason": "PodEvicted", "message": "evicted"}});
        let conditions = json!([condition("Reconciling", "RetryScheduled", "the next one starts soon")]);
        let status =
            json!({"observedGeneration": 2, "conditions": conditions, "attempts": [attempt(1, 2, failure)]});
        assert_eq!(at(status, &SECOND), Stand::Waits("RetryScheduled: the next one starts soon".to_owned()));
    }
}
