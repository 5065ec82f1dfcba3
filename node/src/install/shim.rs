//! The shim's configuration file: ours as long as nobody else has changed it.

use std::path::PathBuf;

use anyhow::{Context, Result};
use tracing::info;

use super::files::{self, Change};

/// A file, and where is written down what we made of it.
pub struct ShimConfig {
    /// The file.
    pub path: PathBuf,
    /// What is written down.
    pub record: PathBuf,
}

impl ShimConfig {
    /// Writes the file when it is missing or as we left it. Whether it is ours.
    pub fn write(&self, text: &str) -> Result<bool> {
        let now = files::read(&self.path)?;
        let written = self.written()?;
        if let Some(now) = &now
            && !written.is_some_and(|change| is_ours(&change, now))
        {
            info!(file = %self.path.display(), "the shim's configuration is an administrator's: kept");
            return Ok(false);
        }
        if now.as_deref() != Some(text) {
            let change = Change { path: self.path.clone(), before: now, after: text.to_owned() };
            files::write(&self.record, &serde_json::to_string_pretty(&change)?)?;
            change.make()?;
            info!(file = %self.path.display(), "the shim's configuration is written: new pods have it");
        }
        Ok(true)
    }

    /// Removes the file, unless somebody else has changed it.
    pub fn remove(&self) -> Result<()> {
        if let (Some(change), Some(now)) = (self.written()?, files::read(&self.path)?)
            && is_ours(&change, &now)
        {
            files::remove(&self.path)?;
        }
        files::remove(&self.record)
    }

    fn written(&self) -> Result<Option<Change>> {
        let Some(text) = files::read(&self.record)? else { return Ok(None) };
        serde_json::from_str(&text).map(Some).with_context(|| format!("cannot use {}", self.record.display()))
    }
}

/// Whether a text is what we wrote last, or what stood there when we were interrupted.
fn is_ours(change: &Change, now: &str) -> bool {
    change.after == now || change.before.as_deref() == Some(now)
}

#[cfg(test)]
mod tests {
    use std::path::Path;

    use super::*;

    fn config(folder: &Path) -> ShimConfig {
        ShimConfig { path: folder.join("etc/config.toml"), record: folder.join("shim.json") }
    }

    #[test]
    fn a_missing_file_is_written_kept_up_to_date_and_removed() {
        let folder = tempfile::tempdir().unwrap();
        let config = config(folder.path());
        for text in ["overhead = 1\n", "overhead = 2\n", "overhead = 2\n"] {
            assert!(config.write(text).unwrap());
            assert_eq!(std::fs::read_to_string(&config.path).unwrap(), text);
        }
        config.remove().unwrap();
        assert!(!config.path.exists() && !config.record.exists());
    }

    #[test]
    fn an_administrators_file_is_never_touched() {
        let folder = tempfile::tempdir().unwrap();
        let config = config(folder.path());
        let mine = "overhead = 3 # ask Mia\n";
        files::write(&config.path, mine).unwrap();
        assert!(!config.write("overhead = 1\n").unwrap());
        config.remove().unwrap();
        assert_eq!(std::fs::read_to_string(&config.path).unwrap(), mine);
        // Nor one that became an administrator's.
        std::fs::remove_file(&config.path).unwrap();
        assert!(config.write("overhead = 1\n").unwrap());
        files::write(&config.path, mine).unwrap();
        assert!(!config.write("overhead = 2\n").unwrap());
        config.remove().unwrap();
        assert_eq!(std::fs::read_to_string(&config.path).unwrap(), mine);
    }

    #[test]
    fn an_interrupted_write_is_continued() {
        let folder = tempfile::tempdir().unwrap();
        let config = config(folder.path());
        config.write("overhead = 1\n").unwrap();
        config.write("overhead = 2\n").unwrap();
        // Written down, not yet made.
        files::write(&config.path, "overhead = 1\n").unwrap();
        assert!(config.write("overhead = 2\n").unwrap());
        assert_eq!(std::fs::read_to_string(&config.path).unwrap(), "overhead = 2\n");
    }
}
