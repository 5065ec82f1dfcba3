//! The device's one thread: waits for the front end, the guest's kicks, sockets and commands, and moves packets.

use std::os::fd::{AsFd, AsRawFd, BorrowedFd, OwnedFd};
use std::os::unix::net::UnixStream;
use std::sync::mpsc::Receiver;
use std::sync::{Arc, Mutex, PoisonError};
use std::time::{Duration, Instant};

use rustix::event::Timespec;
use rustix::event::epoll;
use vhost::vhost_user::{BackendReqHandler, Error as VhostError};

use crate::backend::{Backend, RX, TX};
use crate::config::Config;
use crate::dial::{Command, Waiter};
use crate::error::Error;
use crate::hybrid::{Hybrid, host_ports};
use crate::metrics::Counters;
use crate::mux::Mux;
use crate::token::Token;

/// Events taken from the kernel at once.
const EVENTS: usize = 256;
/// Time for the front end to finish a message it has begun.
const FRONTEND_TIMEOUT: Duration = Duration::from_secs(10);

/// Everything the thread owns.
pub(crate) struct Worker {
    epoll: Arc<OwnedFd>,
    wake: Arc<OwnedFd>,
    commands: Receiver<Command>,
    backend: Arc<Mutex<Backend>>,
    /// `None` once the front end has gone.
    frontend: Option<BackendReqHandler<Mutex<Backend>>>,
    mux: Mux,
    hybrid: Option<Hybrid>,
    connect_timeout: Duration,
    linger: Duration,
    /// The front end has gone; what the guest sent may be read by the host side until then.
    ends_at: Option<Instant>,
}

impl Worker {
    pub(crate) fn new(
        config: Config,
        frontend: UnixStream,
        commands: Receiver<Command>,
        wake: Arc<OwnedFd>,
        counters: Arc<Counters>,
    ) -> Result<Self, Error> {
        let system = |what| move |source: rustix::io::Errno| Error::System { what, source: source.into() };
        let io = |what| move |source: std::io::Error| Error::System { what, source };
        let epoll =
            Arc::new(epoll::create(epoll::CreateFlags::CLOEXEC).map_err(system("making an epoll set"))?);
        let add = |fd: BorrowedFd<'_>, token: Token| {
            epoll::add(epoll.as_fd(), fd, epoll::EventData::new_u64(token.pack()), epoll::EventFlags::IN)
        };
        frontend.set_nonblocking(false).map_err(io("preparing the vhost-user socket"))?;
        frontend.set_read_timeout(Some(FRONTEND_TIMEOUT)).map_err(io("preparing the vhost-user socket"))?;
        frontend.set_write_timeout(Some(FRONTEND_TIMEOUT)).map_err(io("preparing the vhost-user socket"))?;
        add(frontend.as_fd(), Token::Frontend).map_err(system("watching the vhost-user socket"))?;
        add(wake.as_fd(), Token::Wake).map_err(system("watching an event descriptor"))?;

