//! A guest driver on plain memory: drives the device's queues byte by byte, as a hostile guest could, without a VM.
//!
//! For the tests of this crate and its fuzz target only; not part of the interface.

use std::io::{Read, Write};
use std::os::unix::net::UnixStream;
use std::sync::Arc;
use std::sync::atomic::Ordering;
use std::sync::mpsc::{Receiver, channel};
use std::time::{Duration, Instant};

use rustix::event::{Timespec, epoll};
use virtio_queue::QueueT;
use vm_memory::{Bytes, GuestAddress, GuestMemoryMmap};

use crate::config::{Config, Limits};
use crate::dial::Waiter;
use crate::error::DialError;
use crate::header::{HEADER_LEN, HOST_CID, Header, TYPE_STREAM, op};
use crate::hybrid::HostPorts;
use crate::metrics::Counters;
use crate::mux::Mux;
use crate::ring::Ring;
use crate::token::Token;

/// The CID of the pretended guest.
pub(crate) const CID: u64 = 3;
/// Size of its memory, in bytes: two regions, so that buffers can lie across their border.
const MEMORY: u64 = 4 << 20;
const BORDER: u64 = 2 << 20;
/// Descriptors of each queue.
const SIZE: u16 = 64;
/// Where packets are put: away from the queues, across the border of the regions.
pub(crate) const DATA: u64 = BORDER - 100;
const RX_DATA: u64 = 3 << 20;

/// A descriptor: address, length in bytes, flags, next.
pub(crate) type Descriptor = (u64, u32, u16, u16);

/// The driver's side of one queue.
pub(crate) struct Driver {
    base: u64,
    pub(crate) avail: u16,
    used: u16,
}

impl Driver {
    fn table(&self) -> u64 {
        self.base
    }
    fn avail_ring(&self) -> u64 {
        self.base + 0x1000
    }
    fn used_ring(&self) -> u64 {
        self.base + 0x2000
    }

    fn ring(&self) -> Ring {
        let mut ring = Ring::new();
        ring.enabled = true;
        ring.queue.set_size(SIZE);
        ring.queue.set_event_idx(true);
        let _ = ring.queue.try_set_desc_table_address(GuestAddress(self.table()));
        let _ = ring.queue.try_set_avail_ring_address(GuestAddress(self.avail_ring()));
        let _ = ring.queue.try_set_used_ring_address(GuestAddress(self.used_ring()));
        ring.queue.set_ready(true);
        ring
    }

    /// Writes `chain` to the start of the table and offers `head`.
    fn offer(&mut self, mem: &GuestMemoryMmap, chain: &[Descriptor], head: u16) {
        for (index, (addr, len, flags, next)) in chain.iter().take(usize::from(SIZE)).enumerate() {
            write_descriptor(mem, self.table() + 16 * index as u64, (*addr, *len, *flags, *next));
        }
        let slot = self.avail_ring() + 4 + 2 * u64::from(self.avail % SIZE);
        let _ = mem.write_obj(head, GuestAddress(slot));
        self.avail = self.avail.wrapping_add(1);
        let _ = mem.store(self.avail, GuestAddress(self.avail_ring() + 2), Ordering::Release);
    }

    /// The next used element: bytes written.
    fn take_used(&mut self, mem: &GuestMemoryMmap) -> Option<u32> {
        let used: u16 = mem.load(GuestAddress(self.used_ring() + 2), Ordering::Acquire).ok()?;
        if used == self.used {
            return None;
        }
        let slot = self.used_ring() + 4 + 8 * u64::from(self.used % SIZE);
        self.used = self.used.wrapping_add(1);
        mem.read_obj(GuestAddress(slot + 4)).ok()
    }
}

