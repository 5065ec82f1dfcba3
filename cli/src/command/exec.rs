//! `cloister exec`.

use std::hash::{BuildHasher, RandomState};
use std::io;
use std::os::fd::AsFd;

use anyhow::{Context, Result};
use cloister_image::ImageConfig;
use cloister_sandbox::pump::FdWriter;
use cloister_sandbox::spec::{self, Wishes};
use cloister_sandbox::{Io, Process, Remote};

use crate::args::Global;
use crate::args::run::ExecArgs;
use crate::signals::Signals;
use crate::terminal::{self, Raw};
use crate::{exit, value};

/// Runs one more command in a machine; returns what to exit with.
pub async fn run(global: &Global, args: ExecArgs) -> Result<u8> {
    let terminal = super::run::terminal_for(&args.process, false)?;
    let env = value::environment(&args.process.env_file, &args.process.env)?;
    let (_, record, dialer) = super::running(global, args.name())?;
    // What the container's own process has is what the image's configuration is to `run`.
    let base =
        ImageConfig { env: record.defaults.env, working_dir: record.defaults.cwd, ..ImageConfig::default() };
    let wishes = Wishes {
        command: args.command().to_vec(),
        env,
        cwd: args.process.workdir,
        terminal: terminal.is_some(),
        privileged: args.privileged || record.defaults.privileged,
        ..Wishes::default()
    };
    let process = serde_json::to_vec(&spec::exec_process(&base, &wishes)?)?;
    let user = args.process.user.unwrap_or(record.defaults.user);
    let own =
        |fd: std::os::fd::BorrowedFd<'_>| fd.try_clone_to_owned().context("cannot use the standard streams");
    let streams = Io {
        stdin: if args.process.interactive { Some(own(io::stdin().as_fd())?) } else { None },
        stdout: Some(Box::new(FdWriter::new(own(io::stdout().as_fd())?))),
        stderr: Some(Box::new(FdWriter::new(own(io::stderr().as_fd())?))),
        terminal,
    };
    let mut signals = Signals::listen().context("cannot watch signals")?;
    let agent = super::agent(&record.name, dialer).await?;
    let id = format!("exec-{:016x}", RandomState::new().hash_one(std::process::id()));
    let process = match Process::exec(&agent, &record.name, &id, process, &user, streams).await {
        Ok(process) => process,
        Err(error) => {
            eprintln!("cloister: {error}");
            return Ok(exit::of_error(&error));
        }
    };
    let raw = if terminal.is_some() && args.process.interactive {
        Raw::enter().context("cannot use the terminal")?
    } else {
        None
    };
    let remote = process.remote();
    let ended = tokio::select! {
        ended = process.wait() => ended,
        never = pass_on(&mut signals, remote, terminal.is_some()) => match never {},
    };
    if let Ok(_ended) = &ended {
        process.drain().await;
    }
    drop(raw);
    Ok(ended.context("the microVM ended, or the connection to it broke")?.code)
}

/// Passes signals and sizes on, for ever.
async fn pass_on(signals: &mut Signals, remote: Remote, terminal: bool) -> std::convert::Infallible {
    loop {
        let number = signals.next().await;
        let result = match (number, terminal::size().filter(|_| terminal)) {
            (libc::SIGWINCH, Some((rows, columns))) => remote.resize(rows, columns).await,
            (libc::SIGWINCH, None) => Ok(()),
            _ => remote.signal(number).await,
        };
        if let Err(error) = result {
            tracing::warn!("{error}");
        }
    }
}
