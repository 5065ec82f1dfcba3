//! Pulls from a real registry, directly and through a front door that misbehaves.

use std::collections::BTreeMap;
use std::path::Path;
use std::sync::Mutex;
use std::time::{Duration, Instant};

use cloister_image::source::registry::{Mirrors, PullOptions, pull};
use cloister_image::{Digest, ImageRecord, LayerProgress, Progress, Reference, Result, Silent, Store};
use serde_json::json;

use crate::common::*;
use crate::upstream::{Act, Front, Registry, Turn};

fn options() -> PullOptions {
    // An empty configuration: the tests do not look at the user's own.
    PullOptions { plain_http: true, authfile: Some(empty_config()), ..PullOptions::default() }
}

fn empty_config() -> std::path::PathBuf {
    concat!(env!("CARGO_MANIFEST_DIR"), "/tests/it/no-credentials.json").into()
}

fn reference(address: &str, rest: &str) -> Reference {
    format!("{address}/{rest}").parse().unwrap()
}

fn pulled(
    address: &str,
    rest: &str,
    options: &PullOptions,
) -> (tempfile::TempDir, Store, Result<ImageRecord>) {
    let dir = tempfile::tempdir().unwrap();
    let store = Store::open(dir.path()).unwrap();
    let result = pull(&store, &reference(address, rest), None, options, &Silent);
    if result.is_err() {
        assert!(store.list().unwrap().is_empty());
        assert!(!contents(&store).iter().any(|path| path.starts_with("tmp/")));
    }
    (dir, store, result)
}

fn one_layer(bytes: usize) -> TestImage {
    TestImage::new(host_arch(), &[(tar(&[("noise", &noise(bytes, 7))]), TAR_GZIP)])
}

fn pushed(registry: &Registry, image: &TestImage, name: &str) {
    registry.push(&layout(&[image.descriptor()], &[&image.blobs]), name);
}

#[test]
fn tags_digests_and_platforms_are_pulled() {
    let registry = Registry::plain();
    let (amd, arm) = (one_layer_for("amd64"), one_layer_for("arm64"));
    let index = json!({"schemaVersion": 2, "mediaType": OCI_INDEX,
        "manifests": [entry(&amd, None, Some("amd64")), entry(&arm, None, Some("arm64"))]});
    let index = serde_json::to_vec(&index).unwrap();
    let extra = BTreeMap::from([(Digest::of(&index), index.clone())]);
    registry
        .push(&layout(&[descriptor(OCI_INDEX, &index)], &[&amd.blobs, &arm.blobs, &extra]), "team/app:multi");
    for (platform, image) in [("linux/amd64", &amd), ("linux/arm64", &arm)] {
        let mut options = options();
        options.import.platform = Some(platform.parse().unwrap());
        for rest in [
            "team/app:multi".to_owned(),
            format!("team/app@{}", Digest::of(&index)),
            format!("team/app@{}", image.digest()),
        ] {
            let (_dir, store, result) = pulled(&registry.address, &rest, &options);
            let record = result.unwrap();
            assert_eq!(record.manifest, image.digest());
            assert_eq!(record.platform.to_string(), platform);
            assert_eq!(store.find(&record.name).unwrap(), record);
        }
    }
    let (_dir, _store, result) = pulled(&registry.address, "team/app:none", &options());
    let error = result.unwrap_err().to_string();
    assert!(error.contains("not found (404"), "{error}");
}

fn one_layer_for(architecture: &str) -> TestImage {
    TestImage::new(architecture, &[(tar(&[("arch", architecture.as_bytes())]), TAR_GZIP)])
}

#[test]
fn what_is_in_the_store_is_not_downloaded_again() {
    let registry = Registry::plain();
    let image = TestImage::usual();
    pushed(&registry, &image, "app:1");
    let front = Front::new(&registry.address, |_| Act::Forward);
    let dir = tempfile::tempdir().unwrap();
    let store = Store::open(dir.path()).unwrap();
    let first = pull(&store, &reference(&front.address, "app:1"), None, &options(), &Silent).unwrap();
    assert_eq!(front.count("/blobs/"), 5);
    let again = pull(
        &store,
        &reference(&front.address, "app:1"),
        Some(&"mine".parse().unwrap()),
        &options(),
        &Silent,
    )
    .unwrap();
    assert_eq!((front.count("/blobs/"), front.count("/manifests/")), (5, 2));
    assert_eq!((again.manifest, again.name.as_str()), (first.manifest, "docker.io/library/mine:latest"));
}

