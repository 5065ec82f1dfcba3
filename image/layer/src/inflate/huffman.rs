//! Decoding tables for the canonical Huffman codes of DEFLATE (RFC 1951, 3.2.2 and 3.2.5).
//!
//! A table is indexed with the next bits of the input, first bit lowest. Entries are 32 bits:
//!
//! | bits | meaning |
//! | --- | --- |
//! | 0–7 | bits to consume: code and extra bits |
//! | 8–11 | bits of the code alone; in a link: index bits of the subtable |
//! | 12 | the symbol is not valid |
//! | 13 | end of block |
//! | 14 | link to a subtable |
//! | 15 | bit 12, 13 or 14 is set |
//! | 16–30 | literal, base of length or distance, or start of the subtable |
//! | 31 | literal |

use super::Damage;

pub(super) const LITERAL: u32 = 1 << 31;
pub(super) const EXCEPTIONAL: u32 = 1 << 15;
pub(super) const LINK: u32 = 1 << 14;
pub(super) const END: u32 = 1 << 13;
const INVALID: u32 = EXCEPTIONAL | 1 << 12;

/// Longest code, bits.
const MAX_BITS: usize = 15;
/// Most symbols of a code: those for literals and lengths, two of them never used.
const MAX_SYMBOLS: usize = 288;
pub(super) const LITLEN_BITS: usize = 11;
pub(super) const DISTANCE_BITS: usize = 8;
pub(super) const PRECODE_BITS: usize = 7;
/// Main table, and a subtable of the largest size for each prefix that may have one: a prefix of a complete code has
/// at least two codes behind it.
pub(super) const LITLEN_SIZE: usize = (1 << LITLEN_BITS) + 144 * (1 << (MAX_BITS - LITLEN_BITS));
pub(super) const DISTANCE_SIZE: usize = (1 << DISTANCE_BITS) + 16 * (1 << (MAX_BITS - DISTANCE_BITS));

const LENGTH_BASE: [u16; 29] = [
    3, 4, 5, 6, 7, 8, 9, 10, 11, 13, 15, 17, 19, 23, 27, 31, 35, 43, 51, 59, 67, 83, 99, 115, 131, 163, 195,
    227, 258,
];
const LENGTH_EXTRA: [u8; 29] =
    [0, 0, 0, 0, 0, 0, 0, 0, 1, 1, 1, 1, 2, 2, 2, 2, 3, 3, 3, 3, 4, 4, 4, 4, 5, 5, 5, 5, 0];

/// What a literal/length symbol means, without its code's length.
pub(super) fn litlen_entry(symbol: usize) -> u32 {
    match symbol {
        0..=255 => LITERAL | (symbol as u32) << 16,
        256 => EXCEPTIONAL | END,
        257..=285 => u32::from(LENGTH_BASE[symbol - 257]) << 16 | u32::from(LENGTH_EXTRA[symbol - 257]),
        _ => INVALID,
    }
}

/// What a distance symbol means.
pub(super) fn distance_entry(symbol: usize) -> u32 {
    match symbol {
        0..=3 => (symbol as u32 + 1) << 16,
        4..=29 => {
            let extra = symbol as u32 / 2 - 1;
            ((((2 + (symbol as u32 & 1)) << extra) + 1) << 16) | extra
        }
        _ => INVALID,
    }
}

/// What a code length symbol means.
pub(super) fn precode_entry(symbol: usize) -> u32 {
    (symbol as u32) << 16
}

/// Fills `table` (main part of `1 << bits` entries, subtables behind) for the code with these `lengths`.
///
/// # Errors
/// The code is over-subscribed or incomplete. As in zlib, no code at all is allowed, and a single code of one bit, unless
/// `complete`; unused bit patterns decode to an invalid symbol.
pub(super) fn build(
    table: &mut [u32],
    bits: usize,
    lengths: &[u8],
    entry: fn(usize) -> u32,
    complete: bool,
) -> Result<(), Damage> {
    let mut count = [0u16; MAX_BITS + 1];
    for len in lengths {
        count[usize::from(*len & 15)] += 1;
    }
    count[0] = 0;
    let longest = (1..=MAX_BITS).rev().find(|len| count[*len] > 0).unwrap_or(0);
    let mut next = [0u32; MAX_BITS + 2];
    for len in 1..=MAX_BITS {
        next[len + 1] = (next[len] + u32::from(count[len])) << 1;
        if next[len] + u32::from(count[len]) > 1 << len {
            return Err(Damage::Code);
        }
    }
    let used: u32 = (1..=MAX_BITS).map(|len| u32::from(count[len]) << (MAX_BITS - len)).sum();
    if used != 1 << MAX_BITS {
        if complete || longest > 1 {
            return Err(Damage::Code);
        }
        table[..1 << bits].fill(INVALID | 1);
    }
    // Symbols by length, as their codes follow each other.
    let mut sorted = [0u16; MAX_SYMBOLS];
    let mut place = [0usize; MAX_BITS + 2];
    for len in 1..=MAX_BITS {
        place[len + 1] = place[len] + usize::from(count[len]);
    }
    for (symbol, len) in lengths.iter().enumerate().filter(|(_, len)| **len > 0) {
        let slot = &mut place[usize::from(*len & 15)];
        sorted[*slot] = symbol as u16;
        *slot += 1;
    }
    let mut sorted = &sorted[..];
    // One size for all subtables: simple, and there are few.
    let sub_bits = longest.saturating_sub(bits);
    let mut free = 1 << bits;
    let mut prefix = usize::MAX;
    for len in 1..=longest {
        let (symbols, rest) = sorted.split_at(usize::from(count[len]));
        sorted = rest;
        for (code, symbol) in (next[len]..).zip(symbols) {
            let reversed = (code.reverse_bits() >> (32 - len)) as usize;
            let whole = entry(usize::from(*symbol)) + ((len as u32) << 8) + len as u32;
            if len <= bits {
                table[..1 << bits][reversed..].iter_mut().step_by(1 << len).for_each(|slot| *slot = whole);
                continue;
            }
            let low = reversed & ((1 << bits) - 1);
            if low != prefix {
                prefix = low;
                table[low] = EXCEPTIONAL | LINK | (free as u32) << 16 | (sub_bits as u32) << 8 | bits as u32;
                free += 1 << sub_bits;
            }
            // Inside a subtable the main table's bits are consumed already.
            let whole = entry(usize::from(*symbol)) + ((len - bits) as u32 * 0x101);
            table[free - (1 << sub_bits)..free][reversed >> bits..]
                .iter_mut()
                .step_by(1 << (len - bits))
                .for_each(|slot| *slot = whole);
        }
    }
    Ok(())
}
