//! From the schema that Rust types have to the one that an API server takes.

use k8s_openapi::apiextensions_apiserver::pkg::apis::apiextensions::v1::CustomResourceDefinition;
use schemars::{Schema, SchemaGenerator, json_schema};
use serde_json::{Map, Value, json};

/// Bounds of what Kubernetes' own types leave open: items of a list, keys of a map, length of a string.
const MOST_ITEMS: u64 = 64;
const LONGEST: u64 = 316;

/// A quantity as Kubernetes writes it, a number or a string with a suffix.
pub(crate) fn quantity(_: &mut SchemaGenerator) -> Schema {
    json_schema!({
        "pattern": r"^[0-9]+(\.[0-9]+)?(m|k|M|G|T|P|E|Ki|Mi|Gi|Ti|Pi|Ei)?$",
        "maxLength": 32,
        "x-kubernetes-int-or-string": true,
    })
}

/// A duration as Kubernetes writes it.
pub(crate) fn duration(_: &mut SchemaGenerator) -> Schema {
    json_schema!({"type": "string", "maxLength": 32, "pattern": crate::rules::DURATION})
}

/// A map of short strings, such as labels.
pub(crate) fn string_map(_: &mut SchemaGenerator) -> Schema {
    json_schema!({
        "type": "object",
        "maxProperties": MOST_ITEMS,
        "additionalProperties": {"type": "string", "maxLength": 4096},
    })
}

/// The conditions of Kubernetes' API conventions, with the bounds that its own code generator gives them.
pub(crate) fn conditions(_: &mut SchemaGenerator) -> Schema {
    json_schema!({
        "type": "array",
        "maxItems": 16,
        "items": {
            "description": "One aspect of the build, as Kubernetes' API conventions describe it.",
            "type": "object",
            "required": ["lastTransitionTime", "message", "reason", "status", "type"],
            "properties": {
                "lastTransitionTime": {
                    "description": "When status last changed.",
                    "type": "string", "format": "date-time",
                },
                "message": {"description": "One line for people.", "type": "string", "maxLength": 32768},
                "observedGeneration": {
                    "description": "The metadata.generation that this condition is about.",
                    "type": "integer", "format": "int64", "minimum": 0,
                },
                "reason": {
                    "description": "One word in CamelCase for programs.",
                    "type": "string", "minLength": 1, "maxLength": 1024,
                    "pattern": "^[A-Za-z]([A-Za-z0-9_,:]*[A-Za-z0-9_])?$",
                },
                "status": {"description": "True, False or Unknown.", "type": "string", "enum": ["True", "False", "Unknown"]},
                "type": {
                    "description": "Ready, Reconciling, Stalled or Succeeded.",
                    "type": "string", "maxLength": 316, "pattern": "^[A-Za-z]([-A-Za-z0-9_./]*[A-Za-z0-9])?$",
                },
            },
        },
    })
}

/// Gives bounds to a type of Kubernetes' own API, whose schema has none.
pub(crate) fn bounded(schema: &mut Schema) {
    if let Some(object) = schema.as_object_mut() {
        bound(object);
    }
}

fn bound(node: &mut Map<String, Value>) {
    let limits: &[(&str, Value)] = match node.get("type").and_then(Value::as_str) {
        Some("array") => &[("maxItems", json!(MOST_ITEMS)), ("x-kubernetes-list-type", json!("atomic"))],
        Some("string") => &[("maxLength", json!(LONGEST))],
        Some("object") if node.contains_key("additionalProperties") => {
            &[("maxProperties", json!(MOST_ITEMS))]
        }
        _ => &[],
    };
    for (key, limit) in limits {
        node.entry(*key).or_insert_with(|| limit.clone());
    }
    for_each_child(node, &mut bound);
}

/// The definition as it is installed: without what API servers ignore or warn about.
pub(crate) fn tidy(mut crd: CustomResourceDefinition) -> serde_json::Result<CustomResourceDefinition> {
    for version in &mut crd.spec.versions {
        let Some(props) = version.schema.as_mut().and_then(|schema| schema.open_api_v3_schema.as_mut())
        else {
            continue;
        };
        let mut root = serde_json::to_value(&*props)?;
        if let Some(root) = root.as_object_mut() {
            tidy_node(root);
        }
        *props = serde_json::from_value(root)?;
    }
    Ok(crd)
}

fn tidy_node(node: &mut Map<String, Value>) {
    // `null` means absent, so that has() in a rule and Option in Rust agree.
    node.remove("nullable");
    // Formats of Rust's integers; an API server knows int32 and int64.
    if node.get("format").and_then(Value::as_str).is_some_and(|format| format.starts_with("uint")) {
        node.remove("format");
    }
    for_each_child(node, &mut tidy_node);
}

/// Calls `visit` for every schema directly below `node`.
fn for_each_child(node: &mut Map<String, Value>, visit: &mut dyn FnMut(&mut Map<String, Value>)) {
    for (key, value) in node.iter_mut() {
        match (key.as_str(), value) {
            ("properties", Value::Object(properties)) => {
                properties.values_mut().filter_map(Value::as_object_mut).for_each(&mut *visit);
            }
            ("items" | "additionalProperties", Value::Object(child)) => visit(child),
            _ => {}
        }
    }
}
