//! The channel between agent and helper.

use std::io::IoSlice;
use std::mem::MaybeUninit;
use std::os::fd::{AsFd, AsRawFd, BorrowedFd, FromRawFd, OwnedFd, RawFd};
use std::path::Path;
use std::process::{Command, Stdio};
use std::sync::Mutex;
use std::time::{Duration, Instant};

use rustix::event::{PollFd, PollFlags, Timespec, poll};
use rustix::io::{Errno, FdFlags, IoSliceMut, fcntl_setfd};
use rustix::net::{
    AddressFamily, RecvAncillaryBuffer, RecvAncillaryMessage, RecvFlags, SendAncillaryBuffer,
    SendAncillaryMessage, SendFlags, SocketFlags, SocketType, recvmsg, sendmsg, socketpair,
};
use serde::{Deserialize, Serialize};

use super::Job;
use crate::error::{Context, Error, Kind, Result, lock};

/// Bytes of one message.
const MESSAGE: usize = 16 << 10;

/// What the helper, or the container process before its `execve(2)`, says.
#[derive(Debug, Serialize, Deserialize)]
pub enum Report {
    /// The container process exists.
    Pid(u32),
    /// It is what it should be and goes on as that.
    Ready,
    /// The master side of its terminal comes along.
    Terminal,
    /// It failed; only the first such report counts.
    Failed {
        /// How a host should see it.
        kind: Kind,
        /// The line.
        message: String,
    },
}

/// Descriptors that a helper inherits are inheritable for a moment only; nothing else may be started in it.
static SPAWN: Mutex<()> = Mutex::new(());

/// A helper at work, and later the container process that has not been executed yet.
pub struct Helper {
    channel: OwnedFd,
    deadline: Instant,
}

impl Helper {
    /// Starts a helper with the given standard streams. All later waits together last at most `limit`.
    ///
    /// # Errors
    /// When no process can be started.
    pub fn spawn(job: Job, path: &Path, streams: [Option<OwnedFd>; 3], limit: Duration) -> Result<Self> {
        let what = || format!("start the {} helper", job.name());
        let (channel, theirs) =
            socketpair(AddressFamily::UNIX, SocketType::SEQPACKET, SocketFlags::CLOEXEC, None)
                .context(what)?;
        let [stdin, stdout, stderr] = streams.map(|fd| fd.map_or_else(Stdio::null, Stdio::from));
        let mut command = Command::new("/proc/self/exe");
        command.args(["runtime", job.name(), &theirs.as_raw_fd().to_string()]).arg(path).env_clear();
        command.stdin(stdin).stdout(stdout).stderr(stderr);
        let guard = lock(&SPAWN);
        fcntl_setfd(&theirs, FdFlags::empty()).context(what)?;
        let spawned = command.spawn();
        drop(theirs);
        drop(guard);
        // Not waited for here: the reaper reaps every child.
        spawned.context(what)?;
        Ok(Self { channel, deadline: Instant::now() + limit })
    }

    /// Sends a descriptor to the helper.
    ///
    /// # Errors
    /// When the helper is gone.
    pub fn send(&self, descriptor: &OwnedFd) -> Result<()> {
        send(&self.channel, b"fd", Some(descriptor.as_fd())).context(|| "speak to the helper".into())
    }

    /// The next report, with the descriptor that came along; `None` at the end of the channel.
    ///
    /// # Errors
    /// What the helper reports as failed, and when the deadline passes.
    pub fn next(&self) -> Result<Option<(Report, Option<OwnedFd>)>> {
        let ready = loop {
            let left = self.deadline.saturating_duration_since(Instant::now());
            let timeout =
                Timespec { tv_sec: left.as_secs().cast_signed(), tv_nsec: left.subsec_nanos().into() };
            let mut fds = [PollFd::new(&self.channel, PollFlags::IN)];
            match poll(&mut fds, Some(&timeout)) {
                Err(Errno::INTR) => {} // each child that ends interrupts
                other => break other.context(|| "wait for the helper".into())?,
            }
        };
        if ready == 0 {
            return Err(Error::new(Kind::Timeout, "the helper did not answer in time"));
        }
        let Some((bytes, descriptor)) = receive(&self.channel).context(|| "hear the helper".into())? else {
            return Ok(None);
        };
        match serde_json::from_slice(&bytes).context(|| "understand the helper".into())? {
            Report::Failed { kind, message } => Err(Error::new(kind, message)),
            report => Ok(Some((report, descriptor))),
        }
    }

