//! Each rule accepts what it should and refuses the rest with its own message.

use std::collections::BTreeSet;

use crate::support::{refusals, schema, walk};
use serde_json::{Value, json};

/// A build that nothing is wrong with.
fn build() -> Value {
    json!({
        "apiVersion": "cloister.dev/v1alpha1",
        "kind": "ImageBuild",
        "metadata": {"name": "app"},
        "spec": {
            "source": {"inline": {"dockerfile": "FROM scratch"}},
            "output": {"images": ["app:1"]},
        },
    })
}

/// RFC 7386: what `patch` says is merged into `value`, and null removes.
fn merge(value: &mut Value, patch: &Value) {
    let Some(fields) = patch.as_object() else {
        *value = patch.clone();
        return;
    };
    if !value.is_object() {
        *value = json!({});
    }
    for (name, field) in fields {
        match (value.as_object_mut(), field) {
            (Some(object), Value::Null) => drop(object.remove(name)),
            _ => merge(&mut value[name], field),
        }
    }
}

/// A build with another spec.
fn with(spec: Value) -> Value {
    let mut object = build();
    merge(&mut object, &json!({"spec": spec}));
    object
}

const DIGEST: &str = "sha256:9f86d081884c7d659a2feaa0c55ad015a3bf4f1b2b0b822cd15d6c15b0f00a08";

/// Changes of the spec that are accepted.
fn accepted() -> Vec<Value> {
    let source = |source: Value| json!({"source": source, "network": "Egress"});
    let git = |url: &str| json!({"source": {"inline": null, "git": {"url": url}}});
    vec![
        json!({}),
        source(json!({"inline": null, "configMap": {"name": "files"}})),
        source(json!({"inline": null, "http": {"url": "https://example.com/a.tar", "checksum": DIGEST}})),
        source(json!({"inline": null, "oci": {"reference": "team/source:1"}})),
        source(json!({"inline": null, "persistentVolumeClaim": {"claimName": "work"}})),
        source(json!({"inline": null, "upload": {"digest": DIGEST}})),
        git("https://example.com/team/app.git"),
        git("git@example.com:team/app.git"),
        git("ssh://git@example.com:2222/team/app.git"),
        git("https://example.com/@scope/app.git"),
        json!({"source": {"inline": {"files": [{"path": "a/..b/c", "content": ""}]}}}),
        json!({"source": {"inline": {"files": [{"path": "logo.png", "contentBase64": "iVBORw0="}]}}}),
        json!({"source": {"inline": {"files": [{"path": "Dockerfile", "content": "x"}]}}, "dockerfile": "build/Dockerfile"}),
        json!({"dockerfile": ".config/Dockerfile.dev"}),
        json!({"network": "Egress", "proxy": {"httpProxy": "http://proxy.example.com:3128"}}),
        json!({"output": {"images": null, "archive": {"claimName": "a"}}}),
        json!({"output": {"archive": {"claimName": "a", "format": "Docker"}}, "platforms": ["linux/arm64"]}),
        json!({"output": {"archive": {"claimName": "a"}}, "platforms": ["linux/amd64", "linux/arm/v7"]}),
        json!({"output": {"archive": {"claimName": "a", "format": "Docker"}}, "attestations": {"sbom": false}}),
        json!({"output": {"archive": {"claimName": "a"}}, "attestations": {"sbom": true}}),
        json!({"output": {"pin": false}}),
        json!({"output": {"images": ["registry.example.com/app:1", "localhost/app", "host:5000/a/b"], "push": {}}}),
        json!({"output": {"push": {"registry": "registry.example.com:5000/team"}}}),
        json!({"output": {"push": {"registry": "registry.example.com"}, "nodes": {}, "pin": true}}),
        json!({"timeout": "10s"}),
        json!({"timeout": "23h59m60s"}),
        json!({"triggers": {"baseImage": {}}}),
        json!({"triggers": {"baseImage": {"interval": "720h"}}}),
        json!({"triggers": {"schedule": {"cron": "*/5 0-4 1,15 JAN ?"}}}),
        json!({"triggers": {"schedule": {"cron": "@daily", "timeZone": "Etc/GMT+1"}}}),
        json!({"triggers": {"annotation": "cloister.dev/rebuild"}}),
        json!({"resources": {"limits": {"cpu": 2, "memory": "1.5Gi"}}}),
    ]
}

