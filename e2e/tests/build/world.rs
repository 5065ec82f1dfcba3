//! A machine with a way out, in namespaces of its own, and somebody outside: a web server with a name, and who knows names.

use std::io::{Read, Write};
use std::net::{Ipv4Addr, TcpListener, UdpSocket};
use std::os::fd::AsFd;
use std::process::{Child, Command, Output, Stdio};
use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};

use cloister_e2e::cell::Cell;
use rustix::thread::{LinkNameSpaceType, move_into_link_name_space};

/// Where everybody outside is.
pub const OUTSIDE: Ipv4Addr = Ipv4Addr::new(192, 0, 2, 1);
/// Every address of the machine, and those that could stand for it.
pub const MACHINE: &str = "127.0.0.1 127.1.2.3 0.0.0.0 192.0.2.2 172.17.0.1 169.254.1.1";
/// Port of a server on all addresses of the machine.
pub const PORT: u16 = 8000;

/// A way out, a network beside it that leads nowhere, and the namespace of those outside.
const LINKS: &str = "set -e
ip netns add outside
ip link add out type veth peer name far netns outside
ip addr add 192.0.2.2/24 dev out
ip link set out up
ip route add default via 192.0.2.1
ip -n outside addr add 192.0.2.1/24 dev far
ip -n outside link set far up
ip link add side type veth peer name edge
ip addr add 172.17.0.1/16 dev side
ip link set side up
ip link set edge up";

/// The machine.
pub struct World {
    pub cell: Cell,
    asked: Arc<AtomicUsize>,
}

impl World {
    /// With `page` at `http://ANY.NAME/`.
    pub fn new(page: Vec<u8>) -> Self {
        let cell = Cell::new().unwrap();
        cell.run("sh", &["-c", LINKS]).unwrap();
        let outside = || {
            let net = std::fs::File::open("/run/netns/outside")?;
            move_into_link_name_space(net.as_fd(), Some(LinkNameSpaceType::Network))?;
            Ok::<_, std::io::Error>((TcpListener::bind((OUTSIDE, 80))?, UdpSocket::bind((OUTSIDE, 53))?))
        };
        let (web, names) = cell.inside(outside).unwrap().unwrap();
        std::thread::spawn(move || serve(&web, &page));
        std::thread::spawn(move || answer(&names));
        let own = cell.inside(|| TcpListener::bind(("0.0.0.0", PORT))).unwrap().unwrap();
        let asked = Arc::new(AtomicUsize::new(0));
        let count = Arc::clone(&asked);
        std::thread::spawn(move || {
            for _ in own.incoming() {
                count.fetch_add(1, Ordering::Relaxed);
            }
        });
        Self { cell, asked }
    }

    /// How often the machine's own server was asked.
    pub fn asked(&self) -> usize {
        self.asked.load(Ordering::Relaxed)
    }

    /// Runs a command on the machine.
    pub fn output(&self, mut command: Command) -> Output {
        let output = self.cell.inside(|| command.stdin(Stdio::null()).output()).unwrap().unwrap();
        eprintln!("{}", String::from_utf8_lossy(&output.stderr));
        output
    }

    /// Starts one, and gives what it says.
    pub fn spawn(&self, mut command: Command) -> Child {
        self.cell.spawn(command.stdin(Stdio::null()).stderr(Stdio::piped())).unwrap()
    }
}

fn serve(web: &TcpListener, page: &[u8]) {
    for stream in web.incoming() {
        let Ok(mut stream) = stream else { continue };
        let (mut request, mut byte) = (Vec::new(), [0]);
        while !request.ends_with(b"\r\n\r\n") && stream.read_exact(&mut byte).is_ok() {
            request.push(byte[0]);
        }
        let head = format!("HTTP/1.0 200 OK\r\nContent-Length: {}\r\n\r\n", page.len());
        // Who hangs up is asked no more.
        let _ = stream.write_all(head.as_bytes()).and_then(|()| stream.write_all(page));
    }
}

/// Every name is somebody's outside (RFC 1035): one address record, for questions of that type.
fn answer(names: &UdpSocket) {
    let mut packet = [0; 512];
    while let Ok((length, from)) = names.recv_from(&mut packet) {
        let query = &packet[..length];
        let Some(zero) = query.iter().skip(12).position(|byte| *byte == 0) else { continue };
        let Some(question) = query.get(12..12 + zero + 5) else { continue };
        let address = question.ends_with(&[0, 1, 0, 1]);
        let mut reply =
            [&query[..2], &[0x81, 0x80, 0, 1, 0, u8::from(address), 0, 0, 0, 0], question].concat();
        if address {
            reply.extend([0xc0, 12, 0, 1, 0, 1, 0, 0, 0, 60, 0, 4]);
            reply.extend(OUTSIDE.octets());
        }
        let _ = names.send_to(&reply, from);
    }
}
