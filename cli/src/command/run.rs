//! `cloister run`.

use std::io::IsTerminal;

use anyhow::{Context, Result, bail};
use cloister_image::Store;
use cloister_sandbox::{Timing, spec::Wishes};
use jiff::Timestamp;

use crate::args::run::{ProcessArgs, RunArgs};
use crate::args::{Format, Global};
use crate::paths::Root;
use crate::supervise::channel::Plan;
use crate::supervise::{start, volumes};
use crate::vm::record::Defaults;
use crate::vm::{Folder, Record, Status, Vms};
use crate::{kernel, name, output, signals, terminal, value};

const MIB: u64 = 1 << 20;
/// Memory of a container that names none, in bytes.
const DEFAULT_MEMORY: u64 = 512 * MIB;
/// Least memory of a container, in bytes; docker's is 6 MiB.
const LEAST_MEMORY: u64 = 6 * MIB;
/// Names tried before a free one must have been found.
const ATTEMPTS: u32 = 20;

/// Runs a command in a new microVM; returns what to exit with.
pub async fn run(global: &Global, args: RunArgs) -> Result<u8> {
    let root = Root::find(global)?;
    let terminal = terminal_for(&args.process, args.detach)?;
    if args.memory.is_some_and(|memory| memory < LEAST_MEMORY) {
        bail!("--memory is below the least of {}", output::bytes(LEAST_MEMORY));
    }
    let env = value::environment(&args.process.env_file, &args.process.env)?;
    let volumes = args.volumes.iter().map(volumes::resolve).collect::<Result<Vec<_>>>()?;
    let kernel = kernel::choose(&root, args.kernel.as_deref())?;
    let store = Store::open(root.path())?;
    // Stays open until the supervisor has the layers itself.
    let image = super::image::local_or_pull(&store, args.image(), &args.registry)?;

    let mut wishes = Wishes {
        command: args.command().to_vec(),
        entrypoint: args.entrypoint.clone(),
        env,
        cwd: args.process.workdir.clone(),
        hostname: String::new(),
        terminal: args.process.tty,
        privileged: args.privileged,
        read_only_rootfs: args.read_only,
        memory_bytes: args.memory,
        cpu_millis: args.cpus.filter(|millis| millis % 1000 != 0),
        binds: Vec::new(),
    };
    let user = args.process.user.clone().unwrap_or_else(|| image.config.user.clone());
    let vms = Vms::new(root.run());
    let template = |name: &str| -> Result<Record> {
        let hostname = name.to_owned();
        let process = cloister_sandbox::spec::process(&image.config, &Wishes { hostname, ..wishes.clone() })?;
        let stop = image.config.stop_signal.as_deref().and_then(signals::parse).unwrap_or(libc::SIGTERM);
        Ok(Record {
            name: name.to_owned(),
            image: args.image().to_owned(),
            command: process.args().clone().unwrap_or_default(),
            created: Timestamp::now(),
            started: None,
            finished: None,
            status: Status::Starting,
            pid: None,
            pid_started: None,
            exit_code: None,
            reason: None,
            remove: args.rm,
            dialer: None,
            defaults: Defaults {
                env: process.env().clone().unwrap_or_default(),
                cwd: process.cwd().to_string_lossy().into_owned(),
                user: user.clone(),
                privileged: args.privileged,
                stop_signal: stop,
            },
        })
    };
    let (folder, lock, record) = reserve(&vms, args.name.as_deref(), template)?;
    wishes.hostname.clone_from(&record.name);

    let memory = args.memory.unwrap_or(DEFAULT_MEMORY);
    let plan = Plan {
        record,
        kernel,
        store: root.path().to_owned(),
        image: image.record.manifest.to_string(),
        wishes,
        user,
        volumes,
        memory: cloister_sandbox::memory_for(memory, cloister_sandbox::OVERHEAD),
        cpus: args.cpus.map_or(1, |millis| u32::try_from(millis.div_ceil(1000)).unwrap_or(u32::MAX)),
        accel: args.accel,
        interactive: args.process.interactive && !args.detach,
        terminal,
        detach: args.detach,
    };
    let name = plan.record.name.clone();
    let timings = args.timings;
    let format = global.output;
    let code = start::run(plan, &folder, lock, move |steps| {
        if timings {
            show(format, steps);
        }
    })
    .await?;
    if args.detach && code == 0 {
        output::print(&format!("{name}\n"))?;
    }
    Ok(code)
}

/// The size of the terminal a process gets, or the reason why it can't have one.
pub fn terminal_for(process: &ProcessArgs, detach: bool) -> Result<Option<(u16, u16)>> {
    if !process.tty {
        return Ok(None);
    }
    if process.interactive && !detach && !std::io::stdin().is_terminal() {
        bail!("the input device is not a TTY: leave -t out, or start this from a terminal");
    }
    Ok(Some(terminal::size().unwrap_or((24, 80))))
}

/// Takes the name that was asked for, or a free one.
fn reserve(
    vms: &Vms,
    asked: Option<&str>,
    template: impl Fn(&str) -> Result<Record>,
) -> Result<(Folder, std::fs::File, Record)> {
    if let Some(asked) = asked {
        let record = template(asked)?;
        let (folder, lock) = vms.create(&record)?;
        return Ok((folder, lock, record));
    }
    let mut last = None;
    for attempt in 0..ATTEMPTS {
        let record = template(&name::generate(attempt))?;
        match vms.create(&record) {
            Ok((folder, lock)) => return Ok((folder, lock, record)),
            Err(error) if taken(vms, &record.name) => last = Some(error),
            Err(error) => return Err(error),
        }
    }
    Err(last.unwrap_or_else(|| anyhow::anyhow!("no free name"))).context("choose one with --name")
}

fn taken(vms: &Vms, name: &str) -> bool {
    vms.find(name).is_ok()
}

/// How long each step of the start took, on standard error.
fn show(format: Format, steps: &[Timing]) {
    let total: u64 = steps.iter().map(|step| step.micros).sum();
    if format == Format::Json {
        let document = serde_json::json!({ "timings": steps, "total_micros": total });
        eprintln!("{document}");
        return;
    }
    for step in steps {
        eprintln!("{:>8.1} ms  {}", step.micros as f64 / 1000.0, step.step.describe());
    }
    eprintln!("{:>8.1} ms  in all", total as f64 / 1000.0);
}
