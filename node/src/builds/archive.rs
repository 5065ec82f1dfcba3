//! Logs of attempts that outlive their pods: `ROOT/builds/logs/NAMESPACE/BUILD/N.log.gz`, one gzip member for each time that
//! a driver took the attempt on.

use std::fs::{self, DirBuilder, File, OpenOptions};
use std::io::{self, BufWriter, Read, Write};
use std::os::unix::fs::{DirBuilderExt, OpenOptionsExt};
use std::path::{Path, PathBuf};

use cloister_crds::ImageBuild;
use flate2::Compression;
use flate2::read::MultiGzDecoder;
use flate2::write::GzEncoder;
use kube::Client;
use kube::api::Api;

/// Bytes of one log before compression; what comes later is left out.
const MOST: u64 = 64 << 20;
/// Bytes of one log's file that a driver still adds to.
const MOST_ON_DISK: u64 = 32 << 20;
const LEFT_OUT: &[u8] = b"[the rest is left out: the log is too long]\n";

/// The folder of all logs.
#[derive(Debug, Clone)]
pub struct Logs(PathBuf);

/// A log in the making.
#[derive(Debug)]
pub struct Kept {
    file: GzEncoder<BufWriter<File>>,
    room: u64,
}

impl Logs {
    /// Below the root of this node's state.
    pub fn new(root: &Path) -> Self {
        Self(root.join("builds/logs"))
    }

    fn folder(&self, namespace: &str, build: &str) -> PathBuf {
        self.0.join(namespace).join(build)
    }

    /// Begins, or goes on with, the log of an attempt. Names are those of Kubernetes' objects.
    ///
    /// # Errors
    /// When the file can't be made.
    pub fn open(&self, namespace: &str, build: &str, attempt: i64) -> io::Result<Kept> {
        let folder = self.folder(namespace, build);
        DirBuilder::new().recursive(true).mode(0o700).create(&folder)?;
        let path = folder.join(format!("{attempt}.log.gz"));
        let file = OpenOptions::new().append(true).create(true).mode(0o600).open(path)?;
        let room = if file.metadata()?.len() < MOST_ON_DISK { MOST } else { 0 };
        Ok(Kept { file: GzEncoder::new(BufWriter::new(file), Compression::fast()), room })
    }

    /// Copies the log of an attempt, or of the newest, to `out`.
    ///
    /// # Errors
    /// When there is none.
    pub fn show(
        &self,
        namespace: &str,
        build: &str,
        attempt: Option<i64>,
        mut out: impl Write,
    ) -> io::Result<()> {
        let folder = self.folder(namespace, build);
        let newest = || attempts(&folder).into_iter().max();
        let number = attempt.or_else(newest).ok_or(io::ErrorKind::NotFound)?;
        let file = File::open(folder.join(format!("{number}.log.gz")))?;
        match io::copy(&mut MultiGzDecoder::new(file).take(2 * MOST), &mut out) {
            // The driver was killed, or still writes.
            Err(error) if error.kind() == io::ErrorKind::UnexpectedEof => Ok(()),
            copied => copied.map(drop),
        }
    }

    /// Removes the logs of builds that are gone, and of attempts that their build has forgotten.
    pub async fn tidy(&self, client: &Client) {
        for namespace in names(&self.0) {
            let api: Api<ImageBuild> = Api::namespaced(client.clone(), &namespace);
            for build in names(&self.0.join(&namespace)) {
                let known = match api.get_opt(&build).await {
                    Ok(found) => found.and_then(|build| build.status).map(|status| status.attempts),
                    // Another time.
                    Err(_) => continue,
                };
                let folder = self.folder(&namespace, &build);
                let numbers: Vec<i64> = known.iter().flatten().map(|attempt| attempt.number).collect();
                for number in attempts(&folder).into_iter().filter(|number| !numbers.contains(number)) {
                    let _ = fs::remove_file(folder.join(format!("{number}.log.gz")));
                }
                // Only when it is empty.
                let _ = fs::remove_dir(&folder);
            }
            let _ = fs::remove_dir(self.0.join(&namespace));
        }
    }
}

fn names(folder: &Path) -> Vec<String> {
    let entries = fs::read_dir(folder).into_iter().flatten().flatten();
    entries.filter_map(|entry| entry.file_name().into_string().ok()).collect()
}

fn attempts(folder: &Path) -> Vec<i64> {
    let number = |name: String| name.strip_suffix(".log.gz")?.parse().ok();
    names(folder).into_iter().filter_map(number).collect()
}

impl Kept {
    /// Adds text.
    ///
    /// # Errors
    /// When the disk does not take it.
    pub fn write(&mut self, text: &[u8]) -> io::Result<()> {
        let length = text.len() as u64;
        if self.room == 0 {
            return Ok(());
        }
        if length > self.room {
            self.room = 0;
            return self.file.write_all(LEFT_OUT);
        }
        self.room -= length;
        self.file.write_all(text)
    }

    /// Completes the file.
    ///
    /// # Errors
    /// As [`Kept::write`].
    pub fn finish(self) -> io::Result<()> {
        self.file.finish()?.into_inner().map_err(io::IntoInnerError::into_error).map(drop)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_log_is_kept_over_restarts_and_within_bounds() {
        let root = tempfile::tempdir().unwrap();
        let logs = Logs::new(root.path());
        for text in ["first life\n", "second life\n"] {
            let mut kept = logs.open("team", "app", 3).unwrap();
            kept.write(text.as_bytes()).unwrap();
            kept.finish().unwrap();
        }
        let shown = |attempt| {
            let mut text = Vec::new();
            logs.show("team", "app", attempt, &mut text).map(|()| String::from_utf8(text).unwrap())
        };
        assert_eq!(shown(None).unwrap(), "first life\nsecond life\n");
        assert!(shown(Some(2)).is_err());
        let mut kept = logs.open("team", "app", 4).unwrap();
        kept.room = 8;
        for _ in 0..3 {
            kept.write(b"five\n").unwrap();
        }
        kept.finish().unwrap();
        assert_eq!(shown(None).unwrap(), format!("five\n{}", std::str::from_utf8(LEFT_OUT).unwrap()));
    }

    #[test]
    fn a_log_that_was_cut_is_shown_as_far_as_it_goes() {
        let root = tempfile::tempdir().unwrap();
        let logs = Logs::new(root.path());
        let mut kept = logs.open("team", "app", 1).unwrap();
        kept.write(b"line\n").unwrap();
        kept.finish().unwrap();
        let path = root.path().join("builds/logs/team/app/1.log.gz");
        let whole = fs::read(&path).unwrap();
        fs::write(&path, &whole[..whole.len() - 4]).unwrap();
        let mut text = Vec::new();
        logs.show("team", "app", None, &mut text).unwrap();
        assert_eq!(text, b"line\n");
    }
}
