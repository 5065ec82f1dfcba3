//! Connections coming and going, in every way.

use std::io::{BufRead, BufReader, Read, Write};
use std::net::Shutdown;
use std::os::unix::net::{UnixListener, UnixStream};
use std::time::{Duration, Instant};

use cloister_vsock::{Config, DialError};

use crate::machine::{Machine, patient, wait_for};
use crate::wire::{ECHO_PORT, REPORT_PORT, port};

fn descriptors() -> usize {
    std::fs::read_dir("/proc/self/fd").unwrap().count()
}

/// Two descriptors for each of 1,000 connections are more than the usual soft limit.
fn raise_descriptor_limit() {
    let mut limit = libc::rlimit { rlim_cur: 0, rlim_max: 0 };
    // SAFETY: plain system calls on a local value.
    unsafe {
        assert_eq!(libc::getrlimit(libc::RLIMIT_NOFILE, &raw mut limit), 0);
        limit.rlim_cur = limit.rlim_max;
        assert_eq!(libc::setrlimit(libc::RLIMIT_NOFILE, &raw const limit), 0);
    }
}

fn ping(stream: &mut UnixStream, word: u64) {
    stream.write_all(&word.to_le_bytes()).unwrap();
    let mut back = [0; 8];
    stream.read_exact(&mut back).unwrap();
    assert_eq!(u64::from_le_bytes(back), word);
}

fn settled(vm: &Machine) {
    wait_for("all connections to end", || (vm.device.metrics().connections == 0).then_some(()));
}

#[test]
fn a_dial_before_the_guest_runs_waits_for_it() {
    let vm = Machine::start(Config::default());
    // Refused (the driver is there, the service is not yet) or accepted, but neither lost nor too early.
    let outcome = vm.device.dial(port::LAST, Duration::from_secs(30));
    assert!(matches!(outcome, Ok(_) | Err(DialError::Refused { .. })), "{outcome:?}");
    drop(vm.dial_when_up(port::LAST));
}

#[test]
fn a_dial_gives_up_at_its_deadline_while_the_guest_is_not_up() {
    let vm = Machine::start_with(Config::default(), &["-S"]);
    let start = Instant::now();
    let outcome = vm.device.dial(port::LAST, Duration::from_millis(300));
    assert!(matches!(outcome, Err(DialError::Timeout { .. })), "{outcome:?}");
    assert!(start.elapsed() >= Duration::from_millis(300) && start.elapsed() < Duration::from_secs(5));
}

#[test]
fn a_port_nobody_listens_on_is_refused() {
    let vm = Machine::boot();
    assert!(matches!(vm.device.dial(9999, Duration::from_secs(5)), Err(DialError::Refused { port: 9999 })));
}

#[test]
fn a_thousand_connections_at_a_time_and_then_one_after_the_other() {
    raise_descriptor_limit();
    let vm = Machine::boot();
    settled(&vm);
    let before = descriptors();
    let start = Instant::now();
    let mut streams: Vec<_> = (0..1000).map(|_| vm.dial(port::ECHO)).collect();
    println!("1,000 dials: {:?}", start.elapsed());
    assert_eq!(vm.device.metrics().connections, 1000);
    for (index, stream) in streams.iter_mut().enumerate() {
        stream.write_all(&index.to_le_bytes()).unwrap();
    }
    for (index, stream) in streams.iter_mut().enumerate() {
        let mut back = [0; 8];
        stream.read_exact(&mut back).unwrap();
        assert_eq!(usize::from_le_bytes(back), index);
    }
    drop(streams);
    settled(&vm);
    for word in 0..1000 {
        ping(&mut vm.dial(port::ECHO), word);
    }
    settled(&vm);
    assert_eq!(descriptors(), before, "descriptors leak");
    assert_eq!(vm.device.metrics().protocol_errors, 0);
}

#[test]
fn the_host_may_end_its_direction_first() {
    let vm = Machine::boot();
    let mut stream = vm.dial(port::AFTER_END);
    let text = vec![b'a'; 500_000];
    stream.write_all(&text).unwrap();
    stream.shutdown(Shutdown::Write).unwrap();
    let mut back = Vec::new();
    stream.read_to_end(&mut back).unwrap();
    assert!(back == text);
    drop(stream);
    settled(&vm);
}

