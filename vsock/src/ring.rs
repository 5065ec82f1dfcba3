//! One virtqueue as the device sees it: the queue in guest memory, the two event descriptors, and whether it runs.

use std::os::fd::OwnedFd;

use virtio_queue::{DescriptorChain, Queue, QueueOwnedT, QueueT};
use vm_memory::GuestMemoryMmap;

/// Largest queue accepted, in descriptors. QEMU makes them 128.
pub(crate) const MAX_SIZE: u16 = 1024;

/// A split virtqueue (virtio 1.2 §2.7).
#[derive(Debug)]
pub(crate) struct Ring {
    pub(crate) queue: Queue,
    /// The driver's notifications.
    pub(crate) kick: Option<OwnedFd>,
    /// Ours to the driver.
    pub(crate) call: Option<OwnedFd>,
    pub(crate) enabled: bool,
    /// The driver broke the queue; it is left alone until the driver starts it anew (virtio 1.2 §2.1.1).
    pub(crate) broken: bool,
    /// Something was used since the driver was last told.
    unsignalled: bool,
}

impl Ring {
    pub(crate) fn new() -> Self {
        let queue = Queue::new(MAX_SIZE).unwrap_or_default();
        Self { queue, kick: None, call: None, enabled: false, broken: false, unsignalled: false }
    }

    /// Whether buffers may be taken.
    pub(crate) fn runs(&self) -> bool {
        self.enabled && !self.broken && self.queue.ready()
    }

    /// The next chain the driver offers.
    pub(crate) fn pop<'m>(
        &mut self,
        mem: &'m GuestMemoryMmap,
    ) -> Option<DescriptorChain<&'m GuestMemoryMmap>> {
        if !self.runs() {
            return None;
        }
        match self.queue.iter(mem) {
            Ok(mut chains) => chains.next(),
            Err(error) => {
                tracing::debug!(%error, "vsock: the guest broke a queue");
                self.broken = true;
                None
            }
        }
    }

    /// Puts back the chain popped last.
    pub(crate) fn unpop(&mut self) {
        self.queue.go_to_previous_position();
    }

    /// Returns a chain with `len` bytes written.
    pub(crate) fn push_used(&mut self, mem: &GuestMemoryMmap, head: u16, len: u32) {
        self.unsignalled = true;
        if let Err(error) = self.queue.add_used(mem, head, len) {
            tracing::debug!(%error, "vsock: the guest broke a queue");
            self.broken = true;
        }
    }

    /// Tells the driver once about everything used since the last time, if it wants to know.
    pub(crate) fn signal(&mut self, mem: &GuestMemoryMmap) {
        if !std::mem::take(&mut self.unsignalled) {
            return;
        }
        if self.queue.needs_notification(mem).unwrap_or(true)
            && let Some(call) = &self.call
        {
            // Fails only when the counter is full, and then the driver has been told anyway.
            let _ = rustix::io::write(call, &1u64.to_ne_bytes());
        }
    }

    /// Asks the driver to kick at the next buffer. `true`: one is there already.
    pub(crate) fn want_kick(&mut self, mem: &GuestMemoryMmap) -> bool {
        self.runs() && self.queue.enable_notification(mem).unwrap_or(false)
    }

    /// Tells the driver that kicks are not needed for now.
    pub(crate) fn no_kick(&mut self, mem: &GuestMemoryMmap) {
        if self.runs() {
            let _ = self.queue.disable_notification(mem);
        }
    }

    /// Takes a kick off the descriptor.
    pub(crate) fn drain_kick(&self) {
        if let Some(kick) = &self.kick {
            let mut count = [0; 8];
            let _ = rustix::io::read(kick, &mut count);
        }
    }
}
