//! What the VM tests and their guest agree on.

/// Services of the guest.
pub mod port {
    /// Returns what it gets.
    pub const ECHO: u32 = 10;
    /// Reads to the end, then says how many bytes that was (u64).
    pub const COUNT: u32 = 11;
    /// Gets a number of blocks (u64) and sends them, then closes.
    pub const SOURCE: u32 = 12;
    /// Gets a number of blocks (u64), sends and receives that many at the same time, then says the hash of what it received (u64).
    pub const FLOOD: u32 = 13;
    /// Accepts and never reads.
    pub const NEVER_READ: u32 = 14;
    /// Reads to the end, and only then sends it all back.
    pub const AFTER_END: u32 = 15;
    /// Speaks, ends its direction, reads to the end, and reports how many bytes that was to the host's report port.
    pub const TALK_THEN_READ: u32 = 16;
    /// Gets a number (u64), makes as many connections to the host's echo port at a time, and says how many worked (u64) and whether
    /// a port nobody listens on was refused (u64).
    pub const CALL_HOST: u32 = 17;
    /// Reboots.
    pub const REBOOT: u32 = 18;
    /// Does nothing, and is the last to come up.
    pub const LAST: u32 = 19;
}

/// Ports of the host.
pub const ECHO_PORT: u32 = 5000;
/// See [`port::TALK_THEN_READ`].
pub const REPORT_PORT: u32 = 5001;
/// Nobody listens here.
#[allow(dead_code, reason = "used by the guest only")]
pub const NOBODY_PORT: u32 = 5002;

/// Size of a block, in bytes: one `write`.
pub const BLOCK: usize = 64 << 10;
/// Seed of what the guest sends.
pub const GUEST_SEED: u64 = 0x9e37_79b9_7f4a_7c15;
/// Seed of what the host sends.
#[allow(dead_code, reason = "used by the host only")]
pub const HOST_SEED: u64 = 0xd1b5_4a32_d192_ed03;

/// A block of noise, different for each index.
pub struct Block(Vec<u8>);

impl Block {
    /// Noise from `seed`.
    pub fn new(seed: u64) -> Self {
        let mut state = seed;
        let words = std::iter::repeat_with(move || {
            state ^= state << 13;
            state ^= state >> 7;
            state ^= state << 17;
            state
        });
        Self(words.take(BLOCK / 8).flat_map(u64::to_le_bytes).collect())
    }

    /// The block with this index.
    pub fn stamped(&mut self, index: u64) -> &[u8] {
        self.0[..8].copy_from_slice(&index.to_le_bytes());
        &self.0
    }
}

/// A hash that sees every bit and the order, and is cheap under emulation.
#[derive(Default)]
pub struct Hash(pub u64);

impl Hash {
    /// Adds data, a multiple of 8 bytes.
    pub fn add(&mut self, data: &[u8]) {
        for word in data.chunks_exact(8) {
            let word =
                u64::from_le_bytes([word[0], word[1], word[2], word[3], word[4], word[5], word[6], word[7]]);
            self.0 = (self.0.rotate_left(5) ^ word).wrapping_mul(0x517c_c1b7_2722_0a95);
        }
    }
}
