//! Builds that end well.

use std::time::Duration;

use anyhow::{Context, Result, ensure};
use cloister_e2e::cell::wait_for;
use serde_json::json;

use crate::site::{GONE, attempt, build, with_site};

/// A build that has two steps and a file of its context.
const DOCKERFILE: &str = "FROM lab.test/busybox:1\nARG WORD=unset\nCOPY greeting /greeting\n\
    RUN echo \"built with $WORD on $(uname -r)\" && cat /greeting >/said && echo $WORD >>/said\nCMD [\"cat\", \"/said\"]\n";

#[test]
fn what_was_applied_runs_on_every_selected_node_without_a_registry() {
    with_site(&[], |site| {
        let mut object = build("hello", DOCKERFILE, json!({"args": [{"name": "WORD", "value": "care"}]}));
        object["spec"]["source"]["inline"]["files"] = json!([{"path": "greeting", "content": "hello\n"}]);
        object["spec"]["output"]["nodes"] = json!({});
        // Where it is built again its steps are cached.
        object["spec"]["nodeSelector"] = json!({"kubernetes.io/hostname": "one"});
        site.apply(&object)?;
        let (done, took) = site.until("hello", "Ready", "True")?;
        eprintln!("apply to Ready on two nodes: {took:.1?}; {:#}", attempt(&done)["stages"]);
        let status = &done["status"];
        ensure!(status["phase"] == "Succeeded" && status["nodesReady"] == 2, "{status:#}");
        ensure!(status["image"] == "docker.io/library/hello:1", "{status:#}");
        let digest = status["digest"].as_str().context("no digest")?;
        for node in status["nodes"].as_array().context("no nodes")? {
            ensure!(node["state"] == "Ready" && node["digest"] == digest && node["pinned"] == true, "{node}");
        }
        let stages = attempt(&done)["stages"].as_array().context("no stages")?.clone();
        for stage in ["Boot", "Connect", "Solve", "Import"] {
            let found = stages.iter().find(|one| one["name"] == stage);
            ensure!(found.is_some_and(|one| one["durationMilliseconds"].is_number()), "{stage}: {stages:#?}");
        }
        ensure!(status["logTail"].as_str().is_some_and(|log| log.contains("built with care")), "{status:#}");
        let log = site.cluster.kubectl(&["logs", "hello-1"])?;
        ensure!(log.contains("built with care") && log.contains("RUN echo"), "{log}");

        for node in &site.nodes {
            for microvm in [true, false] {
                ensure!(site.run("hello:1", node.name(), microvm)? == "hello\ncare\n", "{microvm}");
            }
        }

        // The same once more: nothing is run again, and the image is the same.
        let begun = std::time::Instant::now();
        site.cluster.kubectl(&["annotate", "imgb", "hello", "cloister.dev/rebuild=1"])?;
        wait_for("the second attempt", Duration::from_secs(60), || {
            let build = site.get("hello")?;
            Ok((attempt(&build)["number"] == 2 && attempt(&build)["completionTime"].is_string())
                .then_some(()))
        })?;
        let (again, _) = site.until("hello", "Ready", "True")?;
        let took = begun.elapsed();
        let last = attempt(&again);
        eprintln!("rebuild of what is cached: {took:.1?}; {:#}", last["stages"]);
        ensure!(last["steps"]["cachedPercent"] == 100, "{last:#}");

        // An image that somebody removes comes back while its build exists.
        let one = &site.nodes[0];
        one.lab.ctr(&["images", "rm", "docker.io/library/hello:1"])?;
        wait_for("the image that was removed", Duration::from_secs(30), || {
            Ok(one.lab.image("docker.io/library/hello:1")?.map(drop))
        })?;

        site.clean()?;
        for node in &site.nodes {
            let image = "docker.io/library/hello:1";
            wait_for("the image of a deleted build to be let go", GONE, || {
                let labels = node.lab.ctr(&["images", "ls", &format!("name=={image}")])?;
                Ok((!labels.contains("io.cri-containerd.pinned")).then_some(()))
            })?;
        }
        Ok(())
    });
}

#[test]
fn builds_begin_from_each_other_and_from_config_maps() {
    with_site(&[], |site| {
        site.cluster.kubectl(&[
            "create",
            "configmap",
            "files",
            "--from-literal=Dockerfile=FROM lab.test/busybox:1\nCOPY text /first\n",
            "--from-literal=text=one",
        ])?;
        let mut first = build("first", "", json!({"nodeSelector": {"kubernetes.io/hostname": "one"}}));
        first["spec"]["source"] = json!({"configMap": {"name": "files"}});
        site.apply(&first)?;
        site.until("first", "Ready", "True")?;
        let second = "FROM first:1\nRUN cp /first /second\nCMD [\"cat\", \"/first\", \"/second\"]\n";
        site.apply(&build("second", second, json!({"nodeSelector": {"kubernetes.io/hostname": "one"}})))?;
        site.until("second", "Ready", "True")?;
        let said: Result<String> = site.run("second:1", "one", true);
        ensure!(said? == "oneone");
        site.clean()
    });
}
