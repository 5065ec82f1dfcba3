//! The guest of the VM tests: one static program, PID 1 and the only one, with a service per vsock port.
//!
//! `wire.rs` says what each service does.

mod wire;

use std::fs::File;
use std::io::{Read, Write};
use std::mem;
use std::os::fd::{AsRawFd, FromRawFd, OwnedFd, RawFd};
use std::thread;
use std::time::Duration;

use wire::{Block, Hash, port};

// The few calls std does not make, declared here so that the program builds with plain rustc.
unsafe extern "C" {
    fn socket(domain: i32, kind: i32, protocol: i32) -> i32;
    fn bind(fd: i32, address: *const Address, size: u32) -> i32;
    fn listen(fd: i32, backlog: i32) -> i32;
    fn accept(fd: i32, address: *mut Address, size: *mut u32) -> i32;
    fn connect(fd: i32, address: *const Address, size: u32) -> i32;
    fn shutdown(fd: i32, how: i32) -> i32;
    fn reboot(command: i32) -> i32;
}

const SOCK_STREAM: i32 = 1;
const SHUT_WR: i32 = 1;
const REBOOT_RESTART: i32 = 0x0123_4567;
const AF_VSOCK: u16 = 40;
const ANY_CID: u32 = u32::MAX;
const HOST_CID: u32 = 2;

/// `struct sockaddr_vm` of `linux/vm_sockets.h`.
#[repr(C)]
struct Address {
    family: u16,
    reserved: u16,
    port: u32,
    cid: u32,
    flags: u8,
    zero: [u8; 3],
}

impl Address {
    fn new(cid: u32, port: u32) -> Self {
        Self { family: AF_VSOCK, reserved: 0, port, cid, flags: 0, zero: [0; 3] }
    }
}

fn check(result: i32, what: &str) -> RawFd {
    if result < 0 {
        println!("guest: {what}: {}", std::io::Error::last_os_error());
    }
    result
}

fn new_socket() -> OwnedFd {
    // SAFETY: plain system call.
    let fd = check(unsafe { socket(i32::from(AF_VSOCK), SOCK_STREAM, 0) }, "socket");
    // SAFETY: a new descriptor (or -1, and then every use of it fails and says so).
    unsafe { OwnedFd::from_raw_fd(fd.max(0)) }
}

fn call(port: u32) -> Option<File> {
    let socket = new_socket();
    let address = Address::new(HOST_CID, port);
    let size = mem::size_of::<Address>() as u32;
    // SAFETY: the address lives through the call and has the size given.
    let result = unsafe { connect(socket.as_raw_fd(), &raw const address, size) };
    (result == 0).then(|| File::from(socket))
}

fn serve(port: u32, service: fn(File)) {
    let listener = new_socket();
    let address = Address::new(ANY_CID, port);
    let size = mem::size_of::<Address>() as u32;
    // SAFETY: the address lives through the call and has the size given.
    check(unsafe { bind(listener.as_raw_fd(), &raw const address, size) }, "bind");
    // SAFETY: plain system call.
    check(unsafe { listen(listener.as_raw_fd(), 2048) }, "listen");
    thread::spawn(move || {
        loop {
            // SAFETY: no address is asked for.
            let fd = unsafe { accept(listener.as_raw_fd(), std::ptr::null_mut(), std::ptr::null_mut()) };
            if check(fd, "accept") < 0 {
                thread::sleep(Duration::from_millis(10));
                continue;
            }
            // SAFETY: a new descriptor of ours.
            let stream = unsafe { File::from_raw_fd(fd) };
            if thread::Builder::new().stack_size(64 << 10).spawn(move || service(stream)).is_err() {
                println!("guest: no thread");
            }
        }
    });
}

fn end_writing(stream: &File) {
    // SAFETY: plain system call.
    unsafe { shutdown(stream.as_raw_fd(), SHUT_WR) };
}

