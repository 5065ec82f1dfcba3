//! What to do about one build: a function of the object, of what is seen of its pods and nodes, and of the time. No
//! I/O, no clock, no memory: whoever calls it after a crash gets the same answer.

mod attempt;
mod conditions;
mod delete;
mod due;
mod history;
mod image;
mod owned;
#[cfg(test)]
mod tests;
mod types;

use cloister_crds::{
    Attempt, BuildReason, Failure, ImageBuild, ImageBuildStatus, Stage, StageName, TriggerKind,
};
use jiff::{SignedDuration, Timestamp};
use k8s_openapi::apimachinery::pkg::apis::meta::v1::Time;

pub use attempt::{BuildPod, PodPhase};
pub use due::{Due, due, is_running, next_due};
pub use owned::owned;
pub use types::{Action, Event, FINALIZER, Observed, Plan, Settings, Turn};

use conditions::State;

/// Decides. `refused` is what validation has against the spec, if anything.
pub fn plan(
    build: &ImageBuild,
    observed: &Observed,
    refused: Option<&str>,
    settings: &Settings,
    now: Timestamp,
) -> Plan {
    if build.metadata.deletion_timestamp.is_some() {
        return delete::plan(build, observed, now);
    }
    if !build.metadata.finalizers.iter().flatten().any(|name| name == FINALIZER) {
        return Plan { actions: vec![Action::Hold], ..Plan::default() };
    }
    let status = build.status.clone().unwrap_or_default();
    let mut draft = Draft { build, observed, settings, now, status, plan: Plan::default() };
    let state = draft.decide(refused);
    draft.finish(state)
}

/// A status on its way from what it is to what it should be.
struct Draft<'a> {
    build: &'a ImageBuild,
    observed: &'a Observed,
    settings: &'a Settings,
    now: Timestamp,
    status: ImageBuildStatus,
    plan: Plan,
}

