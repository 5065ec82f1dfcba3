//! Plays kubelet and build driver of one node for the pods of builds.

use std::collections::BTreeMap;
use std::sync::{Arc, Mutex};
use std::time::Duration;

use cloister_crds::ImageBuild;
use jiff::Timestamp;
use k8s_openapi::api::core::v1::Pod;
use kube::api::{Api, DeleteParams, ListParams, Patch, PatchParams, PostParams};
use kube::{Client, ResourceExt};
use serde_json::{Value, json};

/// What a node does with a pod.
#[derive(Clone, Copy, PartialEq)]
pub enum Does {
    /// Runs it to a result, which takes so many milliseconds.
    Builds(u64),
    /// Runs it for ever.
    Hangs,
    /// Runs it to this failure.
    Fails(&'static str),
    /// Evicts it.
    Evicts,
}

/// What was seen of the pods that ran.
#[derive(Default)]
pub struct Seen {
    /// Namespace and name of each pod, in the order they started.
    pub started: Vec<(String, String)>,
    /// Most that ran at one time.
    pub most: usize,
    /// What runs: the step that a pod is at.
    running: BTreeMap<String, (Timestamp, u8)>,
}

/// One node, which looks at its pods until it is dropped.
pub struct Kubelet {
    task: tokio::task::JoinHandle<()>,
    pub seen: Arc<Mutex<Seen>>,
    pub does: Arc<Mutex<Does>>,
}

impl Kubelet {
    /// Starts the node, called n1.
    pub fn start(client: Client, does: Does) -> Kubelet {
        let seen = Arc::<Mutex<Seen>>::default();
        let does = Arc::new(Mutex::new(does));
        let node = Node { client, seen: seen.clone(), does: does.clone() };
        let task = tokio::spawn(async move {
            loop {
                if let Err(error) = node.round().await {
                    eprintln!("the node: {error}");
                }
                tokio::time::sleep(Duration::from_millis(30)).await;
            }
        });
        Kubelet { task, seen, does }
    }

    /// What it does from now on.
    pub fn does(&self, does: Does) {
        *self.does.lock().unwrap() = does;
    }
}

impl Drop for Kubelet {
    fn drop(&mut self) {
        self.task.abort();
    }
}

struct Node {
    client: Client,
    seen: Arc<Mutex<Seen>>,
    does: Arc<Mutex<Does>>,
}

impl Node {
    async fn round(&self) -> kube::Result<()> {
        let all: Api<Pod> = Api::all(self.client.clone());
        let params = ListParams::default()
            .labels("app.kubernetes.io/component=build")
            .fields("status.phase!=Succeeded,status.phase!=Failed");
        for pod in all.list(&params).await? {
            let pods: Api<Pod> = Api::namespaced(self.client.clone(), &pod.namespace().unwrap());
            if pod.metadata.deletion_timestamp.is_some() {
                self.seen.lock().unwrap().running.remove(&pod.uid().unwrap());
                let _ = pods.delete(&pod.name_any(), &DeleteParams::default().grace_period(0)).await;
            } else if let Err(error) = self.one(&pods, &pod).await {
                // It may be deleted at any time.
                eprintln!("pod {}: {error}", pod.name_any());
            }
        }
        Ok(())
    }

    /// One step of a pod.
    async fn one(&self, pods: &Api<Pod>, pod: &Pod) -> kube::Result<()> {
        let (uid, name) = (pod.uid().unwrap(), pod.name_any());
        let does = *self.does.lock().unwrap();
        let at = self.seen.lock().unwrap().running.get(&uid).copied();
        match at {
            None => {
                let binding = json!({"apiVersion": "v1", "kind": "Binding", "metadata": {"name": name},
                    "target": {"apiVersion": "v1", "kind": "Node", "name": "n1"}});
                let _: Value =
                    pods.create_subresource("binding", &name, &PostParams::default(), &binding).await?;
                self.phase(pods, &name, json!({"phase": "Running", "startTime": now()})).await?;
                let mut seen = self.seen.lock().unwrap();
                seen.started.push((pod.namespace().unwrap(), name));
                seen.running.insert(uid, (Timestamp::now(), 1));
                seen.most = seen.most.max(seen.running.len());
            }
            Some((started, 1)) => match does {
                Does::Builds(milliseconds) => {
                    let took = Timestamp::now().duration_since(started).as_millis();
                    if took >= i128::from(milliseconds) {
                        self.result(pod, json!({"digest": digest()}), true).await?;
                        self.end(pods, &uid, &name, "Succeeded").await?;
                    }
                }
                Does::Hangs => {
                    let stage = json!({"stages": [{"name": "Solve", "startTime": now()}],
                        "steps": {"total": 3, "completed": 1, "cached": 0, "cachedPercent": 0}});
                    self.result(pod, stage, false).await?;
                    self.seen.lock().unwrap().running.insert(uid, (started, 2));
                }
                Does::Fails(reason) => {
                    let failure = json!({"failure": {"reason": reason, "message": "by a test"}});
                    self.result(pod, failure, false).await?;
                    self.end(pods, &uid, &name, "Failed").await?;
                }
                Does::Evicts => {
                    self.phase(pods, &name, json!({"phase": "Failed", "reason": "Evicted"})).await?;
                    self.seen.lock().unwrap().running.remove(&uid);
                }
            },
            Some(_) => {}
        }
        Ok(())
    }

    async fn end(&self, pods: &Api<Pod>, uid: &str, name: &str, phase: &str) -> kube::Result<()> {
        self.phase(pods, name, json!({"phase": phase})).await?;
        self.seen.lock().unwrap().running.remove(uid);
        Ok(())
    }

    async fn phase(&self, pods: &Api<Pod>, name: &str, status: Value) -> kube::Result<()> {
        let patch = Patch::Merge(json!({"status": status}));
        pods.patch_status(name, &PatchParams::default(), &patch).await.map(drop)
    }

    /// Writes what the driver has to say about the pod's attempt, and the node's entry when it has the image.
    async fn result(&self, pod: &Pod, mut entry: Value, imported: bool) -> kube::Result<()> {
        let labels = pod.labels();
        entry["number"] = labels["cloister.dev/attempt"].parse::<i64>().unwrap().into();
        let name = &labels["cloister.dev/image-build"];
        let mut status = json!({"attempts": [entry]});
        if imported {
            status["nodes"] = json!([{"name": "n1", "state": "Ready", "digest": digest(), "pinned": true}]);
        }
        write(&self.client, &pod.namespace().unwrap(), name, status).await
    }
}

/// Applies a status as the driver does, without force.
pub async fn write(client: &Client, namespace: &str, name: &str, status: Value) -> kube::Result<()> {
    let object = json!({"apiVersion": "cloister.dev/v1alpha1", "kind": "ImageBuild",
        "metadata": {"name": name}, "status": status});
    let builds: Api<ImageBuild> = Api::namespaced(client.clone(), namespace);
    builds.patch_status(name, &PatchParams::apply("cloister-node/n1"), &Patch::Apply(object)).await.map(drop)
}

/// The digest of every image here.
pub fn digest() -> String {
    format!("sha256:{}", "ab".repeat(32))
}

/// The time as Kubernetes writes it.
fn now() -> String {
    format!("{:.0}", Timestamp::now())
}