    /// Starts the clock of a later step anew.
    pub fn extend(&mut self, limit: Duration) {
        self.deadline = Instant::now() + limit;
    }
}

/// Takes over the helper's end of the channel by its number.
pub fn adopt(number: RawFd) -> Option<OwnedFd> {
    // SAFETY: only asks whether the descriptor exists.
    if number < 3 || unsafe { libc::fcntl(number, libc::F_GETFD) } < 0 {
        return None;
    }
    // SAFETY: the agent passed this descriptor, and nothing else in this process knows of it.
    let channel = unsafe { OwnedFd::from_raw_fd(number) };
    fcntl_setfd(&channel, FdFlags::CLOEXEC).ok()?;
    Some(channel)
}

/// Says something to the agent. Nothing can be done when it does not listen any more.
pub fn report(channel: &OwnedFd, report: &Report, descriptor: Option<BorrowedFd<'_>>) {
    let bytes = serde_json::to_vec(report).unwrap_or_default();
    let bytes = if bytes.len() > MESSAGE {
        br#"{"Failed":{"kind":"Internal","message":"error too long"}}"#
    } else {
        &bytes[..]
    };
    let _ = send(channel, bytes, descriptor);
}

/// Receives one descriptor from the agent.
///
/// # Errors
/// When something else comes.
pub fn receive_descriptor(channel: &OwnedFd) -> Result<OwnedFd> {
    receive(channel)
        .context(|| "hear the agent".into())?
        .and_then(|(_, descriptor)| descriptor)
        .ok_or_else(|| Error::state("the agent sent no descriptor"))
}

fn send(channel: &OwnedFd, bytes: &[u8], descriptor: Option<BorrowedFd<'_>>) -> rustix::io::Result<()> {
    let mut space = [MaybeUninit::uninit(); rustix::cmsg_space!(ScmRights(1))];
    let mut ancillary = SendAncillaryBuffer::new(&mut space);
    let descriptors: Vec<BorrowedFd<'_>> = descriptor.into_iter().collect();
    if !descriptors.is_empty() {
        ancillary.push(SendAncillaryMessage::ScmRights(&descriptors));
    }
    sendmsg(channel, &[IoSlice::new(bytes)], &mut ancillary, SendFlags::NOSIGNAL).map(drop)
}

/// One message; `None` at the end.
pub fn receive(channel: &OwnedFd) -> rustix::io::Result<Option<(Vec<u8>, Option<OwnedFd>)>> {
    let mut bytes = vec![0; MESSAGE];
    let mut space = [MaybeUninit::uninit(); rustix::cmsg_space!(ScmRights(1))];
    let mut ancillary = RecvAncillaryBuffer::new(&mut space);
    let received = loop {
        let mut slices = [IoSliceMut::new(&mut bytes)];
        match recvmsg(channel, &mut slices, &mut ancillary, RecvFlags::CMSG_CLOEXEC) {
            Err(Errno::INTR) => {}
            other => break other?,
        }
    };
    let mut descriptor = None;
    for message in ancillary.drain() {
        if let RecvAncillaryMessage::ScmRights(descriptors) = message {
            descriptor = descriptors.into_iter().next();
        }
    }
    bytes.truncate(received.bytes);
    Ok((received.bytes > 0).then_some((bytes, descriptor)))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn reports_and_descriptors_cross_the_channel() {
        let (ours, theirs) =
            socketpair(AddressFamily::UNIX, SocketType::SEQPACKET, SocketFlags::CLOEXEC, None).unwrap();
        let helper = Helper { channel: ours, deadline: Instant::now() + Duration::from_secs(5) };
        report(&theirs, &Report::Pid(7), None);
        report(&theirs, &Report::Terminal, Some(theirs.as_fd()));
        let failed = Report::Failed { kind: Kind::Denied, message: "no".into() };
        report(&theirs, &failed, None);
        helper.send(&helper.channel).unwrap();
        assert!(receive_descriptor(&theirs).is_ok());
        drop(theirs);
        assert!(matches!(helper.next(), Ok(Some((Report::Pid(7), None)))));
        assert!(matches!(helper.next(), Ok(Some((Report::Terminal, Some(_))))));
        assert_eq!(helper.next().unwrap_err().kind, Kind::Denied);
        assert!(helper.next().unwrap().is_none());
    }
}
