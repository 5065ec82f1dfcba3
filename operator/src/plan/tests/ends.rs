//! How attempts end, and what follows.

use super::*;

/// One attempt that runs on its node.
fn running() -> World {
    let mut world = World::new();
    world.settle();
    world.runs(1);
    world.settle();
    world
}

/// The failure that the first attempt ended with.
fn failure(world: &mut World) -> Option<BuildReason> {
    world.attempt(1).failure.as_ref().map(|failure| failure.reason)
}

#[test]
fn what_ended_a_pod_is_the_reason() {
    use BuildReason as R;
    for (reason, expected) in [
        ("Evicted", R::PodEvicted),
        ("Preempting", R::PodEvicted),
        ("OutOfcpu", R::PodEvicted),
        ("UnexpectedAdmissionError", R::PodEvicted),
        ("DeadlineExceeded", R::DeadlineExceeded),
        ("OOMKilled", R::OutOfMemory),
        ("NodeLost", R::NodeLost),
        ("NodeShutdown", R::NodeLost),
    ] {
        let mut world = running();
        world.ends(1, PodPhase::Failed);
        world.pod(1).reason = Some(reason.into());
        world.settle();
        assert_eq!(failure(&mut world), Some(expected), "{reason}");
        let phase = if expected.is_retried() { "Pending" } else { "Failed" };
        assert!(world.words().starts_with(phase), "{reason}: {}", world.words());
    }
}

#[test]
fn the_nodes_own_words_count_more_than_how_the_pod_ended() {
    let mut world = running();
    world.fails(1, BuildReason::DockerfileInvalid);
    world.pod(1).reason = Some("Evicted".into());
    world.settle();
    assert_eq!(failure(&mut world), Some(BuildReason::DockerfileInvalid));
    let mut world = running();
    world.built(1);
    world.pod(1).phase = PodPhase::Failed;
    world.settle();
    assert_eq!(failure(&mut world), None);
}

#[test]
fn a_result_may_be_late_but_not_missing() {
    for phase in [PodPhase::Succeeded, PodPhase::Failed] {
        let mut world = running();
        world.ends(1, phase);
        world.settle();
        assert_eq!((failure(&mut world), world.plan().again), (None, Some(at(21))));
        world.second = 21;
        world.settle();
        assert_eq!(failure(&mut world), Some(BuildReason::BuilderLost));
    }
    let mut world = running();
    world.ends(1, PodPhase::Succeeded);
    world.settle();
    world.attempt(1).digest = Some(digest());
    world.settle();
    assert_eq!(failure(&mut world), None);
    assert!(world.attempt(1).completion_time.is_some());
}

#[test]
fn a_pod_that_was_deleted_is_tried_again() {
    let mut world = running();
    world.pod(1).deleting = Some(at(30));
    world.settle();
    assert_eq!(failure(&mut world), None);
    world.observed.pods.clear();
    world.settle();
    assert_eq!(failure(&mut world), Some(BuildReason::PodEvicted));
    assert_eq!(
        world.words(),
        "Pending Ready=False/RetryScheduled Reconciling=True/RetryScheduled Succeeded=False/PodEvicted"
    );
    assert_eq!(world.plan().again, Some(at(11)));
    world.second = 11;
    world.settle();
    assert_eq!(world.numbers(), [(1, TriggerKind::Spec), (2, TriggerKind::Retry)]);
}

#[test]
fn a_pod_that_nobody_ends_is_lost_with_its_node() {
    let mut world = running();
    world.pod(1).deleting = Some(at(30));
    world.second = 90;
    world.settle();
    assert_eq!(failure(&mut world), Some(BuildReason::NodeLost));
    assert!(!world.pod(1).occupies(at(90)));
}

#[test]
fn retries_grow_apart_and_end() {
    let mut world = World::new();
    world.build.spec.retries = 2;
    let mut waits = Vec::new();
    for number in 1..=3 {
        world.settle();
        world.runs(number);
        world.settle();
        world.fails(number, BuildReason::RegistryUnavailable);
        world.settle();
        if let Some(again) = world.plan().again {
            waits.push(again.duration_since(at(world.second)).as_secs());
            world.second += waits.last().unwrap();
        }
    }
    assert_eq!(waits, [10, 20]);
    world.settle();
    assert!(
        world.words().starts_with("Failed Ready=False/RegistryUnavailable Stalled=True"),
        "{}",
        world.words()
    );
    assert_eq!(world.numbers().len(), 3);
    // A change starts a chain of its own.
    world.change(|spec| spec.target = Some("x".into()));
    world.settle();
    world.runs(4);
    world.fails(4, BuildReason::RegistryUnavailable);
    world.settle();
    assert!(world.words().contains("RetryScheduled"));
}

