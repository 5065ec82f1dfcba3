//! The rate of the host's time stamp counter, which emulation hands to the guest as it is.
//!
//! A guest that calibrates the counter itself compares it with an emulated timer; on a busy host that comparison can be
//! wrong by a factor, and the guest's clock with it. So the guest is told (`tsc_early_khz=`, kernel-parameters.rst).

use std::time::{Duration, Instant};

/// Long enough for an error below 0.01 %.
const SPAN: Duration = Duration::from_millis(10);

/// A measurement under way: begun early and read late, it costs a start no time.
pub(crate) struct Measurement {
    begun: Instant,
    ticks: u64,
}

impl Measurement {
    /// Begins now.
    pub fn start() -> Self {
        let (begun, ticks) = sample();
        Self { begun, ticks }
    }

    /// Ticks per millisecond, waiting for what is left of the time needed. `None` on processors without such a counter.
    pub async fn khz(self) -> Option<u64> {
        tokio::time::sleep(SPAN.saturating_sub(self.begun.elapsed())).await;
        let (now, ticks) = sample();
        let nanos =
            u64::try_from(now.duration_since(self.begun).as_nanos()).ok().filter(|nanos| *nanos > 0)?;
        let khz = u128::from(ticks.checked_sub(self.ticks)?) * 1_000_000 / u128::from(nanos);
        u64::try_from(khz).ok().filter(|khz| *khz > 0)
    }
}

/// The two clocks at (nearly) one moment: of a few tries the one in which least time passed.
fn sample() -> (Instant, u64) {
    let attempt = || {
        let before = Instant::now();
        let ticks = counter();
        (before.elapsed(), before, ticks)
    };
    let (_, at, ticks) =
        (0..3).map(|_| attempt()).fold(attempt(), |best, one| if one.0 < best.0 { one } else { best });
    (at, ticks)
}

#[cfg(target_arch = "x86_64")]
fn counter() -> u64 {
    // SAFETY: RDTSC reads a register and nothing else; every x86_64 processor has it.
    unsafe { core::arch::x86_64::_rdtsc() }
}

#[cfg(not(target_arch = "x86_64"))]
fn counter() -> u64 {
    0
}

#[cfg(all(test, target_arch = "x86_64"))]
mod tests {
    use super::Measurement;

    #[tokio::test]
    async fn two_measurements_agree() {
        let one = Measurement::start().khz().await.unwrap();
        let other = Measurement::start().khz().await.unwrap();
        assert!(one.abs_diff(other) < one / 1000, "{one} and {other} kHz");
        assert!(one > 100_000, "{one} kHz");
    }
}
