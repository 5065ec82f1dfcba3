//! Every source through a real buildkitd, as the build driver does it. Needs root, as buildkitd does.

use std::collections::BTreeMap;
use std::fs;
use std::path::Path;

use cloister_build::client;
use cloister_build::client::Solve;
use cloister_build::job::Job;
use cloister_build::output::{Limits, Output};
use cloister_crds::{
    BuildSource, ClaimSource, ConfigMapSource, GitSource, HttpSource, InlineFile, InlineSource, UploadSource,
};
use cloister_source::Prepared;
use tokio::net::UnixStream;
use tokio::sync::mpsc;
use tokio_util::sync::CancellationToken;

use crate::git::Origin;
use crate::lab::Lab;
use crate::server::{Answer, Server};
use crate::site::{Entry, Site, digest, file, gzip, link, tar};

const DOCKERFILE: &str = "FROM scratch\nCOPY . /\n";

/// What a build with these files puts out, by name.
async fn built(lab: &Lab, prepared: Prepared) -> BTreeMap<String, String> {
    let place = tempfile::tempdir().unwrap();
    let out = place.path().join("out");
    let (output, receipt) = Output::folder(&out, Limits { bytes: 1 << 20, entries: 100 }).unwrap();
    let job = Job {
        solve: Solve::default(),
        context: prepared.context,
        dockerfile: prepared.dockerfile,
        // The same for all: what one has transferred must not end in another.
        shared_key: "key".into(),
        secrets: Default::default(),
        agents: Default::default(),
        registries: None,
        bases: Vec::new(),
        caches: cloister_build::job::Caches::default(),
        exporter: client::Output::local(),
        delivery: cloister_build::job::Delivery::Output(output, receipt),
    };
    let (events, mut heard) = mpsc::channel(100);
    let listen = async { while heard.recv().await.is_some() {} };
    let connect = UnixStream::connect(lab.socket());
    let run = job.run(connect, std::future::pending(), events, CancellationToken::new());
    let (built, ()) = tokio::join!(run, listen);
    built.unwrap();
    let mut found = BTreeMap::new();
    list(&out, "", &mut found);
    found
}

fn list(folder: &Path, prefix: &str, found: &mut BTreeMap<String, String>) {
    for entry in fs::read_dir(folder).unwrap().flatten() {
        let name = format!("{prefix}{}", entry.file_name().to_str().unwrap());
        let (path, kind) = (entry.path(), entry.file_type().unwrap());
        if kind.is_dir() {
            list(&path, &format!("{name}/"), found);
        } else if kind.is_symlink() {
            found.insert(name, format!("-> {}", fs::read_link(path).unwrap().display()));
        } else {
            found.insert(name, fs::read_to_string(path).unwrap());
        }
    }
}

fn expected(files: &[(&str, &str)]) -> BTreeMap<String, String> {
    let all = files.iter().chain(&[("Dockerfile", DOCKERFILE)]);
    all.map(|(name, text)| ((*name).to_owned(), (*text).to_owned())).collect()
}

#[tokio::test(flavor = "multi_thread")]
async fn every_source_is_built() {
    let lab = Lab::start();
    let mut site = Site::new();
    let none = BuildSource::default;

    let files =
        vec![InlineFile { path: "a/x".into(), content: Some("inline".into()), ..InlineFile::default() }];
    let inline = Some(InlineSource { dockerfile: DOCKERFILE.into(), files });
    let prepared = site.prepare(&BuildSource { inline, ..none() }).await.unwrap();
    assert_eq!(built(&lab, prepared).await, expected(&[("a/x", "inline")]));

    site.mount("config-maps/app", &[("Dockerfile", DOCKERFILE), ("x", "map")]);
    let config_map = Some(ConfigMapSource { name: "app".into(), items: Vec::new() });
    let prepared = site.prepare(&BuildSource { config_map, ..none() }).await.unwrap();
    assert_eq!(built(&lab, prepared).await, expected(&[("x", "map")]));

    site.mount("claims/data", &[("Dockerfile", DOCKERFILE), ("x", "claim")]);
    let persistent_volume_claim = Some(ClaimSource { claim_name: "data".into(), sub_path: None });
    let prepared = site.prepare(&BuildSource { persistent_volume_claim, ..none() }).await.unwrap();
    assert_eq!(built(&lab, prepared).await, expected(&[("x", "claim")]));

    // Two archives that differ in nothing that a builder is told but their bytes.
    for text in ["one", "two"] {
        let entries =
            [file("Dockerfile", DOCKERFILE.as_bytes()), file("bin/x", text.as_bytes()), link("l", "bin/x")];
        let bytes = gzip(&tar(&entries));
        let upload = Some(UploadSource { digest: digest(&bytes) });
        site.inputs.upload = Some(Box::new(std::io::Cursor::new(bytes)));
        let prepared = site.prepare(&BuildSource { upload, ..none() }).await.unwrap();
        assert_eq!(built(&lab, prepared).await, expected(&[("bin/x", text), ("l", "-> bin/x")]));
    }

    // Its `.dockerignore` counts; a hard link has the bytes too.
    let hard = Entry { kind: tar::EntryType::Link, link: "x", ..file("y", b"") };
    let ignored =
        [file(".dockerignore", b"secret\n.dockerignore\n"), file("secret", b"s"), file("x", b"http"), hard];
    let bytes = tar(&[&ignored[..], &[file("Dockerfile", DOCKERFILE.as_bytes())]].concat());
    let server = Server::tls(&[("/a", Answer::Bytes(bytes.clone()))], None);
    site.trust(&server.ca);
    let url = format!("{}/a", server.url);
    let http = Some(HttpSource { url, checksum: digest(&bytes), ..HttpSource::default() });
    let prepared = site.prepare(&BuildSource { http, ..none() }).await.unwrap();
    assert_eq!(built(&lab, prepared).await, expected(&[("x", "http"), ("y", "http")]));

    // Commits of the same second.
    let origin = Origin::new();
    origin.repository("app", &[("svc/Dockerfile", DOCKERFILE), ("svc/x", "git one")]);
    let server = origin.serve(None);
    site.trust(&server.ca);
    for text in ["git one", "git two"] {
        if text == "git two" {
            origin.commit("app", &[("svc/x", text)]);
        }
        let url = format!("{}/app", server.url);
        let git = Some(GitSource { url, subdir: Some("svc".into()), ..GitSource::default() });
        let prepared = site.prepare(&BuildSource { git, ..none() }).await.unwrap();
        assert_eq!(built(&lab, prepared).await, expected(&[("x", text)]));
    }
}
