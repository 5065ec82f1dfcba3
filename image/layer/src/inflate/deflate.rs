//! DEFLATE (RFC 1951), written for layers: all output goes to one reader, one pass, on a thread that may wait.
//!
//! The inner loop follows the ideas of libdeflate: a 64-bit bit buffer refilled by unaligned loads, tables that resolve
//! a symbol with its extra bits in one look-up, and no bounds to check while input and output have room for one step.

use super::huffman::{
    self, DISTANCE_BITS, DISTANCE_SIZE, END, EXCEPTIONAL, LINK, LITERAL, LITLEN_BITS, LITLEN_SIZE,
};
use super::io::{BUFFER, Output, Piece, Source, WINDOW};
use super::{Damage, Stop};

/// Input one round of the fast loop may look at: two words of 8 bytes, the second up to 7 bytes on.
const FAST_INPUT: usize = 16;
/// Output one round may write: three literals, or two and the longest match, and what copying writes too much.
const FAST_OUTPUT: usize = 3 + 258 + 32;

/// The compressed side, as bits.
pub(super) struct Bits<S> {
    source: S,
    piece: Piece,
    buffer: u64,
    /// Valid bits in `buffer`; those above are zero.
    count: u32,
}

impl<S: Source> Bits<S> {
    pub fn new(source: S) -> Self {
        Self { source, piece: Piece::default(), buffer: 0, count: 0 }
    }

    /// Gets at least 56 bits, or all there are.
    fn refill(&mut self) -> Result<(), Stop> {
        while self.count <= 56 {
            if self.piece.start == self.piece.end {
                match self.source.next(std::mem::take(&mut self.piece))? {
                    Some(piece) => self.piece = piece,
                    None => return Ok(()),
                }
            }
            self.buffer |= u64::from(self.piece.bytes[self.piece.start]) << self.count;
            self.piece.start += 1;
            self.count += 8;
        }
        Ok(())
    }

    /// Takes `count` bits, at most 32.
    pub fn take(&mut self, count: u32) -> Result<u32, Stop> {
        if self.count < count {
            self.refill()?;
        }
        let value = (self.buffer & ((1 << count) - 1)) as u32;
        self.drop_bits(count)?;
        Ok(value)
    }

    fn drop_bits(&mut self, count: u32) -> Result<(), Damage> {
        self.count = self.count.checked_sub(count).ok_or(Damage::Truncated)?;
        self.buffer >>= count;
        Ok(())
    }

    /// Drops what is left of the current byte.
    pub fn align(&mut self) {
        self.buffer >>= self.count % 8;
        self.count -= self.count % 8;
    }

    /// The next byte after [`Bits::align`], `None` at the end.
    pub fn byte(&mut self) -> Result<Option<u8>, Stop> {
        if self.count < 8 {
            self.refill()?;
        }
        if self.count < 8 {
            return Ok(None);
        }
        self.take(8).map(|byte| Some(byte as u8))
    }

    /// Decodes a symbol the careful way. The entry comes without its extra bits consumed.
    fn symbol(&mut self, table: &[u32], bits: usize) -> Result<u32, Stop> {
        self.refill()?;
        let mut entry = table[self.buffer as usize & ((1 << bits) - 1)];
        if entry & LINK != 0 && entry & LITERAL == 0 {
            self.drop_bits(bits as u32)?;
            let sub_bits = entry >> 8 & 15;
            entry = table[(entry >> 16 & 0x7fff) as usize + (self.buffer as usize & ((1 << sub_bits) - 1))];
        }
        self.drop_bits(entry >> 8 & 15)?;
        Ok(entry)
    }

    /// The extra bits of an entry added to its base.
    fn with_extra(&mut self, entry: u32) -> Result<u32, Stop> {
        let extra = (entry & 0xff) - (entry >> 8 & 15);
        Ok((entry >> 16 & 0x7fff) + self.take(extra)?)
    }
}

/// The decompressed side.
pub(super) struct Window<O> {
    output: O,
    bytes: Vec<u8>,
    /// End of what is written; `sent..at` was not handed on yet.
    at: usize,
    sent: usize,
    /// Bytes of this member, to refuse matches from before its start.
    pub member: u64,
    checksum: Option<flate2::Crc>,
}

impl<O: Output> Window<O> {
    pub fn new(output: O, checksum: bool) -> Self {
        let checksum = checksum.then(flate2::Crc::new);
        Self { output, bytes: vec![0; BUFFER], at: WINDOW, sent: WINDOW, member: 0, checksum }
    }

