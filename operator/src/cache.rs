//! What is kept in memory of the cluster: builds without the bulk of their files, their pods, names and labels of nodes,
//! priority classes. Watches fill it; each change wakes the builds that it is about.

use std::collections::BTreeMap;
use std::fmt::Debug;
use std::sync::Arc;

use cloister_crds::{ImageBuild, build_pod};
use futures::{StreamExt, TryStreamExt};
use k8s_openapi::api::core::v1::{Node, Pod};
use k8s_openapi::api::scheduling::v1::PriorityClass;
use kube::api::{Api, ObjectMeta, PartialObjectMeta};
use kube::runtime::reflector::{ObjectRef, Store, store};
use kube::runtime::{WatchStreamExt, watcher};
use kube::{Client, Resource};
use serde::de::DeserializeOwned;
use tokio::sync::{Notify, mpsc};
use tokio::task::JoinSet;

use crate::metrics::Metrics;
use crate::pod;

/// Objects of one page of a list: builds may be large before they are trimmed.
const PAGE: u32 = 50;
/// Builds that wait to be looked at; a watch that is ahead of them waits too.
const AHEAD: usize = 256;

/// What is kept of one namespace, or of all.
#[derive(Clone)]
pub struct Scope {
    /// Builds.
    pub builds: Store<ImageBuild>,
    /// Their pods.
    pub pods: Store<Pod>,
}

/// Everything that is kept.
pub struct Cache {
    /// One for each namespace that is looked at, or one for all.
    pub scopes: Vec<Scope>,
    /// Nodes.
    pub nodes: Store<PartialObjectMeta<Node>>,
    /// Priority classes.
    pub classes: Store<PriorityClass>,
    /// Told of every change.
    pub changed: Arc<Notify>,
    /// Told when a node comes, goes, or has other labels.
    pub nodes_changed: Arc<Notify>,
}

/// Builds to look at, one channel for each scope.
pub type Wakes = Vec<mpsc::Receiver<ObjectRef<ImageBuild>>>;

/// The watches; they end when this is dropped.
pub struct Watches {
    tasks: JoinSet<()>,
    client: Client,
    metrics: Arc<Metrics>,
}

impl Cache {
    /// Starts to watch `namespaces`, or all when there is none.
    pub fn start(client: &Client, namespaces: &[String], metrics: &Arc<Metrics>) -> (Self, Wakes, Watches) {
        let mut watches = Watches { tasks: JoinSet::new(), client: client.clone(), metrics: metrics.clone() };
        let changed = Arc::new(Notify::new());
        let nodes_changed = Arc::new(Notify::new());
        let names: Vec<Option<&String>> = match namespaces {
            [] => vec![None],
            some => some.iter().map(Some).collect(),
        };
        let (scopes, wakes) = names.into_iter().map(|name| watches.scope(name, &changed)).unzip();
        let nodes = watches.nodes(&nodes_changed);
        let everything = watcher::Config::default().page_size(PAGE);
        let classes =
            watches.watch(Api::all(client.clone()), everything, "PriorityClass", bare, |_| async {});
        (Self { scopes, nodes, classes, changed, nodes_changed }, wakes, watches)
    }

    /// Waits until every list is complete.
    pub async fn ready(&self) {
        // A watch that has ended is one that this process is about to follow.
        for scope in &self.scopes {
            let _ = scope.builds.wait_until_ready().await;
            let _ = scope.pods.wait_until_ready().await;
        }
        let _ = self.nodes.wait_until_ready().await;
        let _ = self.classes.wait_until_ready().await;
    }

    /// Every build.
    pub fn builds(&self) -> impl Iterator<Item = Arc<ImageBuild>> {
        self.scopes.iter().flat_map(|scope| scope.builds.state())
    }

    /// Every pod of a build.
    pub fn pods(&self) -> impl Iterator<Item = Arc<Pod>> {
        self.scopes.iter().flat_map(|scope| scope.pods.state())
    }

    /// The value of a priority class; 0 when there is none of this name. Without a name that of the default class.
    pub fn priority(&self, name: Option<&str>) -> i32 {
        let find = |class: &PriorityClass| match name {
            Some(name) => class.metadata.name.as_deref() == Some(name),
            None => class.global_default == Some(true),
        };
        self.classes.find(find).map_or(0, |class| class.value)
    }
}

