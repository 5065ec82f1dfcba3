//! What an API server does with an object: defaults, schema, rules. The schema is the one of the installed file.

use kube::core::cel::{Validator, apply_defaults};
use regex::Regex;
use serde_json::Value;

/// The file that is installed.
pub const GOLDEN: &str = include_str!("../../../charts/cloister-crds/files/cloister.dev_imagebuilds.yaml");

/// YAML as Kubernetes reads it: `0755` is octal.
pub fn parse(yaml: &str) -> Value {
    let options = serde_saphyr::options! { legacy_octal_numbers: true };
    serde_saphyr::from_str_with_options(yaml, options).expect("YAML")
}

/// The schema of the installed file.
pub fn schema() -> Value {
    parse(GOLDEN)["spec"]["versions"][0]["schema"]["openAPIV3Schema"].clone()
}

/// Everything an API server would say against `object`, or against changing `old` to it.
pub fn refusals(schema: &Value, object: &Value, old: Option<&Value>) -> Vec<String> {
    let object = apply_defaults(schema, object);
    let mut errors = Vec::new();
    check(schema, &object, "", &mut errors);
    // An API server evaluates rules only for what the schema accepts.
    if errors.is_empty()
        && let Err(refused) = Validator::new().validate(schema, &object, old)
    {
        errors.extend(refused.iter().map(ToString::to_string));
    }
    errors
}

/// Calls `visit` with the path and node of every schema in `schema`.
pub fn walk<'a>(schema: &'a Value, path: &str, visit: &mut dyn FnMut(&str, &'a Value)) {
    visit(path, schema);
    for (name, child) in schema["properties"].as_object().into_iter().flatten() {
        walk(child, &format!("{path}.{name}"), visit);
    }
    for (key, suffix) in [("items", "[]"), ("additionalProperties", "{}")] {
        if let Some(child) = schema.get(key) {
            walk(child, &format!("{path}{suffix}"), visit);
        }
    }
}

fn check(schema: &Value, value: &Value, path: &str, errors: &mut Vec<String>) {
    if schema["x-kubernetes-int-or-string"] == true && value.is_i64() {
        return;
    }
    let kind = schema["type"].as_str().unwrap_or("string");
    let mut refuse = |what: String| errors.push(format!("{path}: {what}"));
    match (kind, value) {
        ("boolean", Value::Bool(_)) => {}
        ("integer", Value::Number(number)) if number.is_i64() => {
            let number = number.as_i64().unwrap_or_default() as f64;
            if number < schema["minimum"].as_f64().unwrap_or(f64::MIN) {
                refuse("too small".into());
            }
            if number > schema["maximum"].as_f64().unwrap_or(f64::MAX) {
                refuse("too large".into());
            }
        }
        ("string", Value::String(text)) => check_string(schema, text, &mut refuse),
        ("array", Value::Array(items)) => {
            check_size(schema, "Items", items.len(), &mut refuse);
            check_unique(schema, items, &mut refuse);
            for (index, item) in items.iter().enumerate() {
                check(&schema["items"], item, &format!("{path}[{index}]"), errors);
            }
        }
        ("object", Value::Object(fields)) => {
            check_size(schema, "Properties", fields.len(), &mut refuse);
            for name in schema["required"].as_array().into_iter().flatten().filter_map(Value::as_str) {
                if !fields.contains_key(name) {
                    refuse(format!("{name} is required"));
                }
            }
            for (name, field) in fields {
                // The API server knows these itself.
                if path.is_empty() && ["apiVersion", "kind", "metadata"].contains(&name.as_str()) {
                    continue;
                }
                match schema["properties"].get(name).or(schema.get("additionalProperties")) {
                    Some(child) => check(child, field, &format!("{path}.{name}"), errors),
                    None => errors.push(format!("{path}.{name}: unknown field")),
                }
            }
        }
        _ => refuse(format!("is not of type {kind}")),
    }
}

fn check_string(schema: &Value, text: &str, refuse: &mut dyn FnMut(String)) {
    check_size(schema, "Length", text.chars().count(), refuse);
    if let Some(pattern) = schema["pattern"].as_str()
        && !Regex::new(pattern).expect(pattern).is_match(text)
    {
        refuse(format!("{text:?} does not match {pattern}"));
    }
    if schema["enum"].as_array().is_some_and(|values| !values.contains(&text.into())) {
        refuse(format!("{text:?} is not one of {}", schema["enum"]));
    }
}

fn check_size(schema: &Value, of: &str, size: usize, refuse: &mut dyn FnMut(String)) {
    let size = size as u64;
    if schema[format!("min{of}")].as_u64().is_some_and(|least| size < least) {
        refuse(format!("has {size}, below min{of}"));
    }
    if schema[format!("max{of}")].as_u64().is_some_and(|most| size > most) {
        refuse(format!("has {size}, above max{of}"));
    }
}

fn check_unique(schema: &Value, items: &[Value], refuse: &mut dyn FnMut(String)) {
    let key = |item: &Value| match schema["x-kubernetes-list-type"].as_str() {
        Some("set") => Some(vec![item.clone()]),
        Some("map") => {
            let keys = schema["x-kubernetes-list-map-keys"].as_array()?;
            Some(keys.iter().map(|key| item[key.as_str().unwrap_or_default()].clone()).collect())
        }
        _ => None,
    };
    for (index, item) in items.iter().enumerate() {
        if key(item)
            .is_some_and(|key_of| items[..index].iter().any(|other| key(other).as_ref() == Some(&key_of)))
        {
            refuse(format!("[{index}] is a duplicate"));
        }
    }
}
