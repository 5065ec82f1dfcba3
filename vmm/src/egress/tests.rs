//! Frames of a hostile guest, and where they come out. The network is one of our own: needs root, and passt.

use std::collections::BTreeSet;
use std::io::Write;
use std::net::{IpAddr, TcpListener, UdpSocket};
use std::path::PathBuf;
use std::process::Command;
use std::sync::mpsc;
use std::time::Duration;

use rustix::thread::UnshareFlags;

use super::*;

/// The port of every server.
const PORT: u16 = 8000;
/// The first source port that is tried.
const FROM: u16 = 40_000;

/// A host with a loopback, a way out with two addresses of its own, a network of its own beside, and somebody outside.
const HOST: &str = "set -e
ip link set lo up
ip link add out type veth peer name far
ip addr add 192.0.2.2/24 dev out
ip link set out up
ip link set far up
ip route add default via 192.0.2.1
ip link add side type veth peer name edge
ip addr add 172.17.0.1/16 dev side
ip link set side up
ip link set edge up
# Who is asked for outside is not on this host: its link is turned round.
ip netns add PEER
ip link set far netns PEER
ip -n PEER link set lo up
ip -n PEER addr add 192.0.2.1/24 dev far
ip -n PEER link set far up";

fn passt() -> PathBuf {
    let named = std::env::var_os("CLOISTER_PASST").map(PathBuf::from);
    let home = || PathBuf::from(std::env::var_os("HOME").expect("HOME is set"));
    let xdg = || std::env::var_os("XDG_CACHE_HOME").map_or_else(|| home().join(".cache"), PathBuf::from);
    let cache = || std::env::var_os("CLOISTER_CACHE").map_or_else(|| xdg().join("cloister"), PathBuf::from);
    named.unwrap_or_else(|| cache().join("tools/passt-trixie/bin/passt"))
}

/// This thread's network is that host, and so is that of helpers, whose thread is made by this one.
struct Place {
    peer: String,
}

impl Place {
    fn new() -> Self {
        // SAFETY: only this thread's network changes, and no thread of ours depends on it.
        unsafe { rustix::thread::unshare_unsafe(UnshareFlags::NEWNET) }.expect("this test needs root");
        let peer = format!("clegress{}", std::process::id());
        let made = Command::new("sh").args(["-c", &HOST.replace("PEER", &peer)]).status().unwrap();
        assert!(made.success());
        Self { peer }
    }
}

impl Drop for Place {
    fn drop(&mut self) {
        let _ = Command::new("ip").args(["netns", "del", &self.peer]).status();
    }
}

fn host() -> Host {
    Host { passt: Some(passt()), ..Host::debian("virtiofsd".into(), None) }
}

/// Whoever asks one of these servers is told of: by which protocol, and for which address.
fn listen() -> mpsc::Receiver<(u8, IpAddr)> {
    let (sender, asked) = mpsc::channel();
    let tcp = TcpListener::bind(("0.0.0.0", PORT)).unwrap();
    let accepted = sender.clone();
    std::thread::spawn(move || {
        for stream in tcp.incoming().flatten() {
            let _ = accepted.send((6, stream.local_addr().unwrap().ip()));
        }
    });
    let udp = UdpSocket::bind(("0.0.0.0", PORT)).unwrap();
    std::thread::spawn(move || {
        let mut text = [0; 64];
        while let Ok((length, _)) = udp.recv_from(&mut text) {
            let text = String::from_utf8_lossy(&text[..length]).into_owned();
            let _ = sender.send((17, text.parse().unwrap()));
        }
    });
    asked
}

fn sum(words: &[&[u8]]) -> u16 {
    let bytes: Vec<u8> = words.concat();
    let mut sum: u32 =
        bytes.chunks(2).map(|pair| u32::from(pair[0]) << 8 | u32::from(*pair.get(1).unwrap_or(&0))).sum();
    while sum >> 16 != 0 {
        sum = (sum & 0xffff) + (sum >> 16);
    }
    !(sum as u16)
}

fn octets(address: IpAddr) -> Vec<u8> {
    match address {
        IpAddr::V4(address) => address.octets().to_vec(),
        IpAddr::V6(address) => address.octets().to_vec(),
    }
}

/// A connection's first segment, or a datagram with its destination for text, as a frame behind its length.
fn frame(protocol: u8, port: u16, from: IpAddr, to: IpAddr) -> Vec<u8> {
    let text = to.to_string();
    let ports = [port.to_be_bytes(), PORT.to_be_bytes()].concat();
    let (mut segment, at) = match protocol {
        6 => ([&ports[..], &[0, 0, 3, 0xe8, 0, 0, 0, 0, 5 << 4, 2, 0xff, 0, 0, 0, 0, 0]].concat(), 16),
        _ => {
            let length = u16::try_from(8 + text.len()).unwrap().to_be_bytes();
            ([&ports[..], &length, &[0, 0], text.as_bytes()].concat(), 6)
        }
    };
    let length = u16::try_from(segment.len()).unwrap().to_be_bytes();
    let (from, to) = (octets(from), octets(to));
    let check = sum(&[&from, &to, &length, &[0, protocol], &segment]).to_be_bytes();
    segment[at..at + 2].copy_from_slice(&check);
    let header = if from.len() == 4 {
        let total = u16::try_from(20 + segment.len()).unwrap().to_be_bytes();
        let mut header = [&[0x45, 0], &total[..], &[0, 1, 0x40, 0, 64, protocol, 0, 0], &from, &to].concat();
        let check = sum(&[&header]).to_be_bytes();
        header[10..12].copy_from_slice(&check);
        [&[8, 0], &header[..]].concat()
    } else {
        [&[0x86, 0xdd, 0x60, 0, 0, 0], &length[..], &[protocol, 64], &from, &to].concat()
    };
    let frame = [&[0x9a, 0x55, 0x9a, 0x55, 0x9a, 0x55], &Egress::MAC[..], &header, &segment].concat();
    [&u32::try_from(frame.len()).unwrap().to_be_bytes()[..], &frame].concat()
}

