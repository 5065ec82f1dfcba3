//! A registry in the cell, for images that are pulled.

use std::fs;
use std::process::{Child, Command};
use std::time::Duration;

use anyhow::Result;

use super::{Containerd, config::REGISTRY};
use crate::cell::wait_for;
use crate::pod_images;

/// Debian's `docker-registry`, serving as long as this value lives.
pub struct Registry<'a> {
    lab: &'a Containerd,
    server: Child,
}

impl<'a> Registry<'a> {
    /// Starts an empty registry.
    pub fn start(lab: &'a Containerd) -> Result<Registry<'a>> {
        let folder = lab.root().join("registry");
        fs::create_dir(&folder)?;
        let text = format!(
            "version: 0.1\nlog: {{level: error}}\nstorage: {{filesystem: {{rootdirectory: {}}}}}\nhttp: {{addr: \"{REGISTRY}\"}}\n",
            folder.join("data").display()
        );
        let file = folder.join("config.yml");
        fs::write(&file, text)?;
        let mut command = Command::new("docker-registry");
        command.arg("serve").arg(&file);
        let server = lab.spawn_logged(&mut command, "registry.log")?;
        wait_for("the registry", Duration::from_secs(10), || {
            Ok(lab.cell.inside(|| std::net::TcpStream::connect(REGISTRY))?.ok().map(drop))
        })?;
        Ok(Registry { lab, server })
    }

    /// Puts one of the lab's images under these names, for example `lab/web:1`.
    pub fn push(&self, image: &str, names: &[&str]) -> Result<()> {
        for archive in pod_images::archives(&[image])? {
            for name in names {
                let from = format!("docker-archive:{}", archive.display());
                let to = format!("docker://{REGISTRY}/{name}");
                self.lab.cell.run("skopeo", &["copy", "-q", "--dest-tls-verify=false", &from, &to])?;
            }
        }
        Ok(())
    }
}

impl Drop for Registry<'_> {
    fn drop(&mut self) {
        let _ = self.server.kill();
        let _ = self.server.wait();
    }
}
