//! Carries connections from the machine's loopback interface to the same port on a cell's.

use std::io;
use std::net::{Ipv4Addr, Shutdown, TcpListener, TcpStream};
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::thread::JoinHandle;

use anyhow::{Context, Result};
use rustix::thread::{LinkNameSpaceType, move_into_link_name_space};

use crate::cell::Cell;

/// A port of the machine that leads into a cell as long as this value lives.
pub struct Relay {
    port: u16,
    ended: Arc<AtomicBool>,
    thread: Option<JoinHandle<()>>,
}

impl Relay {
    /// Takes a free port. Nobody needs to listen inside yet: such a connection is closed at once.
    pub fn new(cell: &Cell) -> Result<Relay> {
        let listener = TcpListener::bind((Ipv4Addr::LOCALHOST, 0)).context("no free port")?;
        let port = listener.local_addr()?.port();
        let network = cell.network()?;
        let ended = Arc::new(AtomicBool::new(false));
        let flag = Arc::clone(&ended);
        // The listener stays in the network that it was made in; the thread's new sockets are the cell's.
        let thread = std::thread::Builder::new().name(format!("relay-{port}")).spawn(move || {
            if let Err(error) = move_into_link_name_space(
                std::os::fd::AsFd::as_fd(&network),
                Some(LinkNameSpaceType::Network),
            ) {
                eprintln!("relay {port}: cannot enter the cell's network: {error}");
                return;
            }
            drop(network);
            while let Ok((outside, _)) = listener.accept() {
                if flag.load(Ordering::Acquire) {
                    return;
                }
                if let Ok(inside) = TcpStream::connect((Ipv4Addr::LOCALHOST, port)) {
                    carry(&outside, &inside);
                }
            }
        })?;
        Ok(Relay { port, ended, thread: Some(thread) })
    }

    /// The number of the port, outside and inside.
    pub fn port(&self) -> u16 {
        self.port
    }
}

/// Copies both ways on threads that end with the connection, at the latest when the cell does.
fn carry(outside: &TcpStream, inside: &TcpStream) {
    for (from, to) in [(outside, inside), (inside, outside)] {
        let (Ok(mut from), Ok(mut to)) = (from.try_clone(), to.try_clone()) else { return };
        std::thread::spawn(move || {
            let _ = io::copy(&mut from, &mut to);
            let _ = to.shutdown(Shutdown::Write);
            let _ = from.shutdown(Shutdown::Read);
        });
    }
}

impl Drop for Relay {
    fn drop(&mut self) {
        self.ended.store(true, Ordering::Release);
        let _ = TcpStream::connect((Ipv4Addr::LOCALHOST, self.port));
        if let Some(thread) = self.thread.take() {
            let _ = thread.join();
        }
    }
}
