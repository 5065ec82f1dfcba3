//! `cloister logs`.

use std::io::{self, Write};

use anyhow::{Context, Result};

use crate::args::{Global, LogsArgs};
use crate::paths::Root;
use crate::vm::log::{Reader, Stream};
use crate::vm::{Follow, Vms};

/// Prints a machine's log, each stream where it belongs.
pub fn run(global: &Global, args: &LogsArgs) -> Result<()> {
    let (folder, record) = Vms::new(Root::find(global)?.run()).find(&args.name)?;
    let mut reader =
        Reader::open(folder.path()).with_context(|| format!("cannot read the log of {}", args.name))?;
    let mut show = |stream, bytes: &[u8]| match stream {
        Stream::Out => io::stdout().write_all(bytes),
        Stream::Err => io::stderr().write_all(bytes),
    };
    let follow = args.follow.then(|| Follow::new(&folder, &record)).transpose();
    let mut follow = follow.with_context(|| format!("cannot follow {}", args.name))?;
    loop {
        // Looked at before the log is, so that nothing written until then is missed.
        let live = follow.is_some() && folder.path().is_dir() && folder.is_held()?;
        match reader.drain(&mut show).and_then(|()| io::stdout().flush()) {
            Err(error) if error.kind() == io::ErrorKind::BrokenPipe => return Ok(()),
            other => other.with_context(|| format!("cannot read the log of {}", args.name))?,
        }
        match &mut follow {
            Some(follow) if live => follow.wait()?,
            _ => return Ok(()),
        }
    }
}
