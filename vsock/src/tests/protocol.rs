use std::io::{ErrorKind, Read, Write};
use std::net::Shutdown;
use std::os::unix::net::UnixListener;
use std::time::{Duration, Instant};

use proptest::prelude::*;

use super::*;
use crate::error::DialError;
use crate::header::{SHUTDOWN_BOTH, SHUTDOWN_RCV, SHUTDOWN_SEND};

#[test]
fn a_dial_is_accepted_and_carries_data_both_ways() {
    let mut guest = guest();
    let (mut stream, host_port) = connect(&mut guest, 1024);
    write(&mut guest, 1024, host_port, b"from the guest");
    let mut buffer = [0; 64];
    let count = stream.read(&mut buffer).unwrap();
    assert_eq!(&buffer[..count], b"from the guest");

    stream.write_all(b"from the host").unwrap();
    let (header, payload) = guest.receive().unwrap();
    assert_eq!((header.op, header.src_port, header.dst_port), (op::RW, host_port, 1024));
    assert_eq!((header.fwd_cnt, header.len as usize), (14, payload.len()));
    assert_eq!(payload, b"from the host");
}

#[test]
fn a_dial_the_guest_resets_is_refused() {
    let mut guest = guest();
    let dialled = guest.dial(9);
    let (request, _) = guest.receive().unwrap();
    guest.send(&header(op::RST, 9, request.src_port, 0), &[]);
    assert!(matches!(dialled.try_recv().unwrap(), Err(DialError::Refused { port: 9 })));
    assert_eq!(guest.metrics().connections, 0);
}

#[test]
fn a_dial_waits_for_the_driver_and_no_longer_than_its_deadline() {
    let mut guest = guest();
    let dialled = guest.dial(9);
    guest.mux.expire(Instant::now());
    assert!(dialled.try_recv().is_err(), "still waiting");
    guest.mux.expire(Instant::now() + Duration::from_secs(2));
    assert!(matches!(dialled.try_recv().unwrap(), Err(DialError::Timeout { port: 9, .. })));
    assert!(guest.receive().is_none(), "the guest never heard of it");
}

#[test]
fn a_dial_that_times_out_after_the_guest_was_asked_is_reset() {
    let mut guest = guest();
    let _dialled = guest.dial(9);
    assert_eq!(guest.receive().unwrap().0.op, op::REQUEST);
    guest.mux.expire(Instant::now() + Duration::from_secs(2));
    assert_eq!(guest.receive().unwrap().0.op, op::RST);
}

#[test]
fn a_new_driver_is_asked_again_for_connections_it_has_not_accepted() {
    let mut guest = guest();
    let dialled = guest.dial(9);
    assert_eq!(guest.receive().unwrap().0.op, op::REQUEST);
    guest.restart();
    let (request, _) = guest.receive().unwrap();
    assert_eq!(request.op, op::REQUEST);
    guest.send(&header(op::RESPONSE, 9, request.src_port, 0), &[]);
    assert!(dialled.try_recv().unwrap().is_ok());
}

#[test]
fn a_new_driver_ends_open_connections_after_their_data() {
    let mut guest = guest();
    let (mut stream, host_port) = connect(&mut guest, 1024);
    write(&mut guest, 1024, host_port, b"last words");
    guest.restart();
    let mut text = String::new();
    stream.set_nonblocking(false).unwrap();
    stream.read_to_string(&mut text).unwrap();
    assert_eq!(text, "last words");
    assert_eq!(guest.metrics().connections, 0);
    connect(&mut guest, 1024);
}

#[test]
fn the_host_ending_one_direction_leaves_the_other_open() {
    let mut guest = guest();
    let (mut stream, host_port) = connect(&mut guest, 7);
    stream.write_all(b"question").unwrap();
    stream.shutdown(Shutdown::Write).unwrap();
    let packets = drain(&mut guest);
    assert_eq!(packets[0].1, b"question");
    assert_eq!((packets[1].0.op, packets[1].0.flags), (op::SHUTDOWN, SHUTDOWN_SEND));
    write(&mut guest, 7, host_port, b"answer");
    shutdown(&mut guest, 7, host_port, SHUTDOWN_BOTH);
    let mut text = String::new();
    stream.set_nonblocking(false).unwrap();
    stream.read_to_string(&mut text).unwrap();
    assert_eq!(text, "answer");
    assert_eq!(guest.receive().unwrap().0.op, op::RST);
    assert_eq!(guest.metrics().connections, 0);
}