/// Writes one descriptor at `at`.
pub(crate) fn write_descriptor(mem: &GuestMemoryMmap, at: u64, (addr, len, flags, next): Descriptor) {
    let mut raw = [0u8; 16];
    raw[..8].copy_from_slice(&addr.to_le_bytes());
    raw[8..12].copy_from_slice(&len.to_le_bytes());
    raw[12..14].copy_from_slice(&flags.to_le_bytes());
    raw[14..].copy_from_slice(&next.to_le_bytes());
    let _ = mem.write_slice(&raw, GuestAddress(at));
}

/// The pretended guest, and the device it talks to.
pub(crate) struct Guest {
    pub(crate) mem: GuestMemoryMmap,
    pub(crate) mux: Mux,
    epoll: Arc<std::os::fd::OwnedFd>,
    pub(crate) counters: Arc<Counters>,
    pub(crate) tx: Driver,
    rx: Driver,
    tx_ring: Ring,
    rx_ring: Ring,
    /// An RX chain is with the device.
    posted: bool,
    limits: Limits,
}

/// Outcome of a dial that is under way.
pub(crate) type Dialled = Receiver<Result<UnixStream, DialError>>;

impl Guest {
    pub(crate) fn with_ports(config: Config, ports: HostPorts) -> Self {
        let ranges = [(GuestAddress(0), BORDER as usize), (GuestAddress(BORDER), (MEMORY - BORDER) as usize)];
        let mem = match GuestMemoryMmap::from_ranges(&ranges) {
            Ok(mem) => mem,
            Err(error) => unreachable!("4 MiB of memory: {error}"),
        };
        let epoll = match epoll::create(epoll::CreateFlags::CLOEXEC) {
            Ok(epoll) => Arc::new(epoll),
            Err(error) => unreachable!("an epoll set: {error}"),
        };
        let counters = Arc::new(Counters::default());
        let tx = Driver { base: 0x1_0000, avail: 0, used: 0 };
        let rx = Driver { base: 0x2_0000, avail: 0, used: 0 };
        Self {
            mux: Mux::new(config.clone(), epoll.clone(), counters.clone(), ports),
            tx_ring: tx.ring(),
            rx_ring: rx.ring(),
            mem,
            epoll,
            counters,
            tx,
            rx,
            posted: false,
            limits: config.limits,
        }
    }

    /// Lets the device see what its sockets have to say.
    pub(crate) fn poll(&mut self) {
        let mut events = Vec::with_capacity(64);
        loop {
            events.clear();
            let ready = epoll::wait(
                &self.epoll,
                rustix::buffer::spare_capacity(&mut events),
                Some(&Timespec::default()),
            );
            if !matches!(ready, Ok(count) if count > 0) {
                return;
            }
            for event in &events {
                let (data, flags) = (event.data, event.flags);
                if let Some(Token::Conn(id)) = Token::unpack(data.u64()) {
                    self.mux.on_socket(id, flags);
                }
            }
        }
    }

    /// Offers a raw chain on the TX queue and lets the device take it.
    pub(crate) fn send_raw(&mut self, chain: &[Descriptor], head: u16) {
        self.tx.offer(&self.mem, chain, head);
        self.mux.take_from_guest(&mut self.tx_ring, &self.mem);
        while self.tx.take_used(&self.mem).is_some() {}
    }

    /// Sends a packet cut into fragments of the given sizes (the last takes the rest).
    pub(crate) fn send_cut(&mut self, header: &Header, payload: &[u8], cuts: &[usize]) {
        let mut packet = header.encode().to_vec();
        packet.extend_from_slice(payload);
        let _ = self.mem.write_slice(&packet, GuestAddress(DATA));
        let mut chain = Vec::new();
        let mut at = 0;
        for size in cuts.iter().copied().chain([usize::MAX]) {
            let size = size.min(packet.len() - at);
            chain.push((DATA + at as u64, size as u32, 1, chain.len() as u16 + 1));
            at += size;
            if at == packet.len() || chain.len() == usize::from(SIZE) {
                break;
            }
        }
        if let Some(last) = chain.last_mut() {
            last.2 = 0;
        }
        self.send_raw(&chain, 0);
    }

