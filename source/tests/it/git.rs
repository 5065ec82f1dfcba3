//! `source.git` against git's own server.

use std::fs;
use std::os::unix::fs::{PermissionsExt, symlink};
use std::path::Path;
use std::process::Command;

use cloister_crds::{BuildReason, BuildSource, GitSource, SecretRef};

use crate::server::{Answer, Server};
use crate::site::Site;

/// Repositories that are being made.
pub struct Origin(tempfile::TempDir);

impl Origin {
    pub fn new() -> Self {
        Self(tempfile::tempdir().unwrap())
    }

    fn git(&self, repository: &str, args: &[&str]) -> String {
        let output = Command::new("git")
            .args(["-c", "user.name=t", "-c", "user.email=t@example.org", "-c", "protocol.file.allow=always"])
            .args(args)
            .current_dir(self.0.path().join(repository))
            .env("GIT_CONFIG_GLOBAL", "/dev/null")
            .env("GIT_COMMITTER_DATE", "1700000000 +0000")
            .output()
            .unwrap();
        assert!(output.status.success(), "{args:?}: {}", String::from_utf8_lossy(&output.stderr));
        String::from_utf8(output.stdout).unwrap().trim().to_owned()
    }

    /// A repository with these files; gives its commit.
    pub fn repository(&self, name: &str, files: &[(&str, &str)]) -> String {
        fs::create_dir_all(self.0.path().join(name)).unwrap();
        self.git(name, &["init", "--quiet", "--initial-branch=main"]);
        self.commit(name, files)
    }

    pub fn commit(&self, name: &str, files: &[(&str, &str)]) -> String {
        for (path, text) in files {
            let path = self.path(name).join(path);
            fs::create_dir_all(path.parent().unwrap()).unwrap();
            fs::write(path, text).unwrap();
        }
        self.git(name, &["add", "--all"]);
        self.git(name, &["commit", "--quiet", "--message=x"]);
        self.git(name, &["rev-parse", "HEAD"])
    }

    /// A commit of another repository in this one, whatever its address.
    fn submodule(&self, name: &str, path: &str, url: &str, commit: &str) {
        let text = fs::read_to_string(self.path(name).join(".gitmodules")).unwrap_or_default();
        let text = format!("{text}[submodule \"{path}\"]\n\tpath = {path}\n\turl = {url}\n");
        fs::write(self.path(name).join(".gitmodules"), text).unwrap();
        self.git(name, &["add", ".gitmodules"]);
        self.git(name, &["update-index", "--add", "--cacheinfo", &format!("160000,{commit},{path}")]);
        self.git(name, &["commit", "--quiet", "--message=sub"]);
    }

    pub fn path(&self, name: &str) -> std::path::PathBuf {
        self.0.path().join(name)
    }

    pub fn serve(&self, user: Option<(&str, &str)>) -> Server {
        Server::tls(&[("/", Answer::Git(self.0.path().to_owned()))], user)
    }
}

fn of(git: GitSource) -> BuildSource {
    BuildSource { git: Some(git), ..BuildSource::default() }
}

fn at(server: &Server, path: &str, reference: Option<&str>) -> GitSource {
    let reference = reference.map(str::to_owned);
    GitSource { url: format!("{}/{path}", server.url), reference, ..GitSource::default() }
}

