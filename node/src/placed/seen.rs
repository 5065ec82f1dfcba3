//! What the API server says: all builds, and this node's labels.

use std::collections::BTreeMap;

use cloister_crds::ImageBuild;
use futures::stream::{BoxStream, StreamExt};
use k8s_openapi::api::core::v1::Node;
use kube::Client;
use kube::api::{Api, PartialObjectMeta};
use kube::runtime::WatchStreamExt;
use kube::runtime::watcher::{self, Event, watcher};

use super::build::Build;

/// All builds, by their keys.
pub type Builds = BTreeMap<String, Build>;
/// A node's labels.
pub type Labels = BTreeMap<String, String>;

/// Objects of one page of a list.
const PAGE: u32 = 50;

/// The watches, and what they have brought.
pub struct Seen {
    here: String,
    builds: BoxStream<'static, watcher::Result<Event<ImageBuild>>>,
    node: BoxStream<'static, watcher::Result<Event<PartialObjectMeta<Node>>>>,
    known: Option<Builds>,
    listed: Builds,
    labels: Option<Labels>,
}

impl Seen {
    /// Starts to watch for the node `here`.
    pub fn new(client: &Client, here: &str) -> Self {
        let builds = watcher(Api::all(client.clone()), watcher::Config::default().page_size(PAGE));
        let this = watcher::Config::default().fields(&format!("metadata.name={here}"));
        let node = watcher(Api::all(client.clone()), this);
        Self {
            here: here.to_owned(),
            builds: builds.default_backoff().boxed(),
            node: node.default_backoff().boxed(),
            known: None,
            listed: BTreeMap::new(),
            labels: None,
        }
    }

    /// Waits until something may have changed; whether there is more to come. Nothing is lost when this is dropped.
    pub async fn change(&mut self) -> bool {
        tokio::select! {
            event = self.builds.next() => match event {
                Some(Ok(event)) => self.build(event),
                Some(Err(error)) => tracing::warn!("watch of builds: {error}"),
                None => return false,
            },
            event = self.node.next() => match event {
                Some(Ok(Event::Apply(node) | Event::InitApply(node))) => self.labels = Some(node.metadata.labels.unwrap_or_default()),
                Some(Ok(_)) => {}
                Some(Err(error)) => tracing::warn!("watch of node {}: {error}", self.here),
                None => return false,
            },
        }
        true
    }

    /// All builds and the node's labels, as soon as both are known.
    pub fn all(&self) -> Option<(&Builds, &Labels)> {
        self.known.as_ref().zip(self.labels.as_ref())
    }

    fn build(&mut self, event: Event<ImageBuild>) {
        match event {
            Event::Init => self.listed.clear(),
            Event::InitApply(object) => insert(&mut self.listed, &object, &self.here),
            // What is no longer listed was deleted meanwhile.
            Event::InitDone => self.known = Some(std::mem::take(&mut self.listed)),
            Event::Apply(object) => {
                if let Some(known) = &mut self.known {
                    insert(known, &object, &self.here);
                }
            }
            Event::Delete(object) => {
                if let (Some(known), Some(build)) = (&mut self.known, Build::new(&object, &self.here)) {
                    known.remove(&build.key());
                }
            }
        }
    }
}

fn insert(builds: &mut Builds, object: &ImageBuild, here: &str) {
    if let Some(build) = Build::new(object, here) {
        builds.insert(build.key(), build);
    }
}
