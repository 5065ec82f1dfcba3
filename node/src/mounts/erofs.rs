//! Mounting one layer file on the host.

use std::fs::File;
use std::os::fd::{AsRawFd, OwnedFd};
use std::path::Path;

use rustix::fs::{Mode, OFlags};
use rustix::io::Errno;
use rustix::mount::MountFlags;

use crate::error::{IoContext, Result};

/// `f_type` of EROFS (`linux/magic.h`).
const EROFS_MAGIC: u32 = 0xe0f5_e1e2;
// linux/loop.h
const LOOP_CTL_GET_FREE: libc::c_ulong = 0x4c82;
const LOOP_CONFIGURE: libc::c_ulong = 0x4c0a;
const LO_FLAGS_READ_ONLY: u32 = 1;
const LO_FLAGS_AUTOCLEAR: u32 = 4;
/// How often another free loop device is asked for when someone else takes the one we were given.
const LOOP_ATTEMPTS: usize = 64;

/// Whether an EROFS is mounted on `dir`.
pub fn is_mounted(dir: &Path) -> bool {
    rustix::fs::statfs(dir).is_ok_and(|stat| stat.f_type as u32 == EROFS_MAGIC)
}

/// Mounts layer file `file` read-only on `dir`: as a file where the kernel can (6.12 and later), else on a loop device.
pub fn mount(file: &Path, dir: &Path) -> Result<()> {
    match rustix::mount::mount(file, dir, "erofs", MountFlags::RDONLY, None) {
        Err(Errno::NOTBLK) => mount_loop(file, dir),
        result => result.at("mount the layer file system on", dir),
    }
}

/// Unmounts `dir`; what containers still have open stays usable to them.
pub fn unmount(dir: &Path) -> Result<()> {
    match rustix::mount::unmount(dir, rustix::mount::UnmountFlags::DETACH) {
        Ok(()) | Err(Errno::INVAL | Errno::NOENT) => Ok(()),
        Err(errno) => Err(errno).at("unmount", dir),
    }
}

/// Mounts layer file `file` read-only on `dir` by way of a loop device.
pub fn mount_loop(file: &Path, dir: &Path) -> Result<()> {
    let backing = File::open(file).at("open", file)?;
    for _ in 0..LOOP_ATTEMPTS {
        let (device, path) = match free_loop(&backing) {
            Err(errno) if errno == Errno::BUSY => continue,
            result => result.at("attach to a loop device", file)?,
        };
        let result = rustix::mount::mount(&path, dir, "erofs", MountFlags::RDONLY, None);
        // Closed after mounting: the device frees itself with its last user.
        drop(device);
        return result.at("mount the layer file system on", dir);
    }
    Err(Errno::BUSY).at("attach to a loop device", file)
}

/// Attaches `backing` to a free loop device; EBUSY when another process was faster.
fn free_loop(backing: &File) -> rustix::io::Result<(OwnedFd, String)> {
    let flags = OFlags::RDWR | OFlags::CLOEXEC;
    let control = rustix::fs::open("/dev/loop-control", flags, Mode::empty())?;
    // SAFETY: the call takes no argument and returns a number.
    let number = unsafe { libc::ioctl(control.as_raw_fd(), LOOP_CTL_GET_FREE) };
    if number < 0 {
        return Err(last_error());
    }
    let path = format!("/dev/loop{number}");
    let device = rustix::fs::open(&path, OFlags::RDONLY | OFlags::CLOEXEC, Mode::empty())?;
    let info = LoopInfo { flags: LO_FLAGS_READ_ONLY | LO_FLAGS_AUTOCLEAR, ..LoopInfo::default() };
    let config = LoopConfig { fd: backing.as_raw_fd().cast_unsigned(), info, ..LoopConfig::default() };
    // SAFETY: `config` has the layout of `struct loop_config` and outlives the call, which only reads it.
    let result = unsafe { libc::ioctl(device.as_raw_fd(), LOOP_CONFIGURE, &raw const config) };
    if result < 0 { Err(last_error()) } else { Ok((device, path)) }
}

fn last_error() -> Errno {
    Errno::from_io_error(&std::io::Error::last_os_error()).unwrap_or(Errno::IO)
}

/// `struct loop_config` (linux/loop.h).
#[repr(C)]
#[derive(Default)]
struct LoopConfig {
    fd: u32,
    block_size: u32,
    info: LoopInfo,
    reserved: [u64; 8],
}

/// `struct loop_info64` (linux/loop.h).
#[repr(C)]
struct LoopInfo {
    device: u64,
    inode: u64,
    rdevice: u64,
    offset: u64,
    sizelimit: u64,
    number: u32,
    encrypt_type: u32,
    encrypt_key_size: u32,
    flags: u32,
    file_name: [u8; 64],
    crypt_name: [u8; 64],
    encrypt_key: [u8; 32],
    init: [u64; 2],
}

impl Default for LoopInfo {
    fn default() -> Self {
        Self {
            device: 0,
            inode: 0,
            rdevice: 0,
            offset: 0,
            sizelimit: 0,
            number: 0,
            encrypt_type: 0,
            encrypt_key_size: 0,
            flags: 0,
            file_name: [0; 64],
            crypt_name: [0; 64],
            encrypt_key: [0; 32],
            init: [0; 2],
        }
    }
}
