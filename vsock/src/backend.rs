//! The vhost-user side: what QEMU tells the device about guest memory, queues and features.
//!
//! The requests are served by `vhost`'s `BackendReqHandler` on the device's own thread. `vhost-user-backend`'s daemon is not used: it
//! can neither serve a socket that is already connected (a descriptor of a socketpair, which is what QEMU is given so that no path
//! needs protecting) nor run without worker threads of its own and a lock around every queue.

use std::fs::File;
use std::io;
use std::os::fd::{AsFd, OwnedFd};
use std::sync::Arc;

use rustix::event::epoll;
use vhost::VhostUserMemoryRegionBase;
use vhost::vhost_user::message::{
    VhostTransferStateDirection, VhostTransferStatePhase, VhostUserConfigFlags, VhostUserInflight,
    VhostUserLog, VhostUserMemoryRegion, VhostUserProtocolFeatures as Protocol, VhostUserShMemConfig,
    VhostUserSharedMsg, VhostUserSingleMemoryRegion, VhostUserVirtioFeatures, VhostUserVringAddrFlags,
    VhostUserVringState,
};
use vhost::vhost_user::{Error, GpuBackend, Result, VhostUserBackendReqHandlerMut};
use virtio_bindings::virtio_config::VIRTIO_F_VERSION_1;
use virtio_bindings::virtio_ring::{VIRTIO_RING_F_EVENT_IDX, VIRTIO_RING_F_INDIRECT_DESC};
use virtio_queue::QueueT;
use vm_memory::{Address, GuestAddress, GuestMemoryMmap, GuestMemoryRegion, GuestRegionMmap};

use crate::ring::Ring;
use crate::token::Token;

/// Queue the device writes packets for the guest into.
pub(crate) const RX: usize = 0;
/// Queue the guest writes packets into.
pub(crate) const TX: usize = 1;
/// The event queue is served by QEMU itself.
const QUEUES: usize = 2;
/// Regions of guest memory accepted; QEMU's own limit.
const MAX_REGIONS: usize = 509;

/// Virtio features offered. Not `VIRTIO_VSOCK_F_SEQPACKET`: nobody here needs message boundaries.
const FEATURES: u64 = 1 << VIRTIO_F_VERSION_1
    | 1 << VIRTIO_RING_F_INDIRECT_DESC
    | 1 << VIRTIO_RING_F_EVENT_IDX
    | VhostUserVirtioFeatures::PROTOCOL_FEATURES.bits();

struct Mapping {
    user: u64,
    size: u64,
    guest: u64,
}

/// Device state as the vhost-user front end set it.
pub(crate) struct Backend {
    guest_cid: u64,
    epoll: Arc<OwnedFd>,
    pub(crate) memory: GuestMemoryMmap,
    mappings: Vec<Mapping>,
    pub(crate) rings: [Ring; QUEUES],
    /// Where each ring stood when it was stopped: a driver that goes on starts there, a new one does not.
    stopped_at: [u16; QUEUES],
    /// The driver was reset since the worker last looked.
    pub(crate) driver_reset: bool,
}

impl Backend {
    pub(crate) fn new(guest_cid: u64, epoll: Arc<OwnedFd>) -> Self {
        Self {
            guest_cid,
            epoll,
            memory: GuestMemoryMmap::new(),
            mappings: Vec::new(),
            rings: [Ring::new(), Ring::new()],
            stopped_at: [0; QUEUES],
            driver_reset: false,
        }
    }

    fn ring(&mut self, index: u32) -> Result<&mut Ring> {
        self.rings.get_mut(index as usize).ok_or(Error::InvalidParam)
    }

    /// Replaces the kick descriptor. The front end keeps a duplicate, so closing ours would not take it out of the epoll set.
    fn set_kick(&mut self, index: u8, file: Option<File>) -> Result<()> {
        let epoll = self.epoll.clone();
        let ring = self.ring(index.into())?;
        if let Some(old) = ring.kick.take() {
            let _ = epoll::delete(epoll.as_fd(), &old);
        }
        if let Some(file) = file {
            let kick = OwnedFd::from(file);
            rustix::fs::fcntl_setfl(&kick, rustix::fs::OFlags::NONBLOCK).map_err(refused)?;
            let token = Token::Kick(index).pack();
            epoll::add(epoll.as_fd(), &kick, epoll::EventData::new_u64(token), epoll::EventFlags::IN)
                .map_err(refused)?;
            ring.kick = Some(kick);
            ring.queue.set_ready(true);
        }
        Ok(())
    }