    /// Hands on what is there; the last [`WINDOW`] bytes stay in front of the new buffer.
    fn hand_on(&mut self) -> Result<(), Stop> {
        if self.at == self.sent {
            return Ok(());
        }
        if let Some(checksum) = &mut self.checksum {
            checksum.update(&self.bytes[self.sent..self.at]);
        }
        self.member += (self.at - self.sent) as u64;
        let mut tail = [0; WINDOW];
        tail.copy_from_slice(&self.bytes[self.at - WINDOW..self.at]);
        let full = Piece { bytes: std::mem::take(&mut self.bytes), start: self.sent, end: self.at };
        self.bytes = self.output.exchange(full)?;
        self.bytes[..WINDOW].copy_from_slice(&tail);
        (self.at, self.sent) = (WINDOW, WINDOW);
        Ok(())
    }

    /// Ends a member: hands on everything and returns its length and CRC-32 (if it was asked for).
    pub fn end_member(&mut self) -> Result<(u64, Option<u32>), Stop> {
        self.hand_on()?;
        let sum = self.checksum.as_mut().map(|checksum| {
            let sum = checksum.sum();
            checksum.reset();
            sum
        });
        Ok((std::mem::take(&mut self.member), sum))
    }

    /// Bytes a match may reach back.
    fn reach(&self) -> u64 {
        self.member + (self.at - self.sent) as u64
    }

    fn literal(&mut self, byte: u8) -> Result<(), Stop> {
        if self.at == BUFFER {
            self.hand_on()?;
        }
        self.bytes[self.at] = byte;
        self.at += 1;
        Ok(())
    }

    fn copy(&mut self, mut len: usize, distance: usize) -> Result<(), Stop> {
        if distance as u64 > self.reach() {
            return Err(Damage::Distance.into());
        }
        while len > 0 {
            if self.at == BUFFER {
                self.hand_on()?;
            }
            let now = len.min(BUFFER - self.at);
            for at in self.at..self.at + now {
                self.bytes[at] = self.bytes[at - distance];
            }
            self.at += now;
            len -= now;
        }
        Ok(())
    }
}

/// Decoding tables, reused from block to block.
pub(super) struct Tables {
    litlen: Box<[u32; LITLEN_SIZE]>,
    distance: Box<[u32; DISTANCE_SIZE]>,
}

impl Tables {
    pub fn new() -> Self {
        Self { litlen: Box::new([0; LITLEN_SIZE]), distance: Box::new([0; DISTANCE_SIZE]) }
    }

    fn build(&mut self, litlen: &[u8], distance: &[u8]) -> Result<(), Damage> {
        huffman::build(&mut self.litlen[..], LITLEN_BITS, litlen, huffman::litlen_entry, false)?;
        huffman::build(&mut self.distance[..], DISTANCE_BITS, distance, huffman::distance_entry, false)
    }

    fn fixed(&mut self) -> Result<(), Damage> {
        let mut lengths = [8; 288];
        lengths[144..256].fill(9);
        lengths[256..280].fill(7);
        self.build(&lengths, &[5; 32])
    }

    fn dynamic<S: Source>(&mut self, bits: &mut Bits<S>) -> Result<(), Stop> {
        const ORDER: [usize; 19] = [16, 17, 18, 0, 8, 7, 9, 6, 10, 5, 11, 4, 12, 3, 13, 2, 14, 1, 15];
        let litlens = bits.take(5)? as usize + 257;
        let distances = bits.take(5)? as usize + 1;
        let precodes = bits.take(4)? as usize + 4;
        if litlens > 286 || distances > 30 {
            return Err(Damage::Symbol.into());
        }
        let mut precode = [0; 19];
        for slot in &ORDER[..precodes] {
            precode[*slot] = bits.take(3)? as u8;
        }
        let mut table = [0; 1 << huffman::PRECODE_BITS];
        huffman::build(&mut table, huffman::PRECODE_BITS, &precode, huffman::precode_entry, true)?;
        let mut lengths = [0u8; 286 + 30];
        let all = litlens + distances;
        let mut at = 0;
        while at < all {
            let (value, repeat) = match bits.symbol(&table, huffman::PRECODE_BITS)? >> 16 {
                16 if at == 0 => return Err(Damage::Symbol.into()),
                16 => (lengths[at - 1], 3 + bits.take(2)?),
                17 => (0, 3 + bits.take(3)?),
                18 => (0, 11 + bits.take(7)?),
                len => (len as u8, 1),
            };
            let end = at + repeat as usize;
            if end > all {
                return Err(Damage::Symbol.into());
            }
            lengths[at..end].fill(value);
            at = end;
        }
        if lengths[256] == 0 {
            return Err(Damage::NoEnd.into());
        }
        Ok(self.build(&lengths[..litlens], &lengths[litlens..all])?)
    }
}

