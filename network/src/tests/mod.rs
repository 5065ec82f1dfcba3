//! Namespaces, veth pairs and a stand-in for the guest: a tap in a further namespace, whose kernel is the guest's, with
//! frames carried between the two taps as a monitor does. Needs root and `ip`.

mod cni;
mod forward;
mod mirror;

use std::io::{Read, Write};
use std::net::{SocketAddr, TcpListener, TcpStream};
use std::os::fd::{AsRawFd, OwnedFd};
use std::path::PathBuf;
use std::process::Command;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicU32, AtomicUsize, Ordering};
use std::thread::JoinHandle;
use std::time::Duration;

use crate::{Interface, Netns, inspect, tap};

pub(crate) const LIMIT: Duration = Duration::from_secs(20);

/// A named network namespace, removed with everything in it.
pub(crate) struct Space(String);

impl Space {
    pub fn new() -> Self {
        static NEXT: AtomicU32 = AtomicU32::new(0);
        let name = format!("cltest-{}-{}", std::process::id(), NEXT.fetch_add(1, Ordering::Relaxed));
        run("ip", &format!("netns add {name}"));
        let space = Self(name);
        space.ip("link set lo up");
        space
    }

    pub fn path(&self) -> PathBuf {
        format!("/run/netns/{}", self.0).into()
    }

    pub fn netns(&self) -> Netns {
        Netns::open(&self.path()).unwrap()
    }

    pub fn ip(&self, arguments: &str) -> String {
        run("ip", &format!("-n {} {arguments}", self.0))
    }

    pub fn tc(&self, arguments: &str) -> String {
        run("tc", &format!("-n {} {arguments}", self.0))
    }

    /// Runs a closure inside.
    pub fn enter<T: Send>(&self, job: impl FnOnce() -> T + Send) -> T {
        let netns = self.netns();
        std::thread::scope(|scope| {
            let work = scope.spawn(move || {
                let kind = Some(rustix::thread::LinkNameSpaceType::Network);
                rustix::thread::move_into_link_name_space(std::os::fd::AsFd::as_fd(&netns), kind).unwrap();
                job()
            });
            work.join().unwrap()
        })
    }

    pub fn name(&self) -> &str {
        &self.0
    }
}

impl Drop for Space {
    fn drop(&mut self) {
        let _ = Command::new("ip").args(["netns", "del", &self.0]).status();
    }
}

pub(crate) fn run(program: &str, arguments: &str) -> String {
    let output = Command::new(program).args(arguments.split_whitespace()).output().unwrap();
    let said = String::from_utf8_lossy(&output.stderr);
    assert!(output.status.success(), "{program} {arguments}: {said}");
    String::from_utf8(output.stdout).unwrap()
}

/// A host side and a pod side joined by a veth pair: `out` and `eth0`.
pub(crate) fn pair() -> (Space, Space) {
    let (host, pod) = (Space::new(), Space::new());
    veth(&host, "out", &pod, "eth0");
    host.ip("addr add 10.9.0.1/24 dev out");
    host.ip("addr add fd09::1/64 dev out nodad");
    pod.ip("addr add 10.9.0.2/24 dev eth0");
    pod.ip("addr add fd09::2/64 dev eth0 nodad");
    pod.ip("route add default via 10.9.0.1");
    pod.ip("route add default via fd09::1");
    (host, pod)
}

pub(crate) fn veth(a: &Space, a_name: &str, b: &Space, b_name: &str) {
    a.ip(&format!("link add {a_name} type veth peer name {b_name} netns {}", b.name()));
    a.ip(&format!("link set {a_name} up"));
    b.ip(&format!("link set {b_name} up"));
}

/// What stands for a guest: a namespace that is given what the pod has, and frames carried to it.
pub(crate) struct Guest {
    pub space: Space,
    /// Length of the longest frame carried.
    pub longest: Arc<AtomicUsize>,
    stop: Arc<AtomicBool>,
    pumps: Vec<JoinHandle<()>>,
}

impl Guest {
    /// Configures a namespace as the agent configures a guest, and joins it with the taps.
    pub fn new(interfaces: &[Interface], taps: Vec<OwnedFd>) -> Self {
        let space = Space::new();
        let (longest, stop) = (Arc::default(), Arc::new(AtomicBool::new(false)));
        let mut pumps = Vec::new();
        for (interface, tap) in interfaces.iter().zip(taps) {
            let name = interface.name.clone();
            let inner = space.enter(move || tap::create(&name).unwrap());
            for fd in [&tap, &inner] {
                // What a guest's driver negotiates: checksums and segments of any size may be left to the other side.
                let offloads = libc::TUN_F_CSUM | libc::TUN_F_TSO4 | libc::TUN_F_TSO6;
                // SAFETY: the request takes a number.
                assert_eq!(unsafe { libc::ioctl(fd.as_raw_fd(), libc::TUNSETOFFLOAD, offloads) }, 0);
            }
            configure(&space, interface);
            let (longest, stop) = (Arc::clone(&longest), stop.clone());
            pumps.push(std::thread::spawn(move || pump(&tap, &inner, &longest, &stop)));
        }
        Self { space, longest, stop, pumps }
    }
}