    fn to_guest(&self, user: u64) -> Result<GuestAddress> {
        self.mappings
            .iter()
            .find(|m| user >= m.user && user - m.user < m.size)
            .map(|m| GuestAddress(user - m.user + m.guest))
            .ok_or(Error::InvalidParam)
    }

    fn map(region: &VhostUserMemoryRegion, file: File) -> Result<GuestRegionMmap> {
        GuestRegionMmap::new(region.mmap_region(file)?, GuestAddress(region.guest_phys_addr))
            .ok_or(Error::InvalidParam)
    }
}

fn refused(error: impl Into<io::Error>) -> Error {
    Error::ReqHandlerError(error.into())
}

fn unsupported<T>() -> Result<T> {
    Err(Error::InvalidOperation("not offered by this device"))
}

impl VhostUserBackendReqHandlerMut for Backend {
    fn set_owner(&mut self) -> Result<()> {
        // Sent when the device is plugged. After an unplug QEMU does not take back the memory it gave for the one before.
        self.memory = GuestMemoryMmap::new();
        self.mappings.clear();
        self.reset_device()
    }

    fn reset_owner(&mut self) -> Result<()> {
        self.reset_device()
    }

    fn reset_device(&mut self) -> Result<()> {
        for index in 0..QUEUES as u8 {
            self.set_kick(index, None)?;
        }
        self.rings = [Ring::new(), Ring::new()];
        self.stopped_at = [0; QUEUES];
        self.driver_reset = true;
        Ok(())
    }

    fn get_features(&mut self) -> Result<u64> {
        Ok(FEATURES)
    }

    fn set_features(&mut self, features: u64) -> Result<()> {
        if features & !FEATURES != 0 {
            return Err(Error::InvalidParam);
        }
        let protocol = features & VhostUserVirtioFeatures::PROTOCOL_FEATURES.bits() != 0;
        for ring in &mut self.rings {
            ring.queue.set_event_idx(features & (1 << VIRTIO_RING_F_EVENT_IDX) != 0);
            // Without protocol features there is no SET_VRING_ENABLE, and rings are enabled from the start.
            ring.enabled |= !protocol;
        }
        Ok(())
    }

    fn set_mem_table(
        &mut self,
        regions: &[VhostUserMemoryRegion],
        files: Vec<File>,
        postcopy: Option<bool>,
    ) -> Result<Option<Vec<VhostUserMemoryRegionBase>>> {
        if postcopy.is_some() || regions.len() != files.len() {
            return unsupported();
        }
        let mut mapped = Vec::with_capacity(regions.len());
        let mut mappings = Vec::with_capacity(regions.len());
        for (region, file) in regions.iter().zip(files) {
            mapped.push(Self::map(region, file)?);
            mappings.push(Mapping {
                user: region.user_addr,
                size: region.memory_size,
                guest: region.guest_phys_addr,
            });
        }
        mapped.sort_by_key(|region: &GuestRegionMmap| region.start_addr().raw_value());
        self.memory = GuestMemoryMmap::from_regions(mapped).map_err(|e| refused(io::Error::other(e)))?;
        self.mappings = mappings;
        Ok(None)
    }

    fn set_vring_num(&mut self, index: u32, num: u32) -> Result<()> {
        let num = u16::try_from(num).map_err(|_| Error::InvalidParam)?;
        self.ring(index)?.queue.try_set_size(num).map_err(|_| Error::InvalidParam)
    }

