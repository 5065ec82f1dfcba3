//! All connections of one device, and the packets between them and the two queues.

use std::collections::VecDeque;
use std::os::fd::{AsFd, OwnedFd};
use std::os::unix::net::UnixStream;
use std::sync::Arc;
use std::time::Instant;

use rustix::event::epoll;
use rustix::io::Errno;
use vm_memory::GuestMemoryMmap;

use crate::config::Config;
use crate::conn::{Conn, Key, Next, State};
use crate::dial::{Failure, Waiter};
use crate::header::{HEADER_LEN, HOST_CID, Header, TYPE_STREAM, op};
use crate::hybrid::HostPorts;
use crate::metrics::Counters;
use crate::ring::Ring;
use crate::scatter::Scatter;
use crate::table::Table;
use crate::token::{ConnId, Token};

/// Chains of one queue handled before the other gets its turn.
const BATCH: usize = 128;
/// Resets waiting for room in the guest's queue; more are dropped, and the guest's connection runs into its own timeout.
const MAX_RESETS: usize = 4096;

/// The multiplexer.
pub(crate) struct Mux {
    config: Config,
    epoll: Arc<OwnedFd>,
    table: Table,
    /// Connections that may have something for the guest, in the order of their turns.
    ready: VecDeque<ConnId>,
    resets: VecDeque<Header>,
    counters: Arc<Counters>,
    host_ports: HostPorts,
}

impl Mux {
    /// `host_ports` connects to what listens on a port of the host, if anything does, without waiting.
    pub(crate) fn new(
        config: Config,
        epoll: Arc<OwnedFd>,
        counters: Arc<Counters>,
        host_ports: HostPorts,
    ) -> Self {
        let table = Table::new(&config.limits);
        Self { config, epoll, table, ready: VecDeque::new(), resets: VecDeque::new(), counters, host_ports }
    }

    /// Starts a connection into the guest.
    pub(crate) fn dial(&mut self, port: u32, socket: UnixStream, waiter: Waiter, deadline: Instant) {
        let Some((credit, host_port)) = self.table.admit(port) else {
            return waiter.failed(port, Failure::Full(self.config.limits.connections));
        };
        let conn = Conn::dial(Key { guest_port: port, host_port }, socket, waiter, credit);
        let id = self.table.insert(conn);
        self.counters.connections.set(self.table.len() as u64);
        if let Err(source) = self.watch(id) {
            if let Some(conn) = self.remove(id)
                && let State::Connecting { waiter, .. } = conn.state
            {
                waiter.failed(port, Failure::System("watching a socket", source.into()));
            }
            return;
        }
        self.table.set_deadline(id, Some(deadline));
        self.enqueue(id);
    }

    /// The guest asks for a connection to the host.
    fn accept(&mut self, request: &Header) {
        // The buffer first: a guest at its limit does not get to bother the listeners.
        let Some(credit) = self.table.reserve() else {
            return self.refuse(request);
        };
        let Some(socket) = (self.host_ports)(request.dst_port) else {
            self.table.release(credit);
            return self.refuse(request);
        };
        let id = self.table.insert(Conn::accept(request, socket, credit));
        self.counters.connections.set(self.table.len() as u64);
        if self.watch(id).is_err() {
            self.remove(id);
            return self.refuse(request);
        }
        self.counters.accepted.add(1);
        self.enqueue(id);
    }

    fn watch(&self, id: ConnId) -> Result<(), Errno> {
        let Some(conn) = self.table.get(id) else { return Ok(()) };
        // Edge-triggered once and for all: the connection remembers what it may do until the kernel says it may not.
        let flags =
            epoll::EventFlags::IN | epoll::EventFlags::OUT | epoll::EventFlags::RDHUP | epoll::EventFlags::ET;
        epoll::add(self.epoll.as_fd(), &conn.socket, epoll::EventData::new_u64(Token::Conn(id).pack()), flags)
    }

    /// Takes packets from the guest. `true`: there may be more.
    pub(crate) fn take_from_guest(&mut self, ring: &mut Ring, mem: &GuestMemoryMmap) -> bool {
        ring.no_kick(mem);
        let mut more = true;
        for _ in 0..BATCH {
            let Some(chain) = ring.pop(mem) else {
                if ring.want_kick(mem) {
                    continue;
                }
                more = false;
                break;
            };
            let head = chain.head_index();
            match Scatter::readable(mem, chain) {
                Ok(packet) => self.on_packet(packet),
                Err(reason) => {
                    tracing::trace!(?reason, "vsock: refused a descriptor chain");
                    self.counters.protocol_errors.add(1);
                }
            }
            ring.push_used(mem, head, 0);
        }
        ring.signal(mem);
        more && ring.runs()
    }

