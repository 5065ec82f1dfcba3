//! Names that nobody can guess: a session's id is all that another build on the same buildkitd would need to use it.

use rustix::rand::{GetRandomFlags, getrandom};

use super::error::{Error, Result};

/// 128 random bits as 32 hex digits.
pub(super) fn random_id() -> Result<String> {
    let mut bits = [0_u8; 16];
    let mut filled = 0;
    while filled < bits.len() {
        filled += getrandom(&mut bits[filled..], GetRandomFlags::empty())
            .map_err(|error| Error::io("draw a random number", error.into()))?;
    }
    Ok(format!("{:032x}", u128::from_be_bytes(bits)))
}