/// Changes of the spec that are refused, and what is said about it.
fn refused() -> Vec<(&'static str, Value)> {
    let git = |url: &str| json!({"source": {"inline": null, "git": {"url": url}}});
    let path = "must be a path below the folder";
    let password = "must not hold credentials";
    vec![
        // Rules.
        ("set exactly one of", json!({"source": {"inline": null}})),
        ("set exactly one of", json!({"source": {"upload": {"digest": DIGEST}}})),
        ("set content or contentBase64", json!({"source": {"inline": {"files": [{"path": "a"}]}}})),
        (
            "set content or contentBase64",
            json!({"source": {"inline": {"files": [{"path": "a", "content": "", "contentBase64": ""}]}}}),
        ),
        (
            "must not hold the Dockerfile",
            json!({"source": {"inline": {"files": [{"path": "Dockerfile", "content": ""}]}}}),
        ),
        (path, json!({"dockerfile": "../Dockerfile"})),
        (path, json!({"dockerfile": "a/./b"})),
        (path, json!({"source": {"inline": {"files": [{"path": "a/..", "content": ""}]}}})),
        (
            path,
            json!({"source": {"inline": null, "configMap": {"name": "a", "items": [{"key": "a", "path": ".."}]}}}),
        ),
        (path, json!({"source": {"inline": null, "git": {"url": "https://a/b", "subdir": "a/../../b"}}})),
        (
            path,
            json!({"source": {"inline": null, "http": {"url": "https://a/b", "checksum": DIGEST, "subdir": "."}}}),
        ),
        (path, json!({"source": {"inline": null, "oci": {"reference": "a", "subdir": "./a"}}})),
        (
            path,
            json!({"source": {"inline": null, "persistentVolumeClaim": {"claimName": "a", "subPath": "a/.."}}}),
        ),
        (path, json!({"output": {"archive": {"claimName": "a", "path": "../a.tar"}}})),
        (password, git("https://token@example.com/app.git")),
        (password, git("ssh://git:secret@example.com/app.git")),
        (
            password,
            json!({"source": {"inline": null, "http": {"url": "https://a:b@c/d", "checksum": DIGEST}}}),
        ),
        (
            "must begin with https://",
            json!({"source": {"inline": null, "http": {"url": "http://a/b", "checksum": DIGEST}}}),
        ),
        (password, json!({"network": "Egress", "proxy": {"httpProxy": "http://a:b@c"}})),
        (password, json!({"network": "Egress", "proxy": {"httpsProxy": "http://a@c"}})),
        ("proxy needs network: Egress", json!({"proxy": {"httpProxy": "http://proxy:3128"}})),
        (
            "holds one platform",
            json!({"output": {"archive": {"claimName": "a", "format": "Docker"}}, "platforms": ["linux/amd64", "linux/arm64"]}),
        ),
        (
            "holds no attestations",
            json!({"output": {"archive": {"claimName": "a", "format": "Docker"}}, "attestations": {"sbom": true}}),
        ),
        (
            "holds no attestations",
            json!({"output": {"archive": {"claimName": "a", "format": "Docker"}}, "attestations": {"provenance": "Min"}}),
        ),
        ("set images, or an archive", json!({"output": {"images": null}})),
        (
            "push needs images",
            json!({"output": {"images": null, "archive": {"claimName": "a"}, "push": {"registry": "a.b"}}}),
        ),
        (
            "nodes needs images",
            json!({"output": {"images": null, "archive": {"claimName": "a"}, "nodes": {}}}),
        ),
        ("every image names its own", json!({"output": {"images": ["a.b/app", "team/app"], "push": {}}})),
        ("pin is about imported images", json!({"output": {"push": {"registry": "a.b"}, "pin": true}})),
        (
            "pin is about imported images",
            json!({"output": {"images": null, "archive": {"claimName": "a"}, "pin": false}}),
        ),
        ("must be between 10s and 24h", json!({"timeout": "9s"})),
        ("must be between 10s and 24h", json!({"timeout": "24h1s"})),
        ("must be between 1m and 720h", json!({"triggers": {"baseImage": {"interval": "59s"}}})),
        ("set baseImage, schedule or annotation", json!({"triggers": {}})),
        // Patterns and bounds.
        (".dockerfile: ", json!({"dockerfile": "/etc/passwd"})),
        (".dockerfile: ", json!({"dockerfile": "Dockerfile\n"})),
        (
            ".ref: ",
            json!({"source": {"inline": null, "git": {"url": "https://a/b", "ref": "--upload-pack=x"}}}),
        ),
        (".url: ", git("file:///etc")),
        (".url: ", git("ext::sh -c id")),
        (
            ".checksum: ",
            json!({"source": {"inline": null, "http": {"url": "https://a/b", "checksum": "sha256:00"}}}),
        ),
        (".images[0]: ", json!({"output": {"images": ["App:1"]}})),
        (".images[0]: ", json!({"output": {"images": [format!("app@{DIGEST}")]}})),
        (".images: ", json!({"output": {"images": []}})),
        (".images: [1] is a duplicate", json!({"output": {"images": ["app", "app"]}})),
        (".platforms[0]: ", json!({"platforms": ["windows/amd64"]})),
        (".network: ", json!({"network": "Host"})),
        (
            ".args: [1] is a duplicate",
            json!({"args": [{"name": "A", "value": "1"}, {"name": "A", "value": "2"}]}),
        ),
        (".args[0].name: ", json!({"args": [{"name": "A-B", "value": ""}]})),
        (
            ".secrets: [1] is a duplicate",
            json!({"secrets": [
                {"id": "a", "secretKeyRef": {"name": "n", "key": "k"}},
                {"id": "a", "type": "Ssh", "secretKeyRef": {"name": "m", "key": "k"}},
            ]}),
        ),
        (".secrets[0]: secretKeyRef is required", json!({"secrets": [{"id": "a"}]})),
        (".key: ", json!({"cache": {"key": "../other"}})),
        (".size: ", json!({"cache": {"size": "-1Gi"}})),
        (".memory: ", json!({"resources": {"limits": {"memory": "2 GB"}}})),
        (".limits.gpu: unknown field", json!({"resources": {"limits": {"gpu": "1"}}})),
        (".timeout: ", json!({"timeout": "-1h"})),
        (".timeout: ", json!({"timeout": "1d"})),
        (".retries: too large", json!({"retries": 11})),
        (".sourceDateEpoch: too small", json!({"sourceDateEpoch": -1})),
        (".cron: ", json!({"triggers": {"schedule": {"cron": "* * * *"}}})),
        (".cron: ", json!({"triggers": {"schedule": {"cron": "@reboot"}}})),
    ]
}

