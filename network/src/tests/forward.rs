//! Connections to the namespace's loopback arrive in the guest.

use std::io;

use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::{TcpStream, UnixStream};

use super::{Space, pair};
use crate::{Forwarder, MAX_CONNECTIONS};

/// A stand-in for the agent: echoes on port 80 (after the end, what it got), refuses 81, is silent on 82.
async fn agent() -> io::Result<UnixStream> {
    let (ours, mut guest) = UnixStream::pair()?;
    tokio::spawn(async move {
        match guest.read_u16().await? {
            80 => {
                guest.write_u8(cloister_protocol::forward::CONNECTED).await?;
                let mut all = Vec::new();
                guest.read_to_end(&mut all).await?;
                guest.write_all(&all).await?;
            }
            82 => {
                guest.write_u8(cloister_protocol::forward::CONNECTED).await?;
                std::future::pending::<()>().await;
            }
            _ => guest.write_u8(cloister_protocol::forward::REFUSED).await?,
        }
        io::Result::Ok(())
    });
    Ok(ours)
}

fn connect(space: &Space, address: &'static str) -> io::Result<TcpStream> {
    let stream = space.enter(|| std::net::TcpStream::connect(address))?;
    stream.set_nonblocking(true)?;
    TcpStream::from_std(stream)
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn connections_to_either_loopback_reach_the_port_they_asked_for() {
    let (_host, pod) = pair();
    let forwarder = Forwarder::start(&pod.netns(), agent).await.unwrap();
    for address in ["127.0.0.1:80", "127.1.2.3:80", "[::1]:80"] {
        let mut stream = connect(&pod, address).unwrap();
        let question = vec![0x5a; 300_000];
        stream.write_all(&question).await.unwrap();
        stream.shutdown().await.unwrap();
        let mut answer = Vec::new();
        stream.read_to_end(&mut answer).await.unwrap();
        assert!(answer == question, "{address}: {} bytes", answer.len());
    }
    drop(forwarder);
    // The rules are gone with their owner.
    assert_eq!(connect(&pod, "127.0.0.1:80").unwrap_err().kind(), io::ErrorKind::ConnectionRefused);
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_refused_port_and_a_dead_guest_reset_the_connection() {
    let pod = Space::new();
    let refusing = Forwarder::start(&pod.netns(), agent).await.unwrap();
    for address in ["127.0.0.1:81", "[::1]:81"] {
        let mut stream = connect(&pod, address).unwrap();
        assert_eq!(stream.read_u8().await.unwrap_err().kind(), io::ErrorKind::ConnectionReset);
    }
    drop(refusing);
    let dead = || async { Err::<UnixStream, _>("the guest is gone") };
    let _forwarder = Forwarder::start(&pod.netns(), dead).await.unwrap();
    let mut stream = connect(&pod, "127.0.0.1:80").unwrap();
    assert_eq!(stream.read_u8().await.unwrap_err().kind(), io::ErrorKind::ConnectionReset);
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn connections_are_bounded_and_their_places_used_again() {
    let pod = Space::new();
    let _forwarder = Forwarder::start(&pod.netns(), agent).await.unwrap();
    let mut held: Vec<TcpStream> =
        (0..MAX_CONNECTIONS).map(|_| connect(&pod, "127.0.0.1:82").unwrap()).collect();
    let mut over = connect(&pod, "127.0.0.1:80").unwrap();
    assert_eq!(over.read_u8().await.unwrap_err().kind(), io::ErrorKind::ConnectionReset);
    // A client that resets gives its place back at once.
    let gone = held.pop().unwrap();
    rustix::net::sockopt::set_socket_linger(&gone, Some(std::time::Duration::ZERO)).unwrap();
    drop(gone);
    let began = std::time::Instant::now();
    loop {
        let mut next = connect(&pod, "127.0.0.1:80").unwrap();
        // Reset while the place is still taken.
        let _ = next.write_all(b"x").await;
        let _ = next.shutdown().await;
        if next.read_u8().await.is_ok() {
            break;
        }
        assert!(began.elapsed() < super::LIMIT);
    }
}

#[tokio::test]
async fn only_the_loopback_is_redirected() {
    let (host, pod) = pair();
    let _forwarder = Forwarder::start(&pod.netns(), agent).await.unwrap();
    let listener = host.enter(|| std::net::TcpListener::bind("10.9.0.1:80").unwrap());
    let _stream = connect(&pod, "10.9.0.1:80").unwrap();
    let (_, from) = listener.accept().unwrap();
    assert_eq!(from.ip().to_string(), "10.9.0.2");
}
