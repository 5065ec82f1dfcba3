//! A containerd with `cloister-node`, and what these tests do with both.

use std::path::Path;
use std::process::{Command, Stdio};

use anyhow::{Context, Result, ensure};
use cloister_e2e::archive::{Layer, tar};
use cloister_e2e::containerd::{Containerd, Version};
use cloister_e2e::cri::api;
use cloister_e2e::node;
use cloister_e2e::oci_archive::OciArchive;
use cloister_e2e::pod_images::lab_program;

pub struct Bench {
    pub lab: Containerd,
}

/// Runs one case; prints the daemons' logs when it fails.
pub fn run_case(version: Version, case: fn(&Bench) -> Result<()>) {
    let bench = Bench { lab: Containerd::start(version, true, &[]).expect("the lab does not start") };
    if let Err(error) = case(&bench) {
        bench.print_logs();
        panic!("{error:#}");
    }
}

/// Everything of images that containerd holds, and what is unfinished.
#[derive(Debug, PartialEq, Eq)]
pub struct Holdings {
    pub images: String,
    pub content: String,
    pub unfinished: String,
    pub leases: String,
    pub snapshots: String,
}

impl Bench {
    pub fn print_logs(&self) {
        for log in ["containerd.log", "node.log"] {
            eprintln!("--- the end of {log}\n{}", self.lab.log_tail(log, 40));
        }
    }

    /// `cloister-node image …`.
    pub fn image(&self, args: &[&str]) -> Result<String> {
        image(&self.lab, args)
    }

    /// Imports an archive under these names for the build `lab/app`.
    pub fn import(&self, archive: &OciArchive, more: &[&str]) -> Result<String> {
        let path = self.lab.root().join("build.tar");
        archive.write(&path)?;
        self.import_file(&path, &archive.digest, more)
    }

    pub fn import_file(&self, path: &Path, digest: &str, more: &[&str]) -> Result<String> {
        let path = path.to_string_lossy();
        let args = ["import", "--build", "lab/app", "--digest", digest, "-i", &path];
        self.image(&[&args[..], more].concat())
    }

    /// The CRI's idea of an image, now.
    pub fn cri(&self, name: &str) -> Result<Option<api::Image>> {
        self.lab.image(name)
    }

    /// The image must be complete in the CRI, now.
    pub fn expect(&self, name: &str, id: &str) -> Result<api::Image> {
        let image = self.cri(name)?.with_context(|| format!("the CRI does not know {name}"))?;
        ensure!(image.id == id, "{name}: {} instead of {id}", image.id);
        Ok(image)
    }

    pub fn holdings(&self) -> Result<Holdings> {
        let ctr = |args: &[&str]| -> Result<String> {
            let text = self.lab.ctr(args)?;
            let mut lines: Vec<&str> = text.lines().collect();
            lines.sort_unstable();
            Ok(lines.join("\n"))
        };
        let snapshots = ctr(&["snapshots", "--snapshotter", "cloister", "ls"])?;
        Ok(Holdings {
            images: ctr(&["images", "ls", "-q"])?,
            content: ctr(&["content", "ls", "-q"])?,
            unfinished: ctr(&["content", "active"])?,
            leases: ctr(&["leases", "ls", "-q"])?,
            snapshots,
        })
    }

    /// Every layer, snapshot and hold in the node's own store.
    pub fn stored(&self) -> Result<usize> {
        let store = node::store(self.lab.root());
        let count = |dir: &str| Ok::<_, std::io::Error>(std::fs::read_dir(store.join(dir))?.count());
        Ok(count("layers/v1")? + count("snapshots")? + count("holds")? + count("tmp")?)
    }
}

/// `cloister-node image …` beside the daemon of a lab.
pub fn image(lab: &Containerd, args: &[&str]) -> Result<String> {
    let output = lab.cell.spawn(&mut command(lab, args)?)?.wait_with_output()?;
    let text = String::from_utf8_lossy(&output.stderr);
    ensure!(output.status.success(), "{args:?}: {}: {}", output.status, text.trim());
    Ok(String::from_utf8(output.stdout)?)
}

pub fn command(lab: &Containerd, args: &[&str]) -> Result<Command> {
    let root = lab.root();
    let mut command = Command::new(node::binary());
    command.arg("--root").arg(node::store(root)).arg("--containerd").arg(root.join("containerd.sock"));
    if node::settings(root).exists() {
        command.arg("--config").arg(node::settings(root));
    }
    command.args(["--log-level", "error", "image"]).args(args);
    command.stdin(Stdio::null()).stdout(Stdio::piped()).stderr(Stdio::piped());
    Ok(command)
}

/// A layer with a shell.
pub fn busybox() -> Result<Layer> {
    file("bin/busybox", &std::fs::read(lab_program("bin/busybox")?)?, 0o755)
}

/// A layer of one file.
pub fn file(name: &str, content: &[u8], mode: u32) -> Result<Layer> {
    Ok(Layer::plain(tar(|to| {
        let mut header = tar::Header::new_gnu();
        header.set_size(content.len() as u64);
        header.set_mode(mode);
        to.append_data(&mut header, name, content)
    })?))
}

/// A layer of `size` bytes that do not compress, different for each `seed`.
pub fn noise(seed: u64, size: usize) -> Result<Layer> {
    let mut state = seed.wrapping_mul(0x9e37_79b9_7f4a_7c15) | 1;
    let words = std::iter::repeat_with(|| {
        state ^= state << 13;
        state ^= state >> 7;
        state ^= state << 17;
        state.to_le_bytes()
    });
    let bytes: Vec<u8> = words.flatten().take(size).collect();
    file(&format!("noise-{seed}"), &bytes, 0o644)
}

/// A small image.
pub fn app(text: &str) -> Result<OciArchive> {
    Ok(OciArchive::new(&[busybox()?, file("own", text.as_bytes(), 0o644)?]))
}
