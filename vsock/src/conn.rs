//! One connection: the state machine and credit of virtio 1.2 §5.10.6, over one host socket.

use std::io::{self, ErrorKind};
use std::os::fd::AsFd;
use std::os::unix::net::UnixStream;
use std::time::Instant;

use rustix::net::{RecvFlags, SendFlags, Shutdown, recv, send, shutdown};

use crate::buffer::Buffer;
use crate::dial::Waiter;
use crate::header::{HOST_CID, Header, SHUTDOWN_BOTH, SHUTDOWN_RCV, SHUTDOWN_SEND, TYPE_STREAM, op};
use crate::scatter::Scatter;

/// The ports of a connection; the CIDs are the same for all.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub(crate) struct Key {
    pub(crate) guest_port: u32,
    pub(crate) host_port: u32,
}

/// Where a connection is in its life.
#[derive(Debug)]
pub(crate) enum State {
    /// Made by the host; the guest has not answered. Holds who waits for the answer.
    Connecting {
        /// Who waits.
        waiter: Waiter,
        /// Whether the guest has been asked.
        asked: bool,
    },
    /// Both sides agreed.
    Open,
    /// The guest is gone; what it sent still goes to the host socket.
    Draining,
}

/// What the table does with a connection after a packet.
#[derive(Debug, PartialEq, Eq)]
pub(crate) enum Next {
    /// Go on.
    Keep,
    /// Tell the guest it is over, and end it.
    Reset,
    /// The guest said it is over.
    Over,
}

/// Control packets owed to the guest.
#[derive(Debug, Default)]
struct Owed {
    response: bool,
    credit_update: bool,
    credit_request: bool,
}

/// A connection.
#[derive(Debug)]
pub(crate) struct Conn {
    pub(crate) key: Key,
    pub(crate) state: State,
    pub(crate) socket: UnixStream,
    pub(crate) deadline: Option<Instant>,
    /// Is in the table's list of connections with something for the guest.
    pub(crate) queued: bool,
    owed: Owed,

    // From the guest to the host.
    pending: Buffer,
    buf_alloc: u32,
    received: u32,
    forwarded: u32,
    /// `forwarded` as the guest knows it.
    told: u32,
    writable: bool,
    /// The host side reads no more.
    deaf: bool,
    /// We shut the write side of the host socket.
    ended: bool,

    // From the host to the guest.
    sent: u32,
    peer_alloc: u32,
    peer_forwarded: u32,
    readable: bool,
    /// The host side writes no more, and everything it wrote has been passed on.
    drained: bool,
    credit_asked: bool,

    /// Shutdown flags the guest sent.
    guest_shutdown: u32,
    /// Shutdown flags we sent.
    host_shutdown: u32,
}

impl Conn {
    fn new(key: Key, state: State, socket: UnixStream, credit: usize) -> Self {
        Self {
            key,
            state,
            socket,
            deadline: None,
            queued: false,
            owed: Owed::default(),
            pending: Buffer::new(credit),
            buf_alloc: u32::try_from(credit).unwrap_or(u32::MAX),
            received: 0,
            forwarded: 0,
            told: 0,
            writable: true,
            deaf: false,
            ended: false,
            sent: 0,
            peer_alloc: 0,
            peer_forwarded: 0,
            readable: true,
            drained: false,
            credit_asked: false,
            guest_shutdown: 0,
            host_shutdown: 0,
        }
    }

    /// A connection the host asks for.
    pub(crate) fn dial(key: Key, socket: UnixStream, waiter: Waiter, credit: usize) -> Self {
        Self::new(key, State::Connecting { waiter, asked: false }, socket, credit)
    }

    /// A connection the guest asked for, and gets.
    pub(crate) fn accept(request: &Header, socket: UnixStream, credit: usize) -> Self {
        let key = Key { guest_port: request.src_port, host_port: request.dst_port };
        let mut conn = Self::new(key, State::Open, socket, credit);
        conn.owed.response = true;
        conn.learn_credit(request);
        conn
    }

    /// Bytes reserved for this connection.
    pub(crate) fn credit(&self) -> usize {
        self.buf_alloc as usize
    }

    /// Memory held for the host socket, in bytes.
    #[cfg(any(test, feature = "harness"))]
    pub(crate) fn held(&self) -> usize {
        self.pending.capacity()
    }

    /// Whether the guest has been asked for this connection, or knows it.
    pub(crate) fn known_to_guest(&self) -> bool {
        match self.state {
            State::Connecting { asked, .. } => asked,
            State::Open => true,
            State::Draining => false,
        }
    }

