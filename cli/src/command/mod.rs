//! What each command does.

mod build;
mod builder;
mod console;
mod copy;
mod doctor;
mod exec;
mod image;
pub mod kube;
mod list;
mod logs;
mod remove;
mod run;
mod stop;
mod version;

use anyhow::{Context, Result, bail};
use clap::CommandFactory;
use cloister_sandbox::{Agent, Dialer};

use crate::args::{Cli, Command, Global, KernelCommand};
use crate::paths::Root;
use crate::vm::{Folder, Record, Vms};
use crate::{kernel, output, supervise};

/// How long a running machine's agent may take to answer one more connection.
const CONNECT: std::time::Duration = std::time::Duration::from_secs(10);

/// Runs a command; returns what to exit with.
pub fn run(cli: Cli) -> Result<u8> {
    let global = cli.global;
    let done = |result: Result<()>| result.map(|()| 0);
    match cli.command {
        Command::Image(command) => done(image::run(&global, command)),
        Command::Run(args) => wait_for(run::run(&global, *args)),
        Command::Build(args) => wait_for(build::run(&global, *args)),
        Command::Builder(command) => done(builder::run(&global, &command)),
        Command::Exec(args) => wait_for(exec::run(&global, args)),
        Command::Ps(args) => done(list::run(&global, &args)),
        Command::Logs(args) => done(logs::run(&global, &args)),
        Command::Cp(args) => done(wait_for(copy::run(&global, &args))),
        Command::Stop(args) => done(wait_for(stop::run(&global, &args))),
        Command::Rm(args) => done(wait_for(remove::run(&global, &args))),
        Command::Console(args) => done(console::run(&global, &args)),
        Command::Kernel(KernelCommand::Ls) => done(kernels(&global)),
        Command::Doctor(args) => wait_for(doctor::run(&global, &args)),
        Command::Version => done(version::run(&global)),
        Command::Completion { shell } => {
            clap_complete::generate(shell, &mut Cli::command(), "cloister", &mut std::io::stdout());
            Ok(0)
        }
        Command::Man { dir: None } => {
            clap_mangen::Man::new(Cli::command()).render(&mut std::io::stdout())?;
            Ok(0)
        }
        Command::Man { dir: Some(dir) } => {
            clap_mangen::generate_to(Cli::command(), &dir)
                .with_context(|| format!("cannot write manual pages to {}", dir.display()))?;
            Ok(0)
        }
        Command::Kube { arguments } => kube::run(arguments.into_iter()),
        Command::Supervise { channel, lock, folder } => done(supervise::main(channel, lock, folder)),
    }
}

/// One thread is enough for commands that only wait.
fn wait_for<T>(work: impl Future<Output = Result<T>>) -> Result<T> {
    let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build()?;
    let result = runtime.block_on(work);
    // A thread may still sit in a read of standard input that nobody will end.
    runtime.shutdown_background();
    result
}

fn kernels(global: &Global) -> Result<()> {
    let all = kernel::list(&Root::find(global)?);
    output::list(global.output, &all, ["VERSION", "SIZE", "FOLDER"], |found| {
        [found.version.clone(), output::bytes(found.size), found.folder.display().to_string()]
    })
}

/// A machine that must be running.
fn running(global: &Global, name: &str) -> Result<(Folder, Record, Dialer)> {
    let (folder, record) = Vms::new(Root::find(global)?.run()).find(name)?;
    match record.dialer.clone() {
        Some(dialer) if record.status.is_live() => Ok((folder, record, dialer)),
        _ => bail!("the microVM {name} is not running ({})", record.status),
    }
}

/// The agent of a running machine.
async fn agent(name: &str, dialer: Dialer) -> Result<Agent> {
    let (agent, _) =
        Agent::connect(dialer, CONNECT).await.with_context(|| format!("cannot reach the microVM {name}"))?;
    Ok(agent)
}
