//! What is remembered of a build from one look to the next. Nothing of it is needed after a restart.

use std::time::{Duration, Instant};

use cloister_crds::NodeImage;
use tokio::task::AbortHandle;

use crate::import::Request;

/// Pause after a first failure; doubled for each further one.
const FIRST: Duration = Duration::from_secs(1);
/// Longest pause.
const LAST: Duration = Duration::from_secs(300);
/// How long the daemon has to bring an image back by itself.
const DAEMON: Duration = Duration::from_secs(20);
/// How often to look for what is missing.
const LOOK: Duration = Duration::from_secs(1);
/// How long the API server may take to show what was written.
const ECHO: Duration = Duration::from_secs(10);

/// One build.
#[derive(Debug, Default)]
pub struct Memory {
    /// The work that is underway.
    pub work: Option<Work>,
    /// What was tried last, how often it failed, when it may be tried again, and why it failed.
    failed: Option<(Request, u32, Instant, String)>,
    /// Since when a part of it is missing, and when to look for it again.
    missing: Option<(Instant, Instant)>,
    /// When all of it was seen here.
    checked: Option<Instant>,
    /// What was written into the status last; without an entry when it was taken back.
    told: Option<(Option<NodeImage>, Instant)>,
    /// When to write what was refused.
    refused: Option<Instant>,
}

/// Work for one request; it ends with this.
#[derive(Debug)]
pub struct Work {
    /// What for.
    pub request: Request,
    /// Which of all.
    pub number: u64,
    /// Ends it.
    pub task: AbortHandle,
}

impl Drop for Work {
    fn drop(&mut self) {
        self.task.abort();
    }
}

impl Memory {
    /// Notes how work has ended.
    pub fn ended(&mut self, request: Request, result: Result<(), String>, now: Instant) {
        self.work = None;
        (self.missing, self.checked) = (None, None);
        let before = self.failed.take().filter(|(of, ..)| *of == request).map_or(0, |(_, count, ..)| count);
        if let Err(why) = result {
            let count = before + 1;
            self.failed = Some((request, count, now + pause(count, jitter()), why));
        }
    }

    /// Why the request failed and when it may be tried again, if not yet.
    pub fn resting(&self, request: &Request, now: Instant) -> Option<&str> {
        let failed = self.failed.as_ref().filter(|(of, _, again, _)| of == request && *again > now);
        failed.map(|(.., why)| why.as_str())
    }

    /// Why the request failed when it was last tried.
    pub fn trouble(&self, request: &Request) -> Option<&str> {
        self.failed.as_ref().filter(|(of, ..)| of == request).map(|(.., why)| why.as_str())
    }

    /// When to look again although nothing has changed.
    pub fn wake(&self) -> Option<Instant> {
        let again = self.failed.as_ref().filter(|_| self.work.is_none()).map(|(_, _, again, _)| *again);
        [again, self.missing.map(|(_, look)| look), self.refused].into_iter().flatten().min()
    }

    /// Notes that everything is here.
    pub fn complete(&mut self, now: Instant) {
        (self.missing, self.failed, self.checked) = (None, None, Some(now));
    }

    /// Whether everything was here a moment ago.
    pub fn is_fresh(&self, now: Instant, age: Duration) -> bool {
        self.checked.is_some_and(|checked| now.duration_since(checked) < age)
    }

    /// Notes that something is missing; whether the daemon had its time to bring it back.
    pub fn incomplete(&mut self, now: Instant) -> bool {
        let since = self.missing.map_or(now, |(since, _)| since);
        (self.checked, self.missing) = (None, Some((since, now + LOOK)));
        now.duration_since(since) >= DAEMON
    }

