//! Where things are on this machine.

use std::env;
use std::path::{Path, PathBuf};

use anyhow::{Context, Result, bail};

use crate::args::Global;

/// Folder of images and virtual machines.
#[derive(Debug, Clone)]
pub struct Root(PathBuf);

impl Root {
    /// The folder that was asked for, or the default of this user; made absolute, not created.
    pub fn find(global: &Global) -> Result<Self> {
        let chosen = match &global.root {
            Some(root) if root.as_os_str().is_empty() => bail!("--root is empty"),
            Some(root) => root.clone(),
            None if rustix::process::geteuid().is_root() => PathBuf::from("/var/lib/cloister"),
            None => data_home()
                .context("neither XDG_DATA_HOME nor HOME is set: say where to keep images with --root")?
                .join("cloister"),
        };
        let absolute =
            std::path::absolute(&chosen).with_context(|| format!("cannot use {}", chosen.display()))?;
        Ok(Self(absolute))
    }

    /// The folder itself, of which the image store is a part.
    pub fn path(&self) -> &Path {
        &self.0
    }

    /// Folder with one folder for each virtual machine.
    pub fn run(&self) -> PathBuf {
        self.0.join("run")
    }

    /// Folder with one folder for each key of build caches, those of pods too where pods have the same root.
    pub fn caches(&self) -> PathBuf {
        self.0.join("caches")
    }

    /// Folder with one folder for each guest kernel.
    pub fn kernels(&self) -> PathBuf {
        self.0.join("kernel")
    }
}

fn data_home() -> Option<PathBuf> {
    absolute_variable("XDG_DATA_HOME")
        .or_else(|| absolute_variable("HOME").map(|home| home.join(".local/share")))
}

/// The folder of products that the project's scripts build.
pub fn cache() -> Option<PathBuf> {
    absolute_variable("CLOISTER_CACHE")
        .or_else(|| absolute_variable("XDG_CACHE_HOME").map(|cache| cache.join("cloister")))
        .or_else(|| absolute_variable("HOME").map(|home| home.join(".cache/cloister")))
}

/// The XDG specification says to ignore relative paths.
fn absolute_variable(name: &str) -> Option<PathBuf> {
    env::var_os(name).map(PathBuf::from).filter(|path| path.is_absolute())
}
