use std::io::Read;

use proptest::prelude::*;

use super::*;
use crate::error::DialError;
use crate::harness::{CID, DATA, run_script, write_descriptor};
use crate::header::{HEADER_LEN, SHUTDOWN_SEND};

/// The device must have answered with exactly one reset for this connection and forgotten it.
fn expect_reset(guest: &mut Guest, port: u32, host_port: u32) {
    let resets: Vec<_> = drain(guest).into_iter().filter(|(h, _)| h.op == op::RST).collect();
    assert_eq!(resets.len(), 1);
    assert_eq!((resets[0].0.dst_port, resets[0].0.src_port), (port, host_port));
    assert_eq!(guest.metrics().connections, 0);
}

#[test]
fn packets_for_no_connection_are_reset_except_resets() {
    let mut guest = guest();
    for operation in
        [op::RESPONSE, op::SHUTDOWN, op::RW, op::CREDIT_UPDATE, op::CREDIT_REQUEST, 0, 8, u16::MAX]
    {
        guest.send(&header(operation, 7, 8, 0), &[]);
        assert_eq!(guest.receive().unwrap().0.op, op::RST, "op {operation}");
    }
    guest.send(&header(op::RST, 7, 8, 0), &[]);
    assert!(guest.receive().is_none());
}

#[test]
fn a_wrong_source_is_dropped_and_a_wrong_destination_or_type_is_reset() {
    let mut guest = guest();
    for src_cid in [0, 1, 2, 4, u64::MAX, CID | 1 << 32] {
        guest.send(&Header { src_cid, ..header(op::REQUEST, 7, 8, 0) }, &[]);
        assert!(guest.receive().is_none(), "source {src_cid}");
    }
    for dst_cid in [0, 1, 3, 4, u64::MAX, 2 | 1 << 32] {
        guest.send(&Header { dst_cid, ..header(op::REQUEST, 7, 8, 0) }, &[]);
        let (reset, _) = guest.receive().unwrap();
        assert_eq!((reset.op, reset.src_cid), (op::RST, dst_cid));
    }
    for kind in [0, 2, 3, u16::MAX] {
        guest.send(&Header { kind, ..header(op::REQUEST, 7, 8, 0) }, &[]);
        let (reset, _) = guest.receive().unwrap();
        assert_eq!((reset.op, reset.kind), (op::RST, kind));
    }
}

#[test]
fn operations_that_do_not_fit_an_open_connection_end_it() {
    for operation in [op::REQUEST, op::RESPONSE, 0, 8, u16::MAX] {
        let mut guest = guest();
        let (_stream, host_port) = connect(&mut guest, 7);
        guest.send(&header(operation, 7, host_port, 0), &[]);
        expect_reset(&mut guest, 7, host_port);
    }
}

#[test]
fn operations_before_the_guest_has_accepted_end_the_dial() {
    for operation in [op::REQUEST, op::RW, op::SHUTDOWN, op::CREDIT_UPDATE, op::CREDIT_REQUEST, 0, 9] {
        let mut guest = guest();
        let dialled = guest.dial(7);
        let (request, _) = guest.receive().unwrap();
        guest.send(&header(operation, 7, request.src_port, 0), &[]);
        assert!(matches!(dialled.try_recv().unwrap(), Err(DialError::Refused { .. })), "op {operation}");
        expect_reset(&mut guest, 7, request.src_port);
    }
}

#[test]
fn an_answer_to_a_question_not_asked_yet_is_not_believed() {
    let mut guest = guest();
    let dialled = guest.dial(7);
    guest.send(&header(op::RESPONSE, 7, 1 << 30, 0), &[]);
    assert!(matches!(dialled.try_recv().unwrap(), Err(DialError::Refused { .. })));
}

#[test]
fn data_after_its_end_ends_the_connection() {
    let mut guest = guest();
    let (_stream, host_port) = connect(&mut guest, 7);
    shutdown(&mut guest, 7, host_port, SHUTDOWN_SEND);
    write(&mut guest, 7, host_port, b"more");
    expect_reset(&mut guest, 7, host_port);
}

#[test]
fn a_length_beyond_the_descriptors_ends_the_connection() {
    for len in [6u32, 4096, 1 << 20, 1 << 31, u32::MAX] {
        let mut guest = guest();
        let (_stream, host_port) = connect(&mut guest, 7);
        guest.send(&Header { len, ..header(op::RW, 7, host_port, 0) }, b"five!");
        expect_reset(&mut guest, 7, host_port);
    }
}

#[test]
fn a_length_below_the_descriptors_counts() {
    let mut guest = guest();
    let (mut stream, host_port) = connect(&mut guest, 7);
    guest.send(&Header { len: 4, ..header(op::RW, 7, host_port, 0) }, b"five!");
    let mut buffer = [0; 16];
    assert_eq!(stream.read(&mut buffer).unwrap(), 4);
}