    /// Whether an entry is still to be written, when the API server shows `shown`.
    pub fn is_news(&self, entry: Option<&NodeImage>, shown: Option<&NodeImage>, now: Instant) -> bool {
        let same = |one: Option<&NodeImage>, other: Option<&NodeImage>| match (one, other) {
            (None, None) => true,
            (Some(one), Some(other)) => super::entry::says(one, other),
            _ => false,
        };
        match &self.told {
            _ if self.refused.is_some_and(|until| now < until) => false,
            Some((told, at)) if now.duration_since(*at) < ECHO => !same(entry, told.as_ref()),
            _ => !same(entry, shown),
        }
    }

    /// Notes what was written.
    pub fn told(&mut self, entry: Option<NodeImage>, now: Instant) {
        (self.told, self.refused) = (Some((entry, now)), None);
    }

    /// Notes that an entry was not taken.
    pub fn refused(&mut self, now: Instant) {
        self.refused = Some(now + ECHO);
    }

    /// The entry that was written last.
    pub fn last(&self) -> Option<&NodeImage> {
        self.told.as_ref().and_then(|(told, _)| told.as_ref())
    }
}

/// The pause after so many failures; `jitter` is from 0 to 1.
fn pause(failures: u32, jitter: f64) -> Duration {
    let full = FIRST.saturating_mul(1 << failures.saturating_sub(1).min(16)).min(LAST);
    full.mul_f64(0.75 + jitter / 4.0)
}

/// Something between 0 and 1 that differs between nodes.
fn jitter() -> f64 {
    f64::from(jiff::Timestamp::now().subsec_nanosecond().rem_euclid(1000)) / 1000.0
}

#[cfg(test)]
mod tests {
    use super::*;
    use cloister_crds::NodeState;

    fn request(content: &[u8]) -> Request {
        Request {
            build: "team/app".into(),
            object: Some("u1".into()),
            names: vec!["app:1".into()],
            digest: cloister_image::Digest::of(content),
            pin: true,
            replace: false,
        }
    }

    #[test]
    fn pauses_grow_to_five_minutes_and_start_again_for_another_image() {
        assert_eq!((pause(1, 1.0), pause(3, 1.0)), (FIRST, FIRST * 4));
        assert_eq!(pause(1, 0.0), Duration::from_millis(750));
        assert_eq!(pause(u32::MAX, 1.0), LAST);
        let (mut memory, now) = (Memory::default(), Instant::now());
        for _ in 0..8 {
            memory.ended(request(b"a"), Err("gone".into()), now);
        }
        assert_eq!(memory.resting(&request(b"a"), now + Duration::from_secs(60)), Some("gone"));
        assert_eq!(memory.resting(&request(b"b"), now), None);
        memory.ended(request(b"b"), Err("gone".into()), now);
        assert_eq!(memory.resting(&request(b"b"), now + FIRST), None);
        assert_eq!(memory.trouble(&request(b"b")), Some("gone"));
    }

    #[test]
    fn an_entry_is_written_once_and_again_when_somebody_changed_it() {
        let (mut memory, now) = (Memory::default(), Instant::now());
        let ready = super::super::entry::entry("n1", NodeState::Ready, None, true, "");
        assert!(memory.is_news(Some(&ready), None, now));
        memory.told(Some(ready.clone()), now);
        assert!(!memory.is_news(Some(&ready), None, now), "the watch is behind");
        assert!(memory.is_news(Some(&ready), None, now + ECHO));
        assert!(!memory.is_news(Some(&ready), Some(&ready), now + ECHO));
        assert!(memory.is_news(None, Some(&ready), now));
        assert!(!Memory::default().is_news(None, None, now));
        memory.refused(now);
        assert!(!memory.is_news(None, Some(&ready), now) && memory.wake() == Some(now + ECHO));
        assert!(memory.is_news(None, Some(&ready), now + ECHO));
    }

    #[test]
    fn the_daemon_has_its_time_to_heal() {
        let (mut memory, now) = (Memory::default(), Instant::now());
        memory.complete(now);
        assert!(memory.is_fresh(now, FIRST) && memory.wake().is_none());
        assert!(!memory.incomplete(now));
        assert_eq!(memory.wake(), Some(now + LOOK));
        assert!(memory.incomplete(now + DAEMON));
    }
}
