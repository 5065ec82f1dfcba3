//! Text from buildkitd, made fit for a terminal and a log.

use std::borrow::Cow;

/// Marks a text that was cut.
const CUT: &str = "…";

/// `text` on one line: without escape sequences and control characters, and no longer than `max` bytes.
pub(crate) fn printable(text: &str, max: usize) -> String {
    let mut out = String::with_capacity(text.len().min(max));
    let mut chars = text.chars();
    while let Some(c) = chars.next() {
        let c = match c {
            '\u{1b}' => {
                skip_escape(&mut chars);
                continue;
            }
            '\t' | '\n' => ' ',
            c if c.is_control() || is_hidden(c) => continue,
            c => c,
        };
        if out.len() + c.len_utf8() > max {
            while out.len() + CUT.len() > max && out.pop().is_some() {}
            if out.len() + CUT.len() <= max {
                out.push_str(CUT);
            }
            break;
        }
        out.push(c);
    }
    out
}

/// Bytes as text; what is not UTF-8 is replaced.
pub(super) fn lossy(bytes: &[u8]) -> Cow<'_, str> {
    String::from_utf8_lossy(bytes)
}

/// Characters that reorder or hide the text around them.
fn is_hidden(c: char) -> bool {
    matches!(c, '\u{200b}'..='\u{200f}' | '\u{2028}'..='\u{202e}' | '\u{2066}'..='\u{2069}' | '\u{feff}')
}

/// Leaves out a control sequence (ECMA-48, 5.4) or a string up to its terminator (5.6).
fn skip_escape(chars: &mut std::str::Chars<'_>) {
    match chars.next() {
        Some('[') => {
            chars.by_ref().find(|c| ('\u{40}'..='\u{7e}').contains(c));
        }
        Some(']' | 'P' | 'X' | '^' | '_') => {
            while let Some(c) = chars.next() {
                if c == '\u{7}' || c == '\u{1b}' && chars.next() == Some('\\') {
                    break;
                }
            }
        }
        // An escape and the one character after it.
        _ => {}
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn terminals_are_not_commanded() {
        assert_eq!(printable("a\u{1b}[31mred\u{1b}[0m b", 80), "ared b");
        assert_eq!(printable("\u{1b}]0;title\u{7}x\u{1b}]8;;u\u{1b}\\y", 80), "xy");
        assert_eq!(printable("a\tb\r\n\u{8}\u{202e}c", 80), "a b c");
        assert_eq!(printable("\u{1b}[", 80), "");
    }

    #[test]
    fn long_text_is_cut_between_characters() {
        assert_eq!(printable("ääää", 8), "ääää");
        assert_eq!(printable("ääääää", 8), "ää…");
        assert_eq!(printable(&"x".repeat(100), 10).len(), 10);
    }

    proptest::proptest! {
        #[test]
        fn nothing_unprintable_and_nothing_long_comes_out(text in "\\PC*|[\\x00-\\x7f]{0,60}", max in 0_usize..60) {
            let out = printable(&text, max);
            proptest::prop_assert!(out.len() <= max);
            proptest::prop_assert!(!out.chars().any(char::is_control));
        }
    }
}