#[test]
fn a_control_packet_with_data_ends_the_connection() {
    let mut guest = guest();
    let (_stream, host_port) = connect(&mut guest, 7);
    guest.send(&header(op::CREDIT_UPDATE, 7, host_port, 5), b"five!");
    expect_reset(&mut guest, 7, host_port);
}

#[test]
fn more_than_the_credit_ends_the_connection() {
    let mut guest = guest();
    let (_stream, host_port) = connect(&mut guest, 7);
    let mut resets = 0;
    for _ in 0..20 {
        write(&mut guest, 7, host_port, &vec![1; 64 << 10]);
        guest.check();
        resets += drain(&mut guest).iter().filter(|(h, _)| h.op == op::RST).count();
    }
    assert!(resets > 0);
    assert_eq!((guest.mux.held(), guest.metrics().connections), (0, 0));
}

#[test]
fn absurd_credit_from_the_guest_is_no_credit() {
    let mut guest = guest();
    let (mut stream, host_port) = connect(&mut guest, 7);
    std::io::Write::write_all(&mut stream, &[1; 100]).unwrap();
    // It claims to have read what it was never sent.
    guest.send(&Header { fwd_cnt: 1 << 31, ..header(op::CREDIT_UPDATE, 7, host_port, 0) }, &[]);
    assert!(drain(&mut guest).iter().all(|(h, _)| h.op != op::RW));
    guest.send(&Header { buf_alloc: u32::MAX, ..header(op::CREDIT_UPDATE, 7, host_port, 0) }, &[]);
    assert_eq!(drain(&mut guest)[0].0.len, 100);
}

#[test]
fn descriptor_chains_of_every_wrong_shape_are_used_up_and_ignored() {
    let mut guest = guest();
    let (mut stream, host_port) = connect(&mut guest, 7);
    let packet = header(op::RW, 7, host_port, 0).encode();
    vm_memory::Bytes::write_slice(&guest.mem, &packet, vm_memory::GuestAddress(DATA)).unwrap();
    let (next, write, indirect) = (1, 2, 4);
    // An indirect table that points to itself, one that never ends, and one with a bad length.
    write_descriptor(&guest.mem, 0x8_0000, (0x8_0000, 32, indirect, 0));
    for index in 0..64 {
        write_descriptor(&guest.mem, 0x9_0000 + index * 16, (DATA, 1, next, 0));
    }
    for index in 0..2000u64 {
        write_descriptor(&guest.mem, 0xa_0000 + index * 16, (DATA, 1, next, index as u16 + 1));
    }
    let before = guest.metrics().protocol_errors;
    let wrong: &[(&[crate::harness::Descriptor], u16)] = &[
        (&[], 0),                                               // a stale table
        (&[(DATA, 43, 0, 0)], 0),                               // no room for a header
        (&[(DATA, 44, write, 0)], 0),                           // not ours to read
        (&[(DATA, 0, 0, 0)], 0),                                // empty
        (&[(DATA, 20, next, 0)], 0),                            // loops
        (&[(DATA, 20, next, 1), (DATA + 20, 20, next, 99)], 0), // leads nowhere
        (&[(u64::MAX - 3, 44, 0, 0)], 0),                       // wraps around
        (&[(4 << 20, 44, 0, 0)], 0),                            // outside memory
        (&[((4 << 20) - 10, 44, 0, 0)], 0),                     // partly outside memory
        (&[(DATA, 44, next, 1), (DATA, u32::MAX, 0, 0)], 0),    // 4 GiB
        (&[(0x8_0000, 16, indirect, 0)], 0),                    // indirect within indirect
        (&[(0x9_0000, 1024, indirect, 0)], 0),                  // an endless table
        (&[(0xa_0000, 32_000, indirect, 0)], 0),                // 2,000 fragments
        (&[(0x9_0000, 17, indirect, 0)], 0),                    // half a descriptor
        (&[(0x9_0000, 0, indirect, 0)], 0),                     // an empty table
        (&[(8 << 20, 64, indirect, 0)], 0),                     // a table outside memory
    ];
    for (chain, head) in wrong {
        guest.send_raw(chain, *head);
        guest.check();
    }
    // The stale table and the chain cut at 4 GiB still hold a packet.
    assert_eq!(guest.metrics().protocol_errors - before, wrong.len() as u64 - 2);
    drop(drain(&mut guest));
    guest.send(&header(op::CREDIT_REQUEST, 7, host_port, 0), &[]);
    assert_eq!(guest.receive().unwrap().0.op, op::CREDIT_UPDATE, "the queue still works");
    guest.send_raw(&[(DATA, 44, 0, 0)], 64);
    // A head outside the table breaks the queue for good, until the driver starts anew. The connection ends with it.
    guest.send(&header(op::CREDIT_REQUEST, 7, host_port, 0), &[]);
    assert!(guest.receive().is_none());
    guest.restart();
    drop(drain(&mut guest));
    assert_eq!(stream.read(&mut [0; 1]).unwrap(), 0);
    connect(&mut guest, 7);
}

