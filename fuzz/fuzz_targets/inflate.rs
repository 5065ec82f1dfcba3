//! Our inflate against zlib-rs: whatever one accepts, the other accepts with the same result.
#![no_main]

use std::io::Read;

use cloister_layer::inflate::{BUFFER, Output, Piece, Source, Stop, gunzip};
use libfuzzer_sys::fuzz_target;

/// Enough for matches to cross several buffers.
const LIMIT: usize = 2 << 20;

/// Gives the input in pieces of a size taken from it.
struct Pieces<'a>(std::slice::Chunks<'a, u8>);

impl Source for Pieces<'_> {
    fn next(&mut self, _used: Piece) -> Result<Option<Piece>, Stop> {
        Ok(self.0.next().map(|bytes| Piece { bytes: bytes.to_vec(), start: 0, end: bytes.len() }))
    }
}

struct Collect<'a>(&'a mut Vec<u8>);

impl Output for Collect<'_> {
    fn exchange(&mut self, full: Piece) -> Result<Vec<u8>, Stop> {
        self.0.extend_from_slice(full.data());
        if self.0.len() > LIMIT { Err(Stop::Abandoned) } else { Ok(vec![0; BUFFER]) }
    }
}

fuzz_target!(|bytes: &[u8]| {
    let [size, deflate @ ..] = bytes else { return };
    // Header and, once the other decoder knows it, trailer are made here, so that the stream in between decides.
    let mut theirs = Vec::new();
    let mut decoder = flate2::bufread::DeflateDecoder::new(deflate);
    let accepted = decoder.by_ref().take(LIMIT as u64 + 1).read_to_end(&mut theirs).is_ok();
    if theirs.len() > LIMIT {
        return;
    }
    let used = decoder.total_in() as usize;
    let mut blob = vec![0x1f, 0x8b, 8, 0, 0, 0, 0, 0, 0, 0];
    blob.extend(&deflate[..if accepted { used } else { deflate.len() }]);
    let mut crc = flate2::Crc::new();
    crc.update(&theirs);
    blob.extend(crc.sum().to_le_bytes());
    blob.extend((theirs.len() as u32).to_le_bytes());
    let mut ours = Vec::new();
    let result = gunzip(Pieces(blob.chunks(usize::from(*size) + 1)), Collect(&mut ours), true);
    assert_eq!(result.is_ok(), accepted, "{result:?}");
    if accepted {
        assert_eq!(ours, theirs);
    }
});