fn read_u64(stream: &mut File) -> u64 {
    let mut raw = [0; 8];
    let _ = stream.read_exact(&mut raw);
    u64::from_le_bytes(raw)
}

fn echo(mut stream: File) {
    let mut buffer = vec![0; 64 << 10];
    while let Ok(count) = stream.read(&mut buffer) {
        if count == 0 || stream.write_all(&buffer[..count]).is_err() {
            return;
        }
    }
}

fn count(mut stream: File) {
    let mut buffer = vec![0; 256 << 10];
    let mut total = 0u64;
    while let Ok(count) = stream.read(&mut buffer) {
        if count == 0 {
            let _ = stream.write_all(&total.to_le_bytes());
            return;
        }
        total += count as u64;
    }
}

fn source(mut stream: File) {
    let blocks = read_u64(&mut stream);
    let mut block = Block::new(wire::GUEST_SEED);
    for index in 0..blocks {
        if stream.write_all(block.stamped(index)).is_err() {
            return;
        }
    }
}

fn flood(mut stream: File) {
    let blocks = read_u64(&mut stream);
    let Ok(mut reader) = stream.try_clone() else { return };
    let hash = thread::spawn(move || {
        let mut hash = Hash::default();
        let mut buffer = vec![0; wire::BLOCK];
        for _ in 0..blocks {
            if reader.read_exact(&mut buffer).is_err() {
                break;
            }
            hash.add(&buffer);
        }
        hash.0
    });
    let mut block = Block::new(wire::GUEST_SEED);
    for index in 0..blocks {
        if stream.write_all(block.stamped(index)).is_err() {
            return;
        }
    }
    if let Ok(hash) = hash.join() {
        let _ = stream.write_all(&hash.to_le_bytes());
    }
}

fn never_read(stream: File) {
    thread::sleep(Duration::from_secs(3600));
    drop(stream);
}

fn after_end(mut stream: File) {
    let mut all = Vec::new();
    if stream.read_to_end(&mut all).is_ok() {
        let _ = stream.write_all(&all);
        end_writing(&stream);
    }
}

fn talk_then_read(mut stream: File) {
    let _ = stream.write_all(b"said and done");
    end_writing(&stream);
    let mut all = Vec::new();
    let _ = stream.read_to_end(&mut all);
    println!("guest: read {} bytes after its own end", all.len());
    drop(stream);
    let Some(mut report) = call(wire::REPORT_PORT) else { return };
    let _ = report.write_all(&(all.len() as u64).to_le_bytes());
}

fn call_host(mut stream: File) {
    let calls = read_u64(&mut stream);
    let mut open: Vec<File> = (0..calls).filter_map(|_| call(wire::ECHO_PORT)).collect();
    let mut good = 0u64;
    for (index, call) in open.iter_mut().enumerate() {
        let _ = call.write_all(&index.to_le_bytes());
    }
    for (index, call) in open.iter_mut().enumerate() {
        good += u64::from(read_u64(call) == index as u64);
    }
    let refused = u64::from(call(wire::NOBODY_PORT).is_none());
    let _ = stream.write_all(&good.to_le_bytes());
    let _ = stream.write_all(&refused.to_le_bytes());
}

fn restart(_: File) {
    // SAFETY: plain system call; this is a VM made for tests.
    unsafe { reboot(REBOOT_RESTART) };
}

fn main() {
    serve(port::ECHO, echo);
    serve(port::COUNT, count);
    serve(port::SOURCE, source);
    serve(port::FLOOD, flood);
    serve(port::NEVER_READ, never_read);
    serve(port::AFTER_END, after_end);
    serve(port::TALK_THEN_READ, talk_then_read);
    serve(port::CALL_HOST, call_host);
    serve(port::REBOOT, restart);
    serve(port::LAST, drop);
    println!("guest: ready");
    loop {
        thread::sleep(Duration::from_secs(3600));
    }
}
