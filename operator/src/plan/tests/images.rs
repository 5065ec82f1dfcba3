//! Where the image should be.

use cloister_crds::{ArchiveOutput, PushOutput};

use super::*;

/// A build whose first attempt has its result.
fn built(change: impl FnOnce(&mut cloister_crds::BuildOutput)) -> World {
    let mut world = World::new();
    change(&mut world.build.spec.output);
    world.settle();
    world.runs(1);
    world.settle();
    world.built(1);
    world.settle();
    world
}

fn ready(world: &mut World) -> (bool, Option<i32>, Option<i32>) {
    world.settle();
    let status = world.status();
    let ready = status.conditions.iter().any(|one| one.type_ == "Ready" && one.status == "True");
    (ready, status.nodes_ready, status.nodes_selected)
}

#[test]
fn the_building_node_imports_when_nothing_else_is_said() {
    let mut world = built(|_| {});
    assert_eq!(ready(&mut world), (false, Some(0), Some(1)));
    world.imported("n2", NodeState::Ready);
    assert_eq!(ready(&mut world), (false, Some(0), Some(1)));
    world.imported("n1", NodeState::Importing);
    assert_eq!(ready(&mut world), (false, Some(0), Some(1)));
    world.imported("n1", NodeState::Ready);
    assert_eq!(ready(&mut world), (true, Some(1), Some(1)));
}

#[test]
fn selected_nodes_come_and_go() {
    let mut world = built(|output| output.nodes = Some(Default::default()));
    assert_eq!(ready(&mut world), (false, Some(0), Some(0)));
    let message = world.status().conditions[0].message.clone();
    assert_eq!(message, "no node has the labels that spec.output.nodes asks for");
    world.observed.nodes = vec!["n1".into(), "n2".into()];
    world.imported("n1", NodeState::Ready);
    world.imported("n2", NodeState::Failed);
    assert_eq!(ready(&mut world), (false, Some(1), Some(2)));
    let message = world.status().conditions[0].message.clone();
    assert_eq!(message, "1 of 2 nodes have the image; n2: could not import it");
    world.imported("n2", NodeState::Ready);
    assert_eq!(ready(&mut world), (true, Some(2), Some(2)));
    // A node that joins gets it too; one that leaves is not waited for.
    world.observed.nodes.push("n3".into());
    assert_eq!(ready(&mut world), (false, Some(2), Some(3)));
    world.observed.nodes.retain(|node| node != "n3");
    assert_eq!(ready(&mut world), (true, Some(2), Some(2)));
    assert_eq!(world.numbers().len(), 1);
}

#[test]
fn another_digest_is_another_image() {
    let mut world = built(|_| {});
    world.imported("n1", NodeState::Ready);
    world.status().nodes[0].digest = Some(format!("sha256:{}", "cd".repeat(32)));
    assert_eq!(ready(&mut world), (false, Some(0), Some(1)));
    world.status().nodes[0].digest = None;
    assert_eq!(ready(&mut world), (false, Some(0), Some(1)));
}

#[test]
fn what_is_pushed_or_archived_needs_no_node() {
    let mut pushed = built(|output| output.push = Some(PushOutput::default()));
    assert_eq!(ready(&mut pushed), (true, Some(0), Some(0)));
    // What a pod may ask for.
    let registry = Some("r.test/team".to_owned());
    let mut renamed = built(|output| output.push = Some(PushOutput { registry, ..PushOutput::default() }));
    ready(&mut renamed);
    assert!(renamed.status().image.as_deref().is_some_and(|image| image.starts_with("r.test/team/")));
    let mut archived = built(|output| {
        output.images.clear();
        output.archive = Some(ArchiveOutput::default());
    });
    assert_eq!(ready(&mut archived), (true, Some(0), Some(0)));
    assert_eq!(archived.status().image, None);
    let mut both = built(|output| {
        output.push = Some(PushOutput::default());
        output.nodes = Some(Default::default());
    });
    assert_eq!(ready(&mut both), (false, Some(0), Some(0)));
}

#[test]
fn other_nodes_get_the_image_without_another_build() {
    let mut world = built(|_| {});
    world.imported("n1", NodeState::Ready);
    world.settle();
    world.observed.nodes = vec!["n1".into(), "n2".into()];
    world.change(|spec| spec.output.nodes = Some(Default::default()));
    assert_eq!(ready(&mut world), (false, Some(1), Some(2)));
    assert_eq!(world.numbers().len(), 1);
    assert!(world.words().starts_with("Distributing"));
}

#[test]
fn a_name_without_a_tag_gets_one_of_the_digest() {
    let mut world = built(|output| output.images = vec!["team/app".into()]);
    assert_eq!(world.status().image.as_deref(), Some("docker.io/team/app:abababababab"));
}

#[test]
fn a_failed_repetition_leaves_the_image_ready() {
    let mut world = World::new();
    world.succeed();
    world.build.metadata.annotations.get_or_insert_default().insert(REBUILD.into(), "1".into());
    world.settle();
    world.runs(2);
    world.fails(2, BuildReason::StepFailed);
    world.settle();
    assert_eq!(
        world.words(),
        "Failed Ready=True/ImageReady Stalled=True/StepFailed Succeeded=False/StepFailed"
    );
    assert_eq!(world.status().digest, Some(digest()));
}
