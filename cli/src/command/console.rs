//! `cloister console`: what the guest's kernel and agent print. It can be read only, as the guest has no login there.

use std::fs::File;
use std::io::{self, Read, Write};
use std::os::unix::fs::MetadataExt;

use anyhow::{Context, Result, bail};

use crate::args::{ConsoleArgs, Global};
use crate::paths::Root;
use crate::vm::{Follow, Vms};

/// Prints the console of a machine and follows it until the machine ends.
pub fn run(global: &Global, args: &ConsoleArgs) -> Result<()> {
    let (folder, record) = Vms::new(Root::find(global)?.run()).find(&args.name)?;
    let path = folder.path().join("console.log");
    let mut seen = 0;
    let mut file = match File::open(&path) {
        Ok(file) => file,
        Err(error) if error.kind() == io::ErrorKind::NotFound => {
            bail!("the microVM {} has no console yet", args.name)
        }
        Err(error) => return Err(error).with_context(|| format!("cannot read {}", path.display())),
    };
    let follow = (!args.no_follow).then(|| Follow::new(&folder, &record)).transpose();
    let mut follow = follow.with_context(|| format!("cannot follow {}", args.name))?;
    loop {
        let live = follow.is_some() && folder.path().is_dir() && folder.is_held()?;
        let mut bytes = Vec::new();
        seen +=
            file.read_to_end(&mut bytes).with_context(|| format!("cannot read {}", path.display()))? as u64;
        let text = harmless(&bytes);
        match io::stdout().write_all(text.as_bytes()).and_then(|()| io::stdout().flush()) {
            Err(error) if error.kind() == io::ErrorKind::BrokenPipe => return Ok(()),
            other => other?,
        }
        // A full log is begun anew.
        if let (Ok(now), Ok(open)) = (std::fs::metadata(&path), file.metadata())
            && (now.ino() != open.ino() || now.len() < seen)
        {
            file = File::open(&path).with_context(|| format!("cannot read {}", path.display()))?;
            seen = 0;
            continue;
        }
        match &mut follow {
            Some(follow) if live => follow.wait()?,
            _ => return Ok(()),
        }
    }
}

/// Console bytes without what would drive the reader's terminal: the guest writes them.
fn harmless(bytes: &[u8]) -> String {
    String::from_utf8_lossy(bytes).chars().filter(|c| !c.is_control() || matches!(c, '\n' | '\t')).collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_console_cannot_drive_the_terminal() {
        assert_eq!(harmless(b"a\x1b]0;title\x07b\r\n\xffc"), "a]0;titleb\n\u{fffd}c");
    }
}
