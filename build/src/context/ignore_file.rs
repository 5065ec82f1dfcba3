//! `.dockerignore`.

use std::io::{self, Read};

use super::clean;

/// Longest line in bytes, as in the model.
pub const MAX_LINE: u64 = 64 << 10;
/// Largest file in bytes.
pub const MAX_FILE: u64 = 1 << 20;

/// The patterns of a `.dockerignore`, for [`crate::context::Patterns`]: without comments and empty lines, cleaned, and relative to
/// the context even when they start with a slash.
pub fn read_ignore_file(file: impl Read) -> io::Result<Vec<String>> {
    let mut text = Vec::new();
    file.take(MAX_FILE + 1).read_to_end(&mut text)?;
    let refuse = |what: String| io::Error::new(io::ErrorKind::InvalidData, format!(".dockerignore: {what}"));
    let mut patterns = Vec::new();
    for (number, line) in
        (1..).zip(text.strip_prefix(b"\xef\xbb\xbf").unwrap_or(&text).split(|byte| *byte == b'\n'))
    {
        if line.len() as u64 >= MAX_LINE {
            return Err(refuse(format!("line {number} is longer than {MAX_LINE} bytes")));
        }
        let line = std::str::from_utf8(line).map_err(|_| refuse(format!("line {number} is not UTF-8")))?;
        // Only a # in the first column is a comment.
        if !line.starts_with('#') && !line.trim().is_empty() {
            patterns.push(relative(line.trim()));
        }
    }
    if text.len() as u64 > MAX_FILE {
        return Err(refuse(format!("is larger than {MAX_FILE} bytes")));
    }
    Ok(patterns)
}

/// A pattern relative to the context, its `!` kept.
fn relative(pattern: &str) -> String {
    let (mark, path) = match pattern.strip_prefix('!') {
        Some(path) => ("!", path.trim()),
        None => ("", pattern),
    };
    if path.is_empty() {
        return mark.into();
    }
    let path = clean(path);
    let path = path.strip_prefix('/').filter(|rest| !rest.is_empty()).unwrap_or(&path);
    format!("{mark}{path}")
}
