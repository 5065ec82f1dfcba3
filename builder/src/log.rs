//! The end of what buildkitd writes, for messages.

use std::collections::VecDeque;
use std::io::{self, Write};
use std::sync::{Arc, Mutex, PoisonError};

use cloister_sandbox::printable;

/// Bytes kept.
const KEPT: usize = 16 << 10;
/// Bytes of it that a message quotes.
const QUOTED: usize = 480;

/// The last bytes of a stream. Clones share them.
#[derive(Debug, Clone, Default)]
pub struct Tail(Arc<Mutex<VecDeque<u8>>>);

impl Tail {
    /// The last of it on one bounded, printable line.
    pub fn text(&self) -> String {
        let kept = self.0.lock().unwrap_or_else(PoisonError::into_inner);
        let skip = kept.len().saturating_sub(QUOTED);
        let bytes: Vec<u8> = kept.iter().skip(skip).copied().collect();
        printable(String::from_utf8_lossy(&bytes).trim_start_matches('\u{fffd}'))
    }
}

impl Write for Tail {
    fn write(&mut self, bytes: &[u8]) -> io::Result<usize> {
        let mut kept = self.0.lock().unwrap_or_else(PoisonError::into_inner);
        let new = bytes.get(bytes.len().saturating_sub(KEPT)..).unwrap_or_default();
        let excess = (kept.len() + new.len()).saturating_sub(KEPT);
        kept.drain(..excess);
        kept.extend(new);
        Ok(bytes.len())
    }

    fn flush(&mut self) -> io::Result<()> {
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_flood_is_kept_in_bounds_and_its_end_is_quoted() {
        let mut tail = Tail::default();
        for n in 0..10_000 {
            writeln!(tail, "line {n}\x1b[2J").unwrap();
        }
        tail.write_all(&[b'x'; 3 * KEPT]).unwrap();
        tail.write_all(b"the end\n").unwrap();
        assert_eq!(tail.0.lock().unwrap().len(), KEPT);
        let text = tail.text();
        assert!(text.ends_with("xthe end") && text.len() <= 600, "{text}");
        assert!(!text.chars().any(char::is_control));
    }
}
