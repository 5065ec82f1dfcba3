//! What a build means for this node, by its object, the node's labels and what is here: no I/O.

use std::collections::BTreeMap;

use super::build::Build;
use crate::import::Request;
use crate::import::names::canonical;
use crate::import::record::Record;

/// What is to be done about a build.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Decision {
    /// Its image has no place here, nor has an entry.
    Absent,
    /// Nothing: there is no result, or the build driver is at work.
    Leave,
    /// What is here stays for other nodes to fetch; this node does not have to have it.
    Source,
    /// The image is on record here and has to be complete.
    Present(Request),
    /// The same under other names, or with another pin.
    Otherwise(Request),
    /// It has to come here.
    Missing(Request),
}

/// Decides for the node `here` with these labels; `record` is what the node has of the build.
pub fn decide(
    build: &Build,
    here: &str,
    labels: &BTreeMap<String, String>,
    record: Option<&Record>,
) -> Decision {
    if build.deleting {
        return Decision::Absent;
    }
    let stranger = record.is_some_and(|record| is_of_another(record, build));
    let record = record.filter(|record| record.object.as_ref() == Some(&build.uid));
    let idle = if build.runs_here { Decision::Leave } else { Decision::Absent };
    let Some((result, digest)) = build.result.as_ref().and_then(|r| Some((r, r.digest.parse().ok()?))) else {
        return if stranger { idle } else { Decision::Leave };
    };
    let record = record.filter(|record| record.top.digest == digest);
    if !build.selects(here, labels) {
        let others = matches!(build.goes, super::build::Goes::To(_)) && build.is_built_on(here);
        return if others && record.is_some() { Decision::Source } else { idle };
    }
    let names = match record {
        _ if result.is_current => build.images.clone(),
        // Names are those of the spec that was built.
        Some(record) => record.names.clone(),
        None => result.name.iter().cloned().collect(),
    };
    let same = canonical(&names, &digest).ok();
    let (object, pin) = (Some(build.uid.clone()), build.pin);
    let request = Request { build: build.key(), object, names, digest, pin, replace: false };
    match record {
        Some(record) if Some(&record.names) == same.as_ref() && record.pin == pin => {
            Decision::Present(request)
        }
        Some(_) => Decision::Otherwise(request),
        // The driver imports the next result before it says so.
        None if build.runs_here => Decision::Leave,
        None => Decision::Missing(request),
    }
}

/// Whether a record is of an object that had the build's name before; what was imported by hand is nobody's.
fn is_of_another(record: &Record, build: &Build) -> bool {
    record.object.as_ref().is_some_and(|object| *object != build.uid)
}

/// Whether the object of a record is gone.
pub fn is_orphan(record: &Record, builds: &BTreeMap<String, Build>) -> bool {
    record.object.is_some() && !builds.contains_key(&record.build)
}

#[cfg(test)]
mod tests {
    use super::*;
    use cloister_crds::ImageBuild;
    use cloister_image::{BlobRef, Digest};
    use serde_json::{Value, json};

    fn digest(content: &str) -> String {
        Digest::of(content.as_bytes()).to_string()
    }

    /// A build whose spec has this output and whose status these attempts.
    fn build(output: Value, attempts: Value) -> Build {
        let object: ImageBuild = serde_json::from_value(json!({
            "apiVersion": "cloister.dev/v1alpha1", "kind": "ImageBuild",
            "metadata": {"name": "app", "namespace": "team", "uid": "u1", "generation": 2},
            "spec": {"source": {"inline": {"dockerfile": "FROM scratch\n"}}, "output": output},
            "status": {"attempts": attempts, "image": "docker.io/library/was:1", "digest": digest("new")},
        }))
        .unwrap();
        Build::new(&object, "n1").unwrap()
    }

    fn done(number: u64, node: &str, content: &str) -> Value {
        json!({"number": number, "generation": 2, "trigger": "Spec", "node": node, "digest": digest(content),
            "completionTime": "2026-01-01T00:00:00Z"})
    }

    fn running(number: u64, node: Option<&str>) -> Value {
        json!({"number": number, "generation": 2, "trigger": "Spec", "node": node})
    }

    fn record(object: &str, content: &str) -> Record {
        let top = BlobRef { digest: digest(content).parse().unwrap(), size: 1, media_type: "m".into() };
        let names = vec!["docker.io/library/app:1".to_owned()];
        Record { build: "team/app".into(), object: Some(object.into()), top, names, pin: true, from: None }
    }