#[test]
fn the_guest_ending_one_direction_leaves_the_other_open() {
    let mut guest = guest();
    let (mut stream, host_port) = connect(&mut guest, 7);
    write(&mut guest, 7, host_port, b"question");
    shutdown(&mut guest, 7, host_port, SHUTDOWN_SEND);
    let mut text = String::new();
    stream.set_nonblocking(false).unwrap();
    stream.read_to_string(&mut text).unwrap();
    assert_eq!(text, "question");
    stream.write_all(b"answer").unwrap();
    assert_eq!(guest.receive().unwrap().1, b"answer");
    drop(stream);
    let (header, _) = guest.receive().unwrap();
    assert_eq!((header.op, header.flags), (op::SHUTDOWN, SHUTDOWN_BOTH));
    guest.send(&super::header(op::RST, 7, host_port, 0), &[]);
    assert_eq!(guest.metrics().connections, 0);
}

#[test]
fn a_guest_that_receives_no_more_gives_the_host_a_broken_pipe() {
    let mut guest = guest();
    let (mut stream, host_port) = connect(&mut guest, 7);
    shutdown(&mut guest, 7, host_port, SHUTDOWN_RCV);
    assert_eq!(stream.write(b"x").unwrap_err().kind(), ErrorKind::BrokenPipe);
}

#[test]
fn a_close_the_guest_never_confirms_is_reset_after_the_linger_time() {
    let mut guest = guest();
    let (stream, _) = connect(&mut guest, 7);
    drop(stream);
    assert_eq!(guest.receive().unwrap().0.op, op::SHUTDOWN);
    assert_eq!(guest.metrics().connections, 1);
    guest.mux.expire(Instant::now() + Duration::from_secs(9));
    assert_eq!(guest.receive().unwrap().0.op, op::RST);
    assert_eq!(guest.metrics().connections, 0);
}

#[test]
fn unread_input_does_not_turn_a_clean_end_into_an_error() {
    let mut guest = guest();
    let (mut stream, host_port) = connect(&mut guest, 7);
    stream.write_all(b"nobody reads this").unwrap();
    write(&mut guest, 7, host_port, b"output");
    shutdown(&mut guest, 7, host_port, SHUTDOWN_BOTH);
    let mut text = String::new();
    stream.set_nonblocking(false).unwrap();
    stream.read_to_string(&mut text).unwrap();
    assert_eq!(text, "output");
}

#[test]
fn data_for_a_host_that_does_not_read_is_held_within_the_credit_and_delivered_later() {
    let mut guest = guest();
    let (mut stream, host_port) = connect(&mut guest, 7);
    let block = vec![5u8; 64 << 10];
    // The kernel's socket buffer takes some, the device holds the rest, up to the credit it announced.
    let (mut sent, mut known) = (0u64, 0u64);
    loop {
        if sent - known + block.len() as u64 > 256 << 10 {
            match guest.receive() {
                Some((header, _)) => {
                    assert_eq!((header.op, header.buf_alloc), (op::CREDIT_UPDATE, 256 << 10));
                    known = u64::from(header.fwd_cnt);
                }
                None => break,
            }
            continue;
        }
        write(&mut guest, 7, host_port, &block);
        sent += block.len() as u64;
        guest.check();
    }
    assert!(guest.mux.held() > 128 << 10 && guest.mux.held() <= 256 << 10, "{} held", guest.mux.held());
    shutdown(&mut guest, 7, host_port, SHUTDOWN_BOTH);
    // The guest gives up waiting for the confirmation, as Linux does after 8 s: nothing of what it sent is lost.
    guest.send(&header(op::RST, 7, host_port, 0), &[]);
    let mut total = 0u64;
    let mut buffer = vec![0; 100_000];
    loop {
        guest.poll();
        match stream.read(&mut buffer) {
            Ok(0) => break,
            Ok(count) => total += count as u64,
            Err(error) => assert_eq!(error.kind(), ErrorKind::WouldBlock),
        }
    }
    assert_eq!(total, sent);
    assert_eq!((guest.mux.held(), guest.metrics().connections), (0, 0));
}

#[test]
fn a_connection_that_never_reads_does_not_hold_up_another() {
    let mut guest = guest();
    let (_stuck, stuck_port) = connect(&mut guest, 7);
    let (mut stream, host_port) = connect(&mut guest, 8);
    for _ in 0..4 {
        write(&mut guest, 7, stuck_port, &vec![1; 60_000]);
    }
    for _ in 0..100 {
        write(&mut guest, 8, host_port, b"ping");
        let mut buffer = [0; 4];
        stream.read_exact(&mut buffer).unwrap();
    }
}

