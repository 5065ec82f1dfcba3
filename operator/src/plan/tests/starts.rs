//! What starts an attempt, and what holds it back.

use cloister_crds::{BaseImage, BaseImageTrigger, ScheduleTrigger, Triggers};

use super::*;

#[test]
fn a_build_waits_for_its_turn() {
    let mut world = World::new();
    world.observed.turn = Turn::Wait { place: 3, of: 9 };
    world.settle();
    assert_eq!(world.words(), "Pending Ready=False/Queued Reconciling=True/Queued");
    assert_eq!(world.status().conditions[0].message, "number 3 of 9 in line");
    assert!(world.plan().again.is_some());
    world.observed.turn = Turn::Go;
    world.second = 40;
    world.step();
    let queue = world.attempt(1).stages[0].clone();
    assert_eq!((queue.name, queue.duration_milliseconds), (StageName::Queue, Some(40_000)));
}

#[test]
fn a_refused_spec_starts_nothing_until_it_changes() {
    let mut world = World::new();
    world.refused = Some("two sources".into());
    world.settle();
    assert_eq!(world.words(), "Failed Ready=False/InvalidSpec Stalled=True/InvalidSpec");
    assert!(world.numbers().is_empty());
    assert_eq!(next_due(&world.build, 0.5, &Settings::default(), at(1)), None);
    world.refused = None;
    world.change(|spec| spec.target = Some("x".into()));
    assert!(next_due(&world.build, 0.5, &Settings::default(), at(1)).is_some());
    world.settle();
    assert_eq!(world.numbers(), [(1, TriggerKind::Spec)]);
}

#[test]
fn suspend_starts_nothing_and_ends_nothing() {
    let mut world = World::new();
    world.build.spec.suspend = true;
    world.settle();
    assert_eq!(world.words(), "Suspended Ready=False/Suspended Stalled=True/Suspended");
    world.change(|spec| spec.suspend = false);
    world.settle();
    world.runs(1);
    world.change(|spec| spec.suspend = true);
    world.settle();
    assert!(world.pod(1).deleting.is_none());
    world.built(1);
    world.imported("n1", NodeState::Ready);
    world.settle();
    assert_eq!(world.words(), "Succeeded Ready=True/ImageReady Succeeded=True/ImageReady");
    // Neither holding nor letting go builds again.
    world.change(|spec| spec.suspend = false);
    world.settle();
    assert_eq!(world.numbers(), [(1, TriggerKind::Spec)]);
    assert_eq!(world.status().observed_generation, Some(4));
}

#[test]
fn what_never_had_a_pod_is_taken_back() {
    for change in [
        |spec: &mut cloister_crds::ImageBuildSpec| spec.suspend = true,
        |spec: &mut cloister_crds::ImageBuildSpec| spec.cancel = true,
    ] {
        let mut world = World::new();
        world.step();
        world.change(change);
        assert!(world.step().actions.is_empty());
        assert!(world.numbers().is_empty());
    }
    let mut world = World::new();
    world.step();
    world.change(|spec| spec.target = Some("other".into()));
    // The attempt builds what its ConfigMap will hold.
    assert!(world.step().actions.is_empty());
    assert_eq!(world.attempt(1).generation, 2);
    assert_eq!(world.step().actions, [Action::CreatePod(1)]);
}

#[test]
fn a_changed_spec_builds_again_after_what_runs() {
    let mut world = World::new();
    world.settle();
    world.runs(1);
    world.change(|spec| spec.target = Some("test".into()));
    world.settle();
    assert_eq!(world.attempt(1).generation, 1);
    world.built(1);
    world.settle();
    assert_eq!(world.numbers(), [(1, TriggerKind::Spec), (2, TriggerKind::Spec)]);
    assert_eq!(world.attempt(2).generation, 2);
}

#[test]
fn only_what_is_built_starts_a_new_attempt_after_a_success() {
    let mut world = World::new();
    world.succeed();
    world.change(|spec| spec.retries = 5);
    world.change(|spec| spec.timeout = std::time::Duration::from_secs(60).into());
    world.settle();
    assert_eq!(world.numbers().len(), 1);
    assert_eq!(world.words(), "Succeeded Ready=True/ImageReady Succeeded=True/ImageReady");
    world.change(|spec| spec.output.images = vec!["app:2".into()]);
    world.step();
    assert_eq!(
        world.words(),
        "Pending Ready=False/Scheduling Reconciling=True/Scheduling Succeeded=Unknown/Scheduling"
    );
}

