//! From applied to ready, and to deleted.

use super::*;

#[test]
fn the_finalizer_is_first() {
    let mut world = World::new();
    world.build.metadata.finalizers = None;
    assert_eq!(world.plan(), Plan { actions: vec![Action::Hold], ..Plan::default() });
}

#[test]
fn a_build_goes_from_applied_to_ready() {
    let mut world = World::new();
    let plan = world.step();
    assert_eq!(plan.actions, []);
    assert_eq!(
        world.words(),
        "Pending Ready=False/Scheduling Reconciling=True/Scheduling Succeeded=Unknown/Scheduling"
    );
    assert_eq!(world.attempt(1).pod.as_deref(), Some("app-1"));
    world.second = 2;
    assert_eq!(world.step().actions, [Action::CreatePod(1)]);
    world.settle();
    assert_eq!(world.attempt(1).start_time, Some(Time(at(2))));
    world.second = 5;
    world.runs(1);
    world.settle();
    assert_eq!(
        world.words(),
        "Pending Ready=False/Starting Reconciling=True/Starting Succeeded=Unknown/Starting"
    );
    assert_eq!(world.attempt(1).stages[1].duration_milliseconds, Some(3000));
    for (stage, phase, reason) in
        [(StageName::Solve, "Building", "Building"), (StageName::Export, "Distributing", "Distributing")]
    {
        world.attempt(1).stages.push(Stage {
            name: stage,
            start_time: Some(Time(at(6))),
            duration_milliseconds: None,
        });
        world.settle();
        let words =
            format!("{phase} Ready=False/{reason} Reconciling=True/{reason} Succeeded=Unknown/{reason}");
        assert_eq!(world.words(), words);
    }
    world.attempt(1).steps = Some(cloister_crds::Steps { total: 12, completed: 7, ..Default::default() });
    world.settle();
    assert_eq!(world.status().progress.as_deref(), Some("7/12"));
    world.second = 60;
    world.built(1);
    let plan = world.step();
    assert_eq!(plan.ended.unwrap().number, 1);
    assert_eq!(
        world.words(),
        "Distributing Ready=False/Distributing Reconciling=True/Distributing Succeeded=True/ImageReady"
    );
    assert_eq!(world.status().image.as_deref(), Some("docker.io/library/app:1"));
    world.imported("n1", NodeState::Ready);
    world.settle();
    assert_eq!(world.words(), "Succeeded Ready=True/ImageReady Succeeded=True/ImageReady");
    assert_eq!((world.status().nodes_ready, world.status().nodes_selected), (Some(1), Some(1)));
    assert_eq!(world.status().observed_generation, Some(1));
    // Steady: nothing is written, nothing is due.
    assert_eq!(world.plan(), Plan::default());
}

#[test]
fn each_look_after_a_crash_gives_the_same_answer() {
    let mut world = World::new();
    for _ in 0..4 {
        assert_eq!(world.plan(), world.plan());
        world.step();
    }
    assert_eq!(world.numbers(), [(1, TriggerKind::Spec)]);
    assert_eq!(world.observed.pods.len(), 1);
    // The pod was made, and nothing of it was written yet.
    world.attempt(1).start_time = None;
    assert_eq!(world.plan().actions, []);
}

#[test]
fn an_event_tells_of_each_new_state_once() {
    let mut world = World::new();
    assert_eq!(world.step().event.unwrap().reason, BuildReason::Scheduling);
    assert_eq!(world.step().event, None);
    world.step();
    world.runs(1);
    assert_eq!(world.step().event.unwrap().reason, BuildReason::Starting);
    assert_eq!(world.step().event, None);
    world.fails(1, BuildReason::StepFailed);
    let event = world.step().event.unwrap();
    assert_eq!((event.warning, event.reason), (true, BuildReason::StepFailed));
    assert_eq!(event.note, "attempt 1: StepFailed: why");
}

#[test]
fn a_deleted_build_waits_for_its_pods() {
    let mut world = World::new();
    world.settle();
    world.runs(1);
    world.settle();
    world.build.metadata.deletion_timestamp = Some(Time(at(9)));
    world.second = 9;
    let delete = Action::DeletePod { name: "app-1".into(), uid: "p1".into() };
    assert_eq!(world.step().actions, [delete]);
    assert_eq!(world.step().actions, []);
    assert!(world.plan().again.is_some());
    let mut gone = World { observed: Observed::default(), build: world.build.clone(), ..World::new() };
    assert_eq!(gone.step().actions, [Action::Release]);
    // A node that is lost holds nothing up.
    world.second = 200;
    assert_eq!(world.step().actions, [Action::Release]);
    world.build.metadata.finalizers = None;
    assert_eq!(world.plan(), Plan::default());
}

#[test]
fn a_finished_build_is_deleted_after_its_time() {
    let mut world = World::new();
    world.build.spec.ttl_seconds_after_finished = Some(100);
    world.succeed();
    assert_eq!(world.plan().again, Some(at(101)));
    world.second = 100;
    assert_eq!(world.plan().actions, []);
    world.second = 101;
    assert_eq!(world.plan().actions, [Action::DeleteBuild]);
    let mut running = World::new();
    running.build.spec.ttl_seconds_after_finished = Some(0);
    running.settle();
    assert_eq!(running.plan().actions, []);
}

#[test]
fn history_keeps_what_the_spec_says_and_what_is_needed() {
    let attempt = |number: i64, trigger: TriggerKind, failed: bool| Attempt {
        number,
        trigger,
        completion_time: Some(Time(at(number))),
        failure: failed.then(Failure::default),
        ..Attempt::default()
    };
    use TriggerKind::{Retry, Spec};
    let stale = |successful: i32, failed: i32, attempts: &[Attempt]| {
        history::stale(&cloister_crds::History { successful, failed }, attempts)
    };
    let good: Vec<_> = (1..=5).map(|number| attempt(number, Spec, false)).collect();
    assert_eq!(stale(3, 3, &good), [1, 2]);
    assert_eq!(stale(0, 0, &good), [1, 2, 3, 4]);
    let mixed = [attempt(1, Spec, false), attempt(2, Spec, true), attempt(3, Spec, true)];
    assert_eq!(stale(0, 0, &mixed), [2]);
    // The chain's first is counted from.
    let chain = [attempt(1, Spec, true), attempt(2, Retry, true), attempt(3, Retry, true)];
    assert_eq!(stale(3, 1, &chain), [2]);
    let mut most: Vec<_> = (1..=10).map(|number| attempt(number, Spec, false)).collect();
    most.push(attempt(11, Spec, true));
    most.extend((12..=21).map(|number| attempt(number, Retry, true)));
    assert!(most.len() - stale(10, 10, &most).len() <= 21);
}

#[test]
fn pods_go_with_their_attempts() {
    let mut world = World::new();
    world.build.spec.history = cloister_crds::History { successful: 1, failed: 0 };
    world.succeed();
    world.change(|spec| spec.target = Some("test".into()));
    world.succeed();
    assert_eq!(world.numbers(), [(2, TriggerKind::Spec)]);
    assert!(world.pod(1).deleting.is_some());
    assert!(world.pod(2).deleting.is_none());
    // A pod that this look at the object does not know yet is left alone.
    world.pod(1).deleting = None;
    world.pod(1).attempt = 3;
    assert_eq!(world.plan().actions, []);
}
