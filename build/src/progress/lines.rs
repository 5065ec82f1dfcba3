//! Output of a step, which comes in pieces that end anywhere, as lines.

/// Longest line kept, in bytes; the rest of it is left out.
pub(super) const MAX_LINE: usize = 4096;

/// The line that is not complete yet.
#[derive(Debug, Default)]
pub(super) struct Partial {
    bytes: Vec<u8>,
    left_out: usize,
}

impl Partial {
    /// Adds a piece and gives each line that it completes, with how many bytes of the line are left out.
    pub(super) fn push(&mut self, piece: &[u8], mut line: impl FnMut(&[u8], usize)) {
        let mut rest = piece;
        while let Some(end) = rest.iter().position(|&byte| byte == b'\n') {
            self.add(&rest[..end]);
            self.take(&mut line);
            rest = &rest[end + 1..];
        }
        self.add(rest);
    }

    /// Gives what there is of an incomplete line.
    pub(super) fn finish(&mut self, mut line: impl FnMut(&[u8], usize)) {
        if !self.bytes.is_empty() {
            self.take(&mut line);
        }
    }

    fn add(&mut self, bytes: &[u8]) {
        let room = MAX_LINE.saturating_sub(self.bytes.len()).min(bytes.len());
        self.bytes.extend_from_slice(&bytes[..room]);
        self.left_out += bytes.len() - room;
    }

    fn take(&mut self, line: &mut impl FnMut(&[u8], usize)) {
        let whole = self.bytes.strip_suffix(b"\r").unwrap_or(&self.bytes);
        // What a carriage return overwrote would not be seen on a terminal either.
        let seen = whole.rsplit(|&byte| byte == b'\r').next().unwrap_or(whole);
        line(seen, self.left_out);
        self.bytes.clear();
        self.left_out = 0;
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn lines(pieces: &[&str]) -> Vec<(String, usize)> {
        let mut partial = Partial::default();
        let mut got = Vec::new();
        let mut keep = |line: &[u8], cut| got.push((String::from_utf8_lossy(line).into_owned(), cut));
        for piece in pieces {
            partial.push(piece.as_bytes(), &mut keep);
        }
        partial.finish(&mut keep);
        got
    }

    fn whole(texts: &[&str]) -> Vec<(String, usize)> {
        texts.iter().map(|text| ((*text).to_owned(), 0)).collect()
    }

    #[test]
    fn pieces_become_lines() {
        assert_eq!(lines(&["a\nb", "c\n", "\nd"]), whole(&["a", "bc", "", "d"]));
        assert_eq!(lines(&["10%\r20%\r100%\r\nx\r", "\n"]), whole(&["100%", "x"]));
    }

    #[test]
    fn an_endless_line_takes_no_more_room_than_a_long_one() {
        let got = lines(&["x".repeat(3000).as_str(), "y".repeat(3000).as_str(), "\nz"]);
        assert_eq!((got[0].0.len(), got[0].1), (MAX_LINE, 6000 - MAX_LINE));
        assert_eq!(got[1], ("z".to_owned(), 0));
    }
}
