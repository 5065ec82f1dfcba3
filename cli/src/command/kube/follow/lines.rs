//! Lines of a log with their times, as kubelet sends them: by the times, a log that is asked for again goes on where it
//! was cut. Holds no line, however long it is.

use std::cmp::Ordering;
use std::io::{self, Write};

use jiff::Timestamp;

/// Longest time in front of a line, in bytes.
const STAMP: usize = 64;

/// What has been written.
#[derive(Debug, Default)]
pub struct Lines {
    /// Time of the newest line that was written, or begun.
    last: Option<Timestamp>,
    /// Lines of that time that were written to their end.
    whole: u64,
    /// Bytes of the line after those.
    begun: u64,
    /// What to leave out of what comes again: lines of the time `last`, then bytes of the next one.
    again: (u64, u64),
    part: Part,
}

/// Where in a line the stream is.
#[derive(Debug)]
enum Part {
    /// In its time.
    Stamp(Vec<u8>),
    /// In its text, which is left out for so many more bytes.
    Text(u64),
}

impl Default for Part {
    fn default() -> Self {
        Self::Stamp(Vec::new())
    }
}

impl Lines {
    /// From when to ask for lines.
    pub fn since(&self) -> Option<Timestamp> {
        self.last
    }

    /// A stream begins, at [`Lines::since`] or a little before.
    pub fn begin(&mut self) {
        self.again = (self.whole, self.begun);
        self.part = Part::default();
    }

    /// Takes more of the stream.
    pub fn feed(&mut self, mut bytes: &[u8], out: &mut (impl Write + ?Sized)) -> io::Result<()> {
        while !bytes.is_empty() {
            match &mut self.part {
                Part::Stamp(stamp) => {
                    let room = STAMP.saturating_sub(stamp.len());
                    let end = bytes.iter().take(room).position(|byte| matches!(byte, b' ' | b'\n'));
                    let (taken, rest) = bytes.split_at(end.unwrap_or(room.min(bytes.len())));
                    stamp.extend_from_slice(taken);
                    bytes = rest;
                    if end.is_some() || stamp.len() == STAMP {
                        let stamp = std::mem::take(stamp);
                        let time = std::str::from_utf8(&stamp).ok().and_then(|text| text.parse().ok());
                        self.part = Part::Text(self.left_out(time));
                        match time {
                            // The space between them.
                            Some(_) => bytes = bytes.strip_prefix(b" ").unwrap_or(bytes),
                            // No time: a line of another kind of log.
                            None => self.text(&stamp, out)?,
                        }
                    }
                }
                Part::Text(_) => {
                    let end = bytes.iter().position(|byte| *byte == b'\n').map(|at| at + 1);
                    let (text, rest) = bytes.split_at(end.unwrap_or(bytes.len()));
                    self.text(text, out)?;
                    bytes = rest;
                    if end.is_some() {
                        self.end_line();
                    }
                }
            }
        }
        Ok(())
    }

    /// A line of this time begins: how many of its bytes are left out.
    fn left_out(&mut self, time: Option<Timestamp>) -> u64 {
        let Some(time) = time else { return 0 };
        match self.last.map_or(Ordering::Greater, |last| time.cmp(&last)) {
            Ordering::Less => u64::MAX,
            Ordering::Equal if self.again.0 > 0 => {
                self.again.0 -= 1;
                u64::MAX
            }
            Ordering::Equal => std::mem::take(&mut self.again.1),
            Ordering::Greater => {
                (self.last, self.whole, self.begun, self.again) = (Some(time), 0, 0, (0, 0));
                0
            }
        }
    }

    fn text(&mut self, text: &[u8], out: &mut (impl Write + ?Sized)) -> io::Result<()> {
        let Part::Text(skip) = &mut self.part else { return Ok(()) };
        if *skip == u64::MAX {
            return Ok(());
        }
        let skipped = usize::try_from(*skip).unwrap_or(usize::MAX).min(text.len());
        *skip -= skipped as u64;
        let text = text.get(skipped..).unwrap_or_default();
        self.begun += text.len() as u64;
        out.write_all(text)
    }

    fn end_line(&mut self) {
        if !matches!(self.part, Part::Text(u64::MAX)) {
            (self.whole, self.begun) = (self.whole + 1, 0);
        }
        self.part = Part::default();
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const LOG: &str = "2026-01-01T00:00:00.000000001Z one\n2026-01-01T00:00:00.000000002Z two\n\
                       2026-01-01T00:00:00.000000002Z also two\n2026-01-01T00:00:00.000000003Z \n\
                       2026-01-01T00:00:00.5Z the last\n";
    const TEXT: &str = "one\ntwo\nalso two\n\nthe last\n";

    #[test]
    fn a_log_that_is_cut_anywhere_and_asked_for_again_comes_once() {
        for cut in 0..=LOG.len() {
            for size in [1, 7, 1000] {
                let (mut lines, mut out) = (Lines::default(), Vec::new());
                lines.begin();
                for chunk in LOG.as_bytes()[..cut].chunks(size) {
                    lines.feed(chunk, &mut out).unwrap();
                }
                // The API counts in whole seconds: everything comes again.
                lines.begin();
                lines.feed(LOG.as_bytes(), &mut out).unwrap();
                assert_eq!(String::from_utf8(out).unwrap(), TEXT, "cut at {cut}, {size} at a time");
            }
        }
    }

    #[test]
    fn lines_without_a_time_are_not_lost() {
        let (mut lines, mut out) = (Lines::default(), Vec::new());
        lines.begin();
        let text = format!("plain words\n\n{}\nunable to retrieve container logs", "x".repeat(100));
        lines.feed(text.as_bytes(), &mut out).unwrap();
        assert_eq!(
            String::from_utf8(out).unwrap(),
            "plain words\n\n".to_owned() + &"x".repeat(100) + "\nunable to retrieve container logs"
        );
    }
}