#[tokio::test]
async fn whatever_frames_a_guest_makes_they_do_not_reach_this_host() {
    let place = Place::new();
    let asked = listen();
    let outside = std::thread::spawn({
        let peer = place.peer.clone();
        move || {
            let net = std::fs::File::open(format!("/run/netns/{peer}")).unwrap();
            rustix::thread::move_into_link_name_space(
                std::os::fd::AsFd::as_fd(&net),
                Some(rustix::thread::LinkNameSpaceType::Network),
            )
            .unwrap();
            listen()
        }
    });
    let outside = outside.join().unwrap();
    let egress = Egress::find().unwrap();
    assert_eq!((egress.interface.as_str(), egress.address.to_string()), ("out", "192.0.2.2".to_owned()));
    let user = Some(User { uid: 0x7000_1234, gid: 0x7000_1234 });
    let (daemon, socket) = start(&host(), user, &egress).await.unwrap();
    let mut wire = UnixStream::from(socket);
    let mut port = FROM;
    for to in [
        "127.0.0.1",
        "127.200.0.1",
        "0.0.0.0",
        "255.255.255.255",
        "169.254.1.1",
        "169.254.1.2",
        "192.0.2.2",
        "192.0.2.255",
        "172.17.0.1",
        "::1",
        "::",
        "::ffff:127.0.0.1",
        "::127.0.0.1",
        "64:ff9b::7f00:1",
        // Last, and somebody else: when these are there, so is what was sent before.
        "192.0.2.1",
    ] {
        let to: IpAddr = to.parse().unwrap();
        let own = if to.is_ipv4() { "169.254.1.2" } else { "fe80::2" };
        for from in [own, "127.0.0.1", "192.0.2.2"].map(|from| from.parse::<IpAddr>().unwrap()) {
            if from.is_ipv4() == to.is_ipv4() && (from != to) {
                for protocol in [6, 17] {
                    port += 1;
                    wire.write_all(&frame(protocol, port, from, to)).unwrap();
                }
            }
        }
    }
    let mut reached = BTreeSet::new();
    while reached.len() < 2 {
        reached.insert(outside.recv_timeout(Duration::from_secs(10)).expect("what is outside is reached"));
    }
    let far: IpAddr = "192.0.2.1".parse().unwrap();
    assert_eq!(reached, BTreeSet::from([(6, far), (17, far)]));
    tokio::time::sleep(Duration::from_millis(300)).await;
    assert_eq!(asked.try_iter().collect::<Vec<_>>(), []);

    let status = std::fs::read_to_string(format!("/proc/{}/status", daemon.id())).unwrap();
    for line in ["Uid:\t1879052852", "CapEff:\t0000000000000000", "NoNewPrivs:\t1", "Seccomp:\t2"] {
        assert!(status.contains(line), "{line}: {status}");
    }
    assert_eq!(std::fs::read_dir(format!("/proc/{}/root", daemon.id())).unwrap().count(), 0);
    // No port of the host's leads in.
    let listening = Command::new("ss").args(["-Hltun"]).output().unwrap();
    let listening = String::from_utf8(listening.stdout).unwrap();
    assert_eq!(listening.lines().count(), 2, "{listening}");
    // QEMU's end is its end.
    drop(wire);
    let end = tokio::time::timeout(Duration::from_secs(2), daemon.exited().wait()).await.unwrap();
    assert!(end.starts_with("exit code 0"), "{end}");
}

#[tokio::test]
async fn one_that_is_too_old_or_missing_is_one_clear_line() {
    let egress = Egress::at("lo", Ipv4Addr::LOCALHOST);
    for (passt, words) in [
        (None, "passt: is not installed"),
        (Some("/bin/false"), "passt (/bin/false): is too old to keep a guest from this machine's loopback"),
        (Some("/nonexistent/passt"), "cannot start passt (/nonexistent/passt): No such file"),
    ] {
        let host = Host { passt: passt.map(PathBuf::from), ..host() };
        let said = start(&host, None, &egress).await.unwrap_err().to_string();
        assert!(said.starts_with(words), "{said}");
    }
}

#[test]
fn nothing_leads_to_the_host_and_nothing_in() {
    let egress = Egress::at("eth7", Ipv4Addr::new(192, 0, 2, 2));
    let args = arguments(&egress, 5, Some(User { uid: 7, gid: 8 }));
    for flag in [
        "--ipv4-only",
        "--no-map-gw",
        "--tcp-ports=none",
        "--udp-ports=none",
        "--outbound-if4=eth7",
        "--map-guest-addr=192.0.2.2",
        "--fd=5",
        "--runas=7:8",
    ] {
        assert!(args.iter().any(|arg| arg == flag), "{flag}");
    }
}