#[test]
fn the_guest_may_end_its_direction_first() {
    let vm = Machine::start(Config::default());
    let reports = UnixListener::bind(vm.dir.path().join(format!("vm.sock_{REPORT_PORT}"))).unwrap();
    drop(vm.dial_when_up(port::LAST));
    let mut stream = vm.dial(port::TALK_THEN_READ);
    let mut text = String::new();
    stream.read_to_string(&mut text).unwrap();
    assert_eq!(text, "said and done");
    stream.write_all(&vec![1; 300_000]).unwrap();
    drop(stream);
    let mut raw = [0; 8];
    patient(reports.accept().unwrap().0).read_exact(&mut raw).unwrap();
    assert_eq!(u64::from_le_bytes(raw), 300_000);
    settled(&vm);
}

#[test]
fn a_guest_that_never_reads_holds_up_its_own_connection_only() {
    let vm = Machine::boot();
    let mut stuck = vm.dial(port::NEVER_READ);
    stuck.set_write_timeout(Some(Duration::from_millis(500))).unwrap();
    let mut sent = 0;
    while let Ok(count) = stuck.write(&[0; 65536]) {
        sent += count;
        assert!(sent < 8 << 20, "somebody holds unbounded memory");
    }
    let mut echo = vm.dial(port::ECHO);
    for word in 0..100 {
        ping(&mut echo, word);
    }
}

#[test]
fn a_host_that_never_reads_holds_up_its_own_connection_only() {
    let vm = Machine::boot();
    let mut stuck = vm.dial(port::SOURCE);
    stuck.write_all(&10_000u64.to_le_bytes()).unwrap();
    let before = wait_for("the guest to be stuck", || {
        let before = vm.device.metrics().from_guest_bytes;
        std::thread::sleep(Duration::from_millis(300));
        (before > 0 && vm.device.metrics().from_guest_bytes == before).then_some(before)
    });
    assert!(before < 2 << 20, "{before} bytes held");
    let mut echo = vm.dial(port::ECHO);
    for word in 0..100 {
        ping(&mut echo, word);
    }
    // And it goes on when the host reads after all.
    let mut buffer = vec![0; 1 << 20];
    let mut total = 0;
    while total < 64 << 20 {
        total += stuck.read(&mut buffer).unwrap();
    }
}

#[test]
fn a_paused_guest_keeps_its_connections_and_answers_new_ones_later() {
    let mut vm = Machine::boot();
    let mut stream = vm.dial(port::ECHO);
    ping(&mut stream, 1);
    settled_to(&vm, 1);
    let (before, resets) = (descriptors(), vm.device.metrics().driver_resets);
    for round in 0..5 {
        vm.qmp("stop", "{}");
        stream.write_all(&7u64.to_le_bytes()).unwrap();
        let dialler = vm.device.dialer();
        let dialled = std::thread::spawn(move || dialler.dial(port::ECHO, Duration::from_secs(20)));
        std::thread::sleep(Duration::from_millis(50));
        vm.qmp("cont", "{}");
        let mut back = [0; 8];
        stream.read_exact(&mut back).unwrap();
        ping(&mut patient(dialled.join().unwrap().unwrap()), round);
        settled_to(&vm, 1);
    }
    assert_eq!(descriptors(), before, "descriptors leak");
    assert_eq!(vm.device.metrics().driver_resets, resets);
}

fn settled_to(vm: &Machine, connections: u64) {
    wait_for("connections to end", || (vm.device.metrics().connections == connections).then_some(()));
}

#[test]
fn a_reboot_ends_connections_and_later_ones_work() {
    let vm = Machine::boot();
    let mut stream = vm.dial(port::ECHO);
    ping(&mut stream, 1);
    let (before, resets) = (descriptors(), vm.device.metrics().driver_resets);
    drop(vm.dial(port::REBOOT));
    // The end of the stream, or an error: not silence.
    let ended = stream.read(&mut [0; 8]);
    assert!(matches!(ended, Ok(0) | Err(_)), "{ended:?}");
    drop(stream);
    ping(&mut vm.dial_when_up(port::ECHO), 2);
    assert!(vm.device.metrics().driver_resets > resets);
    settled(&vm);
    assert!(descriptors() < before, "descriptors leak");
}