    /// Receives one packet into a chain of fragments of the given sizes.
    pub(crate) fn receive_into(&mut self, sizes: &[u32]) -> Option<(Header, Vec<u8>)> {
        self.poll();
        if !self.posted {
            let mut at = RX_DATA;
            let mut chain: Vec<Descriptor> = Vec::new();
            for size in sizes.iter().take(usize::from(SIZE)) {
                chain.push((at, *size, 3, chain.len() as u16 + 1));
                at += u64::from(*size);
            }
            if let Some(last) = chain.last_mut() {
                last.2 = 2;
            }
            self.rx.offer(&self.mem, &chain, 0);
            self.posted = true;
        }
        self.mux.give_to_guest(&mut self.rx_ring, &self.mem);
        let len = self.rx.take_used(&self.mem)? as usize;
        self.posted = false;
        let mut packet = vec![0; len];
        self.mem.read_slice(&mut packet, GuestAddress(RX_DATA)).ok()?;
        let (header, payload) = packet.split_at_checked(HEADER_LEN)?;
        Some((Header::decode(header.try_into().ok()?), payload.to_vec()))
    }

    /// Starts a connection from the host.
    pub(crate) fn dial(&mut self, port: u32) -> Dialled {
        let (sender, receiver) = channel();
        if let Ok((ours, theirs)) = UnixStream::pair() {
            let _ = theirs.set_nonblocking(true);
            let after = Duration::from_secs(1);
            let callback = Box::new(move |outcome| drop(sender.send(outcome)));
            self.mux.dial(port, ours, Waiter::Caller { theirs, after, callback }, Instant::now() + after);
        }
        receiver
    }

    /// The driver starts anew, queues and all.
    pub(crate) fn restart(&mut self) {
        for driver in [&mut self.tx, &mut self.rx] {
            let _ = self.mem.write_slice(&[0; 0x3000], GuestAddress(driver.base));
            (driver.avail, driver.used) = (0, 0);
        }
        (self.tx_ring, self.rx_ring) = (self.tx.ring(), self.rx.ring());
        self.posted = false;
        self.mux.driver_reset();
    }

    /// What must hold whatever the guest does.
    pub(crate) fn check(&self) {
        let (held, connections) = (self.mux.held(), self.mux.connections());
        assert!(held <= self.limits.total_buffer, "{held} bytes held");
        assert!(connections <= self.limits.connections, "{connections} connections");
        assert_eq!(self.counters.connections.get(), connections as u64);
    }
}

/// A well-formed header from the guest.
pub(crate) fn header(op: u16, guest_port: u32, host_port: u32, len: usize) -> Header {
    Header {
        src_cid: CID,
        dst_cid: HOST_CID,
        src_port: guest_port,
        dst_port: host_port,
        len: len as u32,
        kind: TYPE_STREAM,
        op,
        flags: 0,
        buf_alloc: 1 << 18,
        fwd_cnt: 0,
    }
}

/// Bytes that decide what happens next.
struct Script<'a>(&'a [u8]);

impl Script<'_> {
    fn byte(&mut self) -> u8 {
        match self.0.split_first() {
            Some((first, rest)) => {
                self.0 = rest;
                *first
            }
            None => 0,
        }
    }
    fn word(&mut self) -> u64 {
        (0..8).fold(0, |word, _| word << 8 | u64::from(self.byte()))
    }
    /// One of a few likely values, or anything.
    fn pick(&mut self, likely: &[u64]) -> u64 {
        let choice = usize::from(self.byte());
        likely.get(choice % (likely.len() + 1)).copied().unwrap_or_else(|| self.word())
    }
}

