//! A containerd with `cloister-node`, and the questions these tests ask of both.

use std::io::Write;
use std::path::{Path, PathBuf};

use anyhow::{Result, ensure};
use cloister_e2e::archive::{Layer, docker_archive, tar};
use cloister_e2e::containerd::{Containerd, Version};
use cloister_e2e::node;
use cloister_e2e::pod_images::lab_program;

/// The name that [`Bench::import`] gives.
pub const IMAGE: &str = "docker.io/library/test:latest";

pub struct Bench {
    pub lab: Containerd,
}

/// Runs one case; prints the daemons' logs when it fails.
pub fn run_case(version: Version, case: fn(&Bench) -> Result<()>) {
    let bench = Bench { lab: Containerd::start(version, true, &[]).expect("the lab does not start") };
    if let Err(error) = case(&bench) {
        for log in ["containerd.log", "node.log"] {
            eprintln!("--- the end of {log}\n{}", bench.lab.log_tail(log, 40));
        }
        panic!("{error:#}");
    }
}

impl Bench {
    /// The daemon's folder.
    pub fn store(&self) -> PathBuf {
        node::store(self.lab.root())
    }

    /// Imports an image of these layers into a namespace and unpacks it for `snapshotter`.
    pub fn import(&self, namespace: &str, snapshotter: &str, layers: &[Layer]) -> Result<()> {
        let path = self.lab.root().join("image.tar");
        docker_archive(&path, layers)?;
        self.import_file(namespace, snapshotter, &path)
    }

    pub fn import_file(&self, namespace: &str, snapshotter: &str, path: &Path) -> Result<()> {
        let path = path.to_string_lossy();
        self.lab.ctr(&["-n", namespace, "images", "import", "--snapshotter", snapshotter, &path]).map(drop)
    }

    /// Removes all images of a namespace, and waits for the collection.
    pub fn remove_images(&self, namespace: &str) -> Result<()> {
        let names = self.lab.ctr(&["-n", namespace, "images", "ls", "-q"])?;
        for name in names.lines() {
            self.lab.ctr(&["-n", namespace, "images", "rm", "--sync", name])?;
        }
        Ok(())
    }

    /// Runs a command in an ordinary container on the daemon's layers; its output.
    pub fn runc(&self, namespace: &str, image: &str, id: &str, script: &str) -> Result<String> {
        let args = [
            "-n",
            namespace,
            "run",
            "--rm",
            "--snapshotter",
            "cloister",
            "--runtime",
            "io.containerd.runc.v2",
        ];
        self.lab.ctr(&[&args[..], &[image, id, "/bin/busybox", "sh", "-c", script]].concat())
    }

    /// The daemon's metrics, as the text of one counter; 0 when it has none.
    pub fn counter(&self, name: &str) -> Result<u64> {
        let page = node::page(self.lab.root())?;
        Ok(node::value(&page, &format!("cloister_node_{name}"))? as u64)
    }

    /// Files of layers in the store.
    pub fn layers(&self) -> Result<usize> {
        Ok(std::fs::read_dir(self.store().join("layers/v1"))?.count())
    }

    /// Every folder of a snapshot.
    pub fn snapshots(&self) -> Result<Vec<PathBuf>> {
        Ok(std::fs::read_dir(self.store().join("snapshots"))?
            .map(|entry| entry.map(|entry| entry.path()))
            .collect::<Result<_, _>>()?)
    }

    /// Waits until nothing is left of any image.
    pub fn nothing_left(&self) -> Result<()> {
        cloister_e2e::cell::wait_for("the end of all layers", std::time::Duration::from_secs(10), || {
            let nothing = self.layers()? == 0 && self.snapshots()?.is_empty();
            Ok(nothing.then_some(()))
        })?;
        for dir in ["mounts", "tmp", "holds"] {
            let left: Vec<_> =
                std::fs::read_dir(self.store().join(dir))?.flatten().map(|e| e.path()).collect();
            ensure!(left.is_empty(), "{left:?}");
        }
        let store = self.store();
        let mounts: Vec<String> = self.lab.cell.mounts()?;
        let left: Vec<&String> =
            mounts.iter().filter(|line| line.contains(&*store.to_string_lossy())).collect();
        ensure!(left.is_empty(), "{left:?}");
        Ok(())
    }
}

/// A layer with a shell.
pub fn busybox() -> Result<Layer> {
    let program = std::fs::read(lab_program("bin/busybox")?)?;
    Ok(Layer::plain(tar(|to| {
        let mut header = tar::Header::new_gnu();
        header.set_size(program.len() as u64);
        header.set_mode(0o755);
        to.append_data(&mut header, "bin/busybox", program.as_slice())
    })?))
}

/// A layer with these files.
pub fn files(files: &[(&str, &str)]) -> Result<Layer> {
    Ok(Layer::plain(tar(|to| {
        for (name, content) in files {
            let mut header = tar::Header::new_gnu();
            header.set_size(content.len() as u64);
            header.set_mode(0o644);
            to.append_data(&mut header, name, content.as_bytes())?;
        }
        Ok(())
    })?))
}

/// A layer of `size` bytes that do not compress, different for each `seed`.
pub fn noise(seed: u64, size: usize) -> Result<Layer> {
    let mut state = seed.wrapping_mul(0x9e37_79b9_7f4a_7c15) | 1;
    let bytes: Vec<u8> = std::iter::repeat_with(|| {
        state ^= state << 13;
        state ^= state >> 7;
        state ^= state << 17;
        state.to_le_bytes()
    })
    .flatten()
    .take(size)
    .collect();
    Ok(Layer::plain(tar(|to| {
        let mut header = tar::Header::new_gnu();
        header.set_size(bytes.len() as u64);
        header.set_mode(0o644);
        to.append_data(&mut header, format!("noise-{seed}"), bytes.as_slice())
    })?))
}

/// The same layer, compressed.
pub fn gzip(layer: Layer) -> Result<Layer> {
    let mut encoder = flate2::write::GzEncoder::new(Vec::new(), flate2::Compression::fast());
    encoder.write_all(&layer.blob)?;
    Ok(Layer { blob: encoder.finish()?, ..layer })
}
