//! A way out for a VM without a network of its own: one `passt`, which speaks for the guest through ordinary sockets of the host.
//!
//! passt needs no privileges and gives up those it has: a user of its own, namespaces, an empty root, a filter of system calls. It
//! ends when QEMU does, as the connection between the two does.
//!
//! The guest is hostile and may send any frame. What it must not reach is the host itself, so
//! - no address stands for the host's loopback, and passt throws frames with addresses of a loopback away;
//! - passt's sockets are bound to the interface that leads out: what is behind others, and their addresses, can't be had;
//! - that interface's own address is taken for the guest's, which nobody has on that side;
//! - there is no IPv6, where an IPv4 loopback can be written in ways that passt of 2025 does not throw away;
//! - no port of the host leads in.

mod route;

use std::ffi::OsString;
use std::net::Ipv4Addr;
use std::os::fd::{AsRawFd, OwnedFd};
use std::os::unix::net::UnixStream;
use std::path::Path;
use std::process::Stdio;
use std::time::Duration;

use crate::process::{Launch, Process};
use crate::{Error, Host, Result, User};

/// Sockets that one guest can have at a time, and a few files.
const OPEN_FILES: u64 = 8192;
/// How long passt may take to say what it is.
const CHECK_LIMIT: Duration = Duration::from_secs(20);

/// Where a guest's packets leave the host, and what the guest has for it.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Egress {
    interface: String,
    address: Ipv4Addr,
}

impl Egress {
    /// The guest's address: on the wire between the guest and the host only, as nobody routes link-local addresses.
    pub const GUEST: Ipv4Addr = Ipv4Addr::new(169, 254, 1, 2);
    /// Who answers for everything else there.
    pub const GATEWAY: Ipv4Addr = Ipv4Addr::new(169, 254, 1, 1);
    /// Length of their network's prefix in bits.
    pub const PREFIX: u8 = 30;
    /// The guest's hardware address, a locally administered one.
    pub const MAC: [u8; 6] = [0x02, 0, 0, 0, 0, 1];
    /// Most bytes of a packet: a frame is copied through a socket whole, so the largest are the cheapest.
    pub const MTU: u32 = 65_520;

    /// Looks up where this host's packets leave it by now.
    ///
    /// # Errors
    /// The host has no way out by IPv4.
    pub fn find() -> Result<Self> {
        let (interface, address) = route::outward()?;
        Ok(Self::at(interface, address))
    }

    /// The way out by an interface, where the host has this address.
    pub fn at(interface: impl Into<String>, address: Ipv4Addr) -> Self {
        Self { interface: interface.into(), address }
    }

    /// The host's own address there.
    pub fn address(&self) -> Ipv4Addr {
        self.address
    }
}

/// Whether this is a `passt` that keeps a guest from the host's loopback.
///
/// # Errors
/// It can't be run, or is too old.
pub async fn check(passt: &Path) -> Result<()> {
    let failed = |source| Error::Spawn { what: "passt", path: passt.to_owned(), source };
    // The option is younger than the care for loopback addresses; versions do not always tell theirs.
    let mut command = tokio::process::Command::new(passt);
    command.args(["--map-guest-addr", "none", "--version"]).kill_on_drop(true);
    command.stdin(Stdio::null()).stdout(Stdio::null()).stderr(Stdio::null());
    let mut child = command.spawn().map_err(failed)?;
    let late = |_| Error::Timeout { what: "passt --version".into(), limit: CHECK_LIMIT };
    let status = tokio::time::timeout(CHECK_LIMIT, child.wait()).await.map_err(late)?.map_err(failed)?;
    if status.success() {
        return Ok(());
    }
    Err(Error::invalid(
        format!("passt ({})", passt.display()),
        "is too old to keep a guest from this machine's loopback; one of August 2024 or later does",
    ))
}

/// Starts the daemon; returns it with a connected socket for QEMU, on which each frame follows its length.
pub(crate) async fn start(host: &Host, user: Option<User>, egress: &Egress) -> Result<(Process, OwnedFd)> {
    let Some(program) = host.passt.clone() else {
        return Err(Error::invalid("passt", "is not installed"));
    };
    check(&program).await?;
    let (ours, theirs) = UnixStream::pair().map_err(Error::os("create passt's socket pair"))?;
    let launch = Launch {
        what: "passt",
        program,
        args: arguments(egress, theirs.as_raw_fd(), user),
        inherit: vec![theirs.into()],
        // It becomes the user that it is told by itself.
        user: None,
        netns: None,
        open_files: OPEN_FILES,
    };
    Ok((launch.start().await?, ours.into()))
}

fn arguments(egress: &Egress, socket: i32, user: Option<User>) -> Vec<OsString> {
    let mut args = vec!["--foreground".to_owned(), "--quiet".to_owned()];
    let mut add = |flag: &str, value: String| args.push(format!("{flag}={value}"));
    // QEMU's closing of the socket ends it.
    add("--fd", socket.to_string());
    if let Some(User { uid, gid }) = user {
        add("--runas", format!("{uid}:{gid}"));
    }
    add("--address", Egress::GUEST.to_string());
    add("--netmask", Egress::PREFIX.to_string());
    add("--gateway", Egress::GATEWAY.to_string());
    add("--outbound-if4", egress.interface.clone());
    add("--map-guest-addr", egress.address.to_string());
    // Nothing of the host's resolv.conf: the guest is told by others.
    for (flag, value) in
        [("--dns", "none"), ("--search", "none"), ("--tcp-ports", "none"), ("--udp-ports", "none")]
    {
        add(flag, value.to_owned());
    }
    let switches =
        ["--ipv4-only", "--no-map-gw", "--no-icmp", "--no-dhcp", "--no-dhcpv6", "--no-ndp", "--no-ra"];
    args.extend(switches.map(str::to_owned));
    args.into_iter().map(OsString::from).collect()
}

#[cfg(test)]
mod tests;
