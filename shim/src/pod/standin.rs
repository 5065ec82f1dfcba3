//! What stands on the host for a container's process, which is in the guest.
//!
//! containerd tells containers apart by the process ids of their tasks: who joins the process ids of another container
//! names them `/proc/PID/ns/pid`. So each container has an id that is nobody else's as long as it lives: that of
//! a thread that only waits, in the pod's network namespace for those who look for that one through the id.

use std::fs::File;
use std::os::fd::AsFd;
use std::path::Path;
use std::sync::mpsc;

use anyhow::{Context, Result};
use rustix::thread::{LinkNameSpaceType, gettid, move_into_link_name_space};

/// Bytes of the thread's stack.
const STACK: usize = 64 << 10;

/// A waiting thread; it ends with this.
pub struct StandIn {
    /// Its number, among those of processes.
    pub pid: u32,
    _end: mpsc::Sender<()>,
}

impl StandIn {
    /// Starts the thread, in the network namespace at this path if there is one.
    pub fn start(netns: Option<&Path>) -> Result<Self> {
        let open = |path| File::open(path).context("cannot open the pod's network namespace");
        let netns = netns.map(open).transpose()?;
        let (answer, begun) = mpsc::channel();
        let (end, ended) = mpsc::channel::<()>();
        let wait = move || {
            let entered = netns.as_ref().map_or(Ok(()), |netns| {
                move_into_link_name_space(netns.as_fd(), Some(LinkNameSpaceType::Network))
            });
            drop(netns);
            let _ = answer.send(entered.map(|()| gettid().as_raw_nonzero().get().unsigned_abs()));
            // Nothing is ever sent: the other side going away is the end.
            let _ = ended.recv();
        };
        let thread = std::thread::Builder::new().name("container".to_owned()).stack_size(STACK);
        thread.spawn(wait).context("cannot start a container's thread")?;
        let pid = begun.recv()?.context("cannot enter the pod's network namespace")?;
        Ok(Self { pid, _end: end })
    }
}

#[cfg(test)]
mod tests {
    use std::time::{Duration, Instant};

    use super::*;

    #[test]
    fn each_has_a_number_of_its_own_until_it_ends() {
        let own = Path::new("/proc/self/ns/net");
        let [one, other] = [None, None].map(|netns| StandIn::start(netns).unwrap());
        assert!(one.pid != other.pid && one.pid != std::process::id());
        let seen = std::fs::read_link(format!("/proc/{}/ns/net", one.pid)).unwrap();
        assert_eq!(seen, std::fs::read_link(own).unwrap());
        let folder = format!("/proc/{}", one.pid);
        drop(one);
        let deadline = Instant::now() + Duration::from_secs(10);
        while Path::new(&folder).exists() {
            assert!(Instant::now() < deadline, "the thread stays");
            std::thread::sleep(Duration::from_millis(5));
        }
        assert!(StandIn::start(Some(Path::new("/nonexistent"))).is_err());
    }
}
