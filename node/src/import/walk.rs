//! An image as containerd's content store has it: what belongs to it, and the labels by which each part keeps the next.

use std::collections::{BTreeMap, HashMap};

use cloister_image::{BlobRef, Limits, Platform, Runnable, Tree, Whole};

use crate::containerd::scope::Scope;
use crate::error::{Error, Result};

/// On an index or manifest: what it needs (containerd, `images.ChildGCLabels`).
const KEEPS: &str = "containerd.io/gc.ref.content.";

/// Walks over an image in the content store; the digest that is missing when a document is.
pub async fn walk(scope: &Scope, top: &BlobRef) -> Result<Result<Whole, BlobRef>> {
    let mut tree = Tree::new(top.clone(), Limits::default())?;
    while let Some(wanted) = tree.wanted().cloned() {
        match scope.document(&wanted.digest, wanted.size).await? {
            Some(content) => tree.supply(&content)?,
            None => return Ok(Err(wanted)),
        }
    }
    Ok(Ok(tree.finish()?))
}

/// The image that this node can run.
pub fn ours(whole: &Whole) -> Result<&Runnable> {
    let host = Platform::host();
    whole.image_for(&host).ok_or_else(|| {
        let offered: Vec<String> =
            whole.images.iter().take(8).map(|image| image.platform.to_string()).collect();
        Error::Invalid(format!("no image for {host}; offered: {}", offered.join(", ")))
    })
}

/// Labels every document with what it points to, so that who keeps the top keeps everything.
pub async fn bind(scope: &Scope, whole: &Whole) -> Result<()> {
    for node in &whole.nodes {
        if !node.children.is_empty() {
            scope.label(&node.blob.digest, labels(&node.children)).await?;
        }
    }
    Ok(())
}

/// The labels that containerd's own importer would set.
fn labels(children: &[BlobRef]) -> HashMap<String, String> {
    let mut counts = BTreeMap::new();
    let mut labels = HashMap::new();
    for child in children {
        let kind = kind(&child.media_type);
        let count: &mut usize = counts.entry(kind).or_default();
        let key = match (kind, *count) {
            ("config", 0) => format!("{KEEPS}{kind}"),
            (_, count) => format!("{KEEPS}{kind}{count}"),
        };
        *count += 1;
        labels.insert(key, child.digest.to_string());
    }
    labels
}

fn kind(media_type: &str) -> &'static str {
    match media_type {
        "application/vnd.oci.image.config.v1+json" | "application/vnd.docker.container.image.v1+json" => {
            "config"
        }
        "application/vnd.oci.image.manifest.v1+json"
        | "application/vnd.docker.distribution.manifest.v2+json" => "m.",
        _ if media_type.starts_with("application/vnd.oci.image.layer.")
            || media_type.starts_with("application/vnd.docker.image.rootfs.") =>
        {
            "l."
        }
        _ => "",
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use cloister_image::Digest;

    #[test]
    fn labels_are_those_of_containerds_importer() {
        let blob = |text: &str, media_type: &str| BlobRef {
            digest: Digest::of(text.as_bytes()),
            size: 1,
            media_type: media_type.to_owned(),
        };
        let layer = "application/vnd.oci.image.layer.v1.tar+gzip";
        let labels = labels(&[
            blob("c", "application/vnd.oci.image.config.v1+json"),
            blob("a", layer),
            blob("b", layer),
            blob("s", "application/vnd.in-toto+json"),
        ]);
        let mut keys: Vec<&str> = labels.keys().map(|key| key.strip_prefix(KEEPS).unwrap()).collect();
        keys.sort_unstable();
        assert_eq!(keys, ["0", "config", "l.0", "l.1"]);
        assert_eq!(labels[&format!("{KEEPS}l.1")], Digest::of(b"b").to_string());
    }
}
