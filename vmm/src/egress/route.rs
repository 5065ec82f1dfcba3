//! By which interface this host's packets leave it.

use std::ffi::CStr;
use std::io;
use std::net::{IpAddr, Ipv4Addr, UdpSocket};

use crate::{Error, Result};

/// An address of nobody (RFC 5737), which goes the way of every address that is not near.
const FAR: (Ipv4Addr, u16) = (Ipv4Addr::new(203, 0, 113, 1), 9);

/// The interface that leads out, and this host's address there.
pub(super) fn outward() -> Result<(String, Ipv4Addr)> {
    let failed = Error::os("find this machine's way out by IPv4");
    match look() {
        Ok(found) => Ok(found),
        Err(error) => Err(failed(error)),
    }
}

fn look() -> io::Result<(String, Ipv4Addr)> {
    // The kernel picks route and source address, with all rules it has; nothing is sent.
    let socket = UdpSocket::bind((Ipv4Addr::UNSPECIFIED, 0))?;
    socket.connect(FAR)?;
    let IpAddr::V4(address) = socket.local_addr()?.ip() else {
        return Err(io::ErrorKind::AddrNotAvailable.into());
    };
    let interface = interface_of(address)?;
    let missing =
        || io::Error::new(io::ErrorKind::NotFound, format!("no interface has the address {address}"));
    interface.filter(|_| !address.is_loopback()).map(|interface| (interface, address)).ok_or_else(missing)
}

/// The name of the interface with an address.
fn interface_of(address: Ipv4Addr) -> io::Result<Option<String>> {
    let mut list: *mut libc::ifaddrs = std::ptr::null_mut();
    // SAFETY: the call writes one pointer, to a list that is freed below.
    if unsafe { libc::getifaddrs(&mut list) } != 0 {
        return Err(io::Error::last_os_error());
    }
    let mut found = None;
    let mut next = list;
    // SAFETY: the pointer is null or an entry of the list.
    while let Some(entry) = unsafe { next.as_ref() } {
        next = entry.ifa_next;
        // SAFETY: an entry's address is null or at least a family; one of AF_INET is a whole `sockaddr_in`.
        let theirs = unsafe {
            match entry.ifa_addr.as_ref() {
                Some(any) if i32::from(any.sa_family) == libc::AF_INET => {
                    let inet = entry.ifa_addr.cast::<libc::sockaddr_in>().read_unaligned();
                    Some(Ipv4Addr::from(u32::from_be(inet.sin_addr.s_addr)))
                }
                _ => None,
            }
        };
        if theirs == Some(address) && !entry.ifa_name.is_null() {
            // SAFETY: a name ends with a zero and lives as long as the list.
            found = Some(unsafe { CStr::from_ptr(entry.ifa_name) }.to_string_lossy().into_owned());
            break;
        }
    }
    // SAFETY: the list is the call's, and nothing of it is kept.
    unsafe { libc::freeifaddrs(list) };
    Ok(found)
}
