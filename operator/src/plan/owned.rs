//! Which part of the status is the operator's.

use cloister_crds::{Attempt, ImageBuildStatus, ObservedTriggers, Stage, StageName};

/// The part of `status` that the operator applies. Nodes write their own entries of `nodes`, the sizes, the log's tail,
/// base images, and what happens in an attempt while it runs; an attempt that has ended is the operator's as a whole,
/// so that nothing changes it any more.
pub fn owned(status: &ImageBuildStatus) -> ImageBuildStatus {
    let mut owned = status.clone();
    owned.nodes.clear();
    (owned.sizes, owned.log_tail) = (None, None);
    if let Some(triggers) = &mut owned.triggers {
        triggers.base_images.clear();
        triggers.latest_base_images.clear();
    }
    owned.triggers = owned.triggers.filter(|triggers| *triggers != ObservedTriggers::default());
    owned.attempts.iter_mut().for_each(own);
    owned.attempts.sort_by_key(|attempt| attempt.number);
    owned
}

fn own(attempt: &mut Attempt) {
    if attempt.completion_time.is_some() {
        return;
    }
    let ours = |stage: &Stage| matches!(stage.name, StageName::Queue | StageName::Schedule);
    attempt.stages.retain(ours);
    (attempt.steps, attempt.digest, attempt.failure) = (None, None, None);
}
