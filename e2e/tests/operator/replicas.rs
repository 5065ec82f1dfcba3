//! Several replicas, one of which acts.

use std::time::{Duration, Instant};

use k8s_openapi::api::coordination::v1::Lease;
use kube::api::Api;
use serde_json::json;

use crate::kubelet::{Does, Kubelet};
use crate::site::{Site, until};

const LEASE: &[&str] = &[
    "--lease-namespace",
    "default",
    "--lease-duration",
    "4s",
    "--lease-renew",
    "3s",
    "--lease-retry",
    "500ms",
];

async fn holder(site: &Site) -> String {
    let leases: Api<Lease> = Api::namespaced(site.client.clone(), "default");
    let lease = leases.get_opt("cloister-operator").await.unwrap();
    lease.and_then(|lease| lease.spec?.holder_identity).unwrap_or_default()
}

async fn held_by(site: &Site, name: &str) -> Duration {
    let started = Instant::now();
    until(name, || async { holder(site).await == name }).await;
    started.elapsed()
}

#[tokio::test]
async fn another_replica_takes_over_from_one_that_dies() {
    let site = Site::new(&["default"]).await;
    let first = site.operator("first", LEASE);
    held_by(&site, "first").await;
    let second = site.operator("second", LEASE);
    let node = Kubelet::start(site.client.clone(), Does::Hangs);
    site.apply("default", "app", json!({})).await;
    site.condition("app", "Ready=False/Building").await;
    assert_eq!(holder(&site).await, "first");
    assert!(!second.log().contains("holds the lease"));
    first.kill();
    let took = held_by(&site, "second").await;
    eprintln!("taken over {:.1} s after a kill", took.as_secs_f64());
    // What the first began ends with the second, and was begun once.
    node.does(Does::Builds(0));
    site.apply("default", "later", json!({})).await;
    site.condition("later", "Ready=True/ImageReady").await;
    let build = site.builds("default").get("app").await.unwrap();
    assert_eq!(build.status.unwrap().attempts.len(), 1);
    // One that is told to end gives the lease up.
    let third = site.operator("third", LEASE);
    until("the third replica", || async { third.log().contains("connected") }).await;
    second.terminate();
    let took = held_by(&site, "third").await;
    eprintln!("taken over {:.1} s after SIGTERM", took.as_secs_f64());
    assert!(took < Duration::from_secs(4));
}
