//! The buffers of one descriptor chain as a list of guest memory slices, and socket transfers straight from and to them.
//!
//! `virtio-vsock`'s own packet type wants the header in one descriptor and the payload in one more, which is not what Linux ≥ 6.12
//! sends (up to 18 fragments for a 64 KiB packet), and virtio 1.2 §2.7.4 leaves the framing to the driver. Hence this one.

use std::io;
use std::ops::Deref;
use std::os::fd::{AsRawFd, BorrowedFd};

use virtio_queue::DescriptorChain;
use vm_memory::{Bytes, GuestMemory, GuestMemoryMmap, Permissions, VolatileSlice};

/// The most fragments a chain may have; a longer one is refused. Linux sends at most 18.
const MAX_FRAGMENTS: usize = 1024;
/// Fragments handed to the kernel at once.
const BATCH: usize = 32;

/// Why a descriptor chain was refused.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum BadChain {
    /// A descriptor points outside guest memory.
    Unmapped,
    /// More than [`MAX_FRAGMENTS`] fragments.
    TooManyFragments,
}

/// Slices of guest memory that together are one buffer.
///
/// Zero-length descriptors contribute nothing. The total is at most 4 GiB, because `virtio-queue` ends a longer chain.
#[derive(Debug)]
pub(crate) struct Scatter<'m> {
    slices: Vec<VolatileSlice<'m>>,
    len: usize,
}