#[test]
fn connections_take_turns() {
    let mut guest = guest();
    let mut streams: Vec<_> = (0..4).map(|port| connect(&mut guest, port).0).collect();
    for stream in &mut streams {
        stream.write_all(&[0; 40_000]).unwrap();
    }
    let turns: Vec<u32> = (0..40).map(|_| guest.receive().unwrap().0.dst_port).collect();
    for round in turns.chunks(4) {
        let mut round = round.to_vec();
        round.sort_unstable();
        assert_eq!(round, [0, 1, 2, 3]);
    }
}

#[test]
fn the_guests_credit_is_kept_and_asked_for_once() {
    let mut guest = guest();
    let dialled = guest.dial(7);
    let (request, _) = guest.receive().unwrap();
    guest.send(&Header { buf_alloc: 1000, ..header(op::RESPONSE, 7, request.src_port, 0) }, &[]);
    let mut stream = dialled.try_recv().unwrap().unwrap();
    stream.write_all(&[3; 2500]).unwrap();
    let packets = drain(&mut guest);
    assert_eq!(packets[0].0.len, 1000);
    assert_eq!(packets[1].0.op, op::CREDIT_REQUEST);
    assert_eq!(packets.len(), 2);
    let update =
        Header { buf_alloc: 1000, fwd_cnt: 600, ..header(op::CREDIT_UPDATE, 7, request.src_port, 0) };
    guest.send(&update, &[]);
    assert_eq!(drain(&mut guest)[0].0.len, 600);
}

#[test]
fn a_credit_request_is_answered() {
    let mut guest = guest();
    let (_stream, host_port) = connect(&mut guest, 7);
    guest.send(&header(op::CREDIT_REQUEST, 7, host_port, 0), &[]);
    assert_eq!(guest.receive().unwrap().0.op, op::CREDIT_UPDATE);
}

#[test]
fn the_guest_reaches_listeners_beside_the_hybrid_socket_and_nothing_else() {
    let dir = tempfile::tempdir().unwrap();
    let path = dir.path().join("vm.sock");
    let listener = UnixListener::bind(dir.path().join("vm.sock_80")).unwrap();
    let mut guest = Guest::new(Config { socket: Some(path), ..Config::default() });
    guest.send(&header(op::REQUEST, 5000, 80, 0), &[]);
    assert_eq!(guest.receive().unwrap().0.op, op::RESPONSE);
    let (mut stream, _) = listener.accept().unwrap();
    write(&mut guest, 5000, 80, b"GET");
    let mut buffer = [0; 3];
    stream.read_exact(&mut buffer).unwrap();
    assert_eq!(&buffer, b"GET");

    guest.send(&header(op::REQUEST, 5001, 81, 0), &[]);
    let (reset, _) = guest.receive().unwrap();
    assert_eq!((reset.op, reset.src_port, reset.dst_port), (op::RST, 81, 5001));
}

proptest! {
    #[test]
    fn any_fragmentation_of_a_packet_is_the_same_packet(
        size in 0usize..5000,
        cuts in proptest::collection::vec(0usize..300, 0..20),
    ) {
        let mut guest = guest();
        let (mut stream, host_port) = connect(&mut guest, 7);
        let data: Vec<u8> = (0..size).map(|i| i as u8).collect();
        guest.send_cut(&header(op::RW, 7, host_port, size), &data, &cuts);
        shutdown(&mut guest, 7, host_port, SHUTDOWN_BOTH);
        let mut read = Vec::new();
        stream.read_to_end(&mut read).unwrap();
        prop_assert_eq!(read, data);
        prop_assert_eq!(guest.metrics().protocol_errors, 0);
    }

    #[test]
    fn any_fragmentation_of_a_receive_buffer_holds_a_packet(sizes in proptest::collection::vec(0u32..300, 1..20)) {
        let mut guest = guest();
        let room: u32 = sizes.iter().sum();
        let (mut stream, _) = connect(&mut guest, 7);
        stream.write_all(&[9; 8000]).unwrap();
        let packet = guest.receive_into(&sizes);
        if room < 44 {
            prop_assert!(packet.is_none());
        } else if room > 44 {
            let (header, payload) = packet.unwrap();
            prop_assert_eq!(header.len, room.min(8044) - 44);
            prop_assert!(payload.iter().all(|b| *b == 9));
        }
    }
}
