//! `cloister builder …`: what builds have left on disk.

use std::io::{BufRead, IsTerminal, stdin};

use anyhow::{Result, bail};
use cloister_builder::Disk;
use jiff::Timestamp;
use serde::Serialize;

use crate::args::Global;
use crate::args::builder::{BuilderCommand, PruneArgs};
use crate::output;
use crate::paths::Root;

/// A disk as it is listed.
#[derive(Debug, Serialize)]
struct Row {
    key: String,
    used_bytes: u64,
    bytes: u64,
    last_used: Timestamp,
    busy: bool,
}

/// Runs one of the commands.
pub fn run(global: &Global, command: &BuilderCommand) -> Result<()> {
    let disks = Disk::all(&Root::find(global)?.caches())?;
    match command {
        BuilderCommand::Du => list(global, &disks),
        BuilderCommand::Prune(args) => prune(&disks, args),
    }
}

fn list(global: &Global, disks: &[Disk]) -> Result<()> {
    let row = |disk: &Disk| Row {
        key: disk.key.clone(),
        used_bytes: disk.used,
        bytes: disk.bytes,
        last_used: Timestamp::try_from(disk.written).unwrap_or_default(),
        busy: disk.busy,
    };
    let rows: Vec<Row> = disks.iter().map(row).collect();
    output::list(global.output, &rows, ["KEY", "USED", "LIMIT", "LAST USED", "BUSY"], |row| {
        [
            row.key.clone(),
            output::bytes(row.used_bytes),
            output::bytes(row.bytes),
            output::ago(row.last_used),
            if row.busy { "yes".to_owned() } else { "no".to_owned() },
        ]
    })
}

fn prune(disks: &[Disk], args: &PruneArgs) -> Result<()> {
    let meant = |disk: &&Disk| !disk.busy && args.key.as_ref().is_none_or(|key| *key == disk.key);
    let disks: Vec<&Disk> = disks.iter().filter(meant).collect();
    if !args.force && !disks.is_empty() {
        let bytes = output::bytes(disks.iter().map(|disk| disk.used).sum());
        if !stdin().is_terminal() {
            bail!("{} build caches with {bytes} would be removed: say so with --force", disks.len());
        }
        eprint!("Remove {} build caches with {bytes}? [y/N] ", disks.len());
        let mut answer = String::new();
        stdin().lock().read_line(&mut answer)?;
        if !matches!(answer.trim(), "y" | "Y" | "yes") {
            return Ok(());
        }
    }
    let mut freed = 0;
    for disk in disks {
        if disk.remove()? {
            freed += disk.used;
        }
    }
    output::print(&format!("freed {}\n", output::bytes(freed)))
}
