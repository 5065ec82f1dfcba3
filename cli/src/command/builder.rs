//! `cloister builder …`: what builds have left on disk.

use std::io::{BufRead, IsTerminal, stdin};

use anyhow::{Result, bail};
use cloister_builder::Disk;
use jiff::Timestamp;
use serde::Serialize;

use crate::args::builder::{BuilderCommand, PruneArgs};
use crate::args::{Format, Global};
use crate::paths::Root;
use crate::{disks as own, output};

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
    let folder = Root::find(global)?.caches();
    let disks = Disk::all(&folder)?;
    match command {
        BuilderCommand::Du => list(global, &disks)?,
        BuilderCommand::Prune(args) => prune(&disks, args)?,
    }
    if global.output == Format::Json {
        return Ok(());
    }
    let account = own::bounds()?.account(&folder, &Disk::all(&folder)?)?;
    output::print(&format!(
        "{} of {} disks, {} of {}; those in use count with their limit\n",
        account.disks,
        account.most_disks,
        output::bytes(account.bytes),
        output::bytes(account.most_bytes)
    ))
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
