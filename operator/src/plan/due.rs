//! Whether another attempt should start, and when.

use cloister_crds::{
    Attempt, BuildReason, ConditionType, ImageBuild, ImageBuildStatus, REBUILD, TriggerKind,
};
use jiff::tz::TimeZone;
use jiff::{SignedDuration, Timestamp};

use super::Settings;
use crate::cron::Schedule;
use cloister_crds::fingerprint::{fingerprint, of_images};

/// A reason to start an attempt.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Due {
    /// The reason.
    pub trigger: TriggerKind,
    /// When to start it.
    pub at: Timestamp,
    /// What its place in the queue counts from.
    pub since: Timestamp,
}

/// Whether an attempt has not ended.
pub fn is_running(attempt: &Attempt) -> bool {
    attempt.completion_time.is_none()
}

/// [`due`] of a build whose attempts have all ended, and that nothing holds back: what the queue lines up.
pub fn next_due(build: &ImageBuild, jitter: f64, settings: &Settings, now: Timestamp) -> Option<Due> {
    let status = build.status.clone().unwrap_or_default();
    let refused = status.conditions.iter().any(|condition| {
        condition.type_ == ConditionType::Stalled.as_str()
            && condition.reason == BuildReason::InvalidSpec.as_str()
            && condition.observed_generation == build.metadata.generation
    });
    let held = build.metadata.deletion_timestamp.is_some() || build.spec.suspend || build.spec.cancel;
    if refused || held || status.attempts.iter().any(is_running) {
        return None;
    }
    due(build, &status, jitter, settings, now)
}

/// The next attempt, if there is a reason for one; `status.attempts` are sorted and have all ended.
pub fn due(
    build: &ImageBuild,
    status: &ImageBuildStatus,
    jitter: f64,
    settings: &Settings,
    now: Timestamp,
) -> Option<Due> {
    let created = build.metadata.creation_timestamp.as_ref().map_or(now, |time| time.0);
    let Some(last) = status.attempts.last() else {
        return Some(Due { trigger: TriggerKind::Spec, at: created.min(now), since: created.min(now) });
    };
    // Since when it waits: a build in the queue says so in its condition.
    let queued = status
        .conditions
        .iter()
        .find(|c| c.type_ == ConditionType::Reconciling.as_str() && c.reason == BuildReason::Queued.as_str());
    let since = queued.map_or(now, |condition| condition.last_transition_time.0).min(now);
    let at_once = |trigger| Some(Due { trigger, at: since, since });
    if respecified(build, last) {
        return at_once(TriggerKind::Spec);
    }
    let seen = status.triggers.as_ref().and_then(|triggers| triggers.annotation.as_deref());
    if annotation(build).is_some_and(|value| Some(value) != seen) {
        return at_once(TriggerKind::Annotation);
    }
    if fresh_base(build, status) {
        return at_once(TriggerKind::BaseImage);
    }
    let scheduled = || {
        let asked = schedule(build)?;
        let seen = status.triggers.as_ref().and_then(|triggers| triggers.last_schedule_time.as_ref());
        let after = seen.or(last.start_time.as_ref()).map_or(created, |time| time.0);
        let at = asked.0.next(after, &asked.1)?;
        Some(Due { trigger: TriggerKind::Schedule, at, since: at.max(since) })
    };
    [retry(build, status, last, jitter, settings), scheduled()].into_iter().flatten().min_by_key(|due| due.at)
}

/// Whether a base image of the newest result has another digest by now, which no attempt was started for yet.
fn fresh_base(build: &ImageBuild, status: &ImageBuildStatus) -> bool {
    let wanted = build.spec.triggers.as_ref().is_some_and(|triggers| triggers.base_image.is_some());
    let Some(triggers) = status.triggers.as_ref().filter(|_| wanted) else { return false };
    let moved = triggers.latest_base_images.iter().any(|latest| {
        triggers.base_images.iter().any(|base| base.image == latest.image && base.digest != latest.digest)
    });
    moved && triggers.seen_base_images != bases(status)
}

/// What base images are by now, for [`ObservedTriggers::seen_base_images`](cloister_crds::ObservedTriggers).
pub fn bases(status: &ImageBuildStatus) -> Option<String> {
    let latest = &status.triggers.as_ref()?.latest_base_images;
    (!latest.is_empty()).then(|| of_images(latest))
}

/// Whether the spec asks for something else than what the newest attempt built. After a failure every change may be the
/// remedy; after a success only one of what is built counts.
fn respecified(build: &ImageBuild, last: &Attempt) -> bool {
    let changed = Some(last.generation) != build.metadata.generation;
    changed && (last.failure.is_some() || last.fingerprint.as_deref() != Some(&fingerprint(&build.spec)))
}

/// The retry of the newest attempt, when another one can help.
fn retry(
    build: &ImageBuild,
    status: &ImageBuildStatus,
    last: &Attempt,
    jitter: f64,
    settings: &Settings,
) -> Option<Due> {
    let failure = last.failure.as_ref().filter(|failure| failure.reason.is_retried())?;
    let root = status.attempts.iter().rev().find(|attempt| attempt.trigger != TriggerKind::Retry)?;
    let used = u32::try_from(last.number - root.number).ok()?;
    if i64::from(used) >= build.spec.retries.into() || failure.reason == BuildReason::Cancelled {
        return None;
    }
    let at = last.completion_time.as_ref()?.0 + backoff(used, jitter, settings);
    Some(Due { trigger: TriggerKind::Retry, at, since: at })
}

/// The time before a retry when `used` were used up: it doubles, has an upper bound, and is spread by a quarter both ways.
fn backoff(used: u32, jitter: f64, settings: &Settings) -> SignedDuration {
    let doubled = settings.retry_first.as_secs_f64() * 2_f64.powi(i32::try_from(used.min(30)).unwrap_or(30));
    let bounded = doubled.min(settings.retry_most.as_secs_f64());
    let spread = bounded * (0.75 + 0.5 * jitter.clamp(0.0, 1.0));
    SignedDuration::try_from_secs_f64(spread).unwrap_or(settings.retry_most)
}

/// The value of the annotation that triggers.
pub fn annotation(build: &ImageBuild) -> Option<&str> {
    let asked = build.spec.triggers.as_ref().and_then(|triggers| triggers.annotation.as_deref());
    let value = build.metadata.annotations.as_ref()?.get(asked.unwrap_or(REBUILD))?;
    // As much as the status takes.
    Some(value.char_indices().nth(1024).map_or(value.as_str(), |(end, _)| &value[..end]))
}

/// The schedule and its time zone, when there is one and it can be read.
pub fn schedule(build: &ImageBuild) -> Option<(Schedule, TimeZone)> {
    let asked = build.spec.triggers.as_ref()?.schedule.as_ref()?;
    let zone = match &asked.time_zone {
        Some(name) => TimeZone::get(name).ok()?,
        None => TimeZone::UTC,
    };
    Some((Schedule::parse(&asked.cron).ok()?, zone))
}