#[test]
fn the_device_can_be_unplugged_and_plugged_again() {
    let mut vm = Machine::boot();
    let mut stream = vm.dial(port::ECHO);
    ping(&mut stream, 1);
    vm.qmp("device_del", r#"{"id":"vsock0"}"#);
    vm.read_qmp("DEVICE_DELETED");
    // On the same socket again.
    vm.qmp(
        "device_add",
        r#"{"driver":"vhost-user-vsock-pci","id":"vsock0","chardev":"vsock0","bus":"port0"}"#,
    );
    assert!(matches!(stream.read(&mut [0; 8]), Ok(0) | Err(_)));
    ping(&mut vm.dial_when_up(port::ECHO), 2);
}

#[test]
fn the_end_of_qemu_ends_the_device_and_everything_that_waits() {
    let mut vm = Machine::boot();
    let mut stream = vm.dial(port::ECHO);
    let dialler = vm.device.dialer();
    vm.qmp("stop", "{}");
    let waiting = std::thread::spawn(move || dialler.dial(port::ECHO, Duration::from_secs(20)));
    std::thread::sleep(Duration::from_millis(50));
    vm.crash();
    let outcome = waiting.join().unwrap();
    assert!(matches!(outcome, Err(DialError::Closed { .. })), "{outcome:?}");
    assert!(matches!(stream.read(&mut [0; 8]), Ok(0) | Err(_)));
    wait_for("the device to end", || (!vm.device.is_running()).then_some(()));
    let late = vm.device.dial(port::ECHO, Duration::from_secs(5));
    assert!(matches!(late, Err(DialError::Closed { .. })), "{late:?}");
    assert!(!vm.dir.path().join("vm.sock").exists());
}

#[test]
fn host_programs_connect_through_the_hybrid_socket() {
    let vm = Machine::boot();
    let socket = vm.dir.path().join("vm.sock");
    let mut stream = patient(UnixStream::connect(&socket).unwrap());
    // The first words for the guest may follow at once.
    write!(stream, "CONNECT {}\n12345678", port::ECHO).unwrap();
    let mut reader = BufReader::new(stream);
    let mut line = String::new();
    reader.read_line(&mut line).unwrap();
    let host_port: u32 = line.strip_prefix("OK ").unwrap().trim().parse().unwrap();
    assert!(host_port >= 1 << 30);
    let mut back = [0; 8];
    reader.read_exact(&mut back).unwrap();
    assert_eq!(&back, b"12345678");
    for wrong in ["CONNECT 9999\n", "CONNECT x\n", "GET / HTTP/1.1\r\n\r\n", "CONNECT 4294967296\n"] {
        let mut stream = patient(UnixStream::connect(&socket).unwrap());
        stream.write_all(wrong.as_bytes()).unwrap();
        assert_eq!(stream.read(&mut [0; 8]).unwrap_or(0), 0, "{wrong:?}");
    }
}

#[test]
fn the_guest_calls_the_host() {
    let vm = Machine::start(Config::default());
    let listener = UnixListener::bind(vm.dir.path().join(format!("vm.sock_{ECHO_PORT}"))).unwrap();
    drop(vm.dial_when_up(port::LAST));
    std::thread::spawn(move || {
        let mut open = Vec::new();
        for stream in listener.incoming().flatten() {
            open.push(stream.try_clone().unwrap());
            std::thread::spawn(move || drop(std::io::copy(&mut &stream, &mut &stream)));
        }
    });
    let mut stream = vm.dial(port::CALL_HOST);
    stream.write_all(&100u64.to_le_bytes()).unwrap();
    let mut raw = [0; 16];
    stream.read_exact(&mut raw).unwrap();
    assert_eq!((raw[0], raw[8]), (100, 1), "calls that worked, and the refusal");
}
