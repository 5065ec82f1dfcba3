//! Times as buildkitd's clock gives them. Only differences are shown; they are not trusted to make sense.

use std::time::Duration;

use bollard_buildkit_proto::google::protobuf::Timestamp;

/// Longest time shown: two days.
const LONGEST: Duration = Duration::from_secs(2 * 24 * 3600);

/// Nanoseconds since 1970.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub(super) struct Moment(i128);

impl Moment {
    pub(super) fn new(time: Timestamp) -> Self {
        Self(i128::from(time.seconds) * 1_000_000_000 + i128::from(time.nanos))
    }

    /// From `start` to here; zero for what lies before, [`LONGEST`] for what is out of reason.
    pub(super) fn since(self, start: Self) -> Duration {
        let nanos = u64::try_from((self.0 - start.0).max(0));
        nanos.map_or(LONGEST, |nanos| Duration::from_nanos(nanos).min(LONGEST))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn at(seconds: i64, nanos: i32) -> Moment {
        Moment::new(Timestamp { seconds, nanos })
    }

    #[test]
    fn differences_are_bounded() {
        assert_eq!(at(5, 500_000_000).since(at(4, 0)), Duration::from_millis(1500));
        assert_eq!(at(4, 0).since(at(5, 0)), Duration::ZERO);
        assert_eq!(at(i64::MAX, i32::MAX).since(at(i64::MIN, i32::MIN)), LONGEST);
    }
}
