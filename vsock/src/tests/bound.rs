//! The bound on memory that `Limits` states, measured by counting what this thread allocates.

use std::alloc::{GlobalAlloc, Layout, System};
use std::cell::Cell;

use super::*;

struct Counting;

thread_local! {
    static NOW: Cell<isize> = const { Cell::new(0) };
    static MOST: Cell<isize> = const { Cell::new(0) };
}

fn count(bytes: isize) {
    // Gone while the thread ends; nobody counts then.
    let _ = NOW.try_with(|now| {
        now.set(now.get() + bytes);
        let _ = MOST.try_with(|most| most.set(most.get().max(now.get())));
    });
}

// SAFETY: everything is passed on to the system's allocator; the counters do not allocate.
unsafe impl GlobalAlloc for Counting {
    unsafe fn alloc(&self, layout: Layout) -> *mut u8 {
        count(layout.size() as isize);
        // SAFETY: the caller's promise.
        unsafe { System.alloc(layout) }
    }
    unsafe fn dealloc(&self, memory: *mut u8, layout: Layout) {
        count(-(layout.size() as isize));
        // SAFETY: the caller's promise.
        unsafe { System.dealloc(memory, layout) }
    }
}

#[global_allocator]
static ALLOCATOR: Counting = Counting;

#[test]
fn memory_stays_within_its_bound_whatever_the_guest_sends() {
    raise_descriptor_limit();
    let limits = Limits::default();
    let mut guest = guest();
    let before = NOW.get();
    let mut streams = Vec::with_capacity(limits.connections);
    for port in 0..limits.connections as u32 {
        streams.push(connect(&mut guest, port));
    }
    MOST.set(NOW.get());
    let block = vec![0; 16 << 10];
    let mut held = 0;
    // Twice the credit of the best served, so that every connection is filled and then ended for sending too much.
    for _ in 0..64 {
        for (port, (_, host_port)) in streams.iter().enumerate() {
            write(&mut guest, port as u32, *host_port, &block);
        }
        held = held.max(guest.mux.held());
    }
    let most = (MOST.get() - before) as usize;
    let bound = limits.total_buffer + limits.connection_buffer + limits.connections * 1024 + (1 << 20);
    println!(
        "{} KiB held for full sockets at most, {} KiB allocated, bound {} KiB",
        held >> 10,
        most >> 10,
        bound >> 10
    );
    assert!(held > limits.total_buffer / 4, "the test must fill the buffers");
    assert!(most <= bound);
}

/// Two descriptors for each of 1,024 connections are more than the usual soft limit.
fn raise_descriptor_limit() {
    let mut limit = libc::rlimit { rlim_cur: 0, rlim_max: 0 };
    // SAFETY: plain system calls on a local value.
    unsafe {
        assert_eq!(libc::getrlimit(libc::RLIMIT_NOFILE, &raw mut limit), 0);
        limit.rlim_cur = limit.rlim_max;
        assert_eq!(libc::setrlimit(libc::RLIMIT_NOFILE, &raw const limit), 0);
    }
}
