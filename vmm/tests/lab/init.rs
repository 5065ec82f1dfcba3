//! PID 1 of the test guest: answers one command per vsock connection on port 1024. Compiled by the tests with
//! `rustc -C target-feature=+crt-static`, so it uses nothing but the standard library and four calls of libc.

use std::ffi::CString;
use std::fs;
use std::io::{BufRead, BufReader, Read, Seek, SeekFrom, Write};
use std::os::fd::FromRawFd;

extern "C" {
    fn socket(domain: i32, kind: i32, protocol: i32) -> i32;
    fn bind(fd: i32, address: *const u8, len: u32) -> i32;
    fn listen(fd: i32, backlog: i32) -> i32;
    fn accept(fd: i32, address: *mut u8, len: *mut u32) -> i32;
    fn mount(source: *const i8, target: *const i8, kind: *const i8, flags: u64, data: *const i8) -> i32;
    fn reboot(how: i32) -> i32;
    fn mknod(path: *const i8, mode: u32, device: u64) -> i32;
}

fn attach(source: &str, target: &str, kind: &str, flags: u64) -> std::io::Result<()> {
    let c = |s: &str| CString::new(s).unwrap();
    let _ = fs::create_dir_all(target);
    let (s, t, k) = (c(source), c(target), c(kind));
    if unsafe { mount(s.as_ptr(), t.as_ptr(), k.as_ptr(), flags, std::ptr::null()) } != 0 {
        return Err(std::io::Error::last_os_error());
    }
    Ok(())
}

fn run(line: &str, stream: &mut fs::File) -> std::io::Result<Vec<u8>> {
    let words: Vec<&str> = line.split_whitespace().collect();
    match *words.as_slice() {
        ["cat", path] => fs::read(path),
        ["ls", path] => {
            let mut names: Vec<String> =
                fs::read_dir(path)?.map(|e| e.unwrap().file_name().into_string().unwrap()).collect();
            names.sort();
            Ok(names.join("\n").into_bytes())
        }
        ["write", path, text] => fs::write(path, text).map(|()| Vec::new()),
        ["mount", kind, source, target] => attach(source, target, kind, 0).map(|()| Vec::new()),
        ["mount-ro", kind, source, target] => attach(source, target, kind, 1).map(|()| Vec::new()),
        ["read", path, offset, len] => {
            let mut file = fs::File::open(path)?;
            file.seek(SeekFrom::Start(offset.parse().unwrap()))?;
            let mut bytes = vec![0; len.parse().unwrap()];
            file.read_exact(&mut bytes)?;
            Ok(bytes)
        }
        ["poke", path, offset, text] => {
            let mut file = fs::OpenOptions::new().write(true).open(path)?;
            file.seek(SeekFrom::Start(offset.parse().unwrap()))?;
            file.write_all(text.as_bytes())?;
            file.sync_all()?;
            Ok(Vec::new())
        }
        ["hardlink", original, path] => fs::hard_link(original, path).map(|()| Vec::new()),
        ["rename", from, to] => fs::rename(from, to).map(|()| Vec::new()),
        ["mkdir", path] => fs::create_dir(path).map(|()| Vec::new()),
        // mode in octal, device number in decimal
        ["mknod", path, mode, device] => {
            let path = CString::new(path).unwrap();
            let mode = u32::from_str_radix(mode, 8).unwrap();
            match unsafe { mknod(path.as_ptr(), mode, device.parse().unwrap()) } {
                0 => Ok(Vec::new()),
                _ => Err(std::io::Error::last_os_error()),
            }
        }
        ["link", target, path] => std::os::unix::fs::symlink(target, path).map(|()| Vec::new()),
        ["echo"] => {
            let mut bytes = Vec::new();
            stream.read_to_end(&mut bytes)?;
            Ok(bytes)
        }
        ["touch", mib] => {
            // Kept, so that the memory stays in use.
            let bytes = vec![1u8; mib.parse::<usize>().unwrap() << 20];
            std::mem::forget(bytes);
            Ok(Vec::new())
        }
        // Used and freed again.
        ["churn", mib] => {
            drop(std::hint::black_box(vec![1u8; mib.parse::<usize>().unwrap() << 20]));
            Ok(Vec::new())
        }
        ["print", count] => {
            for n in 0..count.parse::<u64>().unwrap() {
                println!("{n:0100}");
            }
            Ok(Vec::new())
        }
        ["poweroff"] => {
            unsafe { reboot(0x4321_FEDC) };
            Ok(Vec::new())
        }
        ["panic"] => std::process::exit(1),
        _ => Err(std::io::Error::other(format!("no such command: {line}"))),
    }
}

fn main() {
    for (kind, target) in [("proc", "/proc"), ("sysfs", "/sys"), ("devtmpfs", "/dev")] {
        let _ = attach(kind, target, kind, 0);
    }
    // linux/vm_sockets.h: AF_VSOCK = 40; struct sockaddr_vm is family u16, reserved u16, port u32, cid u32, 4 bytes.
    let mut address = [0u8; 16];
    address[0..2].copy_from_slice(&40u16.to_ne_bytes());
    address[4..8].copy_from_slice(&1024u32.to_ne_bytes());
    address[8..12].copy_from_slice(&u32::MAX.to_ne_bytes());
    let listener = unsafe { socket(40, 1, 0) };
    assert_eq!(unsafe { bind(listener, address.as_ptr(), 16) }, 0);
    assert_eq!(unsafe { listen(listener, 64) }, 0);
    println!("test-init listens");
    loop {
        let fd = unsafe { accept(listener, std::ptr::null_mut(), std::ptr::null_mut()) };
        if fd < 0 {
            continue;
        }
        let mut stream = unsafe { fs::File::from_raw_fd(fd) };
        std::thread::spawn(move || {
            let mut line = String::new();
            // One byte at a time: what follows the line belongs to the command.
            let _ = BufReader::with_capacity(1, &stream).read_line(&mut line);
            let answer = match run(line.trim(), &mut stream) {
                Ok(bytes) => [b"ok\n".as_slice(), &bytes].concat(),
                Err(e) => format!("error {e}\n").into_bytes(),
            };
            let _ = stream.write_all(&answer);
        });
    }
}
