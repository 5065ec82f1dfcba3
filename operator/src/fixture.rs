//! What tests start from.

use cloister_crds::{BuildOutput, BuildSource, ImageBuild, InlineSource};
use jiff::Timestamp;
use k8s_openapi::apimachinery::pkg::apis::meta::v1::Time;
use serde_json::json;

/// The time of tests, in seconds after their start.
pub fn at(second: i64) -> Timestamp {
    Timestamp::from_second(1_800_000_000 + second).unwrap()
}

/// A build as an API server gives it, with its finalizer.
pub fn build() -> ImageBuild {
    let mut build: ImageBuild = serde_json::from_value(json!({
        "apiVersion": "cloister.dev/v1alpha1", "kind": "ImageBuild",
        "metadata": {"name": "app", "namespace": "team", "uid": "u1", "generation": 1, "resourceVersion": "1"},
        "spec": {"source": {}, "output": {}},
    }))
    .unwrap();
    build.metadata.creation_timestamp = Some(Time(at(0)));
    build.metadata.finalizers = Some(vec![crate::plan::FINALIZER.to_owned()]);
    let inline = InlineSource { dockerfile: "FROM scratch\n".into(), files: Vec::new() };
    build.spec.source = BuildSource { inline: Some(inline), ..BuildSource::default() };
    build.spec.output = BuildOutput { images: vec!["app:1".into()], ..BuildOutput::default() };
    build
}
