//! The definition in a real API server. It is of 1.20 and does not know CEL: those rules have tests in `crds`.

use std::fs;

use cloister_e2e::Cluster;
use cloister_e2e::lab::checkout;
use serde_json::{Value, json};

/// How a build is patched whose image is on its node.
const READY: &str = r#"{"status": {"phase": "Succeeded", "progress": "7/7", "node": "one", "conditions": [
    {"type": "Ready", "status": "True", "reason": "ImageReady", "message": "on 1 of 1 nodes",
     "lastTransitionTime": "2026-01-01T00:00:00Z"}]}}"#;

/// Runs a test with a cluster that knows ImageBuild.
fn with_cluster(test: impl FnOnce(&Cluster)) {
    let cluster = Cluster::control_plane().unwrap();
    cluster.install_definition().unwrap();
    test(&cluster);
}

fn examples() -> Vec<String> {
    let folder = fs::read_dir(checkout().join("crds/examples")).unwrap();
    folder.map(|entry| entry.unwrap().path().to_string_lossy().into_owned()).collect()
}

/// The smallest build, with one thing changed in its spec.
fn build(change: impl FnOnce(&mut Value)) -> String {
    let mut object = json!({"apiVersion": "cloister.dev/v1alpha1", "kind": "ImageBuild", "metadata": {"name": "hello"},
        "spec": {"source": {"inline": {"dockerfile": "FROM scratch\n"}}, "output": {"images": ["hello:1"]}}});
    change(&mut object["spec"]);
    object.to_string()
}

#[test]
fn the_definition_and_its_examples_are_accepted() {
    with_cluster(|cluster| {
        let definition = cluster.get(&["crd", "imagebuilds.cloister.dev"]).unwrap();
        let conditions = definition["status"]["conditions"].as_array().unwrap();
        for (name, status) in [("NamesAccepted", "True"), ("Established", "True")] {
            assert!(
                conditions.iter().any(|c| c["type"] == name && c["status"] == status),
                "{name}: {conditions:?}"
            );
        }
        assert!(!conditions.iter().any(|c| c["type"] == "NonStructuralSchema"), "{conditions:?}");
        for example in examples() {
            cluster
                .kubectl(&["apply", "-f", &example])
                .unwrap_or_else(|error| panic!("{example}: {error:#}"));
            cluster.kubectl(&["apply", "-f", &example]).unwrap();
            cluster.kubectl(&["apply", "--server-side", "--force-conflicts", "-f", &example]).unwrap();
            let objects = cluster.get(&["-f", &example]).unwrap();
            let list = objects["items"].as_array().cloned().unwrap_or_else(|| vec![objects]);
            for object in list {
                assert_eq!(object["metadata"]["generation"], 1, "applied again, the same: {example}");
            }
        }
        let stored = cluster.get(&["imgb", "hello"]).unwrap();
        assert_eq!(stored["spec"]["dockerfile"], "Dockerfile", "defaults are filled in");
        assert_eq!(stored["spec"]["retries"], 2);
    });
}

#[test]
fn kubectl_lists_explains_and_waits() {
    with_cluster(|cluster| {
        cluster.apply(&build(|_| ())).unwrap();
        let table = cluster.kubectl(&["get", "imgb"]).unwrap();
        let columns: Vec<&str> = table.lines().next().unwrap().split_whitespace().collect();
        assert_eq!(columns, ["NAME", "IMAGE", "PHASE", "PROGRESS", "NODE", "AGE"]);
        assert!(cluster.kubectl(&["get", "imgb", "-o", "wide"]).unwrap().contains("DIGEST"));
        assert!(cluster.kubectl(&["get", "cloister"]).unwrap().contains("hello:1"));

        for (field, words) in [
            ("imgb", "builds a Dockerfile in a microVM"),
            ("imgb.spec.output", "DESCRIPTION"),
            ("imgb.spec.source.git.ref", "DESCRIPTION"),
            ("imgb.status.conditions", "DESCRIPTION"),
        ] {
            let text = cluster.kubectl(&["explain", field]).unwrap();
            assert!(text.contains(words) && !text.contains("<empty>"), "{field}: {text}");
        }

        let wait = ["wait", "--for=condition=Ready", "imgb/hello"];
        let early = cluster.try_kubectl(&[&wait[..], &["--timeout=1s"]].concat()).unwrap();
        assert!(!early.status.success(), "ready before anybody said so");
        std::thread::scope(|scope| {
            let waiting = scope.spawn(|| cluster.kubectl(&[&wait[..], &["--timeout=60s"]].concat()));
            let patch = cluster.patch_status("imagebuilds", "hello", READY);
            patch.unwrap();
            waiting.join().unwrap().unwrap();
        });
        let row = cluster.kubectl(&["get", "imgb", "hello", "--no-headers"]).unwrap();
        let cells: Vec<&str> = row.split_whitespace().collect();
        assert_eq!(cells[..5], ["hello", "hello:1", "Succeeded", "7/7", "one"]);
    });
}

