//! The examples are accepted as they stand, and mean to the types what they say.

use std::fs;
use std::path::Path;

use crate::support::{parse, refusals, schema};
use cloister_crds::ImageBuild;
use kube::core::Duration;
use serde_json::Value;

/// File and document of every example.
fn examples() -> Vec<(String, Value)> {
    let folder = Path::new(env!("CARGO_MANIFEST_DIR")).join("examples");
    let mut all = Vec::new();
    for file in fs::read_dir(folder).unwrap() {
        let path = file.unwrap().path();
        let text = fs::read_to_string(&path).unwrap();
        let name = path.file_name().unwrap().to_string_lossy().into_owned();
        all.extend(text.split("\n---\n").map(|document| (name.clone(), parse(document))));
    }
    assert!(all.len() >= 8, "{} examples", all.len());
    all
}

#[test]
fn examples_are_accepted() {
    let schema = schema();
    for (file, object) in examples() {
        assert_eq!(refusals(&schema, &object, None), Vec::<String>::new(), "{file}");
        assert_eq!(object["apiVersion"], "cloister.dev/v1alpha1", "{file}");
        assert_eq!(object["kind"], "ImageBuild", "{file}");
    }
}

#[test]
fn types_keep_everything_an_example_says() {
    for (file, object) in examples() {
        let build: ImageBuild =
            serde_json::from_value(object.clone()).unwrap_or_else(|error| panic!("{file}: {error}"));
        let written = serde_json::to_value(&build).unwrap();
        assert_eq!(lost(&object, &written), None, "{file}");
        assert_eq!(refusals(&schema(), &written, None), Vec::<String>::new(), "{file}, written by the types");
    }
}

#[test]
fn types_and_schema_have_the_same_defaults() {
    let (_, object) = examples().into_iter().find(|(file, _)| file == "minimal.yaml").unwrap();
    let build: ImageBuild = serde_json::from_value(object.clone()).unwrap();
    let defaulted: ImageBuild =
        serde_json::from_value(kube::core::cel::apply_defaults(&schema(), &object)).unwrap();
    assert_eq!(build, defaulted);
    assert_eq!(build.spec.dockerfile, "Dockerfile");
    assert_eq!(build.spec.retries, 2);
    assert_eq!(std::time::Duration::from(build.spec.timeout).as_secs(), 3600);
    assert_eq!(build.spec.history.failed, 3);
}

#[test]
fn unknown_fields_are_refused_wherever_they_are() {
    let schema = schema();
    for (file, object) in examples() {
        for pointer in objects(&object, "") {
            let mut changed = object.clone();
            changed.pointer_mut(&pointer).unwrap()["surprise"] = Value::from("x");
            let said = refusals(&schema, &changed, None);
            let map = ["labels", "annotations", "nodeSelector", "matchLabels"];
            let free = pointer.starts_with("/metadata") || map.iter().any(|name| pointer.ends_with(name));
            assert_eq!(
                said.iter().any(|line| line.ends_with("surprise: unknown field")),
                !free,
                "{file} {pointer}"
            );
        }
    }
}

/// JSON pointers of every object in `value`.
fn objects(value: &Value, path: &str) -> Vec<String> {
    let below = |name: &str, child: &Value| objects(child, &format!("{path}/{}", name.replace('/', "~1")));
    match value {
        Value::Object(fields) => {
            let mut all = vec![path.to_string()];
            all.extend(fields.iter().flat_map(|(name, child)| below(name, child)));
            all
        }
        Value::Array(items) => {
            items.iter().enumerate().flat_map(|(index, item)| below(&index.to_string(), item)).collect()
        }
        _ => Vec::new(),
    }
}

/// The first thing of `said` that is not in `written`.
fn lost(said: &Value, written: &Value) -> Option<String> {
    match (said, written) {
        (Value::Object(a), Value::Object(b)) => a.iter().find_map(|(name, value)| match b.get(name) {
            Some(other) => lost(value, other).map(|path| format!("{name}.{path}")),
            None => Some(name.clone()),
        }),
        (Value::Array(a), Value::Array(b)) if a.len() == b.len() => {
            a.iter().zip(b).find_map(|(value, other)| lost(value, other))
        }
        // Numbers of resources are written as strings, and durations in seconds.
        (Value::Number(number), Value::String(text)) if number.to_string() == *text => None,
        (Value::String(a), Value::String(b))
            if a.parse::<Duration>().is_ok_and(|time| b.parse() == Ok(time)) =>
        {
            None
        }
        _ => (said != written).then(|| format!("{said} became {written}")),
    }
}
