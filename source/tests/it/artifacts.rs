//! `source.oci`: what registries hold, served as the distribution specification says.

use std::fs;

use cloister_crds::{BuildReason, BuildSource, OciSource, SecretRef};
use serde_json::{Value, json};

use crate::server::{Answer, Server};
use crate::site::{Site, digest, file, gzip, link, tar};

const MANIFEST: &str = "application/vnd.oci.image.manifest.v1+json";
const INDEX: &str = "application/vnd.oci.image.index.v1+json";

/// A repository `team/source` with these layers: media type, annotations, bytes.
struct Repository {
    routes: Vec<(String, Answer)>,
    manifest: Vec<u8>,
}

impl Repository {
    fn new(config: &str, layers: &[(&str, Value, Vec<u8>)]) -> Self {
        let mut routes = Vec::new();
        let mut descriptors = Vec::new();
        for (kind, annotations, bytes) in layers {
            routes.push((format!("/v2/team/source/blobs/{}", digest(bytes)), Answer::Bytes(bytes.clone())));
            descriptors.push(json!({
                "mediaType": kind, "digest": digest(bytes), "size": bytes.len(), "annotations": annotations,
            }));
        }
        let manifest = json!({
            "schemaVersion": 2,
            "mediaType": MANIFEST,
            "config": { "mediaType": config, "digest": digest(b"{}"), "size": 2 },
            "layers": descriptors,
        });
        let manifest = serde_json::to_vec(&manifest).unwrap();
        let mut repository = Self { routes, manifest: manifest.clone() };
        repository.document("1", MANIFEST, &manifest);
        repository
    }

    fn document(&mut self, tag: &str, kind: &'static str, bytes: &[u8]) {
        for name in [tag.to_owned(), digest(bytes)] {
            self.routes
                .push((format!("/v2/team/source/manifests/{name}"), Answer::Typed(kind, bytes.to_vec())));
        }
    }

    fn serve(&self, user: Option<(&str, &str)>) -> Server {
        let routes: Vec<_> =
            self.routes.iter().map(|(path, answer)| (path.as_str(), answer.clone())).collect();
        Server::tls(&routes, user)
    }
}

fn of(server: &Server, selector: &str) -> BuildSource {
    let reference = format!("{}/team/source{selector}", server.url.trim_start_matches("https://"));
    BuildSource { oci: Some(OciSource { reference, subdir: None }), ..BuildSource::default() }
}

#[tokio::test(flavor = "multi_thread")]
async fn artifacts_are_files_and_tars() {
    let layers = [
        // As `oras push` writes a file and a folder, and as flux writes a folder.
        ("text/plain", json!({"org.opencontainers.image.title": "conf/app.toml"}), b"x = 1".to_vec()),
        (
            "application/vnd.oci.image.layer.v1.tar+gzip",
            json!({"org.opencontainers.image.title": "src", "io.deis.oras.content.unpack": "true"}),
            gzip(&tar(&[file("src/main.c", b"int")])),
        ),
        (
            "application/vnd.cncf.flux.content.v1.tar+gzip",
            json!({}),
            gzip(&tar(&[file("Dockerfile", b"FROM scratch"), file(".wh.x", b"no whiteout")])),
        ),
    ];
    let repository = Repository::new("application/vnd.oci.empty.v1+json", &layers);
    let server = repository.serve(None);
    let mut site = Site::new();
    site.trust(&server.ca);
    for selector in [":1".to_owned(), format!("@{}", digest(&repository.manifest))] {
        let prepared = site.prepare(&of(&server, &selector)).await.unwrap();
        assert_eq!(prepared.facts.digest, Some(digest(&repository.manifest)));
        for (name, bytes) in
            [("conf/app.toml", &b"x = 1"[..]), ("src/main.c", b"int"), (".wh.x", b"no whiteout")]
        {
            assert_eq!(prepared.context.read(name, 99).unwrap(), bytes);
        }
    }
    let error = site.prepare(&of(&server, ":2")).await.unwrap_err();
    assert_eq!(error.reason(), BuildReason::SourceNotFound, "{error}");
}