    fn on_packet(&mut self, mut packet: Scatter<'_>) {
        let mut raw = [0; HEADER_LEN];
        if packet.take(&mut raw) < HEADER_LEN {
            return self.counters.protocol_errors.add(1);
        }
        let header = Header::decode(&raw);
        self.counters.from_guest_packets.add(1);
        if header.src_cid != self.config.guest_cid {
            // Not an address of this guest: nobody to answer.
            return self.counters.protocol_errors.add(1);
        }
        if header.dst_cid != HOST_CID || header.kind != TYPE_STREAM {
            // Nothing else can be reached, and nothing but streams is served.
            self.counters.protocol_errors.add(1);
            return self.refuse(&header);
        }
        let key = Key { guest_port: header.src_port, host_port: header.dst_port };
        let Some(id) = self.table.find(key) else {
            return match header.op {
                op::REQUEST => self.accept(&header),
                op::RST => {}
                _ => self.refuse(&header),
            };
        };
        let whole = packet.len() >= header.len as usize && (header.len == 0 || header.op == op::RW);
        packet.truncate(header.len as usize);
        let Some(conn) = self.table.get_mut(id) else { return };
        let connecting = matches!(conn.state, State::Connecting { .. });
        let next = if whole { conn.on_packet(&header, &mut packet) } else { Next::Reset };
        match next {
            Next::Keep => {
                if header.op == op::RW {
                    self.counters.from_guest_bytes.add(header.len.into());
                }
                if connecting {
                    self.counters.dialled.add(1);
                    self.table.set_deadline(id, None);
                }
                self.settle(id);
            }
            Next::Reset => {
                self.counters.protocol_errors.add(1);
                self.reset(id, Failure::Refused);
            }
            Next::Over => self.guest_ended(id),
        }
    }

    /// The guest reset a connection, or has forgotten it.
    fn guest_ended(&mut self, id: ConnId) {
        self.counters.resets.add(1);
        let Some(conn) = self.table.get_mut(id) else { return };
        if let State::Open = conn.state {
            // What it sent before still belongs to the host side, which may be slow to read it.
            conn.state = State::Draining;
            self.table.forget_key(id);
            self.table.set_deadline(id, None);
            if let Some(conn) = self.table.get_mut(id) {
                conn.flush();
            }
            return self.settle(id);
        }
        if let Some(conn) = self.remove(id)
            && let State::Connecting { waiter, .. } = conn.state
        {
            waiter.failed(conn.key.guest_port, Failure::Refused);
        }
    }

    /// Gives the guest what there is for it. `true`: there may be more, and room for it.
    pub(crate) fn give_to_guest(&mut self, ring: &mut Ring, mem: &GuestMemoryMmap) -> bool {
        let mut more = true;
        for _ in 0..BATCH {
            if self.resets.is_empty() && self.ready.is_empty() {
                more = false;
                break;
            }
            let Some(chain) = ring.pop(mem) else {
                if ring.want_kick(mem) {
                    continue;
                }
                more = false;
                break;
            };
            let head = chain.head_index();
            let Some((mut front, room)) = split_header(mem, chain) else {
                self.counters.protocol_errors.add(1);
                ring.push_used(mem, head, 0);
                continue;
            };
            let Some(header) = self.next_packet(&room) else {
                ring.unpop();
                more = false;
                break;
            };
            front.put(&header.encode());
            // Both are bounded by u32: the payload by the guest's credit.
            ring.push_used(mem, head, HEADER_LEN as u32 + header.len);
            self.counters.to_guest_packets.add(1);
            self.counters.to_guest_bytes.add(header.len.into());
        }
        ring.signal(mem);
        more && ring.runs()
    }

    /// The next packet for the guest: resets first, then the connections in turn, one packet each.
    fn next_packet(&mut self, room: &Scatter<'_>) -> Option<Header> {
        if let Some(reset) = self.resets.pop_front() {
            return Some(reset);
        }
        while let Some(id) = self.ready.pop_front() {
            let Some(conn) = self.table.get_mut(id) else { continue };
            conn.queued = false;
            let packet = conn.next_packet(self.config.guest_cid, room);
            let again = packet.is_err() || conn.wants_guest();
            let linger = conn.waits_for_guest() && conn.deadline.is_none();
            match packet {
                Ok(Some(header)) => {
                    if again {
                        self.enqueue(id);
                    }
                    if linger {
                        self.table.set_deadline(id, Instant::now().checked_add(self.config.limits.linger));
                    }
                    return Some(header);
                }
                Ok(None) => {}
                Err(error) => {
                    tracing::debug!(%error, "vsock: a host socket failed");
                    self.reset(id, Failure::Closed);
                    // The reset itself is the packet.
                    if let Some(reset) = self.resets.pop_front() {
                        return Some(reset);
                    }
                }
            }
        }
        None
    }