#[test]
fn sound_builds_are_accepted() {
    let schema = schema();
    for spec in accepted() {
        assert_eq!(refusals(&schema, &with(spec.clone()), None), Vec::<String>::new(), "{spec}");
    }
}

#[test]
fn unsound_builds_are_refused_with_the_reason() {
    let schema = schema();
    for (reason, spec) in refused() {
        let said = refusals(&schema, &with(spec.clone()), None);
        assert!(said.iter().any(|line| line.contains(reason)), "{spec}: {reason:?} is not in {said:#?}");
    }
}

#[test]
fn names_leave_room_for_what_is_derived_from_them() {
    let schema = schema();
    let named = |length: usize| {
        let mut object = build();
        object["metadata"]["name"] = "x".repeat(length).into();
        refusals(&schema, &object, None)
    };
    assert_eq!(named(52), Vec::<String>::new());
    assert!(named(53)[0].contains("at most 52 characters"));
}

#[test]
fn every_rule_refuses_something_in_these_tests() {
    let schema = schema();
    let mut messages = BTreeSet::new();
    walk(&schema, "", &mut |_, node| {
        for rule in node["x-kubernetes-validations"].as_array().into_iter().flatten() {
            messages.insert(rule["message"].as_str().unwrap().to_string());
        }
    });
    let said: Vec<_> =
        refused().into_iter().flat_map(|(_, spec)| refusals(&schema, &with(spec), None)).collect();
    messages.retain(|message| !said.iter().any(|line| line.contains(message.as_str())));
    assert_eq!(
        Vec::from_iter(messages),
        ["metadata.name must be at most 52 characters"],
        "rules without a test"
    );
}

#[test]
fn a_spec_may_be_changed_while_an_attempt_runs() {
    let old = with(json!({}));
    let mut new = with(json!({"source": {"inline": {"dockerfile": "FROM a"}}, "cancel": true}));
    merge(&mut new, &json!({"status": {"phase": "Building"}}));
    assert_eq!(refusals(&schema(), &new, Some(&old)), Vec::<String>::new());
}

#[test]
fn a_full_status_is_accepted_and_read_back() {
    let status = json!({
        "observedGeneration": 2, "phase": "Succeeded", "progress": "12/12",
        "conditions": [{
            "type": "Ready", "status": "True", "reason": "ImageReady", "message": "on 1 of 1 nodes",
            "lastTransitionTime": "2026-01-02T03:04:05Z", "observedGeneration": 2,
        }],
        "image": "docker.io/library/app:1", "digest": DIGEST,
        "sizes": {"compressedBytes": 1, "unpackedBytes": 2, "layers": 3},
        "node": "node-1", "nodesReady": 1, "nodesSelected": 1,
        "startTime": "2026-01-02T03:04:05Z", "completionTime": "2026-01-02T03:05:05Z",
        "nodes": [{"name": "node-1", "state": "Ready", "digest": DIGEST, "pinned": true}],
        "attempts": [
            {
                "number": 1, "generation": 1, "trigger": "Spec", "pod": "app-1", "node": "node-1",
                "failure": {"reason": "OutOfMemory", "message": "more than 2Gi", "exitCode": 137, "memoryPeakBytes": 1},
            },
            {
                "number": 2, "generation": 2, "trigger": "Annotation", "digest": DIGEST,
                "steps": {"total": 12, "completed": 12, "cached": 9, "cachedPercent": 75},
                "stages": [{"name": "Solve", "startTime": "2026-01-02T03:04:05Z", "durationMilliseconds": 900}],
            },
        ],
        "logTail": "#12 DONE 0.1s",
        "triggers": {"annotation": "x", "baseImages": [{"image": "docker.io/library/debian:12", "digest": DIGEST}]},
    });
    let mut object = build();
    object["status"] = status;
    assert_eq!(refusals(&schema(), &object, None), Vec::<String>::new());
    let read: cloister_crds::ImageBuild = serde_json::from_value(object.clone()).unwrap();
    let written = serde_json::to_value(&read).unwrap();
    assert_eq!(written["status"]["attempts"], object["status"]["attempts"]);
    assert_eq!(written["status"]["conditions"], object["status"]["conditions"]);
}
