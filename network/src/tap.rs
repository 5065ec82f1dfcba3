//! Opening a tap.

use std::io;
use std::os::fd::{AsRawFd, OwnedFd};

use rustix::fs::{Mode, OFlags, open};

/// `struct ifreq` of linux/if.h with the member this request uses.
#[repr(C)]
struct Request {
    name: [u8; libc::IFNAMSIZ],
    flags: libc::c_short,
    rest: [u8; 22],
}

/// Makes a tap in the network namespace of this thread. It is down, carries frames behind a `virtio_net_hdr`, and
/// vanishes when the descriptor is closed everywhere.
pub(crate) fn create(name: &str) -> io::Result<OwnedFd> {
    let mut request = Request {
        name: [0; libc::IFNAMSIZ],
        flags: (libc::IFF_TAP | libc::IFF_NO_PI | libc::IFF_VNET_HDR) as libc::c_short,
        rest: [0; 22],
    };
    // The last byte stays zero.
    match request.name.get_mut(..name.len()) {
        Some(place) if name.len() < libc::IFNAMSIZ => place.copy_from_slice(name.as_bytes()),
        _ => return Err(io::Error::new(io::ErrorKind::InvalidInput, "the name is too long")),
    }
    let fd = open("/dev/net/tun", OFlags::RDWR | OFlags::CLOEXEC | OFlags::NONBLOCK, Mode::empty())?;
    // SAFETY: the request reads and writes one `ifreq`, which `Request` is as long as, and which outlives the call.
    if unsafe { libc::ioctl(fd.as_raw_fd(), libc::TUNSETIFF, &raw mut request) } != 0 {
        return Err(io::Error::last_os_error());
    }
    Ok(fd)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_request_is_as_long_as_the_kernels() {
        assert_eq!(size_of::<Request>(), size_of::<libc::ifreq>());
    }

    #[test]
    fn a_long_name_is_an_error() {
        assert_eq!(create("0123456789abcdef").unwrap_err().to_string(), "the name is too long");
    }
}
