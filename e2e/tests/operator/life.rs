//! The life of builds, one after the other on one API server.

use serde_json::json;

use crate::kubelet::{self, Does, Kubelet};
use crate::site::{Site, until, words};

#[tokio::test]
async fn builds_are_made_repeated_held_and_ended() {
    let site = Site::new(&["default"]).await;
    let operator = site.operator("alone", &[]);
    let node = Kubelet::start(site.client.clone(), Does::Builds(0));
    the_pod_is_as_specified_and_the_image_ready(&site, &node).await;
    a_changed_spec_builds_again_and_history_is_kept_short(&site).await;
    what_has_ended_is_not_changed_by_its_node(&site).await;
    an_evicted_pod_is_tried_again(&site, &node).await;
    a_failure_is_final(&site, &node).await;
    rules_hold_without_cel(&site).await;
    suspend_and_cancel(&site, &node).await;
    a_deleted_build_takes_its_pods_along(&site, &node).await;
    let page = operator.page("/metrics").await;
    for line in [
        r#"cloister_operator_builds_total{reason="StepFailed",result="failed"} 1"#,
        r#"cloister_operator_builds_total{reason="PodEvicted",result="failed"} 1"#,
        "cloister_operator_leader 1",
    ] {
        assert!(page.contains(line), "{line} is not in\n{page}");
    }
    assert!(operator.page("/readyz").await.starts_with("HTTP/1.1 200"));
    operator.terminate();
}

async fn the_pod_is_as_specified_and_the_image_ready(site: &Site, node: &Kubelet) {
    node.does(Does::Hangs);
    let spec = json!({"timeout": "30m", "secrets": [{"id": "k", "secretKeyRef": {"name": "s", "key": "token"}}],
        "resources": {"limits": {"cpu": "2", "memory": "1Gi"}, "requests": {"cpu": "500m"}}});
    site.apply("default", "app", spec).await;
    let build = site.condition("app", "Ready=False/Building").await;
    assert_eq!(build.status.unwrap().progress.as_deref(), Some("1/3"));
    let pod = site.pods("default").get("app-1").await.unwrap();
    let spec = pod.spec.unwrap();
    assert_eq!(spec.runtime_class_name.as_deref(), Some("cloister"));
    assert_eq!(
        (spec.active_deadline_seconds, spec.automount_service_account_token),
        (Some(1800), Some(false))
    );
    let resources = spec.containers[0].resources.clone().unwrap();
    let (limits, requests) = (resources.limits.unwrap(), resources.requests.unwrap());
    assert_eq!((limits["cpu"].0.as_str(), requests["cpu"].0.as_str()), ("2", "500m"));
    assert_eq!(requests["memory"].0, "1Gi");
    let owner = &pod.metadata.owner_references.unwrap()[0];
    assert_eq!(Some(&owner.uid), build.metadata.uid.as_ref());
    let mounts: Vec<_> =
        spec.containers[0].volume_mounts.iter().flatten().map(|m| m.mount_path.clone()).collect();
    assert_eq!(mounts, ["/run/cloister/host/spec", "/run/cloister/host/secrets/s"]);
    // The node has its result, and the pod ends.
    let steps = json!({"total": 3, "completed": 3, "cached": 0, "cachedPercent": 0});
    let status = json!({"attempts": [{"number": 1, "steps": steps, "digest": kubelet::digest()}],
        "nodes": [{"name": "n1", "state": "Ready", "digest": kubelet::digest()}]});
    kubelet::write(&site.client, "default", "app", status).await.unwrap();
    let ended = kube::api::Patch::Merge(json!({"status": {"phase": "Succeeded"}}));
    site.pods("default").patch_status("app-1", &Default::default(), &ended).await.unwrap();
    let build = site.condition("app", "Ready=True/ImageReady").await;
    assert_eq!(words(&build), ["Ready=True/ImageReady", "Succeeded=True/ImageReady"]);
    let status = build.status.unwrap();
    assert_eq!(status.image.as_deref(), Some("docker.io/library/app:1"));
    assert_eq!((status.digest, status.node.as_deref()), (Some(kubelet::digest()), Some("n1")));
    let waited = site.cluster.kubectl(&["wait", "--for=condition=Ready", "--timeout=5s", "imgb/app"]);
    waited.unwrap();
    let events = site.cluster.get(&["events"]).unwrap();
    let reasons: Vec<_> =
        events["items"].as_array().unwrap().iter().map(|e| e["reason"].as_str().unwrap()).collect();
    for reason in ["Scheduling", "Building", "ImageReady"] {
        assert_eq!(reasons.iter().filter(|one| **one == reason).count(), 1, "{reason} in {reasons:?}");
    }
    node.does(Does::Builds(0));
}

