//! Walks over images made of a few lines of JSON.

use std::collections::HashMap;

use serde_json::{Value, json};

use super::*;

#[derive(Default)]
struct Image(HashMap<Digest, Vec<u8>>);

impl Image {
    fn add(&mut self, media_type: &str, bytes: &[u8]) -> Value {
        let digest = Digest::of(bytes);
        self.0.insert(digest, bytes.to_vec());
        json!({"mediaType": media_type, "digest": digest, "size": bytes.len()})
    }

    fn document(&mut self, media_type: &str, mut value: Value) -> Value {
        value["schemaVersion"] = 2.into();
        value["mediaType"] = media_type.into();
        self.add(media_type, value.to_string().as_bytes())
    }

    fn manifest(&mut self, architecture: &str) -> Value {
        let layer = self.add(oci::OCI_LAYER, b"layer");
        let config = json!({"os": "linux", "architecture": architecture,
            "rootfs": {"type": "layers", "diff_ids": [layer["digest"]]}});
        let config = self.add(oci::OCI_CONFIG, config.to_string().as_bytes());
        self.document(oci::OCI_MANIFEST, json!({"config": config, "layers": [layer]}))
    }

    fn walk(&self, top: &Value) -> Result<Whole> {
        let top = BlobRef::of(&serde_json::from_value(top.clone()).unwrap())?;
        let mut tree = Tree::new(top, Limits::default())?;
        while let Some(wanted) = tree.wanted() {
            tree.supply(&self.0.get(&wanted.digest).cloned().unwrap_or_default())?;
        }
        tree.finish()
    }
}

fn refused(image: &Image, top: &Value) -> String {
    image.walk(top).unwrap_err().to_string()
}

#[test]
fn every_blob_of_every_platform_and_attestation_is_found() {
    let mut image = Image::default();
    let (amd, arm) = (image.manifest("amd64"), image.manifest("arm64"));
    let statement = image.add("application/vnd.in-toto+json", b"{}");
    let config = image.add(oci::OCI_CONFIG, b"{}");
    let mut attestation =
        image.document(oci::OCI_MANIFEST, json!({"config": config, "layers": [statement.clone()]}));
    attestation["annotations"] = json!({"vnd.docker.reference.type": "attestation-manifest"});
    let top = image.document(oci::OCI_INDEX, json!({"manifests": [arm, amd, attestation]}));
    let whole = image.walk(&top).unwrap();
    assert_eq!(whole.blobs.len(), image.0.len());
    assert_eq!(whole.nodes.len(), 4);
    assert_eq!(whole.images.len(), 2);
    let host = whole.image_for(&"linux/amd64".parse().unwrap()).unwrap();
    assert_eq!(host.manifest.digest.to_string(), amd["digest"]);
    assert_eq!(host.layers.len(), 1);
    assert!(whole.image_for(&"linux/s390x".parse().unwrap()).is_none());
}

#[test]
fn documents_that_are_not_what_their_descriptor_says_are_refused() {
    let mut image = Image::default();
    let top = image.manifest("amd64");
    let digest: Digest = top["digest"].as_str().unwrap().parse().unwrap();
    let good = image.0.insert(digest, b"{}".to_vec()).unwrap();
    assert!(refused(&image, &top).contains("bytes long"));
    image.0.insert(digest, vec![b' '; good.len()]);
    assert!(refused(&image, &top).contains("digest"));
}

#[test]
fn types_that_are_no_image_are_refused() {
    let mut image = Image::default();
    let mut top = image.manifest("amd64");
    top["mediaType"] = "text/plain".into();
    assert!(refused(&image, &top).contains("neither index nor manifest"));
    let blob = image.add("application/vnd.in-toto+json", b"{}");
    let artifact = image.document(oci::OCI_MANIFEST, json!({"config": blob, "layers": []}));
    assert!(refused(&image, &artifact).contains("not an image's"));
    let config = image.add(oci::OCI_CONFIG, b"{}");
    let strange = image.document(oci::OCI_MANIFEST, json!({"config": config, "layers": [blob]}));
    assert!(refused(&image, &strange).contains("unknown layer type"));
    let empty = image.document(oci::OCI_INDEX, json!({"manifests": []}));
    assert!(refused(&image, &empty).contains("nothing that can run"));
}

#[test]
fn sizes_that_disagree_or_overflow_are_refused() {
    let mut image = Image::default();
    let config = image.add(oci::OCI_CONFIG, b"{}");
    let layer = image.add(oci::OCI_LAYER, b"layer");
    let mut other = layer.clone();
    other["size"] = 6.into();
    let top = image.document(oci::OCI_MANIFEST, json!({"config": config, "layers": [layer, other]}));
    assert!(refused(&image, &top).contains("said to be"));
    let mut huge = image.add(oci::OCI_LAYER, b"huge");
    huge["size"] = u64::MAX.into();
    let top = image.document(oci::OCI_MANIFEST, json!({"config": config, "layers": [huge]}));
    assert!(refused(&image, &top).contains("limit"));
}

#[test]
fn indexes_are_bounded_in_depth_and_number() {
    let mut image = Image::default();
    let mut deep = image.manifest("amd64");
    for _ in 0..=MAX_DEPTH {
        deep = image.document(oci::OCI_INDEX, json!({"manifests": [deep]}));
    }
    assert!(refused(&image, &deep).contains("in one another"));
    let mut image = Image::default();
    let many: Vec<Value> = (0..MAX_DOCUMENTS).map(|n| image.manifest(&format!("a{n}"))).collect();
    let wide = image.document(oci::OCI_INDEX, json!({"manifests": many}));
    assert!(refused(&image, &wide).contains("documents"));
}