#[test]
fn what_is_at_fault_is_not_tried_again() {
    for reason in BuildReason::ALL.iter().filter(|reason| !reason.is_retried()) {
        let mut world = running();
        world.fails(1, *reason);
        world.settle();
        world.second = 100_000;
        world.settle();
        assert_eq!(world.numbers().len(), 1, "{reason:?}");
    }
}

#[test]
fn jitter_spreads_retries_within_bounds() {
    let wait = |jitter: f64, failures: i64| {
        let mut world = running();
        world.observed.jitter = jitter;
        world.build.spec.retries = 10;
        world.fails(1, BuildReason::NodeLost);
        world.settle();
        let first = world.attempt(1).clone();
        for number in 2..=failures {
            let again = Attempt { number, trigger: TriggerKind::Retry, ..first.clone() };
            world.status().attempts.push(again);
        }
        world.plan().again.unwrap().duration_since(at(1)).as_millis()
    };
    assert_eq!((wait(0.0, 1), wait(0.5, 1), wait(1.0, 1)), (7_500, 10_000, 12_500));
    assert_eq!((wait(0.5, 4), wait(0.5, 9)), (80_000, 300_000));
}

#[test]
fn a_build_that_takes_too_long_is_ended_here_when_its_node_does_not() {
    let mut world = running();
    assert_eq!(world.plan().again, Some(at(1 + 3600 + 60)));
    world.second = 3700;
    world.settle();
    assert_eq!(failure(&mut world), Some(BuildReason::DeadlineExceeded));
    assert!(world.pod(1).deleting.is_some());
    // Waiting for a node is not building.
    let mut pending = World::new();
    pending.settle();
    pending.second = 100_000;
    pending.settle();
    assert_eq!(failure(&mut pending), None);
}

#[test]
fn a_cache_that_its_node_refuses_is_not_asked_for_again() {
    let refused = |message: &str| {
        let mut world = running();
        world.ends(1, PodPhase::Failed);
        world.pod(1).message =
            Some(format!("failed to create shim task: cloister.dev/cache-bytes: {message}"));
        world.second = 100;
        world.settle();
        world
    };
    // Others give theirs back.
    assert_eq!(failure(&mut refused("no room for a build cache of 5 MiB")), Some(BuildReason::BuilderLost));
    let mut world = refused("CacheTooLarge: a build cache of 9 MiB is more than the 5 MiB of all");
    let failure = world.attempt(1).failure.clone().unwrap();
    assert_eq!(failure.reason, BuildReason::CacheTooLarge);
    assert_eq!(failure.message, "a build cache of 9 MiB is more than the 5 MiB of all");
    assert!(world.words().starts_with("Failed"), "{}", world.words());
}

#[test]
fn cancel_ends_what_runs_and_starts_nothing() {
    let mut world = running();
    world.change(|spec| spec.cancel = true);
    world.settle();
    assert!(world.pod(1).deleting.is_some());
    assert_eq!(
        world.words(),
        "Cancelled Ready=False/Cancelled Stalled=True/Cancelled Succeeded=False/Cancelled"
    );
    world.second = 100_000;
    world.settle();
    assert_eq!(world.numbers().len(), 1);
    world.change(|spec| spec.cancel = false);
    world.settle();
    assert_eq!(world.numbers().len(), 2);
    let mut never = World::new();
    never.build.spec.cancel = true;
    never.settle();
    assert_eq!(never.words(), "Cancelled Ready=False/Cancelled Stalled=True/Cancelled");
    let mut done = World::new();
    done.succeed();
    done.change(|spec| spec.cancel = true);
    done.settle();
    assert_eq!(done.words(), "Succeeded Ready=True/ImageReady Succeeded=True/ImageReady");
}

#[test]
fn what_has_ended_stays_as_it_ended() {
    let mut world = running();
    world.fails(1, BuildReason::StepFailed);
    world.settle();
    world.pod(1).node = Some("other".into());
    world.settle();
    assert_eq!(world.attempt(1).node.as_deref(), Some("n1"));
    let owned = owned(world.status());
    assert!(owned.attempts[0].failure.is_some());
}

#[test]
fn a_pod_that_goes_on_after_its_result_is_ended() {
    let mut world = running();
    world.attempt(1).digest = Some(digest());
    world.settle();
    assert!(world.pod(1).deleting.is_none());
    world.second = 61;
    world.settle();
    assert!(world.pod(1).deleting.is_some());
}
