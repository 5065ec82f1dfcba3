//! Where a case runs: a namespace of its own, a runtime class and a node.

use std::fs;
use std::os::unix::fs::PermissionsExt;
use std::path::PathBuf;
use std::time::{Duration, Instant};

use anyhow::{Context, Result, ensure};
use cloister_e2e::Cluster;
use cloister_e2e::cluster::Node;
use cloister_e2e::pod_images::BUSYBOX;
use serde_json::{Value, json};

/// How long a case may take, without its end.
const DEADLINE: Duration = Duration::from_secs(240);
/// How often the API server is asked: more would take the processors from the pods.
const PERIOD: Duration = Duration::from_secs(1);
/// What a container does that waits for its end.
pub const IDLE: &str = "trap exit TERM; sleep 1000 & wait";

/// A case's place; its waits end with its deadline.
pub struct Site<'a> {
    pub cluster: &'a Cluster,
    pub node: &'a Node,
    /// The runtime class of its pods.
    pub class: &'static str,
    pub namespace: String,
    deadline: Instant,
}

/// A container that runs a shell script.
pub fn shell(script: &str) -> Value {
    json!({"name": "main", "image": BUSYBOX, "imagePullPolicy": "Never", "command": ["sh", "-c", script]})
}

/// An object with further fields, or other values of those that it has.
pub fn with(mut object: Value, more: Value) -> Value {
    if let (Value::Object(object), Value::Object(more)) = (&mut object, more) {
        object.extend(more);
    }
    object
}

