//! A private buildkitd on this machine, from the programs of `scripts/buildkit.sh`, and the client on its socket.

use std::collections::BTreeMap;
use std::fs::{self, File};
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};
use std::time::{Duration, Instant};

use cloister_build::client::{BuildKit, Error, Session, Solve, Solved};
use cloister_build::context::{Context, FileSyncService};
use cloister_build::progress::Event;
use cloister_image::source::archive::{self, Input, Request};
use cloister_image::{Reference, Silent, Store};
use tokio::net::UnixStream;
use tokio::sync::mpsc;
use tokio_util::sync::CancellationToken;

/// How long the daemon may take to listen on a busy machine.
const READY: Duration = Duration::from_secs(60);

/// A running buildkitd in its own PID and mount namespaces; dropping it ends it with everything it started.
pub struct Lab {
    unshare: Child,
    pub dir: tempfile::TempDir,
    programs: PathBuf,
}

impl Lab {
    pub fn start() -> Lab {
        let programs = programs();
        let dir = tempfile::Builder::new().prefix("cloister-buildkitd-").tempdir().unwrap();
        let log = File::create(dir.path().join("log")).unwrap();
        // runc is looked for there.
        let path = format!("{}:{}", programs.display(), std::env::var("PATH").unwrap());
        let unshare = Command::new("unshare")
            .args(["--fork", "--pid", "--mount", "--mount-proc", "--propagation", "private", "--kill-child"])
            .arg(programs.join("buildkitd"))
            .arg("--root")
            .arg(dir.path().join("root"))
            .arg("--addr")
            .arg(format!("unix://{}", dir.path().join("socket").display()))
            .args([
                "--oci-worker-net=host",
                "--oci-worker-snapshotter=overlayfs",
                "--containerd-worker=false",
            ])
            .env("PATH", path)
            .stdin(Stdio::null())
            .stdout(log.try_clone().unwrap())
            .stderr(log)
            .spawn()
            .unwrap();
        let mut lab = Lab { unshare, dir, programs };
        let deadline = Instant::now() + READY;
        while std::os::unix::net::UnixStream::connect(lab.socket()).is_err() {
            assert!(lab.unshare.try_wait().unwrap().is_none(), "buildkitd ended:\n{}", lab.log());
            assert!(Instant::now() < deadline, "buildkitd is not ready:\n{}", lab.log());
            std::thread::sleep(Duration::from_millis(20));
        }
        lab
    }

    pub fn socket(&self) -> PathBuf {
        self.dir.path().join("socket")
    }

    /// Another program of BuildKit.
    pub fn program(&self, name: &str) -> PathBuf {
        self.programs.join(name)
    }

    pub fn log(&self) -> String {
        fs::read_to_string(self.dir.path().join("log")).unwrap_or_default()
    }

    pub async fn connect(&self) -> BuildKit {
        BuildKit::connect(UnixStream::connect(self.socket()).await.unwrap()).await.unwrap()
    }

    /// A static busybox.
    pub fn busybox(&self) -> Vec<u8> {
        fs::read(self.programs.join("busybox")).unwrap()
    }

    /// Steps that run now, as far as this machine shows.
    pub fn processes(&self, words: &str) -> usize {
        let cmdline = |path: PathBuf| fs::read(path.join("cmdline")).unwrap_or_default();
        let proc = fs::read_dir("/proc").unwrap().map(|entry| cmdline(entry.unwrap().path()));
        proc.filter(|line| String::from_utf8_lossy(line).replace('\0', " ").starts_with(words)).count()
    }

    /// Builds with `services`, and gives what happened too.
    pub async fn build(&self, solve: &Solve, services: Session) -> (Result<Solved, Error>, Vec<Event>) {
        let buildkit = self.connect().await;
        let (sender, mut receiver) = mpsc::channel(100);
        let build = buildkit.solve(solve, services, sender, CancellationToken::new());
        let mut events = Vec::new();
        let collect = async {
            while let Some(event) = receiver.recv().await {
                events.push(event);
            }
        };
        let (result, ()) = tokio::join!(build, collect);
        (result, events)
    }

    /// A session with a Dockerfile that begins from a busybox, and these further files.
    pub fn session(&self, dockerfile: &str, files: &[(&str, &[u8])]) -> Session {
        let mut context = BTreeMap::from([("busybox".to_owned(), self.busybox())]);
        context.extend(files.iter().map(|(name, bytes)| ((*name).to_owned(), bytes.to_vec())));
        Session::new("test", "test").files(folders([
            ("context", Context::inline(context).unwrap()),
            ("dockerfile", self::dockerfile(dockerfile)),
        ]))
    }
}

impl Drop for Lab {
    fn drop(&mut self) {
        // The namespace's first process goes with it, and with that one all others.
        let _ = self.unshare.kill();
        let _ = self.unshare.wait();
    }
}

pub fn dockerfile(text: &str) -> Context {
    Context::inline([("Dockerfile".to_owned(), text.as_bytes().to_vec())]).unwrap()
}

pub fn folders<const N: usize>(folders: [(&str, Context); N]) -> FileSyncService {
    FileSyncService::new(folders.map(|(name, context)| (name.to_owned(), context)))
}

pub fn lines(events: &[Event]) -> Vec<String> {
    let mut lines = Vec::new();
    for event in events {
        if let Event::Log { line, .. } = event {
            lines.push(line.clone());
        }
    }
    lines
}

/// Imports an OCI archive under a name.
pub fn import(store: &Store, archive: PathBuf, name: &Reference) {
    let request = Request { name: Some(name.clone()), ..Default::default() };
    archive::import(store, Input::Path(archive), &request, &Silent).unwrap();
}

fn programs() -> PathBuf {
    let script = Path::new(env!("CARGO_MANIFEST_DIR")).join("../scripts/buildkit.sh");
    let made = Command::new(script).stderr(Stdio::inherit()).output().unwrap();
    assert!(made.status.success(), "scripts/buildkit.sh: {}", made.status);
    PathBuf::from(String::from_utf8(made.stdout).unwrap().trim())
}