    /// News about a connection's socket.
    pub(crate) fn on_socket(&mut self, id: ConnId, flags: epoll::EventFlags) {
        use epoll::EventFlags as E;
        let Some(conn) = self.table.get_mut(id) else { return };
        let closed = flags.intersects(E::HUP | E::ERR);
        conn.on_socket(
            closed || flags.intersects(E::IN | E::RDHUP),
            closed || flags.contains(E::OUT),
            closed,
        );
        self.settle(id);
    }

    /// After anything happened to a connection: ends it if it is over, and queues it if it has something for the guest.
    fn settle(&mut self, id: ConnId) {
        let Some(conn) = self.table.get(id) else { return };
        if conn.is_over() {
            conn.end_gently();
            let known = conn.known_to_guest().then_some(conn.key);
            if let Some(key) = known {
                self.push_reset(key.to_guest(self.config.guest_cid));
            }
            self.remove(id);
        } else if conn.wants_guest() {
            self.enqueue(id);
        }
    }

    fn enqueue(&mut self, id: ConnId) {
        if let Some(conn) = self.table.get_mut(id)
            && !conn.queued
        {
            conn.queued = true;
            self.ready.push_back(id);
        }
    }

    /// Ends a connection for both sides.
    fn reset(&mut self, id: ConnId, reason: Failure) {
        let Some(conn) = self.remove(id) else { return };
        self.counters.resets.add(1);
        if conn.known_to_guest() {
            self.push_reset(conn.key.to_guest(self.config.guest_cid));
        }
        if let State::Connecting { waiter, .. } = conn.state {
            waiter.failed(conn.key.guest_port, reason);
        }
    }

    /// Answers a packet that belongs to no connection. A reset is never answered (virtio 1.2 §5.10.6.3).
    fn refuse(&mut self, header: &Header) {
        if header.op == op::RST {
            return;
        }
        self.counters.resets.add(1);
        self.push_reset(Header {
            src_cid: header.dst_cid,
            dst_cid: header.src_cid,
            src_port: header.dst_port,
            dst_port: header.src_port,
            kind: header.kind,
            ..Header::default()
        });
    }

    fn push_reset(&mut self, header: Header) {
        if self.resets.len() < MAX_RESETS {
            self.resets.push_back(Header { op: op::RST, ..header });
        }
    }

    fn remove(&mut self, id: ConnId) -> Option<Conn> {
        let conn = self.table.remove(id)?;
        if conn.queued {
            self.ready.retain(|other| *other != id);
        }
        self.counters.connections.set(self.table.len() as u64);
        Some(conn)
    }

    /// The next time something runs out.
    pub(crate) fn next_deadline(&self) -> Option<Instant> {
        self.table.next_deadline()
    }

    /// Ends what has run out.
    pub(crate) fn expire(&mut self, now: Instant) {
        while let Some(id) = self.table.expired(now) {
            self.reset(id, Failure::Timeout);
        }
    }

    /// The guest's driver started anew: it knows none of the connections. Those it has not accepted yet are asked for again.
    pub(crate) fn driver_reset(&mut self) {
        self.counters.driver_resets.add(1);
        self.resets.clear();
        for id in self.table.ids() {
            let Some(conn) = self.table.get_mut(id) else { continue };
            match &mut conn.state {
                State::Connecting { asked, .. } => {
                    *asked = false;
                    self.enqueue(id);
                }
                State::Open => self.guest_ended(id),
                State::Draining => {}
            }
        }
    }

    /// The device ends. What the guest sent may still be read by slow host sides until [`holds_data`](Self::holds_data) is false.
    pub(crate) fn end(&mut self) {
        for id in self.table.ids() {
            if matches!(self.table.get(id).map(|c| &c.state), Some(State::Connecting { .. })) {
                if let Some(conn) = self.remove(id)
                    && let State::Connecting { waiter, .. } = conn.state
                {
                    waiter.failed(conn.key.guest_port, Failure::Closed);
                }
            } else {
                self.guest_ended(id);
            }
        }
    }

    /// Whether any connection holds data of the guest.
    pub(crate) fn holds_data(&self) -> bool {
        self.table.iter().any(Conn::holds_data)
    }

    /// Memory held for host sockets, in bytes.
    #[cfg(any(test, feature = "harness"))]
    pub(crate) fn held(&self) -> usize {
        self.table.iter().map(Conn::held).sum()
    }

    /// Connections in the table.
    #[cfg(any(test, feature = "harness"))]
    pub(crate) fn connections(&self) -> usize {
        self.table.len()
    }
}

/// The device-writable part of a chain as the place of the header and the room for payload. `None`: not even a header fits.
fn split_header<'m>(
    mem: &'m GuestMemoryMmap,
    chain: virtio_queue::DescriptorChain<&'m GuestMemoryMmap>,
) -> Option<(Scatter<'m>, Scatter<'m>)> {
    let whole = Scatter::writable(mem, chain).ok()?;
    if whole.len() < HEADER_LEN {
        return None;
    }
    Some(whole.split(HEADER_LEN))
}
