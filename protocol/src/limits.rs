//! What a receiver accepts; anything above ends the call with an error, not the connection.

use std::time::Duration;

/// Bytes of one gRPC message, either way. An OCI spec of thousands of mounts fits.
pub const MESSAGE_BYTES: usize = 4 << 20;

/// Bytes of a container or exec id.
pub const ID_BYTES: usize = 128;

/// Bytes of a virtio-blk serial (`VIRTIO_BLK_ID_BYTES` in the kernel's `virtio_blk.h`).
pub const SERIAL_BYTES: usize = 20;

/// Bytes of a virtiofs tag (`virtio_fs_config.tag` in the kernel's `virtio_fs.h`).
pub const TAG_BYTES: usize = 36;

/// Bytes of a path in a request (the kernel's `PATH_MAX`).
pub const PATH_BYTES: usize = 4096;

/// Layers of one container: GPT entries the kernel reads on one disk are 128.
pub const LAYERS: u32 = 128;

/// Entries of a process's arguments, and of its environment.
pub const STRINGS: usize = 65_536;

/// Bytes one argument or variable may have (the kernel's `MAX_ARG_STRLEN`).
pub const STRING_BYTES: usize = 128 << 10;

/// Bytes of entropy in one message.
pub const ENTROPY_BYTES: usize = 4096;

/// Containers in one guest.
pub const CONTAINERS: usize = 1024;

/// Processes the agent remembers in one container, ended ones included until their container is deleted.
pub const PROCESSES: usize = 4096;

/// Bytes of a hostname (`__NEW_UTS_LEN` in the kernel's `utsname.h`).
pub const HOSTNAME_BYTES: usize = 64;

/// Network interfaces of one guest.
pub const INTERFACES: usize = 64;

/// Bytes of an interface's name (`IFNAMSIZ` in the kernel's `if.h`, less its end).
pub const INTERFACE_BYTES: usize = 15;

/// Addresses of one interface; routes, and neighbours, of one guest.
pub const NETWORK_ENTRIES: usize = 4096;

/// Ways of one route.
pub const NEXT_HOPS: usize = 64;

/// Disks whose counters one answer has.
pub const DISKS: usize = 256;

/// Lines of `memory.stat` in one answer.
pub const MEMORY_STATS: usize = 128;

/// Volumes in one guest.
pub const VOLUMES: usize = 1024;

/// Block devices of one container.
pub const BLOCK_DEVICES: usize = 64;

/// Kernel settings of one pod.
pub const SYSCTLS: usize = 256;

/// Connections to servers of the guest's loopback at once.
pub const FORWARDS: usize = 256;

/// Streams that were opened and not yet named by a call.
pub const UNCLAIMED_STREAMS: usize = 64;

/// How long an unclaimed stream is kept.
pub const UNCLAIMED_AGE: Duration = Duration::from_secs(30);

/// How long either side waits for the other's half of the stream handshake.
pub const HANDSHAKE: Duration = Duration::from_secs(5);

/// Whether `id` may name a container or an exec: `[A-Za-z0-9_.-]`, not starting with a dot, at most [`ID_BYTES`].
pub fn is_id(id: &str) -> bool {
    !id.is_empty()
        && id.len() <= ID_BYTES
        && !id.starts_with('.')
        && id.bytes().all(|b| b.is_ascii_alphanumeric() || matches!(b, b'_' | b'.' | b'-'))
}

/// Whether `tag` may name a share: `[a-z0-9-]`, at most [`TAG_BYTES`].
pub fn is_tag(tag: &str) -> bool {
    !tag.is_empty()
        && tag.len() <= TAG_BYTES
        && tag.bytes().all(|b| b.is_ascii_lowercase() || b.is_ascii_digit() || b == b'-')
}

/// Whether `serial` may name a disk: printable ASCII without spaces or slashes, at most [`SERIAL_BYTES`].
pub fn is_serial(serial: &str) -> bool {
    !serial.is_empty()
        && serial.len() <= SERIAL_BYTES
        && serial.bytes().all(|b| b.is_ascii_graphic() && b != b'/')
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn ids_never_name_a_path() {
        assert!(is_id("a") && is_id("web-1_2.3"));
        for bad in ["", ".", "..", ".hidden", "a/b", "a\0b", "a b", "é"] {
            assert!(!is_id(bad), "{bad:?}");
        }
        assert!(is_id(&"x".repeat(ID_BYTES)) && !is_id(&"x".repeat(ID_BYTES + 1)));
    }

    #[test]
    fn tags_and_serials_are_bounded() {
        assert!(is_tag("share-0") && !is_tag("Share") && !is_tag("") && !is_tag(&"x".repeat(37)));
        assert!(is_serial("img0") && !is_serial("a/b") && !is_serial("a b") && !is_serial(&"x".repeat(21)));
    }
}