/// Decompresses one DEFLATE stream up to the end of its last block.
pub(super) fn inflate<S: Source, O: Output>(
    bits: &mut Bits<S>,
    window: &mut Window<O>,
    tables: &mut Tables,
) -> Result<(), Stop> {
    loop {
        let last = bits.take(1)? == 1;
        match bits.take(2)? {
            0 => stored(bits, window)?,
            1 => {
                tables.fixed()?;
                block(bits, window, tables)?;
            }
            2 => {
                tables.dynamic(bits)?;
                block(bits, window, tables)?;
            }
            _ => return Err(Damage::BlockType.into()),
        }
        if last {
            return Ok(());
        }
    }
}

fn stored<S: Source, O: Output>(bits: &mut Bits<S>, window: &mut Window<O>) -> Result<(), Stop> {
    bits.align();
    let len = bits.take(16)?;
    if bits.take(16)? != !len & 0xffff {
        return Err(Damage::StoredLength.into());
    }
    let mut left = len as usize;
    while left > 0 {
        if bits.count == 0 && bits.piece.start < bits.piece.end {
            if window.at == BUFFER {
                window.hand_on()?;
            }
            let now = left.min(bits.piece.end - bits.piece.start).min(BUFFER - window.at);
            let from = bits.piece.start;
            window.bytes[window.at..window.at + now].copy_from_slice(&bits.piece.bytes[from..from + now]);
            window.at += now;
            bits.piece.start += now;
            left -= now;
        } else {
            let byte = bits.byte()?.ok_or(Damage::Truncated)?;
            window.literal(byte)?;
            left -= 1;
        }
    }
    Ok(())
}

fn block<S: Source, O: Output>(
    bits: &mut Bits<S>,
    window: &mut Window<O>,
    tables: &Tables,
) -> Result<(), Stop> {
    loop {
        if fast(bits, window, tables)? {
            return Ok(());
        }
        // Near the end of a buffer: one symbol, with every check.
        let entry = bits.symbol(&tables.litlen[..], LITLEN_BITS)?;
        if entry & LITERAL != 0 {
            window.literal((entry >> 16) as u8)?;
        } else if entry & EXCEPTIONAL != 0 {
            return if entry & END != 0 { Ok(()) } else { Err(Damage::Symbol.into()) };
        } else {
            let len = bits.with_extra(entry)? as usize;
            let entry = bits.symbol(&tables.distance[..], DISTANCE_BITS)?;
            if entry & EXCEPTIONAL != 0 {
                return Err(Damage::Symbol.into());
            }
            let distance = bits.with_extra(entry)? as usize;
            window.copy(len, distance)?;
        }
    }
}

/// Decodes while there is room on both sides; true at the end of the block.
///
/// Each round takes one array of input and one of output up front: two checks instead of one for each access.
#[inline(never)]
fn fast<S, O: Output>(bits: &mut Bits<S>, window: &mut Window<O>, tables: &Tables) -> Result<bool, Damage> {
    let input = &bits.piece.bytes[..bits.piece.end];
    let out = &mut window.bytes[..];
    let mut pos = bits.piece.start;
    let mut at = window.at;
    let mut buffer = bits.buffer;
    let mut count = bits.count;
    // A match may reach back `at - origin` bytes: never before the member's start, nor before the buffer's.
    let origin = window.sent.saturating_sub(window.member.min(WINDOW as u64) as usize);
    let litlen = &*tables.litlen;
    let distances = &*tables.distance;

    macro_rules! consume {
        ($entry:expr) => {
            // The low six bits count, in both; the others are never looked at.
            buffer = buffer.wrapping_shr($entry);
            count = count.wrapping_sub($entry);
        };
    }
    macro_rules! refill {
        ($ahead:expr, $at:expr) => {{
            let at = $at;
            buffer |= word($ahead, at).wrapping_shl(count);
            let taken = (63 - (count & 63)) as usize >> 3;
            count |= 56;
            at + taken
        }};
    }
    macro_rules! look_up {
        ($table:expr, $bits:expr) => {
            $table[buffer as usize & ((1 << $bits) - 1)]
        };
    }

    // Looked up ahead of the refill that each round begins with, so that it need not wait for that: enough bits are left
    // from the round before.
    let mut entry = match input.get(pos..).and_then(|rest| rest.first_chunk::<FAST_INPUT>()) {
        Some(ahead) => {
            pos += refill!(ahead, 0);
            look_up!(litlen, LITLEN_BITS)
        }
        None => return Ok(false),
    };
    let done = loop {
        let Some(ahead) = input.get(pos..).and_then(|rest| rest.first_chunk::<FAST_INPUT>()) else {
            break Ok(false);
        };
        let Some(room) = out.get_mut(at..).and_then(|rest| rest.first_chunk_mut::<FAST_OUTPUT>()) else {
            break Ok(false);
        };
        // At least 56 valid bits from here: enough for three literals, or two and a length, with a look ahead.
        let next = refill!(ahead, 0);
        let mut literals = 0;
        if entry & LITERAL != 0 {
            consume!(entry);
            room[0] = (entry >> 16) as u8;
            literals = 1;
            entry = look_up!(litlen, LITLEN_BITS);
            if entry & LITERAL != 0 {
                consume!(entry);
                room[1] = (entry >> 16) as u8;
                literals = 2;
                entry = look_up!(litlen, LITLEN_BITS);
                if entry & LITERAL != 0 {
                    consume!(entry);
                    room[2] = (entry >> 16) as u8;
                    at += 3;
                    pos += next;
                    entry = look_up!(litlen, LITLEN_BITS);
                    continue;
                }
            }
        }
        if entry & EXCEPTIONAL != 0 {
            if entry & LINK != 0 {
                buffer >>= LITLEN_BITS;
                count = count.wrapping_sub(LITLEN_BITS as u32);
                entry = litlen[subtable(entry, buffer)];
                if entry & LITERAL != 0 {
                    consume!(entry);
                    room[literals] = (entry >> 16) as u8;
                    at += literals + 1;
                    pos += next;
                    entry = look_up!(litlen, LITLEN_BITS);
                    continue;
                }
            }
            if entry & EXCEPTIONAL != 0 {
                consume!(entry);
                at += literals;
                pos += next;
                break if entry & END != 0 { Ok(true) } else { Err(Damage::Symbol) };
            }
        }
        let len = with_extra(entry, buffer);
        consume!(entry);
        // 14 bits are left at least, the look takes 8; with what it leads to, a distance takes up to 28.
        let mut distance = look_up!(distances, DISTANCE_BITS);
        pos += refill!(ahead, next);
        at += literals;
        if distance & EXCEPTIONAL != 0 {
            if distance & LINK != 0 {
                buffer >>= DISTANCE_BITS;
                count = count.wrapping_sub(DISTANCE_BITS as u32);
                distance = distances[subtable(distance, buffer)];
            }
            if distance & EXCEPTIONAL != 0 {
                break Err(Damage::Symbol);
            }
        }
        let back = with_extra(distance, buffer);
        consume!(distance);
        entry = look_up!(litlen, LITLEN_BITS);
        if back > at - origin {
            break Err(Damage::Distance);
        }
        copy(out, at, back, len);
        at += len;
    };
    count &= 63;
    bits.piece.start = pos;
    bits.count = count;
    bits.buffer = buffer & ((1u64 << (count & 63)) - 1);
    window.at = at;
    done
}

