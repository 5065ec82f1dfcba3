//! How long to wait before asking again.

use std::time::{Duration, SystemTime};

/// Attempts at one request, the first included.
pub(super) const ATTEMPTS: u32 = 6;
/// First pause; doubled each time.
const BASE: Duration = Duration::from_millis(300);
/// Longest pause of our own choice.
const MAX_PAUSE: Duration = Duration::from_secs(10);
/// Longest pause a registry may ask for; a rate limit of hours is an error, not a reason to hang.
pub(super) const MAX_RETRY_AFTER: Duration = Duration::from_secs(120);

/// The pause before attempt `next` (2, 3, …): exponential, with a random half so that many nodes do not come back at once.
pub(super) fn pause(next: u32) -> Duration {
    let full = BASE.saturating_mul(1 << next.saturating_sub(2).min(10)).min(MAX_PAUSE);
    let mut random = [0; 2];
    // Without random numbers the pause is merely less spread.
    let _ = ring::rand::SecureRandom::fill(&ring::rand::SystemRandom::new(), &mut random);
    full / 2 + full.mul_f64(f64::from(u16::from_le_bytes(random)) / f64::from(u16::MAX) / 2.0)
}

/// Reads a `Retry-After` header: seconds or a date (RFC 9110, section 10.2.3).
pub(super) fn retry_after(value: &str) -> Option<Duration> {
    if let Ok(seconds) = value.trim().parse() {
        return Some(Duration::from_secs(seconds));
    }
    let when = jiff::fmt::rfc2822::DateTimeParser::new().parse_timestamp(value.trim()).ok()?;
    Some(SystemTime::from(when).duration_since(SystemTime::now()).unwrap_or_default())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn pauses_grow_and_stay_bounded() {
        for _ in 0..50 {
            assert!((150..=300).contains(&pause(2).as_millis()));
            assert!((600..=1200).contains(&pause(4).as_millis()));
            assert!(pause(u32::MAX) <= MAX_PAUSE);
        }
    }

    #[test]
    fn both_forms_of_retry_after_are_read() {
        assert_eq!(retry_after("7"), Some(Duration::from_secs(7)));
        assert_eq!(retry_after("Fri, 31 Dec 1999 23:59:59 GMT"), Some(Duration::ZERO));
        assert!(retry_after("Tue, 31 Dec 2199 23:59:59 GMT").unwrap() > Duration::from_secs(1 << 30));
        assert_eq!(retry_after("soon"), None);
    }
}
