//! Numbers as tar writes them.

use crate::error::Reason;

/// A numeric header field: octal digits, or with the top bit of the first byte set a big-endian two's complement number
/// in the other bits (GNU "base-256"). An empty field is 0.
pub(super) fn field(bytes: &[u8], name: &'static str) -> Result<i64, Reason> {
    let Some(first) = bytes.first() else { return Ok(0) };
    if first & 0x80 != 0 {
        // Bit 6 of the first byte is the sign.
        let mut value: i64 = if first & 0x40 != 0 { -1 } else { 0 };
        value = value << 6 | i64::from(first & 0x3f);
        for byte in &bytes[1..] {
            let shifted = value.checked_mul(256).ok_or(Reason::Range(name))?;
            value = shifted | i64::from(*byte);
        }
        return Ok(value);
    }
    let start = bytes.iter().position(|b| *b != b' ' && *b != 0).unwrap_or(bytes.len());
    let digits = &bytes[start..];
    let end = digits.iter().position(|b| *b == b' ' || *b == 0).unwrap_or(digits.len());
    digits[..end].iter().try_fold(0i64, |value, digit| match digit {
        b'0'..=b'7' => value.checked_mul(8).map(|v| v + i64::from(digit - b'0')).ok_or(Reason::Range(name)),
        _ => Err(Reason::Number(name)),
    })
}

/// A decimal number without sign, of 1 to 20 digits.
pub(super) fn decimal(bytes: &[u8], name: &'static str) -> Result<u64, Reason> {
    if bytes.is_empty() || bytes.len() > 20 {
        return Err(Reason::Number(name));
    }
    bytes.iter().try_fold(0u64, |value, digit| match digit {
        b'0'..=b'9' => value
            .checked_mul(10)
            .and_then(|v| v.checked_add(u64::from(digit - b'0')))
            .ok_or(Reason::Range(name)),
        _ => Err(Reason::Number(name)),
    })
}

/// A PAX time: seconds since 1970, possibly negative, possibly with a fraction, as (seconds, nanoseconds) with the
/// nanoseconds counting forward. Digits beyond the ninth are dropped towards the past, as GNU tar does.
pub(super) fn time(bytes: &[u8], name: &'static str) -> Result<(i64, u32), Reason> {
    let (negative, rest) = match bytes.strip_prefix(b"-") {
        Some(rest) => (true, rest),
        None => (false, bytes),
    };
    let (whole, fraction) = match rest.iter().position(|b| *b == b'.') {
        Some(dot) => (&rest[..dot], &rest[dot + 1..]),
        None => (rest, &[][..]),
    };
    if !fraction.iter().all(u8::is_ascii_digit) {
        return Err(Reason::Number(name));
    }
    let whole = if whole.is_empty() && !fraction.is_empty() { 0 } else { decimal(whole, name)? };
    let whole = i64::try_from(whole).map_err(|_| Reason::Range(name))?;
    let mut nanos = 0;
    for place in 0..9 {
        nanos = nanos * 10 + fraction.get(place).map_or(0, |digit| u32::from(digit - b'0'));
    }
    if !negative {
        return Ok((whole, nanos));
    }
    if fraction.iter().skip(9).any(|digit| *digit != b'0') {
        nanos += 1;
    }
    if nanos == 0 { Ok((-whole, 0)) } else { Ok((-whole - 1, 1_000_000_000 - nanos)) }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn octal_fields_tolerate_padding_and_nothing_else() {
        assert_eq!(field(b"0000644\0", "x"), Ok(0o644));
        assert_eq!(field(b"   644 \0", "x"), Ok(0o644));
        assert_eq!(field(b"77777777", "x"), Ok(0o77_777_777));
        assert_eq!(field(b"\0\0\0", "x"), Ok(0));
        assert!(field(b"-000001\0", "x").is_err());
        assert!(field(b"0000648\0", "x").is_err());
    }

    #[test]
    fn base_256_fields_reach_both_ways() {
        assert_eq!(field(&[0x80, 0, 0, 0, 0x01, 0, 0, 0], "x"), Ok(1 << 24));
        assert_eq!(field(&[0xff; 12], "x"), Ok(-1));
        assert_eq!(
            field(&[0x80, 0, 0, 0, 0xff, 0xff, 0xff, 0xff, 0xff, 0xff, 0xff, 0xff], "x"),
            Err(Reason::Range("x"))
        );
        assert_eq!(
            field(&[0x80, 0, 0, 0, 0x7f, 0xff, 0xff, 0xff, 0xff, 0xff, 0xff, 0xff], "x"),
            Ok(i64::MAX)
        );
        assert_eq!(field(&[0xff, 0xff, 0xff, 0xff, 0x80, 0, 0, 0, 0, 0, 0, 0], "x"), Ok(i64::MIN));
    }

    #[test]
    fn times_count_forward() {
        assert_eq!(time(b"1.5", "x"), Ok((1, 500_000_000)));
        assert_eq!(time(b"-1.5", "x"), Ok((-2, 500_000_000)));
        assert_eq!(time(b"-0.0000000001", "x"), Ok((-1, 999_999_999)));
        assert_eq!(time(b"-0.9999999999", "x"), Ok((-1, 0)));
        assert_eq!(time(b"4294967296.123456789123", "x"), Ok((1 << 32, 123_456_789)));
        assert_eq!(time(b"-3", "x"), Ok((-3, 0)));
        for bad in [&b""[..], b"-", b".", b"1.a", b"1e3", b"+1", b"99999999999999999999"] {
            assert!(time(bad, "x").is_err(), "{bad:?}");
        }
    }
}
