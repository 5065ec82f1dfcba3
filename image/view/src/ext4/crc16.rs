//! CRC-16 of group descriptors: polynomial 0x8005, reflected, as the kernel's `lib/crc16.c` computes it.

/// Continues `crc` over `bytes`.
pub(crate) fn crc16(crc: u16, bytes: &[u8]) -> u16 {
    bytes.iter().fold(crc, |crc, byte| {
        (0..8).fold(crc ^ u16::from(*byte), |c, _| if c & 1 == 1 { c >> 1 ^ 0xa001 } else { c >> 1 })
    })
}

#[cfg(test)]
mod tests {
    #[test]
    fn matches_the_published_check_value() {
        assert_eq!(super::crc16(0, b"123456789"), 0xbb3d);
    }
}