        let limits = &config.limits;
        let (connect_timeout, linger) = (limits.connect_timeout, limits.linger);
        let hybrid = match &config.socket {
            Some(path) => Some(Hybrid::listen(path, epoll.clone(), connect_timeout)?),
            None => None,
        };
        let host_ports = host_ports(config.socket.clone());
        let backend = Arc::new(Mutex::new(Backend::new(config.guest_cid, epoll.clone())));
        Ok(Self {
            frontend: Some(BackendReqHandler::from_stream(frontend, backend.clone())),
            mux: Mux::new(config, epoll.clone(), counters, host_ports),
            epoll,
            wake,
            commands,
            backend,
            hybrid,
            connect_timeout,
            linger,
            ends_at: None,
        })
    }

    /// Runs until the front end has gone or [`Command::Stop`].
    pub(crate) fn run(mut self) {
        let mut events = Vec::with_capacity(EVENTS);
        let mut busy = false;
        loop {
            events.clear();
            let timeout = if busy { Some(Duration::ZERO) } else { self.timeout() };
            let timeout = timeout.and_then(|t| Timespec::try_from(t).ok());
            match epoll::wait(
                self.epoll.as_fd(),
                rustix::buffer::spare_capacity(&mut events),
                timeout.as_ref(),
            ) {
                Ok(_) | Err(rustix::io::Errno::INTR) => {}
                Err(error) => {
                    tracing::error!(%error, "vsock: waiting for events failed, the device stops");
                    return self.mux.end();
                }
            }
            for event in &events {
                let (data, flags) = (event.data, event.flags);
                if let Some(token) = Token::unpack(data.u64())
                    && !self.on_event(token, flags)
                {
                    return self.mux.end();
                }
            }
            let now = Instant::now();
            self.mux.expire(now);
            if let Some(hybrid) = &mut self.hybrid {
                hybrid.expire(now);
            }
            if let Some(at) = self.ends_at
                && (at <= now || !self.mux.holds_data())
            {
                return;
            }
            busy = self.move_packets();
        }
    }

    /// Time until something runs out. `None`: never.
    fn timeout(&self) -> Option<Duration> {
        let deadlines =
            [self.mux.next_deadline(), self.hybrid.as_ref().and_then(Hybrid::next_deadline), self.ends_at];
        // A millisecond more, so that the deadline has passed when we wake.
        deadlines
            .into_iter()
            .flatten()
            .min()
            .map(|at| at.saturating_duration_since(Instant::now()) + Duration::from_millis(1))
    }

    /// `false`: stop.
    fn on_event(&mut self, token: Token, flags: epoll::EventFlags) -> bool {
        match token {
            Token::Frontend => self.on_frontend(),
            Token::Kick(index) => {
                let backend = self.backend.lock().unwrap_or_else(PoisonError::into_inner);
                if let Some(ring) = backend.rings.get(usize::from(index)) {
                    ring.drain_kick();
                }
            }
            Token::Wake => {
                let mut count = [0; 8];
                let _ = rustix::io::read(&self.wake, &mut count);
                return self.on_commands();
            }
            Token::Listener => {
                if let Some(hybrid) = &mut self.hybrid {
                    hybrid.on_listener();
                }
            }
            Token::Greeting(id) => {
                if let Some((stream, port)) = self.hybrid.as_mut().and_then(|hybrid| hybrid.on_greeting(id)) {
                    self.mux.dial(port, stream, Waiter::Hybrid, Instant::now() + self.connect_timeout);
                }
            }
            Token::Conn(id) => self.mux.on_socket(id, flags),
        }
        true
    }

    fn on_commands(&mut self) -> bool {
        while let Ok(command) = self.commands.try_recv() {
            match command {
                Command::Dial { port, waiter, .. } if self.ends_at.is_some() => {
                    waiter.failed(port, crate::dial::Failure::Closed);
                }
                Command::Dial { port, ours, waiter, deadline } => self.mux.dial(port, ours, waiter, deadline),
                Command::Stop => return false,
            }
        }
        true
    }

    fn on_frontend(&mut self) {
        let Some(frontend) = &mut self.frontend else { return };
        if let Err(error) = frontend.handle_request() {
            match error {
                VhostError::Disconnected | VhostError::SocketBroken(_) => {
                    tracing::debug!(%error, "vsock: the VMM has gone");
                }
                error => {
                    tracing::warn!(%error, "vsock: the VMM broke the vhost-user protocol, the device stops")
                }
            }
            // SAFETY: the descriptor belongs to `frontend`, which lives to the end of this block.
            let fd = unsafe { BorrowedFd::borrow_raw(frontend.as_raw_fd()) };
            let _ = epoll::delete(self.epoll.as_fd(), fd);
            self.frontend = None;
            self.hybrid = None;
            let mut backend = self.backend.lock().unwrap_or_else(PoisonError::into_inner);
            for ring in &mut backend.rings {
                ring.enabled = false;
            }
            drop(backend);
            self.mux.end();
            self.ends_at = Some(Instant::now() + self.linger);
        }
    }

    /// `true`: there is more to do at once.
    fn move_packets(&mut self) -> bool {
        let mut backend = self.backend.lock().unwrap_or_else(PoisonError::into_inner);
        if std::mem::take(&mut backend.driver_reset) {
            self.mux.driver_reset();
        }
        let Backend { rings, memory, .. } = &mut *backend;
        let mut busy = self.mux.take_from_guest(&mut rings[TX], memory);
        busy |= self.mux.give_to_guest(&mut rings[RX], memory);
        busy
    }
}
