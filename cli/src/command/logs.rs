//! `cloister logs`.

use std::io::{self, Write};
use std::time::Duration;

use anyhow::{Context, Result};

use crate::args::{Global, LogsArgs};
use crate::paths::Root;
use crate::vm::Vms;
use crate::vm::log::{Reader, Stream};

/// How often a followed log is looked at.
const TICK: Duration = Duration::from_millis(50);

/// Prints a machine's log, each stream where it belongs.
pub fn run(global: &Global, args: &LogsArgs) -> Result<()> {
    let (folder, _) = Vms::new(Root::find(global)?.run()).find(&args.name)?;
    let mut reader =
        Reader::open(folder.path()).with_context(|| format!("cannot read the log of {}", args.name))?;
    let mut show = |stream, bytes: &[u8]| match stream {
        Stream::Out => io::stdout().write_all(bytes),
        Stream::Err => io::stderr().write_all(bytes),
    };
    loop {
        // Looked at before the log is, so that nothing written until then is missed.
        let live = args.follow && folder.path().is_dir() && folder.is_held()?;
        match reader.drain(&mut show).and_then(|()| io::stdout().flush()) {
            Err(error) if error.kind() == io::ErrorKind::BrokenPipe => return Ok(()),
            other => other.with_context(|| format!("cannot read the log of {}", args.name))?,
        }
        if !live {
            return Ok(());
        }
        std::thread::sleep(TICK);
    }
}