    fn word(build: &Build, record: Option<&Record>) -> &'static str {
        let labels = BTreeMap::from([("zone".to_owned(), "a".to_owned())]);
        match decide(build, "n1", &labels, record) {
            Decision::Absent => "absent",
            Decision::Leave => "leave",
            Decision::Source => "source",
            Decision::Present(_) => "present",
            Decision::Otherwise(_) => "otherwise",
            Decision::Missing(_) => "missing",
        }
    }

    #[test]
    fn a_node_gets_what_selects_it_and_keeps_what_others_need() {
        let plain = json!({"images": ["app:1"]});
        let all = json!({"images": ["app:1"], "nodes": {}});
        let zone = |zone: &str| json!({"images": ["app:1"], "nodes": {"matchLabels": {"zone": zone}}});
        let pushed = json!({"images": ["r.test/app:1"], "push": {}});
        let both = json!({"images": ["r.test/app:1"], "push": {}, "nodes": {}});
        let (right, old) = (record("u1", "new"), record("u1", "old"));
        let table = [
            // output, where it was built, what is here, what follows
            (&plain, "n1", Some(&right), "present"),
            (&plain, "n1", None, "missing"),
            (&plain, "n2", None, "absent"),
            (&plain, "n2", Some(&old), "absent"),
            (&all, "n2", None, "missing"),
            (&all, "n2", Some(&old), "missing"),
            (&all, "n2", Some(&right), "present"),
            (&zone("a"), "n2", None, "missing"),
            (&zone("b"), "n2", Some(&right), "absent"),
            (&zone("b"), "n1", Some(&right), "source"),
            (&zone("b"), "n1", Some(&old), "absent"),
            (&pushed, "n1", Some(&right), "absent"),
            (&both, "n1", None, "missing"),
        ];
        for (output, node, record, expected) in table {
            let build = build(output.clone(), json!([done(1, node, "new")]));
            assert_eq!(word(&build, record), expected, "{output} on {node}: {record:?}");
        }
    }

    #[test]
    fn what_the_driver_is_at_is_left_alone() {
        let output = json!({"images": ["app:1"]});
        let again = |node| build(output.clone(), json!([done(1, "n1", "old"), running(2, node)]));
        // It imports the next result, then says so.
        assert_eq!(word(&again(Some("n1")), Some(&record("u1", "new"))), "leave");
        assert_eq!(word(&again(None), Some(&record("u1", "new"))), "leave");
        assert_eq!(word(&again(Some("n2")), Some(&record("u1", "new"))), "missing");
        assert_eq!(word(&again(Some("n1")), Some(&record("u1", "old"))), "present");
        let first = |node| build(output.clone(), json!([running(1, node)]));
        assert_eq!(word(&first(Some("n1")), Some(&record("u0", "old"))), "leave");
        assert_eq!(word(&first(Some("n2")), Some(&record("u0", "old"))), "absent");
        assert_eq!(word(&first(Some("n2")), None), "leave");
        // A digest is written last.
        let mut last = done(2, "n1", "new");
        last.as_object_mut().unwrap().remove("completionTime");
        let said = build(output, json!([done(1, "n1", "old"), last]));
        assert_eq!(word(&said, Some(&record("u1", "new"))), "present");
    }

    #[test]
    fn an_image_of_an_object_that_is_gone_goes_and_one_by_hand_stays() {
        let build = build(json!({"images": ["app:1"]}), json!([]));
        assert_eq!(word(&build, Some(&record("u0", "old"))), "absent");
        let by_hand = Record { object: None, ..record("u0", "old") };
        assert_eq!(word(&build, Some(&by_hand)), "leave");
        let none = BTreeMap::new();
        assert!(is_orphan(&record("u0", "old"), &none) && !is_orphan(&by_hand, &none));
        let deleting = Build { deleting: true, ..build };
        assert_eq!(word(&deleting, Some(&record("u1", "new"))), "absent");
    }

    #[test]
    fn names_and_pins_are_those_of_the_spec_that_was_built() {
        let attempt = |generation| {
            let mut attempt = done(1, "n1", "new");
            attempt["generation"] = json!(generation);
            json!([attempt])
        };
        let names =
            |build: &Build, record: Option<&Record>| match decide(build, "n1", &BTreeMap::new(), record) {
                Decision::Present(request) | Decision::Otherwise(request) | Decision::Missing(request) => {
                    request.names
                }
                other => panic!("{other:?}"),
            };
        let right = record("u1", "new");
        let renamed = json!({"images": ["app:2"]});
        assert_eq!(word(&build(renamed.clone(), attempt(2)), Some(&right)), "otherwise");
        // The spec has changed and is not built yet.
        let stale = build(renamed, attempt(1));
        assert_eq!(word(&stale, Some(&right)), "present");
        assert_eq!(names(&stale, Some(&right)), ["docker.io/library/app:1"]);
        assert_eq!(names(&stale, None), ["docker.io/library/was:1"]);
        let unpinned = build(json!({"images": ["app:1"], "pin": false}), attempt(2));
        assert_eq!(word(&unpinned, Some(&right)), "otherwise");
    }

    #[test]
    fn the_builder_is_asked_first_and_never_oneself() {
        let mut build = build(json!({"images": ["app:1"], "nodes": {}}), json!([done(1, "n2", "new")]));
        build.others = vec!["n2".into(), "n3".into()];
        let mut peers = build.peers("n1");
        assert_eq!(peers.remove(0), "n2");
        assert_eq!(peers, ["n3"]);
        assert_eq!(build.peers("n2"), ["n3"]);
    }
}