    fn set_vring_addr(
        &mut self,
        index: u32,
        _flags: VhostUserVringAddrFlags,
        descriptor: u64,
        used: u64,
        available: u64,
        _log: u64,
    ) -> Result<()> {
        let (descriptor, used, available) =
            (self.to_guest(descriptor)?, self.to_guest(used)?, self.to_guest(available)?);
        let memory = self.memory.clone();
        let queue = &mut self.ring(index)?.queue;
        queue.try_set_desc_table_address(descriptor).map_err(|_| Error::InvalidParam)?;
        queue.try_set_avail_ring_address(available).map_err(|_| Error::InvalidParam)?;
        queue.try_set_used_ring_address(used).map_err(|_| Error::InvalidParam)?;
        // SET_VRING_BASE carries the available index only; the used index is in the ring.
        let next_used =
            queue.used_idx(&memory, std::sync::atomic::Ordering::Relaxed).map_err(|_| Error::InvalidParam)?;
        queue.set_next_used(next_used.0);
        Ok(())
    }

    fn set_vring_base(&mut self, index: u32, base: u32) -> Result<()> {
        let base = u16::try_from(base).map_err(|_| Error::InvalidParam)?;
        let stopped_at = self.stopped_at;
        let ring = self.ring(index)?;
        ring.queue.set_next_avail(base);
        ring.broken = false;
        // A paused VM goes on where it stopped. Anything else is a new driver, which knows none of our connections.
        let anew = stopped_at.get(index as usize) != Some(&base);
        self.driver_reset |= anew;
        Ok(())
    }

    fn get_vring_base(&mut self, index: u32) -> Result<VhostUserVringState> {
        let kick = u8::try_from(index).map_err(|_| Error::InvalidParam)?;
        let ring = self.ring(index)?;
        let next = ring.queue.next_avail();
        ring.queue.set_ready(false);
        ring.call = None;
        self.set_kick(kick, None)?;
        if let Some(stopped_at) = self.stopped_at.get_mut(index as usize) {
            *stopped_at = next;
        }
        Ok(VhostUserVringState::new(index, next.into()))
    }

    fn set_vring_kick(&mut self, index: u8, file: Option<File>) -> Result<()> {
        self.set_kick(index, file)
    }

    fn set_vring_call(&mut self, index: u8, file: Option<File>) -> Result<()> {
        self.ring(index.into())?.call = file.map(OwnedFd::from);
        Ok(())
    }

    fn set_vring_err(&mut self, index: u8, _file: Option<File>) -> Result<()> {
        self.ring(index.into()).map(drop)
    }

    fn get_protocol_features(&mut self) -> Result<Protocol> {
        Ok(Protocol::MQ
            | Protocol::CONFIG
            | Protocol::REPLY_ACK
            | Protocol::RESET_DEVICE
            | Protocol::CONFIGURE_MEM_SLOTS)
    }

    fn set_protocol_features(&mut self, _features: u64) -> Result<()> {
        Ok(())
    }

    fn get_queue_num(&mut self) -> Result<u64> {
        Ok(QUEUES as u64)
    }

    fn set_vring_enable(&mut self, index: u32, enable: bool) -> Result<()> {
        self.ring(index)?.enabled = enable;
        Ok(())
    }

    fn get_config(&mut self, offset: u32, size: u32, _flags: VhostUserConfigFlags) -> Result<Vec<u8>> {
        // struct virtio_vsock_config: the guest's CID, little endian.
        let config = self.guest_cid.to_le_bytes();
        let (start, end) = (offset as usize, (offset as usize).saturating_add(size as usize));
        config.get(start..end).map(<[u8]>::to_vec).ok_or(Error::InvalidParam)
    }

    fn set_config(&mut self, _offset: u32, _buf: &[u8], _flags: VhostUserConfigFlags) -> Result<()> {
        unsupported()
    }

    fn set_gpu_socket(&mut self, _backend: GpuBackend) -> Result<()> {
        unsupported()
    }

    fn get_shared_object(&mut self, _uuid: VhostUserSharedMsg) -> Result<File> {
        unsupported()
    }

    fn get_inflight_fd(&mut self, _inflight: &VhostUserInflight) -> Result<(VhostUserInflight, File)> {
        unsupported()
    }

    fn set_inflight_fd(&mut self, _inflight: &VhostUserInflight, _file: File) -> Result<()> {
        unsupported()
    }