#[test]
fn an_available_index_that_runs_ahead_breaks_the_queue_and_nothing_else() {
    let mut guest = guest();
    let (mut stream, host_port) = connect(&mut guest, 7);
    guest.lie_about_available(1000);
    write(&mut guest, 7, host_port, b"never seen");
    stream.set_nonblocking(true).unwrap();
    assert_eq!(stream.read(&mut [0; 1]).unwrap_err().kind(), std::io::ErrorKind::WouldBlock);
    std::io::Write::write_all(&mut stream, b"still works").unwrap();
    assert_eq!(guest.receive().unwrap().1, b"still works");
    guest.restart();
    connect(&mut guest, 7);
}

#[test]
fn receive_buffers_of_wrong_shape_are_used_up_and_the_packet_waits_for_a_good_one() {
    let mut guest = guest();
    let _dialled = guest.dial(7);
    for sizes in [&[0u32][..], &[43], &[0, 0, 43]] {
        assert!(guest.receive_into(sizes).is_none());
    }
    assert_eq!(guest.receive_into(&[1, 2, 41]).unwrap().0.op, op::REQUEST);
    assert_eq!(guest.metrics().protocol_errors, 3);
}

#[test]
fn a_buffer_with_room_for_a_header_only_is_not_the_end_of_the_stream() {
    let mut guest = guest();
    let (mut stream, _) = connect(&mut guest, 7);
    std::io::Write::write_all(&mut stream, b"data").unwrap();
    assert!(guest.receive_into(&[HEADER_LEN as u32]).is_none());
    assert_eq!(guest.metrics().connections, 1);
}

#[test]
fn memory_stays_within_its_bound_when_every_connection_is_stuffed() {
    let limits = Limits { connections: 64, total_buffer: 4 << 20, ..Limits::default() };
    let mut guest = guest_with(limits.clone());
    let mut streams = Vec::new();
    for port in 0..64 {
        streams.push(connect(&mut guest, port));
    }
    assert!(matches!(
        guest.dial(99).try_recv().unwrap(),
        Err(DialError::TooManyConnections { limit: 64, .. })
    ));
    let mut most = 0;
    for round in 0..40 {
        for (port, (_, host_port)) in streams.iter().enumerate() {
            write(&mut guest, port as u32, *host_port, &vec![round; 16 << 10]);
            most = most.max(guest.mux.held());
            guest.check();
        }
    }
    assert!(most > limits.total_buffer / 4, "the test must fill the buffers, {most} bytes held");
}

#[test]
fn one_byte_packets_cost_what_they_hold() {
    let mut guest = guest();
    let (_stream, host_port) = connect(&mut guest, 7);
    for _ in 0..6 {
        write(&mut guest, 7, host_port, &vec![1; 60 << 10]);
    }
    drop(drain(&mut guest));
    for _ in 0..10_000 {
        write(&mut guest, 7, host_port, b"x");
    }
    assert!(guest.mux.held() <= 256 << 10, "{} held", guest.mux.held());
}

#[test]
fn requests_beyond_the_limit_are_reset_and_resets_are_bounded() {
    let dir = tempfile::tempdir().unwrap();
    let listener = std::os::unix::net::UnixListener::bind(dir.path().join("s_80")).unwrap();
    let limits = Limits { connections: 4, total_buffer: 1 << 20, ..Limits::default() };
    let mut guest = Guest::new(Config { socket: Some(dir.path().join("s")), limits, ..Config::default() });
    for port in 0..10_000 {
        guest.send(&header(op::REQUEST, port, 80, 0), &[]);
        guest.check();
    }
    let packets = drain(&mut guest);
    assert_eq!(packets.iter().filter(|(h, _)| h.op == op::RESPONSE).count(), 4);
    assert!(packets.len() <= 4 + 4096, "{} packets", packets.len());
    drop(listener);
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(256))]
    #[test]
    fn no_script_of_guest_and_host_breaks_a_bound(script in proptest::collection::vec(any::<u8>(), 0..3000)) {
        run_script(&script);
    }

    #[test]
    fn every_field_of_a_header_may_lie(fields in proptest::array::uniform32(any::<u8>()), tail in proptest::array::uniform12(any::<u8>())) {
        let mut guest = guest();
        let (_stream, host_port) = connect(&mut guest, 7);
        let mut raw = [0u8; HEADER_LEN];
        raw[..32].copy_from_slice(&fields);
        raw[32..].copy_from_slice(&tail);
        let lie = Header::decode(&raw);
        // Everything random, and then with more and more of it right.
        let mut truth = header(lie.op, 7, host_port, 0);
        (truth.len, truth.flags, truth.buf_alloc, truth.fwd_cnt) = (lie.len, lie.flags, lie.buf_alloc, lie.fwd_cnt);
        for header in [lie, Header { kind: lie.kind, ..truth }, Header { op: lie.op % 9, ..truth }] {
            guest.send(&header, &[0; 100]);
            guest.check();
            drop(drain(&mut guest));
        }
    }
}