#[test]
fn status_is_a_part_of_its_own() {
    with_cluster(|cluster| {
        cluster.apply(&build(|_| ())).unwrap();
        cluster.patch_status("imagebuilds", "hello", READY).unwrap();
        let before = cluster.get(&["imgb", "hello"]).unwrap();
        assert_eq!(before["metadata"]["generation"], 1, "a status is no new generation");
        let lie = r#"{"spec": {"retries": 3}, "status": {"phase": "Failed"}}"#;
        cluster.kubectl(&["patch", "imgb", "hello", "--type=merge", "-p", lie]).unwrap();
        let after = cluster.get(&["imgb", "hello"]).unwrap();
        assert_eq!(after["metadata"]["generation"], 2);
        assert_eq!(after["status"], before["status"], "written beside the spec");
        let lie = r#"{"spec": {"retries": 9}, "status": {"phase": "Building"}}"#;
        cluster.patch_status("imagebuilds", "hello", lie).unwrap();
        let after = cluster.get(&["imgb", "hello"]).unwrap();
        assert_eq!((&after["spec"]["retries"], &after["status"]["phase"]), (&json!(3), &json!("Building")));
    });
}

#[test]
fn owners_of_fields_are_kept_apart() {
    with_cluster(|cluster| {
        let apply = |manager: &str, manifest: &str| {
            let manager = format!("--field-manager={manager}");
            // What a manager does not own is no part of its manifest, which kubectl's own check does not like.
            let args = ["apply", "--server-side", "--validate=false", &manager, "-f", "-"];
            cluster.kubectl_with(&args, manifest).unwrap()
        };
        assert!(
            apply("first", &build(|spec| spec["args"] = json!([{"name": "A", "value": "1"}])))
                .status
                .success()
        );
        let other = |args: Value| {
            json!({"apiVersion": "cloister.dev/v1alpha1", "kind": "ImageBuild", "metadata": {"name": "hello"},
                "spec": {"args": args}})
            .to_string()
        };
        let merged = apply("second", &other(json!([{"name": "B", "value": "2"}])));
        assert!(merged.status.success(), "{}", String::from_utf8_lossy(&merged.stderr));
        let args = cluster.get(&["imgb", "hello"]).unwrap()["spec"]["args"].clone();
        assert_eq!(args, json!([{"name": "A", "value": "1"}, {"name": "B", "value": "2"}]));
        let conflict = apply("second", &other(json!([{"name": "A", "value": "3"}])));
        assert!(String::from_utf8_lossy(&conflict.stderr).contains("conflict with \"first\""));
    });
}

#[test]
fn what_the_schema_forbids_is_refused_with_the_field() {
    with_cluster(|cluster| {
        for (field, words, change) in [
            (
                "spec.output",
                "Required value",
                (|spec| drop(spec.as_object_mut().unwrap().remove("output"))) as fn(&mut Value),
            ),
            ("spec.output.images", "Invalid value", |spec| spec["output"]["images"] = json!("hello:1")),
            ("spec.retries", "less than or equal to", |spec| spec["retries"] = json!(1000)),
            ("spec.network", "Unsupported value", |spec| spec["network"] = json!("Host")),
            ("spec.args", "Duplicate value", |spec| {
                spec["args"] = json!([{"name": "A", "value": "1"}, {"name": "A", "value": "2"}]);
            }),
            ("spec.source.inline.dockerfile", "should be at most 131072 chars long", |spec| {
                spec["source"]["inline"]["dockerfile"] = json!("#".repeat(200 << 10));
            }),
        ] {
            // Without kubectl's own check, which knows the same schema.
            let args = ["create", "--validate=false", "-f", "-"];
            let output = cluster.kubectl_with(&args, &build(change)).unwrap();
            let reason = String::from_utf8_lossy(&output.stderr);
            assert!(!output.status.success(), "{field} was accepted");
            assert!(reason.contains(field) && reason.contains(words), "{field}: {reason}");
        }
        let unknown = cluster.refusal(&build(|spec| spec["sorce"] = json!({}))).unwrap();
        assert!(unknown.contains("sorce"), "{unknown}");
    });
}
