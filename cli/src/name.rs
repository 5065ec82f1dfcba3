//! Names of microVMs.

use std::hash::{BuildHasher, RandomState};

/// Longest name: that of a host name's label, so that it can be one.
const MAX: usize = 63;

const FIRST: [&str; 32] = [
    "amber", "brave", "calm", "candid", "clear", "crisp", "dapper", "eager", "early", "fair", "fleet",
    "gentle", "glad", "keen", "kind", "light", "lively", "lucid", "mellow", "merry", "neat", "noble",
    "plain", "prime", "quick", "quiet", "ready", "steady", "sunny", "swift", "tidy", "vivid",
];
const SECOND: [&str; 32] = [
    "abbey", "alcove", "arcade", "arch", "atrium", "belfry", "bower", "chapel", "chapter", "choir", "court",
    "dormer", "fountain", "gable", "gallery", "garden", "hall", "lantern", "lodge", "nave", "niche",
    "orchard", "pillar", "porch", "priory", "refuge", "spire", "stair", "tower", "transept", "vault", "well",
];

/// Checks a name: `[a-zA-Z0-9][a-zA-Z0-9_.-]*`, at most 63 bytes.
pub fn valid(name: &str) -> Result<String, String> {
    let mut bytes = name.bytes();
    let starts = bytes.next().is_some_and(|b| b.is_ascii_alphanumeric());
    if starts
        && name.len() <= MAX
        && bytes.all(|b| b.is_ascii_alphanumeric() || matches!(b, b'_' | b'.' | b'-'))
    {
        Ok(name.to_owned())
    } else {
        Err(format!(
            "`{}` is not a name: it begins with a letter or digit, goes on with those, `_`, `.` and `-`, and has at most {MAX} characters",
            name.escape_debug()
        ))
    }
}

/// A name of two words and, from the second attempt on, a number.
pub fn generate(attempt: u32) -> String {
    // RandomState is seeded by the system for each process and differs for each instance.
    let random = RandomState::new().hash_one(attempt);
    let pick =
        |words: &[&'static str; 32], bits: u64| words.get((bits & 31) as usize).copied().unwrap_or_default();
    let name = format!("{}-{}", pick(&FIRST, random), pick(&SECOND, random >> 5));
    if attempt == 0 { name } else { format!("{name}-{}", (random >> 10) % 10_000) }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn names_never_lead_out_of_their_folder() {
        for good in ["a", "web-1", "A_b.c", &"x".repeat(63)] {
            assert!(valid(good).is_ok(), "{good}");
        }
        for bad in ["", ".", "..", "-a", "a/b", "a b", "a\0", "é", ".hidden", &"x".repeat(64)] {
            assert!(valid(bad).is_err(), "{bad:?}");
        }
    }

    #[test]
    fn generated_names_are_valid() {
        for attempt in 0..100 {
            assert!(valid(&generate(attempt)).is_ok());
        }
    }
}
