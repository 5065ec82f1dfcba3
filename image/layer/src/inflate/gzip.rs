//! The gzip container (RFC 1952): any number of members one after the other, zero bytes allowed behind the last.

use super::deflate::{Bits, Tables, Window, inflate};
use super::io::{Output, Source};
use super::{Damage, Stop};

/// Longest name, comment or extra field passed over, bytes.
const MAX_FIELD: usize = 1 << 16;

/// Decompresses all members. The length in each trailer is checked, the CRC-32 only if `checksum`: who knows the SHA-256
/// of the result can save the work.
///
/// # Errors
/// The stream is damaged, or a neighbour gave up.
pub fn gunzip<S: Source, O: Output>(source: S, output: O, checksum: bool) -> Result<(), Stop> {
    let mut bits = Bits::new(source);
    let mut window = Window::new(output, checksum);
    let mut tables = Tables::new();
    let mut first = true;
    loop {
        match bits.byte()? {
            Some(0x1f) => {}
            Some(0) if !first => return zeros(&mut bits),
            None if !first => return Ok(()),
            None => return Err(Damage::Truncated.into()),
            Some(_) if first => return Err(Damage::Header.into()),
            Some(_) => return Err(Damage::TrailingData.into()),
        }
        header(&mut bits)?;
        inflate(&mut bits, &mut window, &mut tables)?;
        bits.align();
        let (len, sum) = window.end_member()?;
        let stored_sum = bits.take(32)?;
        if bits.take(32)? != len as u32 {
            return Err(Damage::Length.into());
        }
        if sum.is_some_and(|sum| sum != stored_sum) {
            return Err(Damage::Crc.into());
        }
        first = false;
    }
}

fn header<S: Source>(bits: &mut Bits<S>) -> Result<(), Stop> {
    if bits.take(8)? != 0x8b {
        return Err(Damage::Header.into());
    }
    let (method, flags) = (bits.take(8)?, bits.take(8)?);
    if method != 8 || flags & 0xe0 != 0 {
        return Err(Damage::Method.into());
    }
    bits.take(32)?; // time
    bits.take(16)?; // extra flags, system
    if flags & 4 != 0 {
        for _ in 0..bits.take(16)? {
            bits.take(8)?;
        }
    }
    for field in [8, 16] {
        if flags & field == 0 {
            continue;
        }
        let mut left = MAX_FIELD;
        while bits.take(8)? != 0 {
            left = left.checked_sub(1).ok_or(Damage::HeaderTooLong)?;
        }
    }
    if flags & 2 != 0 {
        bits.take(16)?; // CRC-16 of the header
    }
    Ok(())
}

fn zeros<S: Source>(bits: &mut Bits<S>) -> Result<(), Stop> {
    while let Some(byte) = bits.byte()? {
        if byte != 0 {
            return Err(Damage::TrailingData.into());
        }
    }
    Ok(())
}
