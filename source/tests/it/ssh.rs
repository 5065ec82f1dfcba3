//! `source.git` over ssh, against OpenSSH's server as `scripts/setup.sh` unpacks it.

use std::fs::{self, File};
use std::net::{TcpListener, TcpStream};
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};
use std::time::{Duration, Instant};

use cloister_crds::{BuildReason, BuildSource, GitSource, SecretRef};

use crate::git::Origin;
use crate::site::Site;

/// A server on a loopback port that takes one key, for this user.
struct Server {
    process: Child,
    dir: tempfile::TempDir,
    port: u16,
}

impl Server {
    fn start() -> Self {
        let tool = cache().join("tools/sshd");
        assert!(tool.is_dir(), "run scripts/setup.sh");
        let dir = tempfile::tempdir().unwrap();
        for name in ["host", "user", "other"] {
            run(Command::new("ssh-keygen")
                .args(["-q", "-t", "ed25519", "-N", "", "-f"])
                .arg(dir.path().join(name)));
        }
        fs::copy(dir.path().join("user.pub"), dir.path().join("authorized")).unwrap();
        // Where the program looks for an empty folder to lock itself up in.
        fs::create_dir_all("/run/sshd").unwrap();
        let port = TcpListener::bind("127.0.0.1:0").unwrap().local_addr().unwrap().port();
        let path = dir.path().display();
        let config = format!(
            "Port {port}\nListenAddress 127.0.0.1\nHostKey {path}/host\nAuthorizedKeysFile {path}/authorized\n\
             StrictModes no\nPermitRootLogin yes\nPasswordAuthentication no\nUsePAM no\nPidFile none\n"
        );
        fs::write(dir.path().join("config"), config).unwrap();
        let log = File::create(dir.path().join("log")).unwrap();
        let process = Command::new(tool.join("usr/sbin/sshd"))
            .args(["-D", "-e", "-f"])
            .arg(dir.path().join("config"))
            .env(
                "LD_LIBRARY_PATH",
                format!("{0}/lib/x86_64-linux-gnu:{0}/usr/lib/x86_64-linux-gnu", tool.display()),
            )
            .stdout(Stdio::null())
            .stderr(log)
            .spawn()
            .unwrap();
        let server = Self { process, dir, port };
        let deadline = Instant::now() + Duration::from_secs(20);
        while TcpStream::connect(("127.0.0.1", port)).is_err() {
            assert!(Instant::now() < deadline, "{}", server.read("log"));
            std::thread::sleep(Duration::from_millis(20));
        }
        server
    }

    fn read(&self, name: &str) -> String {
        fs::read_to_string(self.dir.path().join(name)).unwrap()
    }

    /// A line of `known_hosts` with the public key of this name.
    fn known(&self, key: &str) -> String {
        format!("[127.0.0.1]:{} {}", self.port, self.read(&format!("{key}.pub")))
    }
}

impl Drop for Server {
    fn drop(&mut self) {
        let _ = self.process.kill();
        let _ = self.process.wait();
    }
}

fn run(command: &mut Command) {
    let output = command.output().unwrap();
    assert!(output.status.success(), "{}", String::from_utf8_lossy(&output.stderr));
}

fn cache() -> PathBuf {
    let set = |name| std::env::var_os(name).map(PathBuf::from);
    let base = || {
        set("XDG_CACHE_HOME").or_else(|| Some(set("HOME")?.join(".cache"))).map(|base| base.join("cloister"))
    };
    set("CLOISTER_CACHE").or_else(base).unwrap()
}

#[tokio::test(flavor = "multi_thread")]
async fn a_key_opens_a_repository_of_a_known_host() {
    let origin = Origin::new();
    let commit = origin.repository("app", &[("Dockerfile", "FROM one")]);
    let server = Server::start();
    let user = Command::new("id").arg("-un").output().unwrap().stdout;
    let user = String::from_utf8(user).unwrap();
    let url = format!("ssh://{}@127.0.0.1:{}{}", user.trim(), server.port, origin.path("app").display());
    let git = GitSource { url, ..GitSource::default() };
    let of = |git: &GitSource| BuildSource { git: Some(git.clone()), ..BuildSource::default() };
    let mut site = Site::new();
    let error = site.prepare(&of(&git)).await.unwrap_err();
    assert_eq!(error.reason(), BuildReason::InvalidSpec, "{error}");
    let git = GitSource { credentials: Some(SecretRef { name: "git".into() }), ..git };
    for (key, host, reason) in
        [("other", "host", BuildReason::AccessDenied), ("user", "other", BuildReason::AccessDenied)]
    {
        let key = server.read(key);
        site.mount(
            "secrets/git",
            &[("ssh-privatekey", key.trim_end()), ("known_hosts", &server.known(host))],
        );
        let error = site.prepare(&of(&git)).await.unwrap_err();
        assert_eq!(error.reason(), reason, "{error}");
    }
    site.mount(
        "secrets/git",
        &[("ssh-privatekey", &server.read("user")), ("known_hosts", &server.known("host"))],
    );
    let prepared =
        site.prepare(&of(&git)).await.unwrap_or_else(|error| panic!("{error}\n{}", server.read("log")));
    assert_eq!(prepared.facts.commit, Some(commit));
    let key = server.read("user");
    let line = key.lines().nth(2).unwrap();
    for place in [site.work().as_path(), Path::new("/dev/shm")] {
        let mut found = Vec::new();
        crate::git::find(place, line.as_bytes(), &mut found);
        assert_eq!(found, Vec::<String>::new());
    }
}
