//! Events on builds, as kubelet has them on pods: what this node does, said once. The operator tells of states and failures.

use std::sync::Arc;
use std::sync::atomic::{AtomicU32, Ordering};
use std::time::Duration;

use cloister_crds::ImageBuild;
use k8s_openapi::api::core::v1::ObjectReference;
use kube::runtime::events::{Event, EventType, Recorder, Reporter};
use kube::{Client, Resource};
use tokio::sync::mpsc;

use super::pod::BuildPod;

/// Events that may wait; more are dropped.
const WAITING: usize = 64;
/// Events of one attempt, as many as kubelet lets through of one object at once.
const EACH: u32 = 25;
/// How long the API server may take for one.
const CALL: Duration = Duration::from_secs(5);
/// Most bytes of a note, and of an action, as the API server has it.
const NOTE: usize = 1024;
const ACTION: usize = 128;

type Told = (ObjectReference, Event);

/// What one node tells.
#[derive(Debug, Clone)]
pub struct Events(mpsc::Sender<Told>);

/// What one attempt tells.
#[derive(Debug, Clone)]
pub struct Voice {
    events: Events,
    object: ObjectReference,
    left: Arc<AtomicU32>,
}

impl Events {
    /// Events of `node`, and the work that publishes them, which never ends.
    pub fn new(client: Client, node: &str) -> (Self, impl Future<Output = ()> + use<>) {
        let (sender, mut told) = mpsc::channel::<Told>(WAITING);
        let reporter = Reporter { controller: "cloister-node".into(), instance: Some(node.to_owned()) };
        let recorder = Recorder::new(client, reporter);
        let publish = async move {
            while let Some((object, event)) = told.recv().await {
                // That nobody hears of it is no reason to stop.
                match tokio::time::timeout(CALL, recorder.publish(&event, &object)).await {
                    Ok(Ok(())) => {}
                    Ok(Err(error)) => tracing::debug!(build = object.name, "event: {error}"),
                    Err(_) => tracing::debug!(build = object.name, "event: no answer in time"),
                }
            }
        };
        (Self(sender), publish)
    }

    /// Those about the attempt of `pod`.
    pub fn about(&self, pod: &BuildPod) -> Voice {
        let object = ObjectReference {
            api_version: Some(ImageBuild::api_version(&()).into()),
            kind: Some(ImageBuild::kind(&()).into()),
            namespace: Some(pod.namespace.clone()),
            name: Some(pod.build.clone()),
            uid: Some(pod.owner.clone()),
            ..ObjectReference::default()
        };
        Voice { events: self.clone(), object, left: Arc::new(AtomicU32::new(EACH)) }
    }
}

impl Voice {
    /// Tells that this has happened. An event with the same reason and `of` soon after counts the first one up.
    pub fn say(&self, reason: &str, of: &str, note: &str) {
        let spend = |left: u32| left.checked_sub(1);
        if self.left.fetch_update(Ordering::Relaxed, Ordering::Relaxed, spend).is_err() {
            return;
        }
        let cut = |text: &str, most| text[..text.floor_char_boundary(most)].to_owned();
        let event = Event {
            type_: EventType::Normal,
            reason: reason.to_owned(),
            note: Some(cut(note, NOTE)),
            action: cut(of, ACTION),
            secondary: None,
        };
        if self.events.0.try_send((self.object.clone(), event)).is_err() {
            tracing::debug!(build = self.object.name, reason, "event dropped");
        }
    }
}

#[cfg(test)]
mod tests {
    use super::super::pod::{Wish, tests::made};
    use super::*;

    #[test]
    fn an_attempt_tells_of_its_build_and_not_for_ever() {
        let Wish::Drive(pod) = Wish::of(&serde_json::from_value(made()).unwrap()) else { panic!("no pod") };
        let (sender, mut told) = mpsc::channel(WAITING);
        let voice = Events(sender).about(&pod);
        for _ in 0..2 * EACH {
            voice.say("Pulling", &"é".repeat(ACTION), "n");
        }
        let (object, event) = told.try_recv().unwrap();
        assert_eq!((object.kind.as_deref(), object.name.as_deref()), (Some("ImageBuild"), Some("app")));
        assert!(event.action.len() <= ACTION && !event.action.is_empty());
        assert_eq!(std::iter::from_fn(|| told.try_recv().ok()).count() as u32, EACH - 1);
    }
}