impl<'m> Scatter<'m> {
    /// The device-readable part of `chain`.
    pub(crate) fn readable<T>(mem: &'m GuestMemoryMmap, chain: DescriptorChain<T>) -> Result<Self, BadChain>
    where
        T: Deref,
        T::Target: GuestMemory,
    {
        Self::collect(mem, chain, false)
    }

    /// The device-writable part of `chain`.
    pub(crate) fn writable<T>(mem: &'m GuestMemoryMmap, chain: DescriptorChain<T>) -> Result<Self, BadChain>
    where
        T: Deref,
        T::Target: GuestMemory,
    {
        Self::collect(mem, chain, true)
    }

    /// A plain range of memory.
    #[cfg(test)]
    pub(crate) fn range(mem: &'m GuestMemoryMmap, at: u64, len: usize) -> Self {
        let slices = mem.get_slices(vm_memory::GuestAddress(at), len, Permissions::Read).unwrap();
        Self { slices: slices.map(Result::unwrap).collect(), len }
    }

    fn collect<T>(
        mem: &'m GuestMemoryMmap,
        chain: DescriptorChain<T>,
        writable: bool,
    ) -> Result<Self, BadChain>
    where
        T: Deref,
        T::Target: GuestMemory,
    {
        let permissions = if writable { Permissions::Write } else { Permissions::Read };
        let mut out = Self { slices: Vec::with_capacity(20), len: 0 };
        for (count, descriptor) in chain.enumerate() {
            if count >= MAX_FRAGMENTS {
                return Err(BadChain::TooManyFragments);
            }
            if descriptor.is_write_only() != writable || descriptor.len() == 0 {
                continue;
            }
            let slices = mem
                .get_slices(descriptor.addr(), descriptor.len() as usize, permissions)
                .map_err(|_| BadChain::Unmapped)?;
            for slice in slices {
                let slice = slice.map_err(|_| BadChain::Unmapped)?;
                out.len += slice.len();
                out.slices.push(slice);
            }
        }
        Ok(out)
    }

    /// Bytes left.
    pub(crate) fn len(&self) -> usize {
        self.len
    }

    /// Forgets everything after the first `len` bytes.
    pub(crate) fn truncate(&mut self, len: usize) {
        let mut left = len;
        let mut keep = 0;
        for slice in &mut self.slices {
            if left == 0 {
                break;
            }
            if slice.len() > left {
                // Cannot fail: shorter than the slice.
                if let Ok(part) = slice.subslice(0, left) {
                    *slice = part;
                }
            }
            left -= slice.len();
            keep += 1;
        }
        self.slices.truncate(keep);
        self.len = len - left;
    }

    /// The first `at` bytes, and the rest.
    pub(crate) fn split(self, at: usize) -> (Self, Self) {
        let mut front = Self { slices: self.slices.clone(), len: self.len };
        let mut rest = self;
        front.truncate(at);
        rest.advance(at);
        (front, rest)
    }

    /// Forgets the first `count` bytes.
    pub(crate) fn advance(&mut self, count: usize) {
        let mut left = count.min(self.len);
        self.len -= left;
        let mut gone = 0;
        for slice in &mut self.slices {
            if slice.len() > left {
                if let Ok(rest) = slice.offset(left) {
                    *slice = rest;
                }
                break;
            }
            left -= slice.len();
            gone += 1;
        }
        self.slices.drain(..gone);
    }

    /// Copies the first bytes out and forgets them. Fills as much of `out` as there is; returns the number of bytes.
    pub(crate) fn take(&mut self, out: &mut [u8]) -> usize {
        let mut done = 0;
        for slice in &self.slices {
            if done == out.len() {
                break;
            }
            done += slice.copy_to(&mut out[done..]);
        }
        self.advance(done);
        done
    }

    /// Copies `data` over the first bytes and forgets them. Returns the number of bytes that fitted.
    pub(crate) fn put(&mut self, data: &[u8]) -> usize {
        let mut done = 0;
        for slice in &self.slices {
            if done == data.len() {
                break;
            }
            let count = slice.len().min(data.len() - done);
            if slice.write_slice(&data[done..done + count], 0).is_err() {
                break;
            }
            done += count;
        }
        self.advance(done);
        done
    }

    /// Sends as much as the socket takes without waiting, and forgets it.
    ///
    /// # Errors
    /// That of `sendmsg`, if nothing was sent; `WouldBlock` when the socket is full.
    pub(crate) fn send(&mut self, socket: BorrowedFd<'_>) -> io::Result<usize> {
        let mut done = 0;
        while !self.slices.is_empty() {
            let (vectors, count, wanted) = self.vectors(usize::MAX);
            let mut message = message(&vectors, count);
            // SAFETY: the vectors point into guest memory that is mapped for 'm, and `message` points to `vectors`, which live to the
            // end of this block. The guest may change the bytes meanwhile: they are data, nobody has checked them.
            let sent = unsafe {
                libc::sendmsg(socket.as_raw_fd(), &raw mut message, libc::MSG_DONTWAIT | libc::MSG_NOSIGNAL)
            };
            match transferred(sent) {
                Ok(sent) => {
                    self.advance(sent);
                    done += sent;
                    if sent < wanted {
                        return Ok(done);
                    }
                }
                Err(error) if error.kind() == io::ErrorKind::Interrupted => {}
                Err(error) if done > 0 && error.kind() == io::ErrorKind::WouldBlock => return Ok(done),
                Err(error) => return Err(error),
            }
        }
        Ok(done)
    }

    /// Receives at most `limit` bytes, once and without waiting, over the first bytes. `Ok(0)` is the end of the stream, or no room.
    ///
    /// # Errors
    /// That of `recvmsg`; `WouldBlock` when there is nothing to receive.
    pub(crate) fn receive(&self, socket: BorrowedFd<'_>, limit: usize) -> io::Result<usize> {
        loop {
            let (vectors, count, _) = self.vectors(limit);
            let mut message = message(&vectors, count);
            // SAFETY: as in `send`; the slices come from device-writable descriptors and stay mapped for 'm.
            let received = unsafe { libc::recvmsg(socket.as_raw_fd(), &raw mut message, libc::MSG_DONTWAIT) };
            match transferred(received) {
                Err(error) if error.kind() == io::ErrorKind::Interrupted => {}
                result => return result,
            }
        }
    }

    /// The first fragments, up to `limit` bytes: the vectors, how many there are, and their bytes.
    fn vectors(&self, limit: usize) -> ([libc::iovec; BATCH], usize, usize) {
        let mut vectors = [libc::iovec { iov_base: std::ptr::null_mut(), iov_len: 0 }; BATCH];
        let mut count = 0;
        let mut bytes = 0;
        for (vector, slice) in vectors.iter_mut().zip(&self.slices) {
            let len = slice.len().min(limit - bytes);
            if len == 0 {
                break;
            }
            *vector = libc::iovec { iov_base: slice.ptr_guard_mut().as_ptr().cast(), iov_len: len };
            count += 1;
            bytes += len;
        }
        (vectors, count, bytes)
    }
}

fn message(vectors: &[libc::iovec; BATCH], count: usize) -> libc::msghdr {
    // SAFETY: msghdr is plain data for which all zeroes is a valid value (no name, no control data).
    let mut message: libc::msghdr = unsafe { std::mem::zeroed() };
    message.msg_iov = vectors.as_ptr().cast_mut();
    message.msg_iovlen = count;
    message
}

fn transferred(result: isize) -> io::Result<usize> {
    usize::try_from(result).map_err(|_| io::Error::last_os_error())
}