async fn a_changed_spec_builds_again_and_history_is_kept_short(site: &Site) {
    for number in 2..=4 {
        let target = format!("stage{number}");
        let history = json!({"successful": 2, "failed": 1});
        site.apply("default", "app", json!({"target": target, "history": history})).await;
        let ended = |build: &cloister_crds::ImageBuild| {
            let attempts = &build.status.as_ref().unwrap().attempts;
            attempts.iter().any(|attempt| attempt.number == number && attempt.completion_time.is_some())
        };
        site.wait("app", "the attempt", ended).await;
    }
    let kept = |build: &cloister_crds::ImageBuild| -> Vec<i64> {
        build.status.iter().flat_map(|status| &status.attempts).map(|attempt| attempt.number).collect()
    };
    // Nodes wrote to what is forgotten: it goes all the same.
    site.wait("app", "history", |build| kept(build) == [3, 4]).await;
    until("pods of forgotten attempts", || async {
        let names: Vec<_> = site.pods("default").list(&Default::default()).await.unwrap().items;
        names.len() == 2
    })
    .await;
    assert!(site.cluster.try_kubectl(&["get", "configmap", "app-1"]).unwrap().status.code() != Some(0));
    site.cluster.kubectl(&["get", "configmap", "app-4"]).unwrap();
}

async fn what_has_ended_is_not_changed_by_its_node(site: &Site) {
    let other = format!("sha256:{}", "cd".repeat(32));
    let late = json!({"attempts": [{"number": 4, "digest": other}]});
    let refused = kubelet::write(&site.client, "default", "app", late).await.unwrap_err();
    assert!(matches!(&refused, kube::Error::Api(status) if status.code == 409), "{refused}");
    // An attempt that is forgotten does not come back.
    let gone = json!({"attempts": [{"number": 1, "digest": kubelet::digest()}]});
    let refused = kubelet::write(&site.client, "default", "app", gone).await.unwrap_err();
    assert!(matches!(&refused, kube::Error::Api(status) if status.code == 422), "{refused}");
}

async fn an_evicted_pod_is_tried_again(site: &Site, node: &Kubelet) {
    node.does(Does::Evicts);
    site.apply("default", "evicted", json!({})).await;
    site.condition("evicted", "Succeeded=False/PodEvicted").await;
    node.does(Does::Builds(0));
    let build = site.condition("evicted", "Ready=True/ImageReady").await;
    let attempts = build.status.unwrap().attempts;
    let last = attempts.last().unwrap();
    assert_eq!((last.number, last.trigger), (2, cloister_crds::TriggerKind::Retry));
    let failure = attempts[0].failure.as_ref().unwrap();
    assert_eq!(failure.reason, cloister_crds::BuildReason::PodEvicted);
}

async fn a_failure_is_final(site: &Site, node: &Kubelet) {
    node.does(Does::Fails("StepFailed"));
    site.apply("default", "broken", json!({})).await;
    let build = site.condition("broken", "Stalled=True/StepFailed").await;
    assert_eq!(build.status.unwrap().attempts.len(), 1);
    node.does(Does::Builds(0));
    let again = kube::api::Patch::Merge(json!({"metadata": {"annotations": {"cloister.dev/rebuild": "1"}}}));
    site.builds("default").patch("broken", &Default::default(), &again).await.unwrap();
    let build = site.condition("broken", "Ready=True/ImageReady").await;
    assert_eq!(build.status.unwrap().attempts.len(), 2);
}

async fn rules_hold_without_cel(site: &Site) {
    let two = json!({"source": {"inline": {"dockerfile": "FROM scratch\n"}, "upload": {"digest": kubelet::digest()}}});
    site.apply("default", "wrong", two).await;
    let build = site.condition("wrong", "Stalled=True/InvalidSpec").await;
    assert!(build.status.unwrap().attempts.is_empty());
    let right = json!({"spec": {"source": {"upload": null}}});
    let patch = kube::api::Patch::Merge(right);
    site.builds("default").patch("wrong", &Default::default(), &patch).await.unwrap();
    site.condition("wrong", "Ready=True/ImageReady").await;
}

async fn suspend_and_cancel(site: &Site, node: &Kubelet) {
    node.does(Does::Hangs);
    site.apply("default", "held", json!({"suspend": true})).await;
    site.condition("held", "Stalled=True/Suspended").await;
    site.apply("default", "held", json!({"suspend": false})).await;
    site.condition("held", "Ready=False/Building").await;
    site.apply("default", "held", json!({"suspend": false, "cancel": true})).await;
    let build = site.condition("held", "Stalled=True/Cancelled").await;
    assert_eq!(build.status.unwrap().attempts.len(), 1);
    until("the pod's end", || async { site.pods("default").get_opt("held-1").await.unwrap().is_none() })
        .await;
}

async fn a_deleted_build_takes_its_pods_along(site: &Site, node: &Kubelet) {
    node.does(Does::Hangs);
    site.apply("default", "doomed", json!({})).await;
    site.condition("doomed", "Ready=False/Building").await;
    site.builds("default").delete("doomed", &Default::default()).await.unwrap();
    until("the build's end", || async { site.builds("default").get_opt("doomed").await.unwrap().is_none() })
        .await;
    assert!(site.pods("default").get_opt("doomed-1").await.unwrap().is_none());
}
