//! A store with a small base image, and builds into it.

use std::fs;
use std::net::{TcpListener, TcpStream};
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Output, Stdio};
use std::time::{Duration, Instant};

use cloister_e2e::cell::wait_for;
use cloister_e2e::{Lab, Leftovers, lab, pod_images};

/// Most memory of `cloister build`, whatever a build does, in bytes.
const MEMORY: u64 = 128 << 20;

/// A build that failed.
pub struct Refused {
    /// Everything it said.
    pub said: String,
    /// How long it took.
    pub time: Duration,
}

impl Refused {
    /// The last line that begins with the command's name: why it failed.
    pub fn reason(&self) -> &str {
        self.said.lines().rfind(|line| line.starts_with("cloister: ")).unwrap_or_default()
    }
}

/// A store with a small base image, and folders of contexts.
pub struct Site {
    pub lab: Lab,
    pub contexts: tempfile::TempDir,
}

impl Site {
    pub fn new() -> Self {
        let lab = Lab::new().unwrap();
        let archive = pod_images::archives(&[pod_images::BUSYBOX]).unwrap().remove(0);
        lab.ok(&["image", "import", "base", "-i", &archive.to_string_lossy()]).unwrap();
        Self { lab, contexts: tempfile::tempdir().unwrap() }
    }

    pub fn context(&self, name: &str, files: &[(&str, &str)]) -> PathBuf {
        let folder = self.contexts.path().join(name);
        for (path, content) in files {
            let path = folder.join(path);
            fs::create_dir_all(path.parent().unwrap()).unwrap();
            fs::write(path, content).unwrap();
        }
        folder
    }

    pub fn command(&self, context: &Path, options: &[&str]) -> Command {
        let mut command = self.lab.cloister();
        command.args(["build", "--progress", "plain", "-m", "384m", "--cache-size", "400m"]);
        // Options may name another builder.
        command.env("CLOISTER_BUILDER", lab::builder_image().unwrap()).args(options).arg(context);
        command
    }

    pub fn build(&self, context: &Path, options: &[&str]) -> Output {
        let output = self.command(context, options).output().unwrap();
        eprintln!("{}", String::from_utf8_lossy(&output.stderr));
        output
    }

    /// Builds what is made to harm, which must fail and leave nothing.
    pub fn refuses(&self, context: &Path, options: &[&str]) -> Refused {
        let images = self.images();
        let before = Leftovers::below(self.lab.root()).unwrap();
        let begun = Instant::now();
        let (output, peak) = lab::watched(self.command(context, options)).unwrap();
        let (time, said) = (begun.elapsed(), text(&output));
        let end = String::from_utf8_lossy(&output.stderr[output.stderr.len().saturating_sub(4000)..]);
        eprintln!("{} KiB of progress, peak {} MiB, {time:.1?}: …{end}", said.len() >> 10, peak >> 20);
        assert_eq!(output.status.code(), Some(1), "{end}");
        assert!(peak < MEMORY, "peak {} MiB", peak >> 20);
        assert_eq!((self.images(), self.left(&before)), (images, Vec::new()));
        Refused { said, time }
    }

    /// What is there now and was not, besides the store, the cache and the folder of all machines.
    pub fn left(&self, before: &Leftovers) -> Vec<String> {
        let root = self.lab.root();
        let kept =
            ["blobs", "layers", "locks", "caches", "index.json", "run/.lock"].map(|name| root.join(name));
        let kept = kept.map(|path| path.display().to_string());
        let run = format!("{}/run", root.display());
        let mut new = before.new_since(root, Duration::from_secs(3)).unwrap();
        new.retain(|fact| !kept.iter().any(|path| fact.contains(path)) && !fact.ends_with(&run));
        new
    }

    /// Debian's `docker-registry` on a loopback port, without TLS.
    pub fn registry(&self) -> Registry {
        let port = TcpListener::bind("127.0.0.1:0").unwrap().local_addr().unwrap().port();
        let address = format!("127.0.0.1:{port}");
        let (config, data) =
            (self.contexts.path().join("registry.yml"), self.contexts.path().join("registry"));
        let text = format!(
            "version: 0.1\nlog: {{level: error}}\nstorage: {{filesystem: {{rootdirectory: {data:?}}}}}\nhttp: {{addr: {address:?}}}\n"
        );
        fs::write(&config, text).unwrap();
        let mut command = Command::new("docker-registry");
        command.arg("serve").arg(config).stdout(Stdio::null()).stderr(Stdio::null());
        let registry = Registry { process: command.spawn().unwrap(), address };
        let listens = || Ok(TcpStream::connect(&registry.address).ok().map(drop));
        wait_for("the registry", Duration::from_secs(20), listens).unwrap();
        registry
    }

    pub fn images(&self) -> String {
        self.lab.ok(&["image", "ls"]).unwrap()
    }
}

/// A registry, serving as long as this value lives.
pub struct Registry {
    process: Child,
    /// `HOST:PORT`.
    pub address: String,
}

impl Drop for Registry {
    fn drop(&mut self) {
        let _ = self.process.kill();
        let _ = self.process.wait();
    }
}

pub fn text(output: &Output) -> String {
    String::from_utf8_lossy(&output.stderr).into_owned()
}

/// The instructions that a build has not done again; its base image is no instruction.
pub fn cached(log: &str) -> Vec<&str> {
    let done = log.lines().filter_map(|line| line.strip_suffix(" CACHED"));
    let names =
        done.filter_map(|step| log.lines().find_map(|line| line.strip_prefix(step)?.strip_prefix(" [")));
    names.filter(|name| ["COPY", "RUN"].iter().any(|word| name.contains(word))).collect()
}
