//! `cloister ps`.

use anyhow::Result;

use crate::args::{Global, PsArgs};
use crate::output;
use crate::paths::Root;
use crate::vm::{Record, Status, Vms};

/// Lists machines.
pub fn run(global: &Global, args: &PsArgs) -> Result<()> {
    let all = Vms::new(Root::find(global)?.run()).list()?;
    let shown: Vec<Record> = all
        .into_iter()
        .map(|(_, record)| record)
        .filter(|record| args.all || record.status.is_live())
        .collect();
    if args.quiet {
        return output::print(&shown.iter().map(|record| format!("{}\n", record.name)).collect::<String>());
    }
    output::list(global.output, &shown, ["NAME", "IMAGE", "COMMAND", "CREATED", "STATUS"], |record| {
        [
            record.name.clone(),
            record.image.clone(),
            command(record),
            output::ago(record.created),
            status(record),
        ]
    })
}

/// The command on one short line.
fn command(record: &Record) -> String {
    const WIDTH: usize = 40;
    let line: String =
        record.command.join(" ").chars().map(|c| if c.is_control() { ' ' } else { c }).collect();
    if line.chars().count() <= WIDTH { line } else { line.chars().take(WIDTH - 1).chain(['…']).collect() }
}

fn status(record: &Record) -> String {
    let since = |moment: Option<jiff::Timestamp>| moment.map(output::ago).unwrap_or_default();
    match record.status {
        Status::Starting => "starting".to_owned(),
        Status::Running => format!("running since {}", since(record.started)),
        Status::Exited => {
            format!("exited ({}) {}", record.exit_code.unwrap_or_default(), since(record.finished))
        }
        Status::Failed => {
            format!("failed {}: {}", since(record.finished), record.reason.as_deref().unwrap_or("unknown"))
        }
    }
}
