//! From the first instruction of PID 1 to serving calls.
//!
//! The order is chosen for the host, which is polling: the sockets listen before anything is mounted, so a call made
//! meanwhile waits in the kernel and is answered as soon as the rest is ready.

mod cmdline;
mod mounts;
mod power;

use std::os::fd::OwnedFd;
use std::process::ExitCode;

use cloister_protocol::ports;
use rustix::time::{ClockId, clock_gettime};

pub use cmdline::Cmdline;
pub use power::power_off;

use crate::error::{Context, Result};
use crate::log;
use crate::server;

/// What the boot found out.
pub struct Boot {
    /// Nanoseconds of CLOCK_BOOTTIME when PID 1 began.
    pub started: u64,
    /// Nanoseconds of CLOCK_BOOTTIME when its sockets listened.
    pub listening: u64,
    /// The kernel command line's part for the agent.
    pub cmdline: Cmdline,
    /// Listens on [`ports::CONTROL`].
    pub control: OwnedFd,
    /// Listens on [`ports::STREAMS`].
    pub streams: OwnedFd,
    /// Listens on [`ports::FORWARD`].
    pub forward: OwnedFd,
}

/// Nanoseconds of CLOCK_BOOTTIME.
pub fn boottime() -> u64 {
    let now = clock_gettime(ClockId::Boottime);
    u64::try_from(now.tv_sec).unwrap_or(0) * 1_000_000_000 + u64::try_from(now.tv_nsec).unwrap_or(0)
}

/// Boots and serves; returns only to power the guest off.
pub fn run() -> ExitCode {
    let started = boottime();
    std::panic::set_hook(Box::new(|panic| {
        eprintln!("cloister-agent: panic: {panic}");
        power_off();
    }));
    if let Err(error) = prepare(started).and_then(server::run) {
        eprintln!("cloister-agent: cannot serve: {error}");
    }
    power_off();
    ExitCode::FAILURE
}

fn prepare(started: u64) -> Result<Boot> {
    let control = listen(ports::CONTROL)?;
    let streams = listen(ports::STREAMS)?;
    let forward = listen(ports::FORWARD)?;
    let listening = boottime();

    mounts::switch_root()?;
    mounts::system()?;
    let cmdline = Cmdline::read();
    log::start(cmdline.log);
    crate::grow::remember_boot();
    limits();
    loopback();
    rustix::system::sethostname(b"cloister").context(|| "set the host name".into())?;
    tracing::info!(ms = boottime() / 1_000_000, "ready");
    Ok(Boot { started, listening, cmdline, control, streams, forward })
}

/// Binds a vsock port and listens on it.
fn listen(port: u32) -> Result<OwnedFd> {
    use std::os::fd::{AsRawFd, FromRawFd};
    let what = || format!("listen on vsock port {port}");
    // SAFETY: a plain system call; the result is checked before it is owned.
    let raw = unsafe {
        libc::socket(libc::AF_VSOCK, libc::SOCK_STREAM | libc::SOCK_CLOEXEC | libc::SOCK_NONBLOCK, 0)
    };
    if raw < 0 {
        return Err(std::io::Error::last_os_error()).context(what);
    }
    // SAFETY: `raw` is a descriptor that nothing else owns.
    let socket = unsafe { OwnedFd::from_raw_fd(raw) };
    // SAFETY: all zeroes is a valid `sockaddr_vm`.
    let mut address: libc::sockaddr_vm = unsafe { std::mem::zeroed() };
    address.svm_family = libc::AF_VSOCK as libc::sa_family_t;
    address.svm_port = port;
    address.svm_cid = libc::VMADDR_CID_ANY;
    let size = std::mem::size_of_val(&address) as libc::socklen_t;
    // SAFETY: `address` is a `sockaddr_vm` of `size` bytes that outlives the call.
    if unsafe { libc::bind(socket.as_raw_fd(), (&raw const address).cast(), size) } < 0 {
        return Err(std::io::Error::last_os_error()).context(what);
    }
    rustix::net::listen(&socket, 128).context(what)?;
    Ok(socket)
}

/// Keeps the agent alive and responsive beside whatever the containers do.
fn limits() {
    // Failing here costs resilience, not function: every kernel we boot allows it.
    let _ = std::fs::write("/proc/self/oom_score_adj", "-1000");
    let _ = rustix::process::setpriority_process(None, -15);
    let files = rustix::process::Rlimit { current: Some(1 << 16), maximum: Some(1 << 16) };
    let _ = rustix::process::setrlimit(rustix::process::Resource::Nofile, files);
}

/// Brings `lo` up; the kernel gives it its addresses.
fn loopback() {
    use std::os::fd::AsRawFd;
    let Ok(socket) =
        rustix::net::socket(rustix::net::AddressFamily::INET, rustix::net::SocketType::DGRAM, None)
    else {
        return; // a kernel without IPv4 has no use for it
    };
    // SAFETY: all zeroes is a valid `ifreq`.
    let mut request: libc::ifreq = unsafe { std::mem::zeroed() };
    request.ifr_name[0] = b'l' as libc::c_char;
    request.ifr_name[1] = b'o' as libc::c_char;
    request.ifr_ifru.ifru_flags = (libc::IFF_UP | libc::IFF_RUNNING) as libc::c_short;
    // SAFETY: SIOCSIFFLAGS reads an `ifreq` that outlives the call.
    if unsafe { libc::ioctl(socket.as_raw_fd(), libc::SIOCSIFFLAGS as _, &raw const request) } < 0 {
        tracing::warn!(error = %std::io::Error::last_os_error(), "cannot bring lo up");
    }
}
