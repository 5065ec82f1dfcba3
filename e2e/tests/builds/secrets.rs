//! What a build is trusted with is nowhere to be found afterwards.

use std::fs;
use std::os::unix::fs::FileExt;
use std::path::Path;

use anyhow::{Result, ensure};
use serde_json::json;

use crate::site::{build, with_site};

/// Something that is nowhere else.
const SECRET: &str = "correct-horse-4711-battery-staple";

#[test]
fn a_secret_is_used_and_then_nowhere() {
    with_site(&[], |site| {
        site.cluster.kubectl(&[
            "create",
            "secret",
            "generic",
            "token",
            &format!("--from-literal=value={SECRET}"),
        ])?;
        let dockerfile = "FROM lab.test/busybox:1\n\
            RUN --mount=type=secret,id=token test $(wc -c </run/secrets/token) = 33 && sleep 4 && md5sum </run/secrets/token >/sum\n\
            CMD [\"cat\", \"/sum\"]\n";
        let secrets = json!([{"id": "token", "secretKeyRef": {"name": "token", "key": "value"}}]);
        site.apply(&build("careful", dockerfile, json!({"secrets": secrets})))?;
        let mut looked = 0;
        while site.get("careful")?["status"]["completionTime"].is_null() {
            looked += 1;
            processes()?;
            site.builds.check()?;
            ensure!(looked < 600, "{:#}", site.get("careful")?);
        }
        site.until("careful", "Ready", "True")?;
        for kind in ["imgb", "pods", "configmaps", "events"] {
            let text = site.cluster.kubectl(&["get", kind, "-A", "-o", "yaml"])?;
            ensure!(!text.contains(SECRET), "a {kind} has it");
        }
        ensure!(!site.cluster.kubectl(&["logs", "careful-1"])?.contains(SECRET), "the log has it");
        for node in &site.nodes {
            // Kubelet's own copies are in memory, below its folder.
            let kubelet = node.kubelet_root();
            files(node.lab.root(), &kubelet, SECRET)?;
        }
        site.clean()
    });
}

/// No process has it on its command line or in its environment.
fn processes() -> Result<()> {
    for entry in fs::read_dir("/proc")?.flatten() {
        for file in ["cmdline", "environ"] {
            // Processes end at any time.
            let Ok(text) = fs::read(entry.path().join(file)) else { continue };
            // The test's own kubectl that made it has ended by now.
            ensure!(!has(&text, SECRET), "{} of {}", file, entry.path().display());
        }
    }
    Ok(())
}

/// No file below a folder has the word, content stores and disks of guests included.
pub fn files(folder: &Path, except: &Path, word: &str) -> Result<()> {
    for entry in fs::read_dir(folder)?.flatten() {
        let path = entry.path();
        let kind = entry.file_type()?;
        if kind.is_dir() && path != except {
            files(&path, except, word)?;
        } else if kind.is_file() {
            ensure!(!contains(&path, word)?, "{}", path.display());
        }
    }
    Ok(())
}

/// Reads a file of any size, in pieces that overlap, without its holes.
fn contains(path: &Path, word: &str) -> Result<bool> {
    let Ok(file) = fs::File::open(path) else { return Ok(false) };
    let (mut window, mut piece, mut at) = (Vec::new(), vec![0; 1 << 20], 0);
    while let Ok(data) = rustix::fs::seek(&file, rustix::fs::SeekFrom::Data(at)) {
        if data != at {
            window.clear();
        }
        let n = file.read_at(&mut piece, data)?;
        if n == 0 {
            break;
        }
        window.extend_from_slice(&piece[..n]);
        if has(&window, word) {
            return Ok(true);
        }
        window.drain(..window.len().saturating_sub(word.len()));
        at = data + n as u64;
    }
    Ok(false)
}

fn has(bytes: &[u8], word: &str) -> bool {
    let starts = bytes.iter().enumerate().filter(|(_, byte)| **byte == word.as_bytes()[0]);
    starts.map(|(start, _)| &bytes[start..]).any(|rest| rest.starts_with(word.as_bytes()))
}