#[tokio::test(flavor = "multi_thread")]
async fn branches_tags_and_commits_are_what_a_checkout_would_have() {
    let origin = Origin::new();
    let first = origin.repository(
        "app",
        &[("Dockerfile", "FROM one"), ("svc/run.sh", "#!"), ("svc/Dockerfile", "FROM svc")],
    );
    origin.git("app", &["tag", "--annotate", "--message=x", "v1"]);
    fs::set_permissions(origin.path("app").join("svc/run.sh"), fs::Permissions::from_mode(0o755)).unwrap();
    symlink("/etc/passwd", origin.path("app").join("svc/link")).unwrap();
    // Releases leave it out; a build gets it, unchanged.
    let attributes = ("svc/.gitattributes", "data export-ignore export-subst\n");
    let second = origin.commit("app", &[("Dockerfile", "FROM two"), attributes, ("svc/data", "$Format:%H$")]);
    origin.git("app", &["branch", "feature/x"]);
    let server = origin.serve(None);
    let mut site = Site::new();
    site.trust(&server.ca);
    for (reference, commit, text) in [
        (None, &second, "FROM two"),
        (Some("main"), &second, "FROM two"),
        (Some("feature/x"), &second, "FROM two"),
        (Some("refs/heads/main"), &second, "FROM two"),
        (Some("v1"), &first, "FROM one"),
        (Some(first.as_str()), &first, "FROM one"),
    ] {
        let prepared = site.prepare(&of(at(&server, "app", reference))).await.unwrap();
        assert_eq!(prepared.facts.commit.as_ref(), Some(commit), "{reference:?}");
        assert_eq!(prepared.dockerfile[0].1, text.as_bytes(), "{reference:?}");
    }
    let inner = GitSource { subdir: Some("svc".into()), ..at(&server, "app", Some(&second)) };
    let prepared = site.prepare(&of(inner)).await.unwrap();
    assert_eq!(prepared.dockerfile[0].1, b"FROM svc");
    assert_eq!(prepared.context.read("data", 99).unwrap(), b"$Format:%H$");
    assert!(prepared.context.read("link", 1 << 20).is_err());
    let root = site.root().join("svc");
    let mode = |name: &str| fs::metadata(root.join(name)).unwrap().permissions().mode() & 0o7777;
    assert_eq!((mode("run.sh"), mode("data"), mode("")), (0o755, 0o644, 0o755));
    // Neither the repository nor what was only for it is kept.
    assert!(site.left().iter().all(|name| name.starts_with("source-")), "{:?}", site.left());
    for (git, reason) in [
        (at(&server, "app", Some("none")), BuildReason::SourceNotFound),
        (at(&server, "none", None), BuildReason::SourceNotFound),
        (at(&server, "app", Some(&"1".repeat(40))), BuildReason::SourceNotFound),
        (at(&server, "app", Some("--upload-pack=id")), BuildReason::InvalidSpec),
        (GitSource { subdir: Some("none".into()), ..at(&server, "app", None) }, BuildReason::SourceNotFound),
    ] {
        let error = site.prepare(&of(git.clone())).await.unwrap_err();
        assert_eq!(error.reason(), reason, "{git:?}: {error}");
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn passwords_open_repositories_and_are_seen_nowhere() {
    let origin = Origin::new();
    origin.repository("app", &[("Dockerfile", "FROM one")]);
    let server = origin.serve(Some(("me", "hunter2@/:%")));
    let mut site = Site::new();
    let untrusted = site.prepare(&of(at(&server, "app", None))).await.unwrap_err();
    assert_eq!(untrusted.reason(), BuildReason::SourceInvalid, "{untrusted}");
    site.trust(&server.ca);
    let error = site.prepare(&of(at(&server, "app", None))).await.unwrap_err();
    assert_eq!(error.reason(), BuildReason::AccessDenied, "{error}");
    let git = GitSource { credentials: Some(SecretRef { name: "git".into() }), ..at(&server, "app", None) };
    site.mount("secrets/git", &[("username", "me"), ("password", "wrong-one")]);
    let error = site.prepare(&of(git.clone())).await.unwrap_err();
    assert_eq!(error.reason(), BuildReason::AccessDenied, "{error}");
    assert!(!error.to_string().contains("wrong-one"), "{error}");
    site.mount("secrets/git", &[("password", "hunter2@/:%")]);
    site.prepare(&of(git)).await.unwrap();
    let mut found = Vec::new();
    find(&site.work(), b"hunter2", &mut found);
    find(Path::new("/dev/shm"), b"hunter2", &mut found);
    find(Path::new("/var/tmp"), b"hunter2", &mut found);
    assert_eq!(found, Vec::<String>::new());
}

/// Files with these bytes.
pub fn find(folder: &Path, bytes: &[u8], found: &mut Vec<String>) {
    // What others have in a folder of everybody is theirs.
    let shared = ["/dev/shm", "/var/tmp"].iter().any(|shared| folder == Path::new(shared));
    for entry in fs::read_dir(folder).into_iter().flatten().flatten() {
        let path = entry.path();
        if shared && !entry.file_name().to_string_lossy().starts_with(".cloister-git-") {
            continue;
        }
        match entry.file_type() {
            Ok(kind) if kind.is_dir() => find(&path, bytes, found),
            Ok(kind) if kind.is_file() => {
                let text = fs::read(&path).unwrap_or_default();
                if text.windows(bytes.len()).any(|window| window == bytes) {
                    found.push(path.display().to_string());
                }
            }
            _ => {}
        }
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn submodules_come_with_theirs() {
    let origin = Origin::new();
    let leaf = origin.repository("team/leaf", &[("leaf.txt", "leaf")]);
    origin.repository("team/lib", &[("lib.txt", "lib")]);
    origin.submodule("team/lib", "deps/leaf", "../leaf", &leaf);
    let lib = origin.git("team/lib", &["rev-parse", "HEAD"]);
    origin.repository("team/app", &[("Dockerfile", "FROM one")]);
    let server = origin.serve(Some(("me", "hunter2")));
    origin.submodule("team/app", "vendor/lib", &format!("{}/team/lib", server.url), &lib);
    let mut site = Site::new();
    site.trust(&server.ca);
    site.mount("secrets/git", &[("username", "me"), ("password", "hunter2")]);
    let credentials = Some(SecretRef { name: "git".into() });
    let git = GitSource { credentials, submodules: true, ..at(&server, "team/app", None) };
    let prepared = site.prepare(&of(git.clone())).await.unwrap();
    assert_eq!(prepared.context.read("vendor/lib/lib.txt", 99).unwrap(), b"lib");
    assert_eq!(prepared.context.read("vendor/lib/deps/leaf/leaf.txt", 99).unwrap(), b"leaf");
    let without = site.prepare(&of(GitSource { submodules: false, ..git })).await.unwrap();
    assert!(without.context.read("vendor/lib/lib.txt", 99).is_err());
}

#[tokio::test(flavor = "multi_thread")]
async fn submodules_open_no_other_door() {
    let origin = Origin::new();
    let lib = origin.repository("lib", &[("lib.txt", "lib")]);
    let other = origin.serve(None);
    let mark = origin.path("mark");
    let command = format!("ext::sh -c touch% {}", mark.display());
    let file = format!("file://{}", origin.path("lib").display());
    let local = origin.path("lib").display().to_string();
    for (number, url) in
        [command.as_str(), &file, &local, "../../../lib", "http://127.0.0.1:1/x", "-u@x:y"].iter().enumerate()
    {
        let name = format!("app{number}");
        origin.repository(&name, &[("Dockerfile", "FROM one")]);
        origin.submodule(&name, "lib", url, &lib);
        let mut site = Site::new();
        site.trust(&other.ca);
        let git = GitSource { submodules: true, ..at(&other, &name, None) };
        let error = site.prepare(&of(git)).await.unwrap_err();
        assert_eq!(error.reason(), BuildReason::SourceInvalid, "{url}: {error}");
        assert!(!mark.exists(), "{url}");
    }
    // Credentials of one host are not shown to another, though that one is trusted.
    let server = origin.serve(Some(("me", "hunter2")));
    origin.repository("cross", &[("Dockerfile", "FROM one")]);
    origin.submodule("cross", "lib", &format!("{}/lib", other.url), &lib);
    let mut site = Site::new();
    let both = fs::read_to_string(&server.ca).unwrap() + &fs::read_to_string(&other.ca).unwrap();
    site.mount("config-maps/trust", &[("ca.pem", &both)]);
    site.inputs.ca_bundle = Some(cloister_crds::KeyRef { name: "trust".into(), key: "ca.pem".into() });
    site.mount("secrets/git", &[("username", "me"), ("password", "hunter2")]);
    let credentials = Some(SecretRef { name: "git".into() });
    let git = GitSource { credentials, submodules: true, ..at(&server, "cross", None) };
    let prepared = site.prepare(&of(git)).await.unwrap();
    assert_eq!(prepared.context.read("lib/lib.txt", 99).unwrap(), b"lib");
    assert!(other.seen.lock().unwrap().iter().all(|(_, authorization)| authorization.is_none()));
}

#[tokio::test(flavor = "multi_thread")]
async fn a_repository_that_is_too_large_or_too_slow_ends_with_a_reason() {
    let origin = Origin::new();
    let mut state = 1_u64;
    let noise: String = (0..300_000)
        .map(|_| {
            state ^= state << 13;
            state ^= state >> 7;
            state ^= state << 17;
            char::from(b'a' + u8::try_from(state % 26).unwrap())
        })
        .collect();
    origin
        .repository("app", &[("Dockerfile", "FROM one"), ("noise", &noise), ("zeros", &"0".repeat(3 << 20))]);
    let server = origin.serve(None);
    let mut site = Site::new();
    site.trust(&server.ca);
    site.inputs.limits.packed = 50_000;
    let error = site.prepare(&of(at(&server, "app", None))).await.unwrap_err();
    assert!(
        error.reason() == BuildReason::SourceInvalid && error.to_string().contains("more than 50000"),
        "{error}"
    );
    site.inputs.limits.packed = 10 << 20;
    site.inputs.limits.bytes = 1 << 20;
    let error = site.prepare(&of(at(&server, "app", None))).await.unwrap_err();
    assert!(error.to_string().contains("more than 1048576 bytes"), "{error}");

    let silent = Server::tls(&[("/", Answer::Silence)], None);
    let mut site = Site::new();
    site.trust(&silent.ca);
    site.inputs.limits.time = std::time::Duration::from_secs(2);
    let error = site.prepare(&of(at(&silent, "app", None))).await.unwrap_err();
    assert_eq!(error.reason(), BuildReason::SourceUnavailable, "{error}");
    assert_eq!(site.left(), Vec::<String>::new());
    // git has started others, which end with it.
    let place = silent.url.clone();
    let running = fs::read_dir("/proc").unwrap().flatten().any(|entry| {
        let line = fs::read(entry.path().join("cmdline")).unwrap_or_default();
        line.starts_with(b"git") && String::from_utf8_lossy(&line).contains(&place)
    });
    assert!(!running);
}