#[test]
fn basic_credentials_come_from_the_docker_config_and_helpers() {
    let registry = Registry::start(true, false);
    let image = one_layer(1000);
    pushed(&registry, &image, "app:1");
    let dir = tempfile::tempdir().unwrap();
    let config = dir.path().join("auth.json");
    let with = |json: serde_json::Value| {
        std::fs::write(&config, json.to_string()).unwrap();
        let options = PullOptions { authfile: Some(config.clone()), ..options() };
        pulled(&registry.address, "app:1", &options).2
    };
    // user:secret
    assert_eq!(
        with(json!({"auths": {&registry.address: {"auth": "dXNlcjpzZWNyZXQ="}}})).unwrap().manifest,
        image.digest()
    );
    let error = with(json!({"auths": {&registry.address: {"username": "user", "password": "wrong"}}}))
        .unwrap_err()
        .to_string();
    assert!(error.contains("access denied (401") && !error.contains("wrong"), "{error}");
    let error = with(json!({})).unwrap_err().to_string();
    assert!(error.contains("wants credentials and none are configured"), "{error}");
    let error = with(json!({"credsStore": "cloister-test-absent"})).unwrap_err().to_string();
    assert!(error.contains("docker-credential-cloister-test-absent"), "{error}");
}

#[test]
fn a_token_is_fetched_for_the_repository_and_credentials_stay_at_home() {
    let registry = Registry::plain();
    let image = one_layer(5000);
    pushed(&registry, &image, "team/app:1");
    // A content network that takes no credentials: a presigned URL with an Authorization header is an error there.
    let upstream = registry.address.clone();
    let cdn = Front::new(&upstream, |seen| match seen.header("authorization") {
        Some(_) => Act::Answer("400 Bad Request", vec![], vec![]),
        None => Act::Forward,
    });
    let tokens = Front::new("127.0.0.1:1", |seen| {
        let known = seen.path.contains("scope=repository%3Ateam%2Fapp%3Apull")
            && seen.path.contains("service=the%20service");
        let basic = seen.header("authorization") == Some("Basic dXNlcjpzZWNyZXQ=");
        let refresh = seen.method == "POST"
            && seen.body.contains("refresh_token=idtoken")
            && seen.body.contains("grant_type=refresh_token");
        match known && basic || refresh {
            true => Act::Answer("200 OK", vec![], br#"{"access_token":"tok","expires_in":60}"#.to_vec()),
            false => Act::Answer("403 Forbidden", vec![], vec![]),
        }
    });
    let (realm, cdn_address) = (tokens.address.clone(), cdn.address.clone());
    let front = Front::new(&registry.address, move |seen| match seen.header("authorization") {
        Some("Bearer tok") if seen.path.contains("/blobs/") => Act::Answer(
            "307 Temporary Redirect",
            vec![("location", format!("http://{cdn_address}{}", seen.path))],
            vec![],
        ),
        Some("Bearer tok") => Act::Forward,
        _ => {
            let challenge = format!(
                r#"Bearer realm="http://{realm}/token",service="the service",scope="repository:team/app:pull""#
            );
            Act::Answer("401 Unauthorized", vec![("www-authenticate", challenge)], vec![])
        }
    });
    let dir = tempfile::tempdir().unwrap();
    let config = dir.path().join("auth.json");
    for auth in [
        json!({"auth": "dXNlcjpzZWNyZXQ="}),
        json!({"identitytoken": "idtoken"}),
        json!({"registrytoken": "tok"}),
    ] {
        std::fs::write(&config, json!({"auths": {&front.address: auth}}).to_string()).unwrap();
        let options = PullOptions { authfile: Some(config.clone()), ..options() };
        let (_dir, _store, result) = pulled(&front.address, "team/app:1", &options);
        assert_eq!(result.unwrap().manifest, image.digest());
    }
    assert_eq!(cdn.count("/blobs/"), 6);
    let error = pulled(&front.address, "team/app:1", &options()).2.unwrap_err().to_string();
    assert!(error.contains("token server answered 403 to a request without credentials"), "{error}");
}

#[test]
fn a_broken_download_goes_on_where_it_was() {
    let registry = Registry::plain();
    let image = one_layer(3 << 20);
    pushed(&registry, &image, "app:1");
    let layer = image.blobs.values().map(Vec::len).max().unwrap();
    let turn = Turn::default();
    let is_layer = move |path: &str, image: &TestImage| {
        image.blobs.iter().any(|(digest, bytes)| bytes.len() == layer && path.contains(&digest.hex()))
    };
    let copy = image.clone();
    let front = Front::new(&registry.address, move |seen| match is_layer(&seen.path, &copy) {
        true if turn.next() < 4 => Act::Cut(layer / 6),
        _ => Act::Forward,
    });
    let (_dir, _store, result) = pulled(&front.address, "app:1", &options());
    assert_eq!(result.unwrap().manifest, image.digest());
    let ranges: Vec<String> = front
        .seen
        .lock()
        .unwrap()
        .iter()
        .filter_map(|seen| seen.header("range").map(str::to_owned))
        .collect();
    let step = layer / 6;
    assert_eq!(ranges, (1..=4).map(|i| format!("bytes={}-", i * step)).collect::<Vec<_>>());
}

#[test]
fn a_server_without_ranges_is_read_from_the_start_again() {
    let registry = Registry::plain();
    let image = one_layer(1 << 20);
    pushed(&registry, &image, "app:1");
    let turn = Turn::default();
    let front = Front::new(&registry.address, move |seen| match seen.path.contains("/blobs/") {
        true if seen.header("range").is_some() => Act::NoRange,
        true if turn.next() < 2 => Act::Cut(500_000),
        _ => Act::Forward,
    });
    let (_dir, _store, result) = pulled(&front.address, "app:1", &options());
    assert_eq!(result.unwrap().manifest, image.digest());
}

#[test]
fn a_stalled_download_is_taken_up_again() {
    let registry = Registry::plain();
    let image = one_layer(1 << 20);
    pushed(&registry, &image, "app:1");
    let turn = Turn::default();
    let front = Front::new(&registry.address, move |seen| match seen.path.contains("/blobs/") {
        true if turn.next() < 2 => Act::Stall(200_000),
        _ => Act::Forward,
    });
    let mut options = options();
    options.timeouts.read = Duration::from_millis(500);
    let start = Instant::now();
    let (_dir, _store, result) = pulled(&front.address, "app:1", &options);
    assert_eq!(result.unwrap().manifest, image.digest());
    assert!(start.elapsed() < Duration::from_secs(20));
}

#[test]
fn a_download_that_never_ends_well_ends_in_an_error() {
    let registry = Registry::plain();
    let image = one_layer(1 << 20);
    pushed(&registry, &image, "app:1");
    let layer = image.blobs.values().map(Vec::len).max().unwrap();
    let digest = *image.blobs.iter().find(|(_, bytes)| bytes.len() == layer).unwrap().0;
    let front = Front::new(&registry.address, move |seen| {
        if seen.path.contains(&digest.hex()) { Act::Cut(0) } else { Act::Forward }
    });
    let (_dir, _store, result) = pulled(&front.address, "app:1", &options());
    let error = result.unwrap_err().to_string();
    assert!(error.contains("layer sha256:") && !error.contains('\n'), "{error}");
    assert_eq!(front.count(&digest.hex()), 6, "bounded attempts");
}

struct Lines(Mutex<Vec<String>>);

impl Progress for Lines {
    fn layer(&self, _: &LayerProgress<'_>) {}

    fn message(&self, line: &str) {
        self.0.lock().unwrap().push(line.to_owned());
    }
}

#[test]
fn rate_limits_are_waited_out_but_not_for_hours() {
    let registry = Registry::plain();
    let image = one_layer(1000);
    pushed(&registry, &image, "app:1");
    let turn = Turn::default();
    let front = Front::new(&registry.address, move |_| match turn.next() {
        0 | 2 => Act::Answer("429 Too Many Requests", vec![("retry-after", "1".to_owned())], vec![]),
        4 => Act::Answer("503 Service Unavailable", vec![], vec![]),
        _ => Act::Forward,
    });
    let dir = tempfile::tempdir().unwrap();
    let store = Store::open(dir.path()).unwrap();
    let lines = Lines(Mutex::default());
    let start = Instant::now();
    pull(&store, &reference(&front.address, "app:1"), None, &options(), &lines).unwrap();
    assert!(start.elapsed() >= Duration::from_secs(2), "{:?}", start.elapsed());
    assert!(
        lines
            .0
            .lock()
            .unwrap()
            .iter()
            .any(|line| line.contains("429") && line.contains("trying again in 1.0 s"))
    );
    let body = br#"{"errors":[{"code":"TOOMANYREQUESTS","message":"come back\nlater"}]}"#.to_vec();
    let front = Front::new(&registry.address, move |_| {
        Act::Answer("429 Too Many Requests", vec![("retry-after", "21600".to_owned())], body.clone())
    });
    let error = pulled(&front.address, "app:1", &options()).2.unwrap_err().to_string();
    assert!(
        error.contains("come back")
            && error.contains("21600 s, which is longer than we wait")
            && !error.contains('\n'),
        "{error}"
    );
    assert_eq!(front.count(""), 1);
}

#[test]
fn lying_registries_are_found_out() {
    let registry = Registry::plain();
    let image = one_layer(300_000);
    pushed(&registry, &image, "app:1");
    let manifest = image.manifest.clone();
    let wrong_header = Front::new(&registry.address, move |seen| match seen.path.contains("/manifests/") {
        true => Act::Answer(
            "200 OK",
            vec![
                ("content-type", OCI_MANIFEST.to_owned()),
                ("docker-content-digest", format!("sha256:{}", "0".repeat(64))),
            ],
            manifest.clone(),
        ),
        false => Act::Forward,
    });
    let error = pulled(&wrong_header.address, "app:1", &options()).2.unwrap_err().to_string();
    assert!(error.contains("the registry says sha256:0000"), "{error}");
    // Another manifest under the digest asked for.
    let other = one_layer(5).manifest;
    let wrong_manifest = Front::new(&registry.address, move |seen| match seen.path.contains("/manifests/") {
        true => Act::Answer("200 OK", vec![("content-type", OCI_MANIFEST.to_owned())], other.clone()),
        false => Act::Forward,
    });
    let error = pulled(&wrong_manifest.address, &format!("app@{}", image.digest()), &options())
        .2
        .unwrap_err()
        .to_string();
    assert!(error.contains("digest is"), "{error}");
    let huge = Front::new(&registry.address, |_| Act::Answer("200 OK", vec![], vec![b' '; 5 << 20]));
    let error = pulled(&huge.address, "app:1", &options()).2.unwrap_err().to_string();
    assert!(error.contains("limit of 4194304"), "{error}");
    let loops = Front::new(&registry.address, |seen| {
        Act::Answer("302 Found", vec![("location", format!("{}x", seen.path))], vec![])
    });
    let error = pulled(&loops.address, "app:1", &options()).2.unwrap_err().to_string();
    assert!(error.contains("redirects"), "{error}");
    // A layer with other bytes, of the same length and of another one.
    let layer = image.blobs.values().max_by_key(|bytes| bytes.len()).unwrap().clone();
    let digest = Digest::of(&layer).hex();
    for (body, part) in [(vec![7; layer.len()], "layer"), (vec![7; 100], "the registry has 100 bytes")] {
        let digest = digest.clone();
        let front = Front::new(&registry.address, move |seen| match seen.path.contains(&digest) {
            true => Act::Answer("200 OK", vec![], body.clone()),
            false => Act::Forward,
        });
        let error = pulled(&front.address, "app:1", &options()).2.unwrap_err().to_string();
        assert!(error.contains(part), "{error}");
    }
}

#[test]
fn mirrors_are_asked_first_and_the_registry_steps_in() {
    let registry = Registry::plain();
    let image = one_layer(100_000);
    pushed(&registry, &image, "app:1");
    let broken = Front::new(&registry.address, |seen| match seen.path.contains("/manifests/") {
        true => Act::Forward,
        false => Act::Answer("404 Not Found", vec![], vec![]),
    });
    let good = Front::new(&registry.address, |_| Act::Forward);
    let mut options = options();
    let mirrors = vec![
        "http://127.0.0.1:1".to_owned(),
        format!("http://{}", broken.address),
        format!("http://{}", good.address),
    ];
    options.mirrors = Mirrors(BTreeMap::from([("nowhere.invalid".to_owned(), mirrors)]));
    let (_dir, _store, result) = pulled("nowhere.invalid", "app:1", &options);
    let record = result.unwrap();
    assert_eq!((record.manifest, record.name.as_str()), (image.digest(), "nowhere.invalid/app:1"));
    assert!(broken.count("ns=nowhere.invalid") > 0 && good.count("/blobs/") == 2);
}

#[test]
fn tls_needs_a_known_ca_and_http_needs_to_be_asked_for() {
    let registry = Registry::start(false, true);
    let image = one_layer(50_000);
    pushed(&registry, &image, "app:1");
    let https = PullOptions { plain_http: false, ..options() };
    let trusted = PullOptions { ca_cert: registry.ca.clone(), ..https.clone() };
    assert_eq!(pulled(&registry.address, "app:1", &trusted).2.unwrap().manifest, image.digest());
    let start = Instant::now();
    let error = pulled(&registry.address, "app:1", &https).2.unwrap_err().to_string();
    assert!(error.to_lowercase().contains("certificate"), "{error}");
    assert!(start.elapsed() < Duration::from_secs(2), "a bad certificate is not tried again");
    let not_a_ca = PullOptions { ca_cert: Some(Path::new("/etc/hostname").to_owned()), ..https.clone() };
    assert!(
        pulled(&registry.address, "app:1", &not_a_ca).2.unwrap_err().to_string().contains("no certificate")
    );
    // A registry without TLS does not get an answer to HTTPS.
    let plain = Registry::plain();
    let error = pulled(&plain.address, "app:1", &https).2.unwrap_err().to_string();
    assert!(error.contains(&plain.address) && error.contains("--plain-http"), "{error}");
}
