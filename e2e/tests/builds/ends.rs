//! Builds that do not end well say why, and leave nothing behind.

use anyhow::{Result, ensure};
use cloister_e2e::cell::wait_for;
use serde_json::{Value, json};

use crate::site::{GONE, Site, attempt, build, condition, with_site};

/// Waits until a build has failed for good, and gives its newest attempt's failure.
fn failure(site: &Site, name: &str) -> Result<Value> {
    let (build, took) = site.until(name, "Succeeded", "False")?;
    eprintln!("{name}: {took:.1?}: {}", attempt(&build)["failure"]);
    ensure!(condition(&build, "Ready")["status"] != "True", "{:#}", build["status"]);
    Ok(attempt(&build)["failure"].clone())
}

#[test]
fn a_failed_build_says_why_and_leaves_nothing() {
    with_site(&[], |site| {
        site.apply(&build(
            "broken",
            "FROM lab.test/busybox:1\nRUN echo so far; exit 3\n",
            json!({"retries": 0}),
        ))?;
        let failed = failure(site, "broken")?;
        ensure!(failed["reason"] == "StepFailed", "{failed}");
        let log = site.cluster.kubectl(&["logs", "broken-1"])?;
        ensure!(log.contains("so far"), "{log}");
        wait_for("the pod's end", GONE, || {
            let pod = site.cluster.get(&["pod", "broken-1"])?;
            Ok((pod["status"]["phase"] == "Failed").then_some(()))
        })?;

        let secrets = json!([{"id": "t", "secretKeyRef": {"name": "nowhere", "key": "k"}}]);
        site.apply(&build(
            "secretless",
            "FROM lab.test/busybox:1\n",
            json!({"secrets": secrets, "retries": 0}),
        ))?;
        ensure!(failure(site, "secretless")?["reason"] == "SecretNotFound");

        site.apply(&build("baseless", "FROM 127.0.0.1:9/no/such:1\n", json!({"retries": 0})))?;
        let failed = failure(site, "baseless")?;
        ensure!(failed["message"].as_str().is_some_and(|text| text.contains("no/such")), "{failed}");

        let greedy = json!({"cache": {"size": "900Ti"}});
        site.apply(&build("greedy", "FROM lab.test/busybox:1\n", greedy))?;
        let failed = failure(site, "greedy")?;
        let message = failed["message"].as_str().unwrap_or_default();
        ensure!(failed["reason"] == "CacheTooLarge" && message.contains("spec.cache.size"), "{failed}");

        site.apply(&build("hog", "FROM lab.test/busybox:1\nRUN tail /dev/zero\n", json!({"retries": 0})))?;
        ensure!(failure(site, "hog")?["reason"] == "OutOfMemory");
        site.clean()
    });
}

#[test]
fn a_build_that_is_cancelled_or_too_slow_ends() {
    with_site(&[], |site| {
        let slow = "FROM lab.test/busybox:1\nRUN sleep 300\n";
        site.apply(&build("slow", slow, json!({"timeout": "20s", "retries": 0})))?;
        let reason = failure(site, "slow")?["reason"].clone();
        ensure!(reason == "DeadlineExceeded", "{reason}");
        site.apply(&build("unwanted", slow, json!({})))?;
        site.until("unwanted", "Reconciling", "True")?;
        site.cluster.kubectl(&[
            "patch",
            "imgb",
            "unwanted",
            "--type=merge",
            "-p",
            r#"{"spec":{"cancel":true}}"#,
        ])?;
        let (build, _) = site.until("unwanted", "Succeeded", "False")?;
        ensure!(build["status"]["phase"] == "Cancelled", "{:#}", build["status"]);
        site.clean()
    });
}