    /// A packet of the guest for this connection.
    pub(crate) fn on_packet(&mut self, header: &Header, payload: &mut Scatter<'_>) -> Next {
        self.learn_credit(header);
        match (header.op, &mut self.state) {
            (op::RST, _) => Next::Over,
            (op::RESPONSE, State::Connecting { asked: true, .. }) => {
                let before = std::mem::replace(&mut self.state, State::Open);
                if let State::Connecting { waiter, .. } = before {
                    waiter.accepted(self.key, &self.socket);
                }
                Next::Keep
            }
            (op::RW, State::Open) => self.on_data(payload),
            (op::SHUTDOWN, State::Open) => {
                self.guest_shutdown |= header.flags & SHUTDOWN_BOTH;
                if self.guest_shutdown & SHUTDOWN_RCV != 0 {
                    // The host side learns by EPIPE; what it wrote so far has no reader any more.
                    let _ = shutdown(&self.socket, Shutdown::Read);
                }
                self.flush();
                Next::Keep
            }
            (op::CREDIT_UPDATE, State::Open) => Next::Keep,
            (op::CREDIT_REQUEST, State::Open) => {
                self.owed.credit_update = true;
                Next::Keep
            }
            _ => Next::Reset,
        }
    }

    fn on_data(&mut self, payload: &mut Scatter<'_>) -> Next {
        let len = payload.len();
        if self.guest_shutdown & SHUTDOWN_SEND != 0 || len > self.pending.room() {
            // Data after the end, or more than its credit.
            return Next::Reset;
        }
        self.received = self.received.wrapping_add(len as u32);
        if self.pending.is_empty() && self.writable && !self.deaf {
            match payload.send(self.socket.as_fd()) {
                Ok(count) => self.forwarded = self.forwarded.wrapping_add(count as u32),
                Err(error) if error.kind() == ErrorKind::WouldBlock => self.writable = false,
                Err(_) => self.host_stopped_reading(),
            }
        }
        if self.deaf {
            self.forwarded = self.received;
        } else if payload.len() > 0 {
            self.pending.append(payload);
            self.flush();
        }
        self.consider_credit_update();
        Next::Keep
    }

    /// The host socket has news: it can be read, written, or its other end is closed.
    pub(crate) fn on_socket(&mut self, readable: bool, writable: bool, closed: bool) {
        self.readable |= readable;
        self.writable |= writable;
        if closed && !self.ended {
            self.host_stopped_reading();
        }
        self.flush();
    }

    /// Writes what is held to the host socket, as far as it takes it.
    pub(crate) fn flush(&mut self) {
        while self.writable && !self.pending.is_empty() {
            match send(&self.socket, self.pending.front(), SendFlags::DONTWAIT | SendFlags::NOSIGNAL) {
                Ok(count) => {
                    self.pending.consume(count);
                    self.forwarded = self.forwarded.wrapping_add(count as u32);
                }
                Err(rustix::io::Errno::INTR) => {}
                Err(rustix::io::Errno::AGAIN) => self.writable = false,
                Err(_) => self.host_stopped_reading(),
            }
        }
        let no_more = self.guest_shutdown & SHUTDOWN_SEND != 0 || matches!(self.state, State::Draining);
        if no_more && self.pending.is_empty() && !self.ended {
            let _ = shutdown(&self.socket, Shutdown::Write);
            self.ended = true;
        }
        self.consider_credit_update();
    }

    fn host_stopped_reading(&mut self) {
        self.deaf = true;
        self.forwarded = self.received;
        self.pending.clear();
    }

    /// Owes the guest an update when it knows of less than half its credit and there is a good deal more, or all of it.
    fn consider_credit_update(&mut self) {
        let news = self.forwarded.wrapping_sub(self.told);
        let known = self.buf_alloc.saturating_sub(self.received.wrapping_sub(self.told));
        let worth = news >= self.buf_alloc / 4 || (news > 0 && self.pending.is_empty());
        self.owed.credit_update |= known < self.buf_alloc / 2 && worth && matches!(self.state, State::Open);
    }

    fn learn_credit(&mut self, header: &Header) {
        self.peer_alloc = header.buf_alloc;
        self.peer_forwarded = header.fwd_cnt;
        if self.peer_credit() > 0 {
            self.credit_asked = false;
        }
    }

    /// Bytes the guest is ready to take. A guest that claims to have read more than it was sent gets nothing.
    fn peer_credit(&self) -> usize {
        let in_flight = self.sent.wrapping_sub(self.peer_forwarded);
        self.peer_alloc.saturating_sub(in_flight) as usize
    }

    fn may_read(&self) -> bool {
        self.readable && !self.drained && self.guest_shutdown & SHUTDOWN_RCV == 0
    }

