//! Reasons of conditions: words that programs rely on.

use cloister_crds::{BuildReason, ConditionType};

#[test]
fn every_reason_is_written_as_it_is_called() {
    for reason in BuildReason::ALL {
        let word = serde_json::to_value(reason).unwrap();
        assert_eq!(word, reason.as_str());
        assert!(
            reason.as_str().starts_with(char::is_uppercase)
                && reason.as_str().chars().all(char::is_alphanumeric)
        );
        assert!(reason.meaning().ends_with('.'));
    }
}

#[test]
fn a_reason_of_a_newer_version_is_read_as_unknown_and_not_retried() {
    let reason: BuildReason = serde_json::from_str("\"SomethingNew\"").unwrap();
    assert_eq!(reason, BuildReason::Unknown);
    assert!(!reason.is_retried());
}

#[test]
fn what_the_user_can_mend_is_not_retried_and_what_may_pass_is() {
    let retried: Vec<_> =
        BuildReason::ALL.iter().filter(|reason| reason.is_retried()).map(|r| r.as_str()).collect();
    let passing =
        ["SourceUnavailable", "RegistryUnavailable", "PodEvicted", "NodeLost", "BuilderLost", "ImportFailed"];
    assert_eq!(retried, passing);
}

#[test]
fn the_documentation_lists_every_reason_and_condition() {
    let readme = include_str!("../../README.md");
    for reason in BuildReason::ALL {
        assert!(
            readme.contains(&format!("`{}`", reason.as_str())),
            "{} is not in crds/README.md",
            reason.as_str()
        );
    }
    for condition in
        [ConditionType::Ready, ConditionType::Reconciling, ConditionType::Stalled, ConditionType::Succeeded]
    {
        assert!(readme.contains(&format!("`{}`", condition.as_str())));
    }
}
