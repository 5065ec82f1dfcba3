//! What the documents show of objects: every block of YAML is an object that is accepted, or the part of one that a reader
//! changes.

use std::fs;
use std::path::{Path, PathBuf};

use crate::support::{parse, refusals, schema};
use cloister_crds::ImageBuild;
use serde_json::{Value, json};

/// README.md and the pages of docs/.
fn pages() -> Vec<PathBuf> {
    let root = Path::new(env!("CARGO_MANIFEST_DIR")).join("..");
    let docs = fs::read_dir(root.join("docs")).unwrap().map(|entry| entry.unwrap().path());
    docs.filter(|path| path.extension().is_some_and(|end| end == "md"))
        .chain([root.join("README.md")])
        .collect()
}

/// The documents of all blocks of YAML of a page, with the line of their block.
fn documents(text: &str) -> Vec<(usize, Value)> {
    let mut found = Vec::new();
    let mut block: Option<(usize, String)> = None;
    for (number, line) in text.lines().enumerate() {
        match &mut block {
            None if line.trim() == "```yaml" => block = Some((number + 1, String::new())),
            None => {}
            Some((begin, yaml)) if line.trim() == "```" => {
                found.extend(yaml.split("---\n").map(|document| (*begin, parse(document))));
                block = None;
            }
            Some((_, yaml)) => {
                yaml.push_str(line);
                yaml.push('\n');
            }
        }
    }
    found
}

/// The object that a block means: itself, or the smallest build with these fields instead.
fn object(document: &Value) -> Value {
    if document.get("kind").is_some() {
        return document.clone();
    }
    let mut build = json!({
        "apiVersion": "cloister.dev/v1alpha1", "kind": "ImageBuild", "metadata": {"name": "hello"},
        "spec": {"source": {"inline": {"dockerfile": "FROM scratch\n"}}, "output": {"images": ["hello:1"]}},
    });
    let spec = document["spec"].as_object().expect("an object, or a spec");
    for (name, value) in spec {
        build["spec"][name] = value.clone();
    }
    build
}

#[test]
fn what_documents_show_is_accepted() {
    let schema = schema();
    let mut builds = 0;
    for page in pages() {
        let name = page.file_name().unwrap().to_string_lossy().into_owned();
        for (line, document) in documents(&fs::read_to_string(&page).unwrap()) {
            // Prometheus has configurations, too.
            if document.get("kind").or(document.get("spec")).is_none() {
                continue;
            }
            let object = object(&document);
            if object["kind"] != "ImageBuild" {
                continue;
            }
            assert_eq!(object["apiVersion"], "cloister.dev/v1alpha1", "{name}:{line}");
            assert_eq!(refusals(&schema, &object, None), Vec::<String>::new(), "{name}:{line}");
            if let Err(error) = serde_json::from_value::<ImageBuild>(object) {
                panic!("{name}:{line}: {error}");
            }
            builds += 1;
        }
    }
    assert!(builds >= 18, "{builds} builds");
}

#[test]
fn a_mistake_in_a_document_is_seen() {
    let seen = |yaml: &str| {
        let found = documents(&format!("text\n```yaml\n{yaml}```\n"));
        assert_eq!(found.len(), 1);
        assert_eq!(found[0].0, 2);
        refusals(&schema(), &object(&found[0].1), None)
    };
    assert_eq!(seen("spec:\n  retries: 3\n"), Vec::<String>::new());
    assert!(seen("spec:\n  retry: 3\n")[0].contains("unknown field"));
    assert!(seen("spec:\n  output:\n    push: {}\n")[0].contains("images"));
}