/// Eight bytes of the input ahead, from `at`, at most 7.
#[inline(always)]
fn word(ahead: &[u8; FAST_INPUT], at: usize) -> u64 {
    let mut bytes = [0; 8];
    bytes.copy_from_slice(&ahead[at & 7..][..8]);
    u64::from_le_bytes(bytes)
}

/// Where a link leads: its subtable, indexed with the next bits.
#[inline(always)]
fn subtable(link: u32, buffer: u64) -> usize {
    (link >> 16 & 0x7fff) as usize + (buffer as usize & ((1 << (link >> 8 & 15)) - 1))
}

/// Base and extra bits of a length or distance, from the bits that begin with its code.
#[inline(always)]
fn with_extra(entry: u32, buffer: u64) -> usize {
    let extra = (buffer & ((1u64 << (entry & 31)) - 1)) >> (entry >> 8 & 15);
    (entry >> 16) as usize + extra as usize
}

/// Copies `len` bytes from `distance` before `at`. May write up to 31 bytes too many.
#[inline(always)]
fn copy(out: &mut [u8], at: usize, distance: usize, len: usize) {
    if distance >= 32 {
        // Most matches end with the first piece; the constant length makes it a load and a store or two.
        pieces::<32>(out, at, distance, len);
    } else if distance >= 8 {
        pieces::<8>(out, at, distance, len);
    } else if distance == 1 {
        let byte = out[at - 1];
        out[at..at + len].fill(byte);
    } else {
        // The match overlaps itself within a word: what is there grows by doubling.
        let (before, here) = out.split_at_mut(at);
        let first = distance.min(len);
        here[..first].copy_from_slice(&before[at - distance..][..first]);
        let mut done = first;
        while done < len {
            let now = done.min(len - done);
            here.copy_within(..now, done);
            done += now;
        }
    }
}

/// Copies in pieces of `N` bytes, each from what is there before it is written: `distance` is `N` at least.
#[inline(always)]
fn pieces<const N: usize>(out: &mut [u8], at: usize, distance: usize, len: usize) {
    let mut done = 0;
    loop {
        let (before, here) = out.split_at_mut(at + done);
        let (Some(source), Some(target)) =
            (before[at + done - distance..].first_chunk::<N>(), here.first_chunk_mut::<N>())
        else {
            debug_assert!(false, "FAST_OUTPUT leaves room for the last piece");
            return;
        };
        *target = *source;
        done += N;
        if done >= len {
            return;
        }
    }
}
