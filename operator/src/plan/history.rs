//! Which attempts are kept, and whose pods.

use cloister_crds::{Attempt, BuildReason, History, ImageBuildStatus, TriggerKind};
use jiff::{SignedDuration, Timestamp};

use super::{Action, Observed, Plan, is_running};

/// How long the pod of an attempt that has its result may take to end.
const ENDING: SignedDuration = SignedDuration::from_secs(60);

/// Numbers of the attempts to forget, of `attempts` in their order. Always kept are the newest one (its number counts
/// on), the newest that succeeded (its image is the one in status), and the first of a chain of retries (they are
/// counted from it).
pub fn stale(history: &History, attempts: &[Attempt]) -> Vec<i64> {
    let newest = attempts.last().map(|attempt| attempt.number);
    let success = attempts.iter().rev().find(|attempt| succeeded(attempt)).map(|attempt| attempt.number);
    let root = attempts.iter().rev().find(|attempt| attempt.trigger != TriggerKind::Retry);
    let always = [newest, success, root.map(|attempt| attempt.number)];
    let limit = |count: i32| usize::try_from(count).unwrap_or_default();
    let (mut good, mut bad) = (limit(history.successful), limit(history.failed));
    let mut stale = Vec::new();
    for attempt in attempts.iter().rev().filter(|attempt| !is_running(attempt)) {
        let left = if succeeded(attempt) { &mut good } else { &mut bad };
        match left.checked_sub(1) {
            Some(fewer) => *left = fewer,
            None if always.contains(&Some(attempt.number)) => {}
            None => stale.push(attempt.number),
        }
    }
    stale.reverse();
    stale
}

fn succeeded(attempt: &Attempt) -> bool {
    attempt.completion_time.is_some() && attempt.failure.is_none()
}

/// Deletes pods that nobody needs: of forgotten attempts, and of ended ones that do not end by themselves.
pub fn pods(plan: &mut Plan, status: &ImageBuildStatus, stale: &[i64], observed: &Observed, now: Timestamp) {
    let newest = status.attempts.last().map_or(0, |attempt| attempt.number);
    for pod in observed.pods.iter().filter(|pod| pod.deleting.is_none()) {
        let attempt = status.attempts.iter().find(|attempt| attempt.number == pod.attempt);
        let unwanted = match attempt {
            Some(attempt) if stale.contains(&attempt.number) => true,
            Some(attempt) => match (&attempt.completion_time, pod.phase.is_final()) {
                (Some(_), false) if cut_short(attempt) => true,
                (Some(ended), false) => {
                    let until = ended.0 + ENDING;
                    if until > now {
                        plan.again = Some(plan.again.map_or(until, |other| other.min(until)));
                    }
                    until <= now
                }
                _ => false,
            },
            // A newer one is of an attempt that this look at the object does not know yet.
            None => pod.attempt < newest,
        };
        if unwanted {
            plan.actions.push(Action::DeletePod { name: pod.name.clone(), uid: pod.uid.clone() });
        }
    }
}

/// Whether the operator ended the attempt, and not its pod.
fn cut_short(attempt: &Attempt) -> bool {
    let reason = attempt.failure.as_ref().map(|failure| failure.reason);
    use BuildReason as R;
    matches!(reason, Some(R::Cancelled | R::DeadlineExceeded | R::NodeLost | R::PodEvicted | R::BuilderLost))
}
