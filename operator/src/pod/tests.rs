//! The pod against the contract.

use cloister_crds::build_pod::SELECTOR;
use cloister_crds::{BuildSource, Resources, UploadSource};

use super::*;
use crate::fixture;

fn settings() -> PodSettings {
    let limits = ResourceList { memory: Some(Quantity("2Gi".into())), ..ResourceList::default() };
    let cache = Quantity("10Gi".into());
    PodSettings { image: "builder@sha256:1".into(), runtime_class: "cloister".into(), limits, cache }
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
    assert_eq!(
        (annotations[CACHE_KEY].as_str(), annotations[CACHE_BYTES].as_str()),
        ("default", "10737418240")
    );
    assert_eq!(annotations[DEADLINE], "3720");
    let owner = &pod.metadata.owner_references.unwrap()[0];
    assert_eq!((owner.kind.as_str(), owner.uid.as_str(), owner.controller), ("ImageBuild", "u1", Some(true)));
    let spec = pod.spec.unwrap();
    assert_eq!(spec.runtime_class_name.as_deref(), Some("cloister"));
    assert_eq!(spec.active_deadline_seconds, Some(3600));
    assert_eq!(spec.automount_service_account_token, Some(false));
    assert_eq!(spec.restart_policy.as_deref(), Some("Never"));
    assert_eq!((spec.containers[0].stdin, spec.containers[0].stdin_once), (None, None));
}

#[test]
fn a_build_has_the_cache_it_asks_for() {
    let mut build = fixture::build();
    build.spec.cache.key = Some("app".into());
    build.spec.cache.size = Some(Quantity("512Mi".into()));
    let annotations =
        |build: &ImageBuild| pod(build, &attempt(), &settings(), &[]).metadata.annotations.unwrap();
    let found = annotations(&build);
    assert_eq!((found[CACHE_KEY].as_str(), found[CACHE_BYTES].as_str()), ("app", "536870912"));
    build.spec.cache.disabled = true;
    let found = annotations(&build);
    assert!(!found.contains_key(CACHE_KEY) && !found.contains_key(CACHE_BYTES));
    let list = ResourceList { ephemeral_storage: Some(Quantity("1Ki".into())), ..ResourceList::default() };
    build.spec.resources = Some(Resources { requests: None, limits: Some(list) });
    let found = annotations(&build);
    assert!(!found.contains_key(CACHE_KEY) && found[CACHE_BYTES] == "1024");
}

#[test]
fn what_is_uploaded_has_a_way_in() {
    let mut build = fixture::build();
    build.spec.source = BuildSource { upload: Some(UploadSource::default()), ..BuildSource::default() };
    let spec = pod(&build, &attempt(), &settings(), &[]).spec.unwrap();
    assert_eq!((spec.containers[0].stdin, spec.containers[0].stdin_once), (Some(true), Some(true)));
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