impl Watches {
    fn scope(
        &mut self,
        namespace: Option<&String>,
        changed: &Arc<Notify>,
    ) -> (Scope, mpsc::Receiver<ObjectRef<ImageBuild>>) {
        let (wake, wakes) = mpsc::channel(AHEAD);
        let config = watcher::Config::default().page_size(PAGE);
        let of = |client: Client| match namespace {
            Some(namespace) => Api::namespaced(client, namespace),
            None => Api::all(client),
        };
        let told = (wake.clone(), changed.clone());
        let builds =
            self.watch(of(self.client.clone()), config.clone(), "ImageBuild", trim_build, move |build| {
                let (wake, changed) = told.clone();
                async move {
                    changed.notify_one();
                    let _ = wake.send(ObjectRef::from_obj(&build)).await;
                }
            });
        let api = match namespace {
            Some(namespace) => Api::namespaced(self.client.clone(), namespace),
            None => Api::all(self.client.clone()),
        };
        let told = (wake, changed.clone());
        let pods = self.watch(api, config.labels(build_pod::SELECTOR), "Pod", trim_pod, move |pod: Pod| {
            let (wake, changed) = told.clone();
            async move {
                changed.notify_one();
                if let (Some((name, _)), Some(namespace)) = (pod::owner(&pod), &pod.metadata.namespace) {
                    let _ = wake.send(ObjectRef::new(name).within(namespace)).await;
                }
            }
        });
        (Scope { builds, pods }, wakes)
    }

    fn nodes(&mut self, changed: &Arc<Notify>) -> Store<PartialObjectMeta<Node>> {
        let told = changed.clone();
        let known = Arc::new(std::sync::Mutex::new(BTreeMap::new()));
        let api: Api<PartialObjectMeta<Node>> = Api::all(self.client.clone());
        self.watch(api, watcher::Config::default().page_size(500), "Node", bare, move |node| {
            // Nodes change all the time; their names and labels do not.
            let PartialObjectMeta { metadata: ObjectMeta { name, labels, deletion_timestamp, .. }, .. } =
                node;
            let seen = (labels, deletion_timestamp.is_some());
            let old = known.lock().map(|mut known| known.insert(name, seen.clone()));
            if old.is_ok_and(|old| old != Some(seen)) {
                told.notify_one();
            }
            async {}
        })
    }

    /// Watches objects into a store, each trimmed before it is kept, and passes those that change on. A watch that
    /// breaks starts again.
    fn watch<K, F>(
        &mut self,
        api: Api<K>,
        config: watcher::Config,
        kind: &'static str,
        trim: fn(&mut K),
        mut told: impl FnMut(K) -> F + Send + 'static,
    ) -> Store<K>
    where
        K: Resource<DynamicType = ()> + Clone + DeserializeOwned + Debug + Send + Sync + 'static,
        F: Future<Output = ()> + Send,
    {
        let (reader, writer) = store();
        let metrics = self.metrics.clone();
        let kept = reader.clone();
        self.tasks.spawn(async move {
            let errors = metrics.watch_errors.with_label_values(&[kind]);
            let count = metrics.cached.with_label_values(&[kind]);
            let stream = watcher(api, config)
                .modify(trim)
                .inspect_err(|error| {
                    errors.inc();
                    tracing::warn!(kind, "watch: {error}");
                })
                .default_backoff()
                .reflect(writer)
                .touched_objects();
            let mut stream = std::pin::pin!(stream);
            while let Some(touched) = stream.next().await {
                count.set(i64::try_from(kept.len()).unwrap_or(i64::MAX));
                if let Ok(object) = touched {
                    told(object).await;
                }
            }
        });
        reader
    }
}

fn bare<K: Resource>(object: &mut K) {
    object.meta_mut().managed_fields = None;
    object.meta_mut().annotations = None;
}

fn trim_build(build: &mut ImageBuild) {
    build.metadata.managed_fields = None;
    // What kubectl apply keeps there is the whole object once more.
    if let Some(annotations) = &mut build.metadata.annotations {
        annotations.remove("kubectl.kubernetes.io/last-applied-configuration");
    }
    if let Some(status) = &mut build.status {
        status.log_tail = None;
    }
    cloister_crds::fingerprint::trim(&mut build.spec);
}

fn trim_pod(pod: &mut Pod) {
    bare(pod);
    if let Some(spec) = &mut pod.spec {
        let node_name = spec.node_name.take();
        *spec = k8s_openapi::api::core::v1::PodSpec { node_name, ..Default::default() };
    }
}
