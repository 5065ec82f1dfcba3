//! What the administrator says of build caches: a part of the file that the shim of pods reads as a whole.

use std::env;
use std::io::ErrorKind;
use std::path::PathBuf;

use anyhow::{Context, Result};
use cloister_builder::{Bounds, Caches};
use serde::Deserialize;

use crate::paths::Root;

/// Where the file is unless `CLOISTER_CONFIG` names another.
const PATH: &str = "/etc/cloister/config.toml";

/// Bytes of a disk that nobody named a size for.
const BYTES: u64 = 20 << 30;

/// The part of it; the shim refuses what it does not know.
#[derive(Debug, Default, Deserialize)]
#[serde(default)]
struct Config {
    caches: Bounds,
}

/// What the disks of all build caches may take.
pub fn bounds() -> Result<Bounds> {
    let path = env::var_os("CLOISTER_CONFIG").map_or_else(|| PathBuf::from(PATH), PathBuf::from);
    match std::fs::read_to_string(&path) {
        Ok(text) => {
            let config: Config =
                toml::from_str(&text).with_context(|| format!("cannot use {}", path.display()))?;
            Ok(config.caches)
        }
        Err(error) if error.kind() == ErrorKind::NotFound => Ok(Bounds::default()),
        Err(error) => Err(error).with_context(|| format!("cannot read {}", path.display())),
    }
}

/// The cache disks of this machine, of `bytes` each.
pub fn of(root: &Root, bytes: Option<u64>) -> Result<Caches> {
    let (folder, bounds) = (root.caches(), bounds()?);
    let bytes = match bytes {
        Some(bytes) => bytes,
        None => BYTES.min(bounds.account(&folder, &[])?.most_bytes),
    };
    Ok(Caches::new(folder, bytes, bounds))
}
