//! Pushes to a real registry, directly and through a front door that misbehaves.

use std::collections::BTreeMap;
use std::io::{Cursor, Read};
use std::sync::Mutex;

use cloister_image::source::registry::{Blobs, PullOptions, PushOptions, pull, push};
use cloister_image::{BlobRef, Digest, Error, Limits, Reference, Result, Silent, Store, Tree, Whole};
use serde_json::json;

use crate::common::*;
use crate::upstream::{Act, Front, Registry};

/// The blobs of an image in memory, and how often each was opened.
struct Held {
    blobs: BTreeMap<Digest, Vec<u8>>,
    opened: Mutex<Vec<Digest>>,
}

impl Blobs for Held {
    fn open(&self, digest: &Digest) -> Result<Box<dyn Read + Send + '_>> {
        self.opened.lock().unwrap().push(*digest);
        let blob = self.blobs.get(digest).ok_or_else(|| Error::NoSuchImage(digest.to_string()))?;
        Ok(Box::new(Cursor::new(blob)))
    }
}

/// An image of two platforms with `size` bytes of noise in each.
fn image(size: usize) -> (Held, Whole) {
    let one = |architecture, seed| {
        TestImage::new(architecture, &[(tar(&[("noise", &noise(size, seed))]), TAR_GZIP)])
    };
    let (amd, arm) = (one("amd64", 3), one("arm64", 4));
    let entry = |image: &TestImage, architecture: &str| {
        let mut entry = image.descriptor();
        entry["platform"] = json!({"os": "linux", "architecture": architecture});
        entry
    };
    let index = json!({"schemaVersion": 2, "mediaType": OCI_INDEX,
        "manifests": [entry(&amd, "amd64"), entry(&arm, "arm64")]});
    let index = serde_json::to_vec(&index).unwrap();
    let top = BlobRef { digest: Digest::of(&index), size: index.len() as u64, media_type: OCI_INDEX.into() };
    let mut blobs: BTreeMap<_, _> = amd.blobs.into_iter().chain(arm.blobs).collect();
    blobs.insert(top.digest, index);
    let mut tree = Tree::new(top, Limits::default()).unwrap();
    while let Some(wanted) = tree.wanted().map(|wanted| wanted.digest) {
        tree.supply(&blobs[&wanted]).unwrap();
    }
    (Held { blobs, opened: Mutex::default() }, tree.finish().unwrap())
}

fn options(credentials: Option<&str>) -> (tempfile::TempDir, PushOptions) {
    let dir = tempfile::tempdir().unwrap();
    let path = dir.path().join("config.json");
    std::fs::write(&path, credentials.unwrap_or("{}")).unwrap();
    (dir, PushOptions { plain_http: true, authfile: Some(path), ..PushOptions::default() })
}

fn reference(address: &str) -> Reference {
    format!("{address}/team/app:1").parse().unwrap()
}

/// Pulls what was pushed, whole: every digest is checked on the way.
fn arrives(address: &str, options: &PushOptions, whole: &Whole) {
    let dir = tempfile::tempdir().unwrap();
    let store = Store::open(dir.path()).unwrap();
    let mut pulls =
        PullOptions { plain_http: true, authfile: options.authfile.clone(), ..PullOptions::default() };
    pulls.ca_cert.clone_from(&options.ca_cert);
    pulls.plain_http = options.plain_http;
    for (image, platform) in whole.images.iter().zip(["linux/amd64", "linux/arm64"]) {
        pulls.import.platform = Some(platform.parse().unwrap());
        let record = pull(&store, &reference(address), None, &pulls, &Silent).unwrap();
        assert_eq!(record.manifest, image.manifest.digest);
    }
}

#[test]
fn an_image_of_two_platforms_is_pushed_and_not_sent_again() {
    let registry = Registry::plain();
    let (held, whole) = image(1 << 20);
    let (_dir, options) = options(None);
    push(&whole, &held, &reference(&registry.address), &options, &Silent).unwrap();
    arrives(&registry.address, &options, &whole);
    held.opened.lock().unwrap().clear();
    push(&whole, &held, &reference(&registry.address), &options, &Silent).unwrap();
    let opened = held.opened.lock().unwrap().clone();
    let documents: Vec<Digest> = whole.nodes.iter().rev().map(|node| node.blob.digest).collect();
    assert_eq!(opened, documents, "only indexes and manifests, the top last");
}

#[test]
fn credentials_are_used_over_tls_and_their_lack_is_said() {
    let registry = Registry::start(true, true);
    let (held, whole) = image(1000);
    let (_dir, mut without) = options(None);
    (without.plain_http, without.ca_cert) = (false, registry.ca.clone());
    let error = push(&whole, &held, &reference(&registry.address), &without, &Silent).unwrap_err();
    assert!(error.to_string().contains("credentials"), "{error}");
    let auths = json!({"auths": {&registry.address: {"username": "user", "password": "secret"}}}).to_string();
    let (_dir, mut with) = options(Some(&auths));
    (with.plain_http, with.ca_cert) = (false, registry.ca.clone());
    push(&whole, &held, &reference(&registry.address), &with, &Silent).unwrap();
    arrives(&registry.address, &with, &whole);
    let wrong = auths.replace("secret", "hunter2");
    let (_dir, mut wrong) = options(Some(&wrong));
    (wrong.plain_http, wrong.ca_cert) = (false, registry.ca.clone());
    let error = push(&whole, &held, &reference(&registry.address), &wrong, &Silent).unwrap_err().to_string();
    assert!(error.contains("access denied (401") && !error.contains("hunter2"), "{error}");
}

#[test]
fn trouble_that_may_pass_is_tried_again_and_a_refusal_is_not() {
    let registry = Registry::plain();
    let (held, whole) = image(1000);
    let (_dir, options) = options(None);
    let busy = Mutex::new(2);
    let front = Front::new(&registry.address, move |seen| {
        let mut busy = busy.lock().unwrap();
        if seen.method == "PUT" && *busy > 0 {
            *busy -= 1;
            return Act::Answer("503 Service Unavailable", Vec::new(), Vec::new());
        }
        Act::Forward
    });
    push(&whole, &held, &reference(&front.address), &options, &Silent).unwrap();
    arrives(&registry.address, &options, &whole);
    let front = Front::new(&registry.address, |seen| match seen.method.as_str() {
        "POST" | "PUT" => Act::Answer(
            "403 Forbidden",
            Vec::new(),
            br#"{"errors": [{"code": "DENIED", "message": "quota exceeded"}]}"#.to_vec(),
        ),
        _ => Act::Forward,
    });
    let error = push(&whole, &held, &reference(&front.address), &options, &Silent).unwrap_err().to_string();
    assert!(error.contains("quota exceeded"), "{error}");
    assert_eq!(front.seen.lock().unwrap().iter().filter(|seen| seen.method == "PUT").count(), 1);
}

#[test]
fn a_blob_that_is_not_there_ends_the_push_without_a_name() {
    let registry = Registry::plain();
    let (mut held, whole) = image(1000);
    let (_dir, options) = options(None);
    let layer = whole.images[1].layers[0].0.digest;
    held.blobs.remove(&layer);
    let error = push(&whole, &held, &reference(&registry.address), &options, &Silent).unwrap_err();
    assert!(error.to_string().contains(&layer.to_string()), "{error}");
    let store = tempfile::tempdir().unwrap();
    let store = Store::open(store.path()).unwrap();
    let pulls = PullOptions { plain_http: true, authfile: options.authfile, ..PullOptions::default() };
    assert!(pull(&store, &reference(&registry.address), None, &pulls, &Silent).is_err());
}
