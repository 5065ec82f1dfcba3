//! What only the host knows: the time, and randomness that no other clone of this guest has.

use std::os::fd::AsRawFd;

use cloister_protocol::limits;
use rustix::time::{ClockId, Timespec, clock_settime};

use crate::error::{Context, Error, Result};

/// `_IOW('R', 0x03, int[2])` and `_IO('R', 0x07)` of the kernel's `random.h`.
const RNDADDENTROPY: libc::c_ulong = 0x4008_5203;
const RNDRESEEDCRNG: libc::c_ulong = 0x5207;

/// Sets the real-time clock to nanoseconds since the Unix epoch.
///
/// # Errors
/// When the kernel refuses the time.
pub fn set_clock(unix_nanos: i64) -> Result<()> {
    let time = Timespec {
        tv_sec: unix_nanos.div_euclid(1_000_000_000),
        tv_nsec: unix_nanos.rem_euclid(1_000_000_000),
    };
    clock_settime(ClockId::Realtime, time).context(|| format!("set the clock to {unix_nanos} ns"))
}

/// Credits bytes to the entropy pool and reseeds what programs read.
///
/// # Errors
/// When there are too many, or the kernel refuses them.
pub fn add_entropy(bytes: &[u8]) -> Result<()> {
    if bytes.is_empty() || bytes.len() > limits::ENTROPY_BYTES {
        return Err(Error::invalid(format!(
            "{} bytes of entropy; 1 to {} are taken",
            bytes.len(),
            limits::ENTROPY_BYTES
        )));
    }
    let what = || "add entropy".into();
    let random = std::fs::OpenOptions::new().write(true).open("/dev/urandom").context(what)?;
    // struct rand_pool_info: bits, bytes, then the bytes themselves, in whole words.
    let length = i32::try_from(bytes.len()).context(what)?;
    let mut info = vec![0i32; 2 + bytes.len().div_ceil(4)];
    info[0] = length * 8;
    info[1] = length;
    for (word, chunk) in info[2..].iter_mut().zip(bytes.chunks(4)) {
        let mut padded = [0; 4];
        padded[..chunk.len()].copy_from_slice(chunk);
        *word = i32::from_ne_bytes(padded);
    }
    // SAFETY: `info` is a rand_pool_info whose length field says how much of it is read.
    if unsafe { libc::ioctl(random.as_raw_fd(), RNDADDENTROPY, info.as_ptr()) } < 0 {
        return Err(std::io::Error::last_os_error()).context(what);
    }
    // SAFETY: takes no argument.
    if unsafe { libc::ioctl(random.as_raw_fd(), RNDRESEEDCRNG) } < 0 {
        return Err(std::io::Error::last_os_error()).context(|| "reseed the random number generator".into());
    }
    Ok(())
}