/// Lets `script` act as guest and as host programs: headers with any field, chains of any shape, sockets used in any order.
///
/// # Panics
/// When a bound is exceeded: that is a bug of the device.
pub fn run_script(script: &[u8]) {
    let limits = Limits {
        connections: 8,
        connection_buffer: 16 << 10,
        total_buffer: 96 << 10,
        connect_timeout: Duration::from_secs(1),
        linger: Duration::from_secs(1),
    };
    // Every second port of the host has a listener.
    let (sender, called) = channel();
    let ports: HostPorts = Box::new(move |port| {
        let (ours, theirs) = UnixStream::pair().ok().filter(|_| port % 2 == 0)?;
        theirs.set_nonblocking(true).ok()?;
        sender.send(theirs).ok()?;
        Some(ours)
    });
    let mut guest = Guest::with_ports(Config { guest_cid: CID, socket: None, limits }, ports);
    let mut script = Script(script);
    let mut dialled: Vec<Dialled> = Vec::new();
    let mut streams: Vec<UnixStream> = Vec::new();
    let mut known: Vec<u64> = vec![0, 1 << 30];
    let mut buffer = vec![0u8; 8192];
    while !script.0.is_empty() {
        match script.byte() % 10 {
            0 => dialled.push(guest.dial(script.byte().into())),
            1..=4 => {
                let port = known.get(usize::from(script.byte()) % known.len()).copied().unwrap_or(0);
                let mut h = header(op::RW, 0, 0, 0);
                h.src_cid = script.pick(&[CID, CID, CID, CID]);
                h.dst_cid = script.pick(&[HOST_CID, HOST_CID, HOST_CID, HOST_CID]);
                h.src_port = script.byte().into();
                h.dst_port = script.pick(&[port, port, port]) as u32;
                h.kind = script.pick(&[1, 1, 1, 1, 2]) as u16;
                h.op = script.pick(&[1, 2, 2, 3, 4, 5, 5, 5, 6, 7]) as u16;
                h.flags = script.pick(&[0, 1, 2, 3]) as u32;
                h.buf_alloc = script.pick(&[1 << 18, 1 << 18, 4096, 0]) as u32;
                h.fwd_cnt = script.pick(&[0, 0, 1, 4096]) as u32;
                let size = usize::from(script.byte()) * usize::from(script.byte());
                h.len = script.pick(&[size as u64, size as u64, size as u64]) as u32;
                let cuts: Vec<usize> = (0..script.byte() % 5).map(|_| usize::from(script.byte())).collect();
                guest.send_cut(&h, &vec![7; size], &cuts);
            }
            5 => {
                let count = script.byte() % 8;
                let mut chain = Vec::new();
                for _ in 0..count {
                    let addr = script.pick(&[DATA, RX_DATA, 0x1_0000, MEMORY - 8, u64::MAX - 8]);
                    let len = script.pick(&[0, 1, 16, 44, 4096, 65536]) as u32;
                    chain.push((addr, len, script.byte().into(), (script.byte() % 9).into()));
                }
                guest.send_raw(&chain, (script.byte() % 70).into());
            }
            6 => {
                let sizes: Vec<u32> =
                    (0..script.byte() % 4 + 1).map(|_| u32::from(script.byte()) * 16).collect();
                if let Some((header, _)) = guest.receive_into(&sizes)
                    && header.op == op::REQUEST
                {
                    known.push(header.src_port.into());
                }
            }
            7 => {
                streams.extend(dialled.iter().filter_map(|d| d.try_recv().ok()).flatten());
                streams.extend(called.try_iter());
                let index = usize::from(script.byte());
                let count = streams.len().max(1);
                if let Some(stream) = streams.get_mut(index % count) {
                    match script.byte() % 4 {
                        0 => drop(stream.write(&buffer)),
                        1 => drop(stream.read(&mut buffer)),
                        2 => drop(stream.shutdown(std::net::Shutdown::Write)),
                        _ => drop(streams.remove(index % count)),
                    }
                }
            }
            8 => guest.restart(),
            _ => guest.mux.expire(Instant::now() + Duration::from_millis(u64::from(script.byte()) * 8)),
        }
        guest.poll();
        guest.check();
    }
    // When the VM ends, so does all of it.
    drop((streams, called));
    guest.mux.end();
    guest.poll();
    guest.check();
    assert_eq!(guest.mux.held(), 0);
}
