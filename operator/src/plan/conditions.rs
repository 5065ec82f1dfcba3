//! Conditions as kstatus and `kubectl wait` understand them, and the phase for people.

use cloister_crds::{Attempt, BuildReason, ConditionType, Failure, ImageBuildStatus, Phase};
use jiff::Timestamp;
use k8s_openapi::apimachinery::pkg::apis::meta::v1::{Condition, Time};

use super::Event;

/// Where a build stands.
#[derive(Debug)]
pub enum State {
    /// The spec cannot be built.
    Invalid(String),
    /// Due, and held by `spec.suspend`.
    Suspended,
    /// Ended or held by `spec.cancel`.
    Cancelled,
    /// Due, and waits for its turn; 0 of 0 until it has a place.
    Queued {
        /// Its place from 1.
        place: usize,
        /// How many wait.
        of: usize,
    },
    /// An attempt failed; the next one comes at this time.
    RetryAt(Timestamp, Box<Attempt>),
    /// An attempt runs.
    Running {
        /// What it does.
        reason: BuildReason,
        /// For people.
        message: String,
    },
    /// Built; nodes fetch it.
    Distributing(String),
    /// Everywhere.
    Ready,
    /// This attempt failed and no other follows.
    Failed(i64, Failure),
}

impl State {
    /// Whether nothing more happens by itself.
    pub const fn is_final(&self) -> bool {
        matches!(self, Self::Ready | Self::Failed(..) | Self::Cancelled)
    }

    fn phase(&self) -> Phase {
        match self {
            Self::Invalid(_) | Self::Failed(..) => Phase::Failed,
            Self::Suspended => Phase::Suspended,
            Self::Cancelled => Phase::Cancelled,
            Self::Queued { .. } | Self::RetryAt(..) => Phase::Pending,
            Self::Running { reason: BuildReason::Scheduling | BuildReason::Starting, .. } => Phase::Pending,
            Self::Running { reason: BuildReason::Distributing, .. } => Phase::Distributing,
            Self::Running { .. } => Phase::Building,
            Self::Distributing(_) => Phase::Distributing,
            Self::Ready => Phase::Succeeded,
        }
    }

    fn reason(&self) -> BuildReason {
        match self {
            Self::Invalid(_) => BuildReason::InvalidSpec,
            Self::Suspended => BuildReason::Suspended,
            Self::Cancelled => BuildReason::Cancelled,
            Self::Queued { .. } => BuildReason::Queued,
            Self::RetryAt(..) => BuildReason::RetryScheduled,
            Self::Running { reason, .. } => *reason,
            Self::Distributing(_) => BuildReason::Distributing,
            Self::Ready => BuildReason::ImageReady,
            Self::Failed(_, failure) => failure.reason,
        }
    }

    fn message(&self, status: &ImageBuildStatus) -> String {
        match self {
            Self::Invalid(why) => why.clone(),
            Self::Suspended => "spec.suspend is true: no attempt starts".to_owned(),
            Self::Cancelled => "spec.cancel is or was true: change it to build".to_owned(),
            Self::Queued { place: 0, .. } => "waits to be lined up".to_owned(),
            Self::Queued { place, of } => format!("number {place} of {of} in line"),
            Self::RetryAt(at, attempt) => {
                format!(
                    "{}; the next one starts at {at:.0}",
                    describe(attempt.number, attempt.failure.as_ref())
                )
            }
            Self::Running { message, .. } | Self::Distributing(message) => message.clone(),
            Self::Ready => match (&status.image, &status.digest) {
                (Some(image), Some(digest)) => format!("{image} is {digest}"),
                (None, Some(digest)) => format!("the archive holds {digest}"),
                _ => "the image is everywhere it should be".to_owned(),
            },
            Self::Failed(number, failure) => describe(*number, Some(failure)),
        }
    }
}

fn describe(number: i64, failure: Option<&Failure>) -> String {
    match failure {
        Some(failure) => format!("attempt {number}: {}: {}", failure.reason.as_str(), failure.message),
        None => format!("attempt {number}"),
    }
}

/// Writes conditions and phase; `held` says that the image of the present spec is everywhere, whatever else goes on.
/// Returns what to tell, when the state is another one than before.
pub fn set(status: &mut ImageBuildStatus, state: &State, held: bool, now: Timestamp) -> Option<Event> {
    use ConditionType as T;
    let before = primary(status);
    let (reason, message) = (state.reason(), state.message(status));
    status.phase = Some(state.phase());
    let (goes_on, stuck) = match state {
        State::Ready => (false, false),
        State::Invalid(_) | State::Failed(..) | State::Suspended | State::Cancelled => (false, true),
        _ => (true, false),
    };
    let ready = match held {
        true => ("True", BuildReason::ImageReady, State::Ready.message(status)),
        false => ("False", reason, message.clone()),
    };
    put(status, T::Ready, ready, now);
    match goes_on {
        true => put(status, T::Reconciling, ("True", reason, message.clone()), now),
        false => remove(status, T::Reconciling),
    }
    match stuck {
        true => put(status, T::Stalled, ("True", reason, message.clone()), now),
        false => remove(status, T::Stalled),
    }
    if let Some(last) = status.attempts.last().cloned() {
        let succeeded = match (&last.completion_time, &last.failure) {
            (None, _) => ("Unknown", reason, describe(last.number, None)),
            (_, Some(failure)) => ("False", failure.reason, describe(last.number, Some(failure))),
            (_, None) => ("True", BuildReason::ImageReady, describe(last.number, None)),
        };
        put(status, T::Succeeded, succeeded, now);
    } else {
        remove(status, T::Succeeded);
    }
    let failed = matches!(state, State::Invalid(_) | State::Failed(..) | State::RetryAt(..));
    (before.as_deref() != Some(reason.as_str())).then_some(Event { warning: failed, reason, note: message })
}

/// The reason that stands first in people's interest.
fn primary(status: &ImageBuildStatus) -> Option<String> {
    let order = [ConditionType::Stalled, ConditionType::Reconciling, ConditionType::Ready];
    let find = |kind: ConditionType| status.conditions.iter().find(|c| c.type_ == kind.as_str());
    order.into_iter().find_map(find).map(|condition| condition.reason.clone())
}

fn put(
    status: &mut ImageBuildStatus,
    kind: ConditionType,
    (value, reason, message): (&str, BuildReason, String),
    now: Timestamp,
) {
    let new = Condition {
        type_: kind.as_str().to_owned(),
        status: value.to_owned(),
        reason: reason.as_str().to_owned(),
        message,
        observed_generation: status.observed_generation,
        last_transition_time: Time(now),
    };
    match status.conditions.iter_mut().find(|condition| condition.type_ == new.type_) {
        Some(old) => {
            let since = match (old.status == new.status, kind) {
                // How long a build has been queued is read from this.
                (true, ConditionType::Reconciling) if old.reason != new.reason => now,
                (true, _) => old.last_transition_time.0,
                (false, _) => now,
            };
            *old = Condition { last_transition_time: Time(since), ..new };
        }
        None => status.conditions.push(new),
    }
}

fn remove(status: &mut ImageBuildStatus, kind: ConditionType) {
    status.conditions.retain(|condition| condition.type_ != kind.as_str());
}
