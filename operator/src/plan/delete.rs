//! The end of a build: its pods end first.

use cloister_crds::ImageBuild;
use jiff::{SignedDuration, Timestamp};

use super::{Action, FINALIZER, Observed, Plan};

/// How often to look whether the pods are gone; their events are what usually tells.
const LOOK: SignedDuration = SignedDuration::from_secs(10);

/// Deletes the pods, waits for them, lets go.
pub fn plan(build: &ImageBuild, observed: &Observed, now: Timestamp) -> Plan {
    let mut plan = Plan::default();
    if !build.metadata.finalizers.iter().flatten().any(|name| name == FINALIZER) {
        return plan;
    }
    for pod in observed.pods.iter().filter(|pod| pod.deleting.is_none()) {
        plan.actions.push(Action::DeletePod { name: pod.name.clone(), uid: pod.uid.clone() });
    }
    // One whose node is lost never goes; the API server's garbage collection has it then.
    match observed.pods.iter().all(|pod| pod.is_lost(now)) {
        true => plan.actions.push(Action::Release),
        false => plan.again = Some(now + LOOK),
    }
    plan
}