#[tokio::test(flavor = "multi_thread")]
async fn layers_of_an_image_take_names_away() {
    let kind = "application/vnd.oci.image.layer.v1.tar";
    let lower = tar(&[
        file("Dockerfile", b"old"),
        file("gone/deep/x", b""),
        file("kept/lower", b""),
        file("opaque/lower", b""),
        link("out", "/etc"),
    ]);
    let upper = tar(&[
        file(".wh.gone", b""),
        file(".wh.never", b""),
        file("opaque/.wh..wh..opq", b""),
        file("opaque/upper", b""),
        file("Dockerfile", b"new"),
        // It takes the link away, and nothing of where that leads.
        file(".wh.out", b""),
        crate::site::Entry { kind: tar::EntryType::Char, ..file("dev/null", b"") },
    ]);
    let layers = [(kind, json!({}), lower), (kind, json!({}), upper)];
    let mut repository = Repository::new("application/vnd.oci.image.config.v1+json", &layers);
    let entry = |os: &str, architecture: &str, digest: String| {
        json!({
            "mediaType": MANIFEST, "digest": digest, "size": repository.manifest.len(),
            "platform": { "os": os, "architecture": architecture },
        })
    };
    let architecture = if cfg!(target_arch = "x86_64") { "amd64" } else { "arm64" };
    let index = json!({
        "schemaVersion": 2,
        "mediaType": INDEX,
        "manifests": [
            entry("unknown", "unknown", digest(b"attestation")),
            entry("linux", "s390x", digest(b"other")),
            entry("linux", architecture, digest(&repository.manifest)),
        ],
    });
    repository.document("index", INDEX, &serde_json::to_vec(&index).unwrap());
    let server = repository.serve(None);
    let mut site = Site::new();
    site.trust(&server.ca);
    let prepared = site.prepare(&of(&server, ":index")).await.unwrap();
    assert_eq!(prepared.dockerfile[0].1, b"new");
    let root = site.root();
    let mut names: Vec<_> = fs::read_dir(&root).unwrap().map(|entry| entry.unwrap().file_name()).collect();
    names.sort();
    assert_eq!(names, ["Dockerfile", "kept", "opaque"]);
    assert_eq!(fs::read_dir(root.join("opaque")).unwrap().count(), 1);
}

#[tokio::test(flavor = "multi_thread")]
async fn credentials_come_from_the_pull_secrets() {
    let layer = tar(&[file("Dockerfile", b"FROM scratch")]);
    let repository = Repository::new("application/x", &[("application/x-tar", json!({}), layer)]);
    let server = repository.serve(Some(("me", "hunter2")));
    let mut site = Site::new();
    site.trust(&server.ca);
    let error = site.prepare(&of(&server, ":1")).await.unwrap_err();
    assert_eq!(error.reason(), BuildReason::AccessDenied, "{error}");
    site.inputs.pull_secrets = vec![SecretRef { name: "hub".into() }];
    let error = site.prepare(&of(&server, ":1")).await.unwrap_err();
    assert_eq!(error.reason(), BuildReason::SecretNotFound, "{error}");
    let host = server.url.trim_start_matches("https://");
    // A program that a tenant names is not run.
    let evil = tempfile::tempdir().unwrap();
    let config = |password: &str| {
        json!({
            "auths": { host: { "username": "me", "password": password } },
            "credsStore": "touch", "credHelpers": { host: evil.path().join("x") },
        })
        .to_string()
    };
    site.mount("secrets/hub", &[(".dockerconfigjson", &config("wrong-one"))]);
    let error = site.prepare(&of(&server, ":1")).await.unwrap_err();
    assert_eq!(error.reason(), BuildReason::AccessDenied, "{error}");
    assert!(!error.to_string().contains("wrong-one"), "{error}");
    site.mount("secrets/hub", &[(".dockerconfigjson", &config("hunter2"))]);
    site.prepare(&of(&server, ":1")).await.unwrap();
}

#[tokio::test(flavor = "multi_thread")]
async fn lies_of_a_registry_are_found_out() {
    let layer = tar(&[file("Dockerfile", b"FROM scratch")]);
    let layers = [("application/x-tar", json!({}), layer.clone())];
    let mut repository = Repository::new("application/x", &layers);
    let mut other = layer.clone();
    other[0] ^= 1;
    repository.routes[0].1 = Answer::Bytes(other);
    let server = repository.serve(None);
    let mut site = Site::new();
    site.trust(&server.ca);
    let error = site.prepare(&of(&server, ":1")).await.unwrap_err();
    assert_eq!(error.reason(), BuildReason::SourceMismatch, "{error}");
    site.inputs.limits.packed = 100;
    let error = site.prepare(&of(&server, ":1")).await.unwrap_err();
    assert!(error.to_string().contains("more than 100 bytes"), "{error}");
    let title = json!({"org.opencontainers.image.title": "../../x"});
    let server = Repository::new("application/x", &[("text/plain", title, b"x".to_vec())]).serve(None);
    let mut site = Site::new();
    site.trust(&server.ca);
    let error = site.prepare(&of(&server, ":1")).await.unwrap_err();
    assert!(error.to_string().contains("has .. in it"), "{error}");
    assert_eq!(site.left(), Vec::<String>::new());
}