#[test]
fn every_change_is_worth_a_try_after_a_failure() {
    let mut world = World::new();
    world.settle();
    world.runs(1);
    world.fails(1, BuildReason::OutOfMemory);
    world.settle();
    assert_eq!(
        world.words(),
        "Failed Ready=False/OutOfMemory Stalled=True/OutOfMemory Succeeded=False/OutOfMemory"
    );
    world.change(|spec| spec.resources = Some(Default::default()));
    world.settle();
    assert_eq!(world.numbers(), [(1, TriggerKind::Spec), (2, TriggerKind::Spec)]);
}

#[test]
fn an_annotation_builds_again_when_its_value_changes() {
    let mut world = World::new();
    let set = |world: &mut World, key: &str, value: &str| {
        world.build.metadata.annotations.get_or_insert_default().insert(key.into(), value.into());
    };
    set(&mut world, REBUILD, "1");
    world.succeed();
    assert_eq!(world.numbers().len(), 1);
    set(&mut world, REBUILD, "2");
    world.step();
    // The image is what it was until there is another one.
    assert_eq!(
        world.words(),
        "Pending Ready=True/ImageReady Reconciling=True/Scheduling Succeeded=Unknown/Scheduling"
    );
    world.succeed();
    assert_eq!(world.numbers()[1], (2, TriggerKind::Annotation));
    world.build.metadata.annotations = None;
    world.settle();
    assert_eq!(world.numbers().len(), 2);
    let triggers = Triggers { annotation: Some("team/again".into()), ..Triggers::default() };
    world.change(|spec| spec.triggers = Some(triggers));
    set(&mut world, REBUILD, "3");
    world.settle();
    assert_eq!(world.numbers().len(), 2);
    set(&mut world, "team/again", "x");
    world.settle();
    assert_eq!(world.numbers()[2], (3, TriggerKind::Annotation));
}

#[test]
fn a_schedule_builds_again_once_for_all_times_missed() {
    let mut world = World::new();
    let schedule = ScheduleTrigger { cron: "*/10 * * * *".into(), time_zone: None };
    world.build.spec.triggers = Some(Triggers { schedule: Some(schedule), ..Triggers::default() });
    world.succeed();
    // 1 800 000 000 is 8:00:00.
    assert_eq!(world.plan().again, Some(at(600)));
    world.second = 599;
    world.settle();
    assert_eq!(world.numbers().len(), 1);
    world.second = 3700;
    world.succeed();
    assert_eq!(world.numbers()[1], (2, TriggerKind::Schedule));
    assert_eq!(world.plan().again, Some(at(4200)));
}

#[test]
fn a_build_whose_pod_was_refused_lets_others_go_first() {
    let mut world = World::new();
    world.step();
    world.observed.turn = Turn::Wait { place: 2, of: 2 };
    assert_eq!(world.step().actions, []);
    assert!(world.words().starts_with("Pending Ready=False/Queued"));
    world.observed.turn = Turn::Go;
    assert_eq!(world.step().actions, [Action::CreatePod(1)]);
}

#[test]
fn a_base_image_that_has_moved_starts_one_attempt() {
    let image = |name: &str, byte: &str| BaseImage {
        image: name.into(),
        digest: format!("sha256:{}", byte.repeat(32)),
    };
    let base = || Some(BaseImageTrigger::default());
    for (trigger, latest, starts) in [
        (base(), vec![image("a:1", "aa")], false),
        (base(), vec![image("a:1", "bb")], true),
        (base(), vec![image("other:1", "bb")], false),
        (None, vec![image("a:1", "bb")], false),
    ] {
        let mut world = World::new();
        let annotation = Some(REBUILD.to_owned());
        world.build.spec.triggers = Some(Triggers { base_image: trigger, annotation, ..Triggers::default() });
        world.succeed();
        world.status().triggers.get_or_insert_default().base_images = vec![image("a:1", "aa")];
        world.settle();
        assert_eq!(world.numbers().len(), 1);
        world.status().triggers.get_or_insert_default().latest_base_images = latest;
        world.settle();
        let expected: &[_] = &[(1, TriggerKind::Spec), (2, TriggerKind::BaseImage)];
        assert_eq!(world.numbers(), expected[..1 + usize::from(starts)]);
        if !starts {
            continue;
        }
        // Ready stays, and an attempt that fails is not made again for the same reason.
        assert!(world.words().contains("Ready=True"), "{}", world.words());
        world.runs(2);
        world.fails(2, BuildReason::StepFailed);
        world.settle();
        assert_eq!(world.numbers().last(), Some(&(2, TriggerKind::BaseImage)));
        world.status().triggers.get_or_insert_default().latest_base_images = vec![image("a:1", "cc")];
        world.settle();
        assert_eq!(world.numbers().last(), Some(&(3, TriggerKind::BaseImage)));
    }
}
