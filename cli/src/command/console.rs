//! `cloister console`: what the guest's kernel and agent print. It can be read only, as the guest has no login there.

use std::fs::File;
use std::io::{self, Read, Write};
use std::os::unix::fs::MetadataExt;
use std::path::PathBuf;

use anyhow::{Context, Result, bail};

use crate::args::{ConsoleArgs, Global};
use crate::paths::Root;
use crate::vm::pods::{self, Pod};
use crate::vm::{Folder, Follow, Record, Vms};

/// Whose console it is.
enum Machine {
    Vm(Folder, Box<Record>),
    Pod(Pod),
}

impl Machine {
    fn find(global: &Global, args: &ConsoleArgs) -> Result<Self> {
        match Vms::new(Root::find(global)?.run()).find(&args.name) {
            Ok((folder, record)) => Ok(Self::Vm(folder, Box::new(record))),
            Err(error) => match pods::find(&args.pods, &args.name)? {
                Some(pod) => Ok(Self::Pod(pod)),
                None => Err(error.context(format!(
                    "there is no pod {} below {} either (`crictl pods` lists them)",
                    args.name,
                    args.pods.display()
                ))),
            },
        }
    }

    fn console(&self) -> PathBuf {
        match self {
            Self::Vm(folder, _) => folder.path().join("console.log"),
            Self::Pod(pod) => pod.folder.join("console.log"),
        }
    }

    fn follow(&self) -> io::Result<Follow> {
        match self {
            Self::Vm(folder, record) => Follow::new(folder, record),
            Self::Pod(pod) => Follow::of(&pod.folder, Some(pod.shim.pid), || pod.is_alive()),
        }
    }

    fn is_alive(&self) -> Result<bool> {
        match self {
            Self::Vm(folder, _) => Ok(folder.path().is_dir() && folder.is_held()?),
            Self::Pod(pod) => Ok(pod.is_alive()),
        }
    }
}

/// Prints the console of a machine and, when asked, follows it until the machine ends.
pub fn run(global: &Global, args: &ConsoleArgs) -> Result<()> {
    let machine = Machine::find(global, args)?;
    let path = machine.console();
    let mut seen = 0;
    let mut file = match File::open(&path) {
        Ok(file) => file,
        Err(error) if error.kind() == io::ErrorKind::NotFound => {
            bail!("the microVM {} has no console yet", args.name)
        }
        Err(error) => return Err(error).with_context(|| format!("cannot read {}", path.display())),
    };
    let follow = args.follow.then(|| machine.follow()).transpose();
    let mut follow = follow.with_context(|| format!("cannot follow {}", args.name))?;
    loop {
        let live = follow.is_some() && machine.is_alive()?;
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