    /// Shutdown flags the guest should have and has not.
    fn shutdown_owed(&self) -> u32 {
        let mut flags = 0;
        if self.drained {
            flags |= SHUTDOWN_SEND;
        }
        if self.deaf || (self.drained && self.ended) {
            flags |= SHUTDOWN_RCV;
        }
        flags & !self.host_shutdown
    }

    /// Whether there may be something for the guest.
    pub(crate) fn wants_guest(&self) -> bool {
        match self.state {
            State::Connecting { asked, .. } => !asked,
            State::Open => {
                let owed = self.owed.response || self.owed.credit_update || self.owed.credit_request;
                owed || self.shutdown_owed() != 0
                    || (self.may_read() && (self.peer_credit() > 0 || !self.credit_asked))
            }
            State::Draining => false,
        }
    }

    /// The next packet for the guest, its payload already in `payload`. `None`: nothing after all.
    ///
    /// # Errors
    /// When the host socket fails; the connection is over then.
    pub(crate) fn next_packet(
        &mut self,
        guest_cid: u64,
        payload: &Scatter<'_>,
    ) -> io::Result<Option<Header>> {
        let (op, len, flags) = match &mut self.state {
            State::Draining => return Ok(None),
            State::Connecting { asked: true, .. } => return Ok(None),
            State::Connecting { asked, .. } => {
                *asked = true;
                (op::REQUEST, 0, 0)
            }
            State::Open if self.owed.response => {
                self.owed.response = false;
                (op::RESPONSE, 0, 0)
            }
            State::Open => {
                let received = self.read_host(payload)?;
                let shutdown = self.shutdown_owed();
                if received > 0 {
                    (op::RW, received, 0)
                } else if shutdown != 0 {
                    self.host_shutdown |= shutdown;
                    (op::SHUTDOWN, 0, self.host_shutdown)
                } else if self.owed.credit_update {
                    (op::CREDIT_UPDATE, 0, 0)
                } else if std::mem::take(&mut self.owed.credit_request) {
                    (op::CREDIT_REQUEST, 0, 0)
                } else {
                    return Ok(None);
                }
            }
        };
        // Every packet carries the credit.
        self.owed.credit_update = false;
        self.told = self.forwarded;
        Ok(Some(Header {
            len,
            op,
            flags,
            buf_alloc: self.buf_alloc,
            fwd_cnt: self.forwarded,
            ..self.key.to_guest(guest_cid)
        }))
    }

    fn read_host(&mut self, payload: &Scatter<'_>) -> io::Result<u32> {
        if !self.may_read() || payload.len() == 0 {
            return Ok(0);
        }
        let credit = self.peer_credit();
        if credit == 0 {
            if !self.credit_asked {
                self.credit_asked = true;
                self.owed.credit_request = true;
            }
            return Ok(0);
        }
        match payload.receive(self.socket.as_fd(), credit) {
            Ok(0) => self.drained = true,
            Ok(count) => {
                // At most the credit, which is a u32.
                let count = count as u32;
                self.sent = self.sent.wrapping_add(count);
                return Ok(count);
            }
            Err(error) if error.kind() == ErrorKind::WouldBlock => self.readable = false,
            Err(error) => return Err(error),
        }
        Ok(0)
    }

    /// Both sides have said they are done, and the guest waits for its confirmation.
    pub(crate) fn waits_for_guest(&self) -> bool {
        self.host_shutdown == SHUTDOWN_BOTH
    }

    /// Nothing is left to do for the host side: the guest has ended both directions, or is gone, and has been heard out.
    pub(crate) fn is_over(&self) -> bool {
        let guest_done = self.guest_shutdown == SHUTDOWN_BOTH || matches!(self.state, State::Draining);
        guest_done && self.pending.is_empty()
    }

    /// Whether data of the guest is held.
    pub(crate) fn holds_data(&self) -> bool {
        !self.pending.is_empty()
    }

    /// Before the host socket is closed: if the guest ended in good order, the other end is to read the end of the stream, not the
    /// error that the kernel makes of bytes nobody read. After a reset that error is right.
    pub(crate) fn end_gently(&self) {
        if self.guest_shutdown != SHUTDOWN_BOTH {
            return;
        }
        let _ = shutdown(&self.socket, Shutdown::Both);
        let mut waste = [0u8; 4096];
        // Bounded: after the shutdown nothing is added to the socket's buffer.
        while matches!(recv(&self.socket, &mut waste, RecvFlags::DONTWAIT), Ok((_, count)) if count > 0) {}
    }
}

impl Key {
    /// A header for the guest, without op.
    pub(crate) fn to_guest(self, guest_cid: u64) -> Header {
        Header {
            src_cid: HOST_CID,
            dst_cid: guest_cid,
            src_port: self.host_port,
            dst_port: self.guest_port,
            kind: TYPE_STREAM,
            ..Header::default()
        }
    }
}