impl Draft<'_> {
    fn decide(&mut self, refused: Option<&str>) -> State {
        let generation = self.build.metadata.generation.unwrap_or_default();
        self.status.observed_generation = Some(generation);
        self.status.attempts.sort_by_key(|attempt| attempt.number);
        if let Some(state) = self.run(refused) {
            return state;
        }
        // No attempt runs: is there a reason for another one?
        if let Some(why) = refused {
            return State::Invalid(why.to_owned());
        }
        let due = due(self.build, &self.status, self.observed.jitter, self.settings, self.now);
        let last = self.status.attempts.last().cloned();
        match due {
            Some(due) if due.at <= self.now || due.trigger == TriggerKind::Retry => match self.held() {
                Some(state) => state,
                None if due.at > self.now => {
                    self.again(due.at);
                    State::RetryAt(due.at, Box::new(last.unwrap_or_default()))
                }
                None => self.start(&due, generation),
            },
            other => {
                if let Some(due) = other {
                    self.again(due.at);
                }
                self.rest(last)
            }
        }
    }

    /// What the running attempt does, if one runs.
    fn run(&mut self, refused: Option<&str>) -> Option<State> {
        let index = self.status.attempts.iter().position(is_running)?;
        let mut attempt = self.status.attempts[index].clone();
        let pod = self.observed.pods.iter().find(|pod| pod.attempt == attempt.number);
        if attempt.start_time.is_none()
            && pod.is_none()
            && attempt.digest.is_none()
            && attempt.failure.is_none()
        {
            return self.intent(index, refused);
        }
        let judged = attempt::judge(&mut attempt, pod, self.build, self.settings, self.now);
        self.status.attempts[index] = attempt.clone();
        let state = match judged {
            attempt::Judged::Runs { reason, message, again } => {
                if let Some(at) = again {
                    self.again(at);
                }
                Some(State::Running { reason, message })
            }
            attempt::Judged::Ended(failure) => {
                attempt.completion_time = Some(Time(self.now));
                if let Some(failure) = failure {
                    attempt.failure.get_or_insert(failure);
                    attempt.digest = None;
                }
                self.status.attempts[index] = attempt.clone();
                self.plan.ended = Some(attempt);
                None
            }
        };
        let attempt = &self.status.attempts[index];
        self.status.node = attempt.node.clone();
        self.status.start_time = attempt.start_time.clone();
        self.status.completion_time = attempt.completion_time.clone();
        self.status.progress =
            attempt.steps.as_ref().map(|steps| format!("{}/{}", steps.completed, steps.total));
        state
    }

    /// An attempt that stands in the status and whose pod was never seen: its pod is made, unless the spec changed its mind.
    fn intent(&mut self, index: usize, refused: Option<&str>) -> Option<State> {
        if refused.is_some() || self.build.spec.cancel || self.build.spec.suspend {
            self.status.attempts.remove(index);
            return None;
        }
        if let Turn::Wait { place, of } = self.observed.turn {
            // Its pod was refused, and others went first.
            self.again(self.now + SignedDuration::from_secs(30));
            return Some(State::Queued { place, of });
        }
        let generation = self.build.metadata.generation.unwrap_or_default();
        let attempt = &mut self.status.attempts[index];
        if attempt.generation == generation {
            if self.observed.turn == Turn::Go {
                self.plan.actions.push(Action::CreatePod(attempt.number));
            }
        } else {
            attempt.generation = generation;
            attempt.fingerprint = Some(cloister_crds::fingerprint::fingerprint(&self.build.spec));
        }
        Some(State::Running { reason: BuildReason::Scheduling, message: "the pod is being made".into() })
    }

    /// Why a build that is due does not start.
    fn held(&self) -> Option<State> {
        match (self.build.spec.cancel, self.build.spec.suspend) {
            (true, _) => Some(State::Cancelled),
            (false, true) => Some(State::Suspended),
            (false, false) => None,
        }
    }

    /// Starts the attempt that is due when it is its turn: the attempt is written to the status first, so that its pod
    /// has one name whatever happens in between.
    fn start(&mut self, due: &Due, generation: i64) -> State {
        let (place, of) = match self.observed.turn {
            Turn::Go => {
                let number = self.status.attempts.last().map_or(0, |last| last.number) + 1;
                let name = self.build.metadata.name.as_deref().unwrap_or_default();
                let waited = self.now.duration_since(due.since).as_millis().max(0);
                self.status.attempts.push(Attempt {
                    number,
                    generation,
                    fingerprint: Some(cloister_crds::fingerprint::fingerprint(&self.build.spec)),
                    trigger: due.trigger,
                    pod: Some(crate::pod::name(name, number)),
                    stages: vec![Stage {
                        name: StageName::Queue,
                        start_time: Some(Time(due.since)),
                        duration_milliseconds: i64::try_from(waited).ok(),
                    }],
                    ..Attempt::default()
                });
                let bases = due::bases(&self.status);
                let mut triggers = self.status.triggers.take().unwrap_or_default();
                triggers.seen_base_images = bases;
                triggers.annotation = due::annotation(self.build).map(str::to_owned);
                triggers.last_schedule_time = due::schedule(self.build).map(|_| Time(self.now));
                self.status.triggers = Some(triggers);
                (self.status.node, self.status.progress) = (None, None);
                (self.status.start_time, self.status.completion_time) = (None, None);
                let message = format!("attempt {number} starts");
                return State::Running { reason: BuildReason::Scheduling, message };
            }
            Turn::Wait { place, of } => (place, of),
            Turn::None => (0, 0),
        };
        self.again(self.now + SignedDuration::from_secs(30));
        State::Queued { place, of }
    }

    /// Nothing is due: the image is there or on its way, or the newest attempt has failed.
    fn rest(&mut self, last: Option<Attempt>) -> State {
        match last {
            Some(Attempt { failure: Some(Failure { reason: BuildReason::Cancelled, .. }), .. }) => {
                State::Cancelled
            }
            Some(Attempt { failure: Some(failure), number, .. }) => State::Failed(number, failure),
            Some(_) => match image::distribution(self.build, &self.status, self.observed) {
                distribution if distribution.complete() => State::Ready,
                distribution => State::Distributing(distribution.to_string()),
            },
            None => self.held().unwrap_or(State::Suspended),
        }
    }

    fn finish(mut self, state: State) -> Plan {
        image::describe(self.build, &mut self.status, self.observed);
        let before = self.build.status.clone().unwrap_or_default();
        let held = image::is_current(self.build, &self.status, self.observed);
        self.plan.event = conditions::set(&mut self.status, &state, held, self.now);
        let stale = history::stale(&self.build.spec.history, &self.status.attempts);
        history::pods(&mut self.plan, &self.status, &stale, self.observed, self.now);
        if !stale.is_empty() {
            self.status.attempts.retain(|attempt| !stale.contains(&attempt.number));
            self.plan.actions.push(Action::Forget(stale));
        }
        self.expire(&state);
        let wanted = owned(&self.status);
        self.plan.status = (wanted != owned(&before)).then_some(wanted);
        self.plan
    }

    /// Deletes the object when it has been finished for `spec.ttlSecondsAfterFinished`.
    fn expire(&mut self, state: &State) {
        let (Some(seconds), true) = (self.build.spec.ttl_seconds_after_finished, state.is_final()) else {
            return;
        };
        let last = self.status.conditions.iter().map(|condition| condition.last_transition_time.0).max();
        let ended = self.status.completion_time.as_ref().map(|time| time.0);
        let Some(finished) = ended.max(last).filter(|_| ended.is_some()) else { return };
        let at = finished + SignedDuration::from_secs(seconds.into());
        match at <= self.now {
            true => self.plan.actions.push(Action::DeleteBuild),
            false => self.again(at),
        }
    }

    fn again(&mut self, at: Timestamp) {
        self.plan.again = Some(self.plan.again.map_or(at, |other| other.min(at)));
    }
}
