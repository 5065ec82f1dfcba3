//! The device against a guest driver on plain memory: states and credit in `protocol`, everything a
//! guest may do wrong in `hostile`, the memory bound in `bound`.

mod bound;
mod hostile;
mod protocol;

use std::os::unix::net::UnixStream;

use crate::config::{Config, Limits};
use crate::harness::{Guest, header};
use crate::header::{HEADER_LEN, Header, op};
use crate::hybrid::host_ports;
use crate::metrics::Metrics;

impl Guest {
    /// The host ports are those of `config`.
    fn new(config: Config) -> Self {
        let ports = host_ports(config.socket.clone());
        Self::with_ports(config, ports)
    }

    fn metrics(&self) -> Metrics {
        self.counters.read()
    }

    /// Moves the TX queue's available index without offering anything.
    fn lie_about_available(&mut self, by: u16) {
        self.tx.avail = self.tx.avail.wrapping_add(by);
    }

    /// Sends a packet in the usual two descriptors.
    fn send(&mut self, header: &Header, payload: &[u8]) {
        self.send_cut(header, payload, &[HEADER_LEN]);
    }

    /// Receives one packet into a buffer as Linux offers them.
    fn receive(&mut self) -> Option<(Header, Vec<u8>)> {
        self.receive_into(&[4096])
    }
}

fn guest() -> Guest {
    Guest::new(Config::default())
}

fn guest_with(limits: Limits) -> Guest {
    Guest::new(Config { limits, ..Config::default() })
}

/// A connection to `port` the guest has accepted: the host's end and the host's port.
fn connect(guest: &mut Guest, port: u32) -> (UnixStream, u32) {
    let dialled = guest.dial(port);
    let (request, _) = guest.receive().expect("a request");
    assert_eq!((request.op, request.dst_port), (op::REQUEST, port));
    guest.send(&header(op::RESPONSE, port, request.src_port, 0), &[]);
    let stream = dialled.try_recv().expect("an outcome").expect("a connection");
    (stream, request.src_port)
}

/// Sends data on a connection.
fn write(guest: &mut Guest, port: u32, host_port: u32, data: &[u8]) {
    guest.send(&header(op::RW, port, host_port, data.len()), data);
}

fn shutdown(guest: &mut Guest, port: u32, host_port: u32, flags: u32) {
    guest.send(&Header { flags, ..header(op::SHUTDOWN, port, host_port, 0) }, &[]);
}

/// Everything the device has for the guest now.
fn drain(guest: &mut Guest) -> Vec<(Header, Vec<u8>)> {
    std::iter::from_fn(|| guest.receive()).collect()
}