impl Drop for Guest {
    fn drop(&mut self) {
        self.stop.store(true, Ordering::Relaxed);
        for pump in self.pumps.drain(..) {
            let _ = pump.join();
        }
    }
}

fn configure(space: &Space, interface: &Interface) {
    let Interface { name, mtu, .. } = interface;
    let mac = interface.mac.map(|b| format!("{b:02x}")).join(":");
    space.ip(&format!("link set {name} address {mac} mtu {mtu}"));
    space.ip(&format!("link set {name} up"));
    for prefix in &interface.addresses {
        let nodad = if prefix.address.is_ipv6() { "nodad" } else { "" };
        space.ip(&format!("addr add {}/{} dev {name} noprefixroute {nodad}", prefix.address, prefix.length));
    }
    for route in &interface.routes {
        let mut line = format!("route add {}/{}", route.destination.address, route.destination.length);
        line += &format!(" scope {} metric {}", route.scope, route.metric);
        if let Some(source) = route.source {
            line += &format!(" src {source}");
        }
        for hop in &route.hops {
            line += if route.hops.len() > 1 { " nexthop" } else { "" };
            if let Some(gateway) = hop.gateway {
                line += &format!(" via {gateway}");
            }
            line += &format!(" dev {}", hop.interface);
            if hop.on_link {
                line += " onlink";
            }
        }
        space.ip(&line);
    }
}

/// Carries frames both ways, each with its `virtio_net_hdr`.
fn pump(a: &OwnedFd, b: &OwnedFd, longest: &AtomicUsize, stop: &AtomicBool) {
    use rustix::event::{PollFd, PollFlags, Timespec, poll};

    let mut buffer = vec![0; 80 << 10];
    let limit = Timespec { tv_sec: 0, tv_nsec: 50_000_000 };
    while !stop.load(Ordering::Relaxed) {
        let mut fds = [PollFd::new(a, PollFlags::IN), PollFd::new(b, PollFlags::IN)];
        poll(&mut fds, Some(&limit)).unwrap();
        for (from, to) in [(a, b), (b, a)] {
            while let Ok(length) = rustix::io::read(from, &mut buffer) {
                longest.fetch_max(length, Ordering::Relaxed);
                // A full queue loses frames, as networks do.
                let _ = rustix::io::write(to, &buffer[..length]);
            }
        }
    }
}

/// Waits until every address is usable: a connection begun earlier takes another interface's.
pub(crate) fn settle(space: &Space) {
    let began = std::time::Instant::now();
    while !space.ip("-6 addr show tentative").is_empty() {
        assert!(began.elapsed() < LIMIT);
        std::thread::sleep(Duration::from_millis(20));
    }
}

/// The pod's interfaces, mirrored and joined with a guest.
pub(crate) async fn guest_of(pod: &Space) -> (Vec<Interface>, Guest) {
    let netns = pod.netns();
    let interfaces = inspect(&netns).await.unwrap();
    let taps = crate::mirror(&netns, &interfaces).await.unwrap();
    let guest = Guest::new(&interfaces, taps);
    (interfaces, guest)
}

/// Sends `length` bytes to a server in another namespace, which answers with their sum; returns the time it took.
pub(crate) fn transfer(from: &Space, to: &Space, listen: &str, connect: &str, length: usize) -> Duration {
    let listener = to.enter(|| TcpListener::bind(listen).unwrap());
    let address: SocketAddr = connect.parse().unwrap();
    let bytes: Vec<u8> = (0..length).map(|n| (n * 7 + n / 251) as u8).collect();
    let sum =
        |bytes: &[u8]| bytes.iter().fold(7u64, |sum, &b| sum.wrapping_mul(31).wrapping_add(u64::from(b)));
    let server = std::thread::spawn(move || {
        let (mut stream, _) = listener.accept().unwrap();
        let mut all = Vec::new();
        stream.read_to_end(&mut all).unwrap();
        stream.write_all(&sum(&all).to_be_bytes()).unwrap();
    });
    let mut stream = match from.enter(|| TcpStream::connect_timeout(&address, LIMIT)) {
        Ok(stream) => stream,
        Err(error) => {
            let state =
                |space: &Space| ["addr", "route", "-6 route", "neigh"].map(|what| space.ip(what)).join("");
            panic!("{connect}: {error}\nfrom\n{}to\n{}", state(from), state(to));
        }
    };
    stream.set_read_timeout(Some(LIMIT)).unwrap();
    let began = std::time::Instant::now();
    stream.write_all(&bytes).unwrap();
    stream.shutdown(std::net::Shutdown::Write).unwrap();
    let mut answer = [0; 8];
    stream.read_exact(&mut answer).unwrap();
    assert_eq!(u64::from_be_bytes(answer), sum(&bytes));
    server.join().unwrap();
    began.elapsed()
}
