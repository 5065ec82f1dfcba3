//! The build pods of this node, and a task for each.

use std::collections::{BTreeMap, BTreeSet};
use std::sync::Arc;
use std::time::Duration;

use cloister_crds::build_pod::SELECTOR;
use futures::StreamExt;
use k8s_openapi::api::core::v1::Pod;
use kube::ResourceExt;
use kube::api::Api;
use kube::runtime::WatchStreamExt;
use kube::runtime::watcher::{self, Event, watcher};
use tokio::task::{AbortHandle, JoinSet};

use super::drive::Driver;
use super::pod::Wish;

/// How long an attempt whose pod has ended by itself may take to say why.
const LAST_WORDS: Duration = Duration::from_secs(30);

/// Drives the builds of this node until dropped, which ends them in their machines.
pub async fn run(driver: Arc<Driver>) {
    let api: Api<Pod> = Api::all(driver.client.clone());
    let config =
        watcher::Config::default().labels(SELECTOR).fields(&format!("spec.nodeName={}", driver.node));
    let mut pods = watcher(api, config).default_backoff().boxed();
    let mut tasks = Tasks { driver, set: JoinSet::new(), known: BTreeMap::new(), listed: BTreeSet::new() };
    loop {
        tokio::select! {
            event = pods.next() => match event {
                Some(Ok(event)) => tasks.take(event),
                Some(Err(error)) => tracing::warn!("watching pods: {error}"),
                None => return,
            },
            Some(ended) = tasks.set.join_next() => {
                if let Err(error) = ended && error.is_panic() {
                    tracing::error!("a build's task died: {error}");
                }
            }
        }
    }
}

struct Tasks {
    driver: Arc<Driver>,
    set: JoinSet<()>,
    /// Pods by uid. One whose task has ended stays until the pod is gone, so that it is not driven twice.
    known: BTreeMap<String, AbortHandle>,
    /// Those of a list that is being read.
    listed: BTreeSet<String>,
}

impl Tasks {
    fn take(&mut self, event: Event<Pod>) {
        match event {
            Event::Init => self.listed.clear(),
            Event::InitApply(pod) => {
                self.listed.extend(pod.uid());
                self.look(&pod);
            }
            Event::InitDone => {
                let gone = |uid: &String| !self.listed.contains(uid);
                let gone: Vec<String> = self.known.keys().filter(|uid| gone(uid)).cloned().collect();
                gone.iter().for_each(|uid| self.stop(uid));
            }
            Event::Apply(pod) => self.look(&pod),
            Event::Delete(pod) => self.stop(&pod.uid().unwrap_or_default()),
        }
    }

    fn look(&mut self, pod: &Pod) {
        let uid = pod.uid().unwrap_or_default();
        match Wish::of(pod) {
            Wish::Drive(pod) if !self.known.contains_key(&uid) => {
                let driver = self.driver.clone();
                let task = self.set.spawn(async move { driver.drive(&pod).await });
                self.known.insert(uid, task);
            }
            Wish::Drive(_) => {}
            Wish::Leave if pod.metadata.deletion_timestamp.is_some() => {
                if let Some(task) = self.known.get(&uid) {
                    task.abort();
                }
            }
            Wish::Leave => {
                let Some(task) = self.known.get(&uid).filter(|task| !task.is_finished()).cloned() else {
                    return;
                };
                self.set.spawn(async move {
                    tokio::time::sleep(LAST_WORDS).await;
                    task.abort();
                });
            }
        }
    }

    fn stop(&mut self, uid: &str) {
        if let Some(task) = self.known.remove(uid) {
            task.abort();
        }
    }
}
