//! The packet header, `struct virtio_vsock_hdr` of virtio 1.2 §5.10.6 (also `linux/virtio_vsock.h`): 44 bytes, little endian, packed.

/// Size of the header, in bytes.
pub(crate) const HEADER_LEN: usize = 44;
/// The well-known CID of the host.
pub(crate) const HOST_CID: u64 = 2;
/// Stream sockets, the only type offered.
pub(crate) const TYPE_STREAM: u16 = 1;
/// `flags` of a shutdown: the sender will not receive any more.
pub(crate) const SHUTDOWN_RCV: u32 = 1;
/// `flags` of a shutdown: the sender will not send any more.
pub(crate) const SHUTDOWN_SEND: u32 = 2;
/// Both directions.
pub(crate) const SHUTDOWN_BOTH: u32 = SHUTDOWN_RCV | SHUTDOWN_SEND;

/// Values of the `op` field.
pub(crate) mod op {
    pub(crate) const REQUEST: u16 = 1;
    pub(crate) const RESPONSE: u16 = 2;
    pub(crate) const RST: u16 = 3;
    pub(crate) const SHUTDOWN: u16 = 4;
    pub(crate) const RW: u16 = 5;
    pub(crate) const CREDIT_UPDATE: u16 = 6;
    pub(crate) const CREDIT_REQUEST: u16 = 7;
}

/// A header, read once from guest memory so that the guest cannot change it between a check and its use.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub(crate) struct Header {
    pub(crate) src_cid: u64,
    pub(crate) dst_cid: u64,
    pub(crate) src_port: u32,
    pub(crate) dst_port: u32,
    /// Bytes of payload after the header.
    pub(crate) len: u32,
    pub(crate) kind: u16,
    pub(crate) op: u16,
    pub(crate) flags: u32,
    /// Bytes the sender is ready to hold for this connection.
    pub(crate) buf_alloc: u32,
    /// Bytes the sender has taken out of that buffer so far, modulo 2³².
    pub(crate) fwd_cnt: u32,
}

impl Header {
    /// Decodes a header. Every bit pattern is a header; its meaning is checked by whoever handles it.
    pub(crate) fn decode(raw: &[u8; HEADER_LEN]) -> Self {
        let mut fields = Fields(raw);
        Self {
            src_cid: u64::from_le_bytes(fields.take()),
            dst_cid: u64::from_le_bytes(fields.take()),
            src_port: u32::from_le_bytes(fields.take()),
            dst_port: u32::from_le_bytes(fields.take()),
            len: u32::from_le_bytes(fields.take()),
            kind: u16::from_le_bytes(fields.take()),
            op: u16::from_le_bytes(fields.take()),
            flags: u32::from_le_bytes(fields.take()),
            buf_alloc: u32::from_le_bytes(fields.take()),
            fwd_cnt: u32::from_le_bytes(fields.take()),
        }
    }

    /// Encodes the header.
    pub(crate) fn encode(&self) -> [u8; HEADER_LEN] {
        let mut raw = [0; HEADER_LEN];
        let mut at = 0;
        let mut put = |bytes: &[u8]| {
            raw[at..at + bytes.len()].copy_from_slice(bytes);
            at += bytes.len();
        };
        put(&self.src_cid.to_le_bytes());
        put(&self.dst_cid.to_le_bytes());
        put(&self.src_port.to_le_bytes());
        put(&self.dst_port.to_le_bytes());
        put(&self.len.to_le_bytes());
        put(&self.kind.to_le_bytes());
        put(&self.op.to_le_bytes());
        put(&self.flags.to_le_bytes());
        put(&self.buf_alloc.to_le_bytes());
        put(&self.fwd_cnt.to_le_bytes());
        raw
    }
}

struct Fields<'a>(&'a [u8]);

impl Fields<'_> {
    fn take<const N: usize>(&mut self) -> [u8; N] {
        let mut out = [0; N];
        if let Some((head, rest)) = self.0.split_at_checked(N) {
            out.copy_from_slice(head);
            self.0 = rest;
        }
        out
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    #[test]
    fn fields_lie_where_the_specification_puts_them() {
        let mut raw = [0u8; HEADER_LEN];
        raw[0] = 3; // src_cid
        raw[8] = 2; // dst_cid
        raw[16] = 4; // src_port
        raw[20] = 5; // dst_port
        raw[24] = 6; // len
        raw[28] = 1; // type
        raw[30] = 7; // op
        raw[32] = 8; // flags
        raw[36] = 9; // buf_alloc
        raw[40] = 10; // fwd_cnt
        let header = Header::decode(&raw);
        assert_eq!(
            header,
            Header {
                src_cid: 3,
                dst_cid: 2,
                src_port: 4,
                dst_port: 5,
                len: 6,
                kind: 1,
                op: 7,
                flags: 8,
                buf_alloc: 9,
                fwd_cnt: 10
            }
        );
    }

    proptest! {
        #[test]
        fn every_bit_pattern_survives_a_round_trip(raw in proptest::collection::vec(any::<u8>(), HEADER_LEN)) {
            let raw: [u8; HEADER_LEN] = raw.try_into().unwrap();
            prop_assert_eq!(Header::decode(&raw).encode(), raw);
        }
    }
}
