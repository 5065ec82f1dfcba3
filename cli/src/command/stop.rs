//! `cloister stop`.

use std::time::Duration;

use anyhow::{Context, Result, bail};
use cloister_sandbox::Agent;
use rustix::process::{Pid, PidfdFlags, Signal, pidfd_open, pidfd_send_signal};
use tokio::time::Instant;

use crate::args::{Global, StopArgs};
use crate::paths::Root;
use crate::supervise;
use crate::vm::{Folder, Record, Vms};

/// How long a machine whose command was killed may take to be taken apart.
const TEARDOWN: Duration = Duration::from_secs(15);
const TICK: Duration = Duration::from_millis(10);

/// Stops machines one after the other.
pub async fn run(global: &Global, args: &StopArgs) -> Result<()> {
    let vms = Vms::new(Root::find(global)?.run());
    for name in &args.names {
        let (folder, record) = vms.find(name)?;
        if !record.status.is_live() {
            bail!("the microVM {name} is not running ({})", record.status);
        }
        stop(&folder, &record, Duration::from_secs(args.time.into())).await?;
        crate::output::print(&format!("{name}\n"))?;
    }
    Ok(())
}

/// Asks the command to end, kills it after `grace`, and ends the machine by force when even that has no effect.
async fn stop(folder: &Folder, record: &Record, grace: Duration) -> Result<()> {
    if let Some(dialer) = record.dialer.clone() {
        let asked = async {
            let (agent, _) = Agent::connect(dialer, super::CONNECT).await?;
            agent.signal(&record.name, "", record.defaults.stop_signal, false).await?;
            Ok::<Agent, cloister_sandbox::Error>(agent)
        };
        match asked.await {
            Ok(agent) => {
                if gone_within(folder, grace).await? {
                    return Ok(());
                }
                // A refusal shows in the machine staying.
                let _ = agent.signal(&record.name, "", libc::SIGKILL, true).await;
                if gone_within(folder, TEARDOWN).await? {
                    return Ok(());
                }
            }
            Err(error) => {
                if gone_within(folder, Duration::ZERO).await? {
                    return Ok(());
                }
                tracing::warn!("the guest does not take signals, so its machine is ended: {error}");
            }
        }
    }
    end(folder, record).await
}

/// Ends a machine at once, through its supervisor.
pub async fn end(folder: &Folder, record: &Record) -> Result<()> {
    let name = &record.name;
    if let Some(pid) =
        record.pid.filter(|_| record.supervisor_lives()).and_then(|pid| Pid::from_raw(pid.try_into().ok()?))
    {
        let supervisor = pidfd_open(pid, PidfdFlags::empty())
            .with_context(|| format!("cannot reach the supervisor of {name}"))?;
        // Again after the descriptor names the process for good: the id may have changed hands before.
        if record.supervisor_lives() {
            // SAFETY: a real-time signal above those the C library keeps for itself.
            let now = unsafe { Signal::from_raw_unchecked(supervise::end_now()) };
            pidfd_send_signal(&supervisor, now)
                .with_context(|| format!("cannot end the supervisor of {name}"))?;
            if gone_within(folder, TEARDOWN).await? {
                return Ok(());
            }
            pidfd_send_signal(&supervisor, Signal::KILL)
                .with_context(|| format!("cannot end the supervisor of {name}"))?;
        }
    }
    if gone_within(folder, TEARDOWN).await? { Ok(()) } else { bail!("the microVM {name} does not end") }
}

/// Whether a machine's supervisor lets go of its folder in time.
async fn gone_within(folder: &Folder, time: Duration) -> Result<bool> {
    let deadline = Instant::now() + time;
    loop {
        if !folder.path().is_dir() {
            return Ok(true);
        }
        match folder.is_held() {
            Ok(false) => return Ok(true),
            Err(_) if !folder.path().is_dir() => return Ok(true),
            Err(error) => return Err(error),
            Ok(true) if Instant::now() >= deadline => return Ok(false),
            Ok(true) => tokio::time::sleep(TICK).await,
        }
    }
}