    fn get_max_mem_slots(&mut self) -> Result<u64> {
        Ok(MAX_REGIONS as u64)
    }

    fn add_mem_region(
        &mut self,
        region: &VhostUserSingleMemoryRegion,
        file: File,
        postcopy: Option<bool>,
    ) -> Result<Option<VhostUserMemoryRegionBase>> {
        if postcopy.is_some() || self.mappings.len() >= MAX_REGIONS {
            return unsupported();
        }
        let mapped = Self::map(region, file)?;
        self.memory =
            self.memory.insert_region(Arc::new(mapped)).map_err(|e| refused(io::Error::other(e)))?;
        self.mappings.push(Mapping {
            user: region.user_addr,
            size: region.memory_size,
            guest: region.guest_phys_addr,
        });
        Ok(None)
    }

    fn remove_mem_region(&mut self, region: &VhostUserSingleMemoryRegion) -> Result<()> {
        let (memory, _) = self
            .memory
            .remove_region(GuestAddress(region.guest_phys_addr), region.memory_size)
            .map_err(|e| refused(io::Error::other(e)))?;
        self.memory = memory;
        self.mappings.retain(|m| m.guest != region.guest_phys_addr);
        Ok(())
    }

    fn set_device_state_fd(
        &mut self,
        _direction: VhostTransferStateDirection,
        _phase: VhostTransferStatePhase,
        _file: File,
    ) -> Result<Option<File>> {
        unsupported()
    }

    fn check_device_state(&mut self) -> Result<()> {
        unsupported()
    }

    fn get_shmem_config(&mut self) -> Result<VhostUserShMemConfig> {
        unsupported()
    }

    fn set_log_base(&mut self, _log: &VhostUserLog, _file: File) -> Result<()> {
        unsupported()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn backend() -> Backend {
        let epoll = epoll::create(epoll::CreateFlags::CLOEXEC).unwrap();
        let mut backend = Backend::new(5, Arc::new(epoll));
        backend.set_owner().unwrap();
        backend.driver_reset = false;
        backend
    }

    #[test]
    fn a_ring_that_goes_on_where_it_stopped_belongs_to_the_same_driver() {
        let mut backend = backend();
        backend.set_vring_base(0, 0).unwrap();
        backend.rings[0].queue.set_next_avail(17);
        assert_eq!({ backend.get_vring_base(0).unwrap().num }, 17);
        backend.set_vring_base(0, 17).unwrap();
        assert!(!backend.driver_reset);
        backend.set_vring_base(0, 0).unwrap();
        assert!(backend.driver_reset);
    }

    #[test]
    fn the_configuration_space_is_the_cid() {
        let mut backend = backend();
        let flags = VhostUserConfigFlags::empty();
        assert_eq!(backend.get_config(0, 8, flags).unwrap(), [5, 0, 0, 0, 0, 0, 0, 0]);
        assert_eq!(backend.get_config(0, 4, flags).unwrap(), [5, 0, 0, 0]);
        for (offset, size) in [(0, 9), (8, 1), (9, 0), (u32::MAX, u32::MAX)] {
            assert!(backend.get_config(offset, size, flags).is_err(), "{offset} {size}");
        }
    }

    #[test]
    fn nonsense_from_the_front_end_is_refused() {
        let mut backend = backend();
        let flags = VhostUserVringAddrFlags::empty();
        assert!(backend.set_features(1 << 1).is_err(), "seqpacket");
        assert!(backend.set_vring_addr(0, flags, 0x1000, 0x2000, 0x3000, 0).is_err(), "no memory yet");
        for size in [0, 3, 2048, u32::MAX] {
            assert!(backend.set_vring_num(0, size).is_err(), "{size}");
        }
        assert!(backend.set_vring_base(0, 1 << 16).is_err());
        for queue in [2, 255] {
            assert!(backend.set_vring_num(queue, 128).is_err());
            assert!(backend.set_vring_enable(queue, true).is_err());
            assert!(backend.get_vring_base(queue).is_err());
            assert!(backend.set_vring_kick(queue as u8, None).is_err());
        }
    }
}
