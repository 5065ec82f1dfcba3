//! The file that is installed is the one the types make, and one that API servers take.

use crate::support::{GOLDEN, parse, schema, walk};
use kube::core::cel::{ScopeContext, WarningKind, analyze_rule, compile_schema};
use serde_json::Value;

#[test]
fn the_file_is_what_the_types_make() {
    let made = cloister_crds::yaml().unwrap();
    assert!(made == GOLDEN, "the definition is not what the types make: run `{}`", cloister_crds::REGENERATE);
}

#[test]
fn the_schema_is_structural() {
    let mut wrong = Vec::new();
    walk(&schema(), "", &mut |path, node| {
        let mut say = |what: &str| wrong.push(format!("{path}: {what}"));
        let free = node["x-kubernetes-int-or-string"] == true;
        if node["type"].is_string() == free {
            say("needs a type, unless it is a number or string");
        }
        for key in
            ["$ref", "oneOf", "allOf", "anyOf", "not", "nullable", "uniqueItems", "definitions", "title"]
        {
            if node.get(key).is_some() && !(path.is_empty() && key == "title") {
                say(&format!("has {key}"));
            }
        }
        if node.get("properties").is_some() && node.get("additionalProperties").is_some() {
            say("has properties and additionalProperties");
        }
        if node["additionalProperties"].is_boolean() {
            say("additionalProperties must be a schema");
        }
        if let Some(format) = node["format"].as_str()
            && !["int32", "int64", "date-time"].contains(&format)
        {
            say("has a format that API servers do not know");
        }
        if node["default"].is_null() != node.get("default").is_none() || node["default"].as_array().is_some()
        {
            say("has a default that says nothing");
        }
        if let Some(enumeration) = node["enum"].as_array()
            && let Some(default) = node.get("default")
            && !enumeration.contains(default)
        {
            say("has a default outside its values");
        }
        match node["x-kubernetes-list-type"].as_str() {
            None if node["type"] == "array" => say("does not say how it is merged"),
            Some("set") if node["items"]["type"] != "string" => say("only sets of strings"),
            Some("map") => {
                for key in node["x-kubernetes-list-map-keys"].as_array().unwrap() {
                    let key = key.as_str().unwrap();
                    let required = node["items"]["required"].as_array().unwrap();
                    if !required.iter().any(|name| name == key) {
                        say("a key of its items may be absent");
                    }
                    if !["string", "integer"]
                        .contains(&node["items"]["properties"][key]["type"].as_str().unwrap())
                    {
                        say("a key of its items is not a scalar");
                    }
                }
            }
            _ => {}
        }
    });
    assert_eq!(wrong, Vec::<String>::new());
}

#[test]
fn everything_has_a_bound_and_an_explanation() {
    let mut wrong = Vec::new();
    walk(&schema(), "", &mut |path, node| {
        let bound = match node["type"].as_str() {
            Some("array") => "maxItems",
            Some("object") if node.get("additionalProperties").is_some() => "maxProperties",
            Some("string") if node.get("enum").is_none() && node.get("format").is_none() => "maxLength",
            None => "maxLength",
            _ => "type",
        };
        if node.get(bound).is_none() {
            wrong.push(format!("{path}: has no {bound}"));
        }
        let field = !path.is_empty() && !path.ends_with("[]") && !path.ends_with("{}");
        if field && node["description"].as_str().is_none_or(|text| text.len() < 8) {
            wrong.push(format!("{path}: has no description"));
        }
    });
    assert_eq!(wrong, Vec::<String>::new());
}

#[test]
fn rules_compile_and_stay_within_the_budget() {
    let mut rules = 0;
    let mut wrong = Vec::new();
    walk(&schema(), "", &mut |path, node| {
        for rule in node["x-kubernetes-validations"].as_array().into_iter().flatten() {
            rules += 1;
            let compiled = compile_schema(node);
            wrong.extend(compiled.compilation_errors().iter().map(|error| format!("{path}: {error}")));
            let text = rule["rule"].as_str().unwrap();
            let warnings = analyze_rule(text, &compiled, ScopeContext::CrdValidation);
            // The variable of a macro, as in `list.all(item, …)`, is taken for an unknown one.
            let bound = |message: &str| {
                message.split('\'').nth(1).is_some_and(|name| text.contains(&format!("({name},")))
            };
            wrong.extend(
                warnings
                    .iter()
                    .filter(|warning| warning.kind != WarningKind::WrongScope || !bound(&warning.message))
                    .map(|warning| format!("{path}: {}", warning.message)),
            );
            if rule["message"].as_str().is_none_or(|message| message.contains('\n')) {
                wrong.push(format!("{path}: {text} needs a message of one line"));
            }
            // Functions that came after Kubernetes 1.25, where such rules begin.
            for late in
                ["quantity(", "isIP", "format.", "url(", "cel.", ".indexOf(", "optMap", "optionalOldSelf"]
            {
                if rule.to_string().contains(late) {
                    wrong.push(format!("{path}: {late} is not known to every API server"));
                }
            }
        }
    });
    assert_eq!(wrong, Vec::<String>::new());
    assert!(rules >= 20, "only {rules} rules were found");
}

#[test]
fn columns_point_at_fields() {
    let crd = parse(GOLDEN);
    let version = &crd["spec"]["versions"][0];
    assert_eq!(version["subresources"]["status"], serde_json::json!({}));
    let columns = version["additionalPrinterColumns"].as_array().unwrap();
    for column in columns {
        let path = column["jsonPath"].as_str().unwrap();
        let node = path.trim_start_matches('.').split('.').fold(schema(), |node, name| {
            let (name, item) = name.strip_suffix("[0]").map_or((name, false), |name| (name, true));
            let node = node["properties"][name].clone();
            if item { node["items"].clone() } else { node }
        });
        assert!(path.starts_with(".metadata.") || node["type"] == column["type"], "{path}");
    }
    let names: Vec<_> = columns.iter().filter_map(|column| column["name"].as_str()).collect();
    assert_eq!(names, ["Image", "Phase", "Progress", "Digest", "Node", "Age"]);
}

#[test]
fn the_definition_is_small_enough_to_be_applied_by_a_client() {
    // `kubectl apply` writes the object as JSON into an annotation of at most 256 KiB.
    let json = serde_json::to_string(&parse(GOLDEN) as &Value).unwrap();
    assert!(json.len() < 200 * 1024, "{} bytes", json.len());
}
