//! Caches in a registry that other BuildKits read and have written.

use std::net::{TcpListener, TcpStream};
use std::path::Path;
use std::process::{Child, Command, Stdio};
use std::sync::Arc;
use std::time::{Duration, Instant};

use cloister_build::client::{CacheFrom, CacheTo, Layout, Remote, Session, Solve};
use cloister_build::context::Context;
use cloister_build::progress::{Event, Outcome};
use cloister_image::source::registry::{self, DockerConfig, PushOptions, push};
use cloister_image::{Reference, Silent};

use crate::BUSYBOX;
use crate::lab::{Lab, folders};

/// Debian's docker-registry on a loopback port.
struct Registry {
    process: Child,
    address: String,
}

impl Registry {
    fn start(folder: &Path) -> Registry {
        let port = TcpListener::bind("127.0.0.1:0").unwrap().local_addr().unwrap().port();
        let address = format!("127.0.0.1:{port}");
        let config = folder.join("registry.yml");
        let data = folder.join("registry");
        let text = format!(
            "version: 0.1\nlog: {{level: error}}\nstorage: {{filesystem: {{rootdirectory: {data:?}}}}}\nhttp: {{addr: {address:?}}}\n"
        );
        std::fs::write(&config, text).unwrap();
        let mut command = Command::new("docker-registry");
        command.arg("serve").arg(config).stdout(Stdio::null()).stderr(Stdio::null());
        let registry = Registry { process: command.spawn().unwrap(), address };
        let deadline = Instant::now() + Duration::from_secs(20);
        while TcpStream::connect(&registry.address).is_err() {
            assert!(Instant::now() < deadline, "docker-registry does not start");
            std::thread::sleep(Duration::from_millis(20));
        }
        registry
    }
}

impl Drop for Registry {
    fn drop(&mut self) {
        let _ = self.process.kill();
        let _ = self.process.wait();
    }
}

/// Builds with BuildKit's own client; gives what it says.
fn buildctl(lab: &Lab, folder: &Path, options: &[&str]) -> String {
    let local = |name: &str| format!("--local={name}={}", folder.display());
    let mut command = Command::new(lab.program("buildctl"));
    command.arg("--addr").arg(format!("unix://{}", lab.socket().display()));
    command.args(["build", "--progress=plain", "--frontend=dockerfile.v0"]);
    // As ours: a step with another network is another step.
    command.args(["--opt=force-network-mode=none"]);
    command.args([local("context"), local("dockerfile")]).args(options);
    let output = command.output().unwrap();
    let text = String::from_utf8_lossy(&output.stderr).into_owned();
    assert!(output.status.success(), "{text}");
    text
}

fn is_cached(events: &[Event]) -> bool {
    events.iter().any(|event| matches!(event, Event::End { outcome: Outcome::Cached, .. }))
}

#[tokio::test(flavor = "multi_thread")]
async fn other_buildkits_read_our_caches_and_we_read_theirs() {
    let lab = Lab::start();
    let registry = Registry::start(lab.dir.path());
    let text = format!("{BUSYBOX}RUN busybox echo once >/once\n");
    // The same files for both clients.
    let folder = lab.dir.path().join("context");
    std::fs::create_dir(&folder).unwrap();
    std::fs::write(folder.join("Dockerfile"), &text).unwrap();
    std::fs::write(folder.join("busybox"), lab.busybox()).unwrap();
    let session = || {
        let context = || Context::folder(&folder).unwrap();
        Session::new("test", "test").files(folders([("context", context()), ("dockerfile", context())]))
    };
    let layout = Layout::open(lab.dir.path().join("cache"), 1 << 30).unwrap();
    let solve = Solve { cache_to: vec![CacheTo { name: "c".into(), max: true }], ..Solve::default() };
    lab.build(&solve, session().content("local:c", layout.clone())).await.0.unwrap();
    let ours: Reference = format!("{}/ours:cache", registry.address).parse().unwrap();
    let options = PushOptions {
        plain_http: true,
        credentials: Some(Arc::new(DockerConfig::default())),
        ..PushOptions::default()
    };
    tokio::task::block_in_place(|| {
        let whole = layout.cache().unwrap().unwrap();
        push(&whole, &layout, &ours, &options, &Silent).unwrap();
    });

    let other = Lab::start();
    let import = format!("--import-cache=type=registry,ref={ours},registry.insecure=true");
    let said = tokio::task::block_in_place(|| buildctl(&other, &folder, &[&import]));
    assert!(said.contains("CACHED"), "{said}");

    // A manifest as newer ones write it, and the index of older ones.
    for (name, manifest) in [("manifest", "true"), ("index", "false")] {
        let theirs: Reference = format!("{}/theirs:{name}", registry.address).parse().unwrap();
        let export = format!(
            "--export-cache=type=registry,ref={theirs},mode=max,registry.insecure=true,image-manifest={manifest},oci-mediatypes=true"
        );
        let fresh = Lab::start();
        let remote = tokio::task::block_in_place(|| {
            buildctl(&other, &folder, &[&export]);
            let found = registry::Remote::new(&theirs, Arc::new(DockerConfig::default()), None, true);
            Remote::new(found.unwrap().cache().unwrap(), fresh.dir.path())
        });
        let from = CacheFrom { name: "c".into(), manifest: remote.top() };
        let solve = Solve { cache_from: vec![from], ..Solve::default() };
        let (solved, events) = fresh.build(&solve, session().content("local:c", remote)).await;
        solved.unwrap();
        assert!(is_cached(&events), "{name}: {events:?}");
    }
}
