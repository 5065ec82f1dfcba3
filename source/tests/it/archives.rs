//! `source.http`.

use cloister_crds::{BuildReason, BuildSource, GitSource, HttpSource, OciSource, SecretRef};
use cloister_image::source::registry::Reach;
use std::os::unix::fs::PermissionsExt;

use crate::server::{Answer, Server};
use crate::site::{Site, digest, file, gzip, link, tar};

fn source(url: String, bytes: &[u8]) -> HttpSource {
    HttpSource { url, checksum: digest(bytes), ..HttpSource::default() }
}

fn of(http: HttpSource) -> BuildSource {
    BuildSource { http: Some(http), ..BuildSource::default() }
}

fn archive() -> Vec<u8> {
    tar(&[
        file("app/Dockerfile", b"FROM scratch"),
        crate::site::Entry { mode: 0o4755, ..file("app/run.sh", b"#!") },
        link("app/link", "/etc/passwd"),
    ])
}

#[tokio::test(flavor = "multi_thread")]
async fn archives_of_every_compression_are_unpacked() {
    let plain = archive();
    for bytes in [plain.clone(), gzip(&plain), zstd::encode_all(plain.as_slice(), 1).unwrap()] {
        let server = Server::tls(&[("/a", Answer::Bytes(bytes.clone()))], None);
        let mut site = Site::new();
        site.trust(&server.ca);
        let http = HttpSource { subdir: Some("app".into()), ..source(format!("{}/a", server.url), &bytes) };
        let prepared = site.prepare(&of(http)).await.unwrap();
        assert_eq!(prepared.dockerfile, [("Dockerfile".to_owned(), b"FROM scratch".to_vec())]);
        assert_eq!(prepared.facts.digest, Some(digest(&bytes)));
        let root = site.root().join("app");
        let run = std::fs::metadata(root.join("run.sh")).unwrap();
        assert_eq!(run.permissions().mode() & 0o7777, 0o4755);
        assert_eq!(
            run.modified().unwrap().duration_since(std::time::UNIX_EPOCH).unwrap().as_secs(),
            1_700_000_000
        );
        assert_eq!(std::fs::read_link(root.join("link")).unwrap().to_str(), Some("/etc/passwd"));
        // It is a link of the context, and leads nowhere else.
        assert!(prepared.context.read("link", 1 << 20).is_err());
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn credentials_go_to_their_host_only() {
    let bytes = archive();
    let other = Server::tls(&[("/a", Answer::Bytes(bytes.clone()))], None);
    let server =
        Server::tls(&[("/a", Answer::Redirect(format!("{}/a", other.url)))], Some(("me", "hunter2")));
    let mut site = Site::new();
    let both = std::fs::read_to_string(&server.ca).unwrap() + &std::fs::read_to_string(&other.ca).unwrap();
    site.mount("config-maps/trust", &[("ca.pem", &both)]);
    site.inputs.ca_bundle = Some(cloister_crds::KeyRef { name: "trust".into(), key: "ca.pem".into() });
    let credentials = Some(SecretRef { name: "web".into() });
    let http =
        HttpSource { credentials, subdir: Some("app".into()), ..source(format!("{}/a", server.url), &bytes) };

    let error = site.prepare(&of(http.clone())).await.unwrap_err();
    assert_eq!(error.reason(), BuildReason::SecretNotFound, "{error}");

    site.mount("secrets/web", &[("username", "me"), ("password", "wrong-one")]);
    let error = site.prepare(&of(http.clone())).await.unwrap_err();
    assert_eq!(error.reason(), BuildReason::AccessDenied, "{error}");
    assert!(!error.to_string().contains("wrong-one"), "{error}");

    site.mount("secrets/web", &[("password", "hunter2")]);
    site.prepare(&of(http)).await.unwrap();
    assert!(server.seen.lock().unwrap().last().unwrap().1.is_some());
    assert_eq!(*other.seen.lock().unwrap(), [("/a".to_owned(), None)]);
}

#[tokio::test(flavor = "multi_thread")]
async fn what_is_not_the_archive_is_told_apart() {
    let bytes = archive();
    let server = Server::tls(
        &[
            ("/a", Answer::Bytes(bytes.clone())),
            ("/plain", Answer::Redirect("http://127.0.0.1:1/a".into())),
            ("/busy", Answer::Status(503)),
            ("/text", Answer::Bytes(b"no tar at all, but a text that is long".repeat(40))),
        ],
        None,
    );
    let mut site = Site::new();
    site.trust(&server.ca);
    let text = b"no tar at all, but a text that is long".repeat(40);
    for (path, content, reason, words) in [
        ("/a", &b"other"[..], BuildReason::SourceMismatch, "source.http.checksum says"),
        ("/none", b"", BuildReason::SourceNotFound, "404"),
        ("/plain", b"", BuildReason::SourceInvalid, "not HTTPS"),
        ("/busy", b"", BuildReason::SourceUnavailable, "503"),
        ("/text", &text, BuildReason::SourceInvalid, "no tar"),
    ] {
        let error = site.prepare(&of(source(format!("{}{path}", server.url), content))).await.unwrap_err();
        assert_eq!(error.reason(), reason, "{error}");
        assert!(error.to_string().contains(words), "{error}");
    }
    site.inputs.limits.packed = 1000;
    let error = site.prepare(&of(source(format!("{}/a", server.url), &bytes))).await.unwrap_err();
    assert!(error.to_string().contains("more than 1000 bytes"), "{error}");
    site.inputs.limits.packed = 1 << 20;
    let missing = HttpSource { subdir: Some("none".into()), ..source(format!("{}/a", server.url), &bytes) };
    let error = site.prepare(&of(missing)).await.unwrap_err();
    assert_eq!(error.reason(), BuildReason::SourceNotFound, "{error}");
    assert_eq!(site.left(), Vec::<String>::new());
}

#[tokio::test(flavor = "multi_thread")]
async fn a_source_is_not_asked_for_at_the_node_itself_unless_told() {
    let bytes = archive();
    let server = Server::tls(&[("/a", Answer::Bytes(bytes.clone()))], None);
    let mut site = Site::new();
    site.trust(&server.ca);
    site.inputs.limits.reach = Reach::BeyondHost;
    let port = server.url.rsplit_once(':').unwrap().1;
    let oci = OciSource { reference: format!("127.0.0.1:{port}/team/source:1"), ..OciSource::default() };
    let git = GitSource { url: format!("{}/app.git", server.url), ..GitSource::default() };
    for other in [
        of(source(format!("{}/a", server.url), &bytes)),
        of(source(format!("https://localhost:{port}/a"), &bytes)),
        BuildSource { oci: Some(oci), ..BuildSource::default() },
        BuildSource { git: Some(git), ..BuildSource::default() },
    ] {
        let error = site.prepare(&other).await.unwrap_err();
        assert!(error.to_string().contains("this machine's own or link-local"), "{error}");
        assert!(!error.to_string().contains("other:"), "{error}");
    }
    assert!(server.seen.lock().unwrap().is_empty());
}

#[tokio::test(flavor = "multi_thread")]
async fn nobody_is_trusted_and_plain_http_not_taken_unless_told() {
    let bytes = archive();
    let server = Server::tls(&[("/a", Answer::Bytes(bytes.clone()))], None);
    let mut site = Site::new();
    let error = site.prepare(&of(source(format!("{}/a", server.url), &bytes))).await.unwrap_err();
    assert_eq!(error.reason(), BuildReason::SourceInvalid, "{error}");
    let server = Server::plain(&[("/a", Answer::Bytes(bytes.clone()))]);
    let http = HttpSource { subdir: Some("app".into()), ..source(format!("{}/a", server.url), &bytes) };
    let error = site.prepare(&of(http.clone())).await.unwrap_err();
    assert_eq!(error.reason(), BuildReason::InvalidSpec, "{error}");
    site.inputs.limits.plain_http = true;
    site.prepare(&of(http)).await.unwrap();
}

#[tokio::test(flavor = "multi_thread")]
async fn a_server_that_says_nothing_costs_no_more_than_the_time() {
    let server = Server::plain(&[("/a", Answer::Silence)]);
    let mut site = Site::new();
    site.inputs.limits.plain_http = true;
    site.inputs.limits.time = std::time::Duration::from_secs(2);
    let start = std::time::Instant::now();
    let error = site.prepare(&of(source(format!("{}/a", server.url), b""))).await.unwrap_err();
    assert_eq!(error.reason(), BuildReason::SourceUnavailable, "{error}");
    assert!(start.elapsed().as_secs() < 20);
}
