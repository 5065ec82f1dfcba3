//! One container.

use std::fs;
use std::path::PathBuf;
use std::time::Duration;

use anyhow::{Context, Result, bail};

use super::{PATIENCE, Rig};
use crate::cell::wait_for;
use crate::cri::api;
use crate::cri::stream::{Output, Session, Wants};

/// A container that was created.
pub struct Container<'a> {
    pub(super) rig: &'a Rig,
    /// The CRI's ID.
    pub id: String,
    /// Its log on disk, in the CRI's format.
    pub log: PathBuf,
}

/// One entry of a container's log.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct LogLine {
    /// `stdout` or `stderr`.
    pub stream: String,
    /// The bytes, with the newline unless the line goes on in the next entry.
    pub bytes: Vec<u8>,
}

impl Container<'_> {
    /// Starts it.
    pub fn start(&self) -> Result<()> {
        let request = api::StartContainerRequest { container_id: self.id.clone() };
        self.rig.lab.cri.start_container(request).context("StartContainer")?;
        Ok(())
    }

    /// Its status.
    pub fn status(&self) -> Result<api::ContainerStatus> {
        let request = api::ContainerStatusRequest { container_id: self.id.clone(), verbose: false };
        self.rig.lab.cri.container_status(request)?.status.context("no status")
    }

    /// Waits for its end.
    pub fn wait(&self) -> Result<api::ContainerStatus> {
        self.wait_at_most(PATIENCE)
    }

    /// Waits for its end for a given time.
    pub fn wait_at_most(&self, patience: Duration) -> Result<api::ContainerStatus> {
        let exited = i32::from(api::ContainerState::ContainerExited);
        wait_for("the container's end", patience, || Ok(Some(self.status()?).filter(|s| s.state == exited)))
    }

    /// Whether it runs.
    pub fn is_running(&self) -> Result<bool> {
        Ok(self.status()?.state == i32::from(api::ContainerState::ContainerRunning))
    }

    /// Stops it: the stop signal first, SIGKILL after `seconds`.
    pub fn stop(&self, seconds: i64) -> Result<()> {
        let request = api::StopContainerRequest { container_id: self.id.clone(), timeout: seconds };
        self.rig.lab.cri.stop_container(request).context("StopContainer")?;
        Ok(())
    }

    /// Removes it, running or not.
    pub fn remove(&self) -> Result<()> {
        let request = api::RemoveContainerRequest { container_id: self.id.clone() };
        self.rig.lab.cri.remove_container(request).context("RemoveContainer")?;
        Ok(())
    }

    /// Runs a command in it with the CRI's ExecSync.
    pub fn exec(&self, command: &[&str]) -> Result<Output> {
        let request = api::ExecSyncRequest {
            container_id: self.id.clone(),
            cmd: command.iter().map(|&word| word.to_owned()).collect(),
            timeout: PATIENCE.as_secs() as i64,
        };
        let answer = self.rig.lab.cri.exec_sync(request).with_context(|| format!("exec {command:?}"))?;
        Ok(Output { stdout: answer.stdout, stderr: answer.stderr, code: answer.exit_code })
    }

    /// Runs a shell line in it, which must succeed; gives its output without the last newline.
    pub fn sh(&self, line: &str) -> Result<String> {
        let output = self.exec(&["sh", "-c", line])?;
        if output.code != 0 {
            bail!(
                "{line}: exit code {}: {}{}",
                output.code,
                output.text(),
                String::from_utf8_lossy(&output.stderr)
            );
        }
        Ok(output.text().trim_end_matches('\n').to_owned())
    }

    /// Starts a command in it and holds its streams.
    pub fn session(&self, command: &[&str], wants: Wants) -> Result<Session> {
        let request = api::ExecRequest {
            container_id: self.id.clone(),
            cmd: command.iter().map(|&word| word.to_owned()).collect(),
            tty: wants.tty,
            stdin: wants.stdin,
            stdout: true,
            stderr: !wants.tty,
        };
        let url = self.rig.lab.cri.exec(request)?.url;
        Session::open(&self.rig.lab.cell, &url, wants)
    }

    /// Attaches to its own process.
    pub fn attach(&self, wants: Wants) -> Result<Session> {
        let request = api::AttachRequest {
            container_id: self.id.clone(),
            stdin: wants.stdin,
            tty: wants.tty,
            stdout: true,
            stderr: !wants.tty,
        };
        let url = self.rig.lab.cri.attach(request)?.url;
        Session::open(&self.rig.lab.cell, &url, wants)
    }

    /// Its counters.
    pub fn stats(&self) -> Result<api::ContainerStats> {
        let request = api::ContainerStatsRequest { container_id: self.id.clone() };
        self.rig.lab.cri.container_stats(request)?.stats.context("no stats")
    }

    /// Changes its resources while it runs.
    pub fn update(&self, resources: api::LinuxContainerResources) -> Result<()> {
        let request = api::UpdateContainerResourcesRequest {
            container_id: self.id.clone(),
            linux: Some(resources),
            ..api::UpdateContainerResourcesRequest::default()
        };
        self.rig.lab.cri.update_container_resources(request).context("UpdateContainerResources")?;
        Ok(())
    }

    /// Everything logged so far.
    pub fn lines(&self) -> Result<Vec<LogLine>> {
        let text = fs::read(&self.log).with_context(|| format!("cannot read {}", self.log.display()))?;
        text.split_inclusive(|&byte| byte == b'\n').map(parse).collect()
    }

    /// What the log holds of standard output.
    pub fn output(&self) -> Result<Vec<u8>> {
        Ok(self.lines()?.into_iter().filter(|l| l.stream == "stdout").flat_map(|l| l.bytes).collect())
    }

    /// Standard output of a container that has ended: containerd writes the last of it after the end is known.
    pub fn output_at_end(&self) -> Result<Vec<u8>> {
        let mut last = self.output()?;
        wait_for("a complete log", PATIENCE, || {
            std::thread::sleep(Duration::from_millis(150));
            let now = self.output()?;
            let complete = now.len() == last.len();
            last = now;
            Ok(complete.then(|| last.clone()))
        })
    }

    /// Waits until its output contains `words`.
    pub fn wait_for_output(&self, words: &str) -> Result<String> {
        wait_for(&format!("{words:?} in the log"), PATIENCE, || {
            let text = String::from_utf8_lossy(&self.output().unwrap_or_default()).into_owned();
            if !text.contains(words) && !self.is_running()? {
                // It may have been written in between.
                let text = String::from_utf8_lossy(&self.output_at_end()?).into_owned();
                if !text.contains(words) {
                    bail!("the container ended, its output is {text:?}: {:?}", self.status()?);
                }
                return Ok(Some(text));
            }
            Ok(text.contains(words).then_some(text))
        })
    }
}

/// `TIME STREAM TAG TEXT`, where the tag says whether the line ends here.
fn parse(line: &[u8]) -> Result<LogLine> {
    let mut fields = line.splitn(4, |&byte| byte == b' ');
    let (Some(_), Some(stream), Some(tag), Some(text)) =
        (fields.next(), fields.next(), fields.next(), fields.next())
    else {
        bail!("not a line of a CRI log: {:?}", String::from_utf8_lossy(line));
    };
    let bytes = if tag == b"P" { text.strip_suffix(b"\n").unwrap_or(text) } else { text };
    Ok(LogLine { stream: String::from_utf8_lossy(stream).into_owned(), bytes: bytes.to_vec() })
}