impl<'a> Site<'a> {
    /// Makes the namespace.
    pub fn new(cluster: &'a Cluster, node: &'a Node, class: &'static str, case: &str) -> Result<Site<'a>> {
        let words = case.to_lowercase().replace(|c: char| !c.is_ascii_alphanumeric(), "-");
        let namespace = format!("{words}-{class}-{}", node.name());
        cluster.kubectl(&["create", "namespace", &namespace])?;
        let site = Site { cluster, node, class, namespace, deadline: Instant::now() + DEADLINE };
        site.until("the service account", || Ok(site.kubectl(&["get", "serviceaccount", "default"]).ok()))?;
        Ok(site)
    }

    /// Asks for the end of all that the case has made.
    pub fn end(&self) -> Result<()> {
        self.cluster.kubectl(&["delete", "namespace", &self.namespace, "--wait=false"])?;
        let label = format!("site={}", self.namespace);
        self.cluster.kubectl(&["delete", "pv", "--wait=false", "-l", &label]).map(drop)
    }

    /// What the cluster says of a case that failed.
    pub fn explain(&self) -> String {
        let say = |args: &[&str]| self.kubectl(args).unwrap_or_else(|error| format!("{error:#}\n"));
        say(&["get", "pods", "-o", "wide"]) + &say(&["get", "events", "--sort-by=.lastTimestamp"])
    }

    /// Runs kubectl in the namespace.
    pub fn kubectl(&self, args: &[&str]) -> Result<String> {
        self.cluster.kubectl(&[&["-n", &self.namespace], args].concat())
    }

    /// An object or a list.
    pub fn get(&self, args: &[&str]) -> Result<Value> {
        self.cluster.get(&[&["-n", &self.namespace], args].concat())
    }

    /// Makes an object in the namespace.
    pub fn create(&self, mut object: Value) -> Result<()> {
        object["metadata"]["namespace"] = self.namespace.as_str().into();
        // Without kubectl's own check: it reads the description of the whole API for each object.
        let output =
            self.cluster.kubectl_with(&["create", "--validate=false", "-f", "-"], &object.to_string())?;
        ensure!(output.status.success(), "{object}: {}", String::from_utf8_lossy(&output.stderr));
        Ok(())
    }

    /// The specification of a pod on the node; `more` are its further fields.
    pub fn spec(&self, containers: &[Value], more: Value) -> Value {
        let spec = json!({"runtimeClassName": self.class, "terminationGracePeriodSeconds": 2,
            "nodeSelector": {"kubernetes.io/hostname": self.node.name()}, "containers": containers});
        with(spec, more)
    }

    /// Makes a pod.
    pub fn pod(&self, name: &str, containers: &[Value], more: Value) -> Result<()> {
        self.labelled(name, json!({}), containers, more)
    }

    /// Makes a pod with labels.
    pub fn labelled(&self, name: &str, labels: Value, containers: &[Value], more: Value) -> Result<()> {
        self.create(json!({"apiVersion": "v1", "kind": "Pod", "metadata": {"name": name, "labels": labels},
            "spec": self.spec(containers, more)}))
    }

    /// Makes a pod of one container and waits until it is ready.
    pub fn ready_pod(&self, name: &str, container: Value, more: Value) -> Result<()> {
        self.pod(name, &[container], more)?;
        self.ready(name)
    }

    /// Makes a pod of one container that runs once, waits for its end and gives its log.
    pub fn once(&self, name: &str, container: Value, more: Value) -> Result<String> {
        self.pod(name, &[container], with(json!({"restartPolicy": "Never"}), more))?;
        let pod = self.pod_when(name, ended)?;
        ensure!(pod["status"]["phase"] == "Succeeded", "{name}: {} {:?}", pod["status"], self.log(name));
        self.log(name)
    }

    /// Waits until a pod is ready.
    pub fn ready(&self, name: &str) -> Result<()> {
        let patience = self.deadline.saturating_duration_since(Instant::now()).as_secs();
        let timeout = format!("--timeout={patience}s");
        self.kubectl(&["wait", "--for=condition=Ready", &timeout, &format!("pod/{name}")]).map(drop)
    }

    /// Waits until a pod is as it should be, and gives it.
    pub fn pod_when(&self, name: &str, as_wanted: impl Fn(&Value) -> bool) -> Result<Value> {
        let mut last = Value::Null;
        let found = self.until(&format!("pod {name}"), || {
            last = self.get(&["pod", name])?;
            Ok(as_wanted(&last).then(|| last.clone()))
        });
        found.with_context(|| format!("last seen: {}", last["status"]))
    }

    /// Deletes a pod and waits until it is gone.
    pub fn delete(&self, name: &str) -> Result<()> {
        self.kubectl(&["delete", "pod", name, "--timeout=120s"]).map(drop)
    }

    /// What a pod has written.
    pub fn log(&self, name: &str) -> Result<String> {
        self.kubectl(&["logs", name])
    }

    /// Waits until a pod's log has these words, and gives it.
    pub fn log_with(&self, name: &str, words: &str) -> Result<String> {
        self.until(&format!("{words:?} in the log of {name}"), || {
            Ok(self.log(name).ok().filter(|log| log.contains(words)))
        })
    }

    /// What a shell script in a pod's first container says.
    pub fn sh(&self, pod: &str, script: &str) -> Result<String> {
        self.kubectl(&["exec", pod, "--", "sh", "-c", script]).map(|said| said.trim_end().to_owned())
    }

    /// Waits for something until the case's deadline.
    pub fn until<T>(&self, what: &str, mut ready: impl FnMut() -> Result<Option<T>>) -> Result<T> {
        loop {
            if let Some(found) = ready()? {
                return Ok(found);
            }
            ensure!(Instant::now() < self.deadline, "{what}: not within the {DEADLINE:?} of a case");
            std::thread::sleep(PERIOD);
        }
    }

    /// A new folder of the node that everybody may write to.
    pub fn folder(&self, name: &str) -> Result<PathBuf> {
        let folder = self.node.lab.root().join("host").join(&self.namespace).join(name);
        fs::create_dir_all(&folder)?;
        fs::set_permissions(&folder, fs::Permissions::from_mode(0o777))?;
        Ok(folder)
    }

    /// Makes a persistent volume of the class that is named like the namespace.
    pub fn persistent_volume(&self, name: &str, spec: Value) -> Result<()> {
        let all = json!({"storageClassName": self.namespace, "capacity": {"storage": "16Mi"},
            "accessModes": ["ReadWriteOnce"], "persistentVolumeReclaimPolicy": "Retain"});
        let volume = json!({"apiVersion": "v1", "kind": "PersistentVolume", "metadata": {
            "name": format!("{}-{name}", self.namespace), "labels": {"site": self.namespace}}, "spec": with(all, spec)});
        self.create(volume)
    }
}

/// Whether a pod is ready and not about to end.
pub fn is_ready(pod: &Value) -> bool {
    let conditions = pod["status"]["conditions"].as_array().map(Vec::as_slice).unwrap_or_default();
    pod["metadata"]["deletionTimestamp"].is_null()
        && conditions.iter().any(|c| c["type"] == "Ready" && c["status"] == "True")
}

/// Whether a pod has succeeded or failed.
pub fn ended(pod: &Value) -> bool {
    matches!(pod["status"]["phase"].as_str(), Some("Succeeded" | "Failed"))
}

/// The status of a pod's first container.
pub fn container(pod: &Value) -> &Value {
    &pod["status"]["containerStatuses"][0]
}
