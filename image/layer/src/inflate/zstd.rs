//! Zstandard (RFC 8878): any number of frames, skippable ones too. The reference decoder in small pieces.

use zstd::stream::raw::{DParameter, Decoder, InBuffer, Operation, OutBuffer};

use super::io::{BUFFER, Output, Piece, Source};
use super::{Damage, Stop};

/// Decompresses all frames; windows over `1 << window_log` bytes are refused.
///
/// # Errors
/// The stream is damaged, or a neighbour gave up.
pub fn unzstd(mut source: impl Source, mut output: impl Output, window_log: u32) -> Result<(), Stop> {
    let damaged = |error: std::io::Error| Stop::Zstd(error.to_string());
    let mut decoder = Decoder::new().map_err(damaged)?;
    decoder.set_parameter(DParameter::WindowLogMax(window_log)).map_err(damaged)?;
    let mut buffer = vec![0; BUFFER];
    let mut filled = 0;
    let mut expected = 0;
    let mut piece = Piece::default();
    loop {
        if piece.start == piece.end {
            match source.next(piece)? {
                Some(next) => piece = next,
                None if expected != 0 => return Err(Damage::Truncated.into()),
                None => break,
            }
        }
        loop {
            let mut input = InBuffer::around(&piece.bytes[piece.start..piece.end]);
            let mut out = OutBuffer::around_pos(&mut buffer[..], filled);
            expected = decoder.run(&mut input, &mut out).map_err(damaged)?;
            let full = out.pos() == BUFFER;
            filled = out.pos();
            piece.start += input.pos();
            if full {
                buffer = output.exchange(Piece { bytes: buffer, start: 0, end: BUFFER })?;
                filled = 0;
            }
            // A full buffer may mean that the decoder holds more, even without input.
            if piece.start == piece.end && (!full || expected == 0) {
                break;
            }
        }
    }
    if filled > 0 {
        output.exchange(Piece { bytes: buffer, start: 0, end: filled })?;
    }
    Ok(())
}
