//! An API server that knows ImageBuild, and replicas of the operator with the rights that its README lists.

use std::path::PathBuf;
use std::process::{Child, Command, Stdio};
use std::time::{Duration, Instant};

use cloister_crds::ImageBuild;
use cloister_e2e::Cluster;
use cloister_e2e::lab::{checkout, target_dir};
use k8s_openapi::api::core::v1::Pod;
use kube::api::{Api, Patch, PatchParams};
use kube::config::{KubeConfigOptions, Kubeconfig};
use kube::{Client, Config};
use serde_json::{Value, json};

/// How long anything may take that is waited for.
const PATIENCE: Duration = Duration::from_secs(90);

/// The cluster and a client with every right.
pub struct Site {
    pub cluster: Cluster,
    pub client: Client,
    operator: PathBuf,
}

impl Site {
    /// Starts one with these namespaces.
    pub async fn new(namespaces: &[&str]) -> Site {
        let cluster = Cluster::control_plane().unwrap();
        cluster.install_definition().unwrap();
        // An API server of 1.20 knows lists by key only in definitions without int-or-string (kubernetes#90902).
        let file = checkout().join("charts/cloister-crds/files/cloister.dev_imagebuilds.yaml");
        let definition = std::fs::read_to_string(file).unwrap();
        let definition = definition.replace("x-kubernetes-int-or-string: true", "type: string");
        let applied = cluster.kubectl_with(&["apply", "--validate=false", "-f", "-"], &definition).unwrap();
        assert!(applied.status.success(), "{}", String::from_utf8_lossy(&applied.stderr));
        cluster.grant_rights().unwrap();
        cluster.apply(&json!({"apiVersion": "node.k8s.io/v1", "kind": "RuntimeClass", "metadata": {"name": "cloister"}, "handler": "cloister"}).to_string()).unwrap();
        for namespace in namespaces {
            if *namespace != "default" {
                cluster.kubectl(&["create", "namespace", namespace]).unwrap();
            }
            // The controller that makes them does not run.
            cluster.kubectl(&["create", "serviceaccount", "default", "-n", namespace]).unwrap();
        }
        let config = Kubeconfig::read_from(cluster.kubeconfig()).unwrap();
        let config = Config::from_custom_kubeconfig(config, &KubeConfigOptions::default()).await.unwrap();
        let operator = cluster.kubeconfig_of("operator", &[]).unwrap();
        Site { client: Client::try_from(config).unwrap(), cluster, operator }
    }

    /// Starts a replica of the operator; its log goes to `NAME.log`.
    pub fn operator(&self, name: &str, more: &[&str]) -> Operator {
        let mut command = Command::new(target_dir().join("cloister-operator"));
        command.env("KUBECONFIG", &self.operator).stdin(Stdio::null());
        command.args(["--builder-image", "registry.test/builder:1", "--metrics-address", "127.0.0.1:0"]);
        command.args(["--identity", name, "--retry-first", "5s", "--result-grace", "2s"]).args(more);
        let log = self.cluster.root().join(format!("{name}.log"));
        let file = std::fs::File::options().create(true).append(true).open(&log).unwrap();
        command.stderr(file);
        Operator { child: command.spawn().unwrap(), log }
    }

    /// Applies a build; `spec` is merged over the least there is.
    pub async fn apply(&self, namespace: &str, name: &str, spec: Value) {
        let mut build = json!({
            "apiVersion": "cloister.dev/v1alpha1", "kind": "ImageBuild",
            "metadata": {"name": name},
            "spec": {"source": {"inline": {"dockerfile": "FROM scratch\n"}}, "output": {"images": [format!("{name}:1")]}},
        });
        for (key, value) in spec.as_object().unwrap() {
            build["spec"][key] = value.clone();
        }
        // Not by server-side apply: an API server of 1.20 leaves null where a field is no longer applied.
        let builds = self.builds(namespace);
        if builds.get_opt(name).await.unwrap().is_some() {
            builds.patch(name, &PatchParams::default(), &Patch::Merge(build)).await.unwrap();
        } else {
            let build = serde_json::from_value(build).unwrap();
            builds.create(&Default::default(), &build).await.unwrap();
        }
    }

    pub fn builds(&self, namespace: &str) -> Api<ImageBuild> {
        Api::namespaced(self.client.clone(), namespace)
    }

    pub fn pods(&self, namespace: &str) -> Api<Pod> {
        Api::namespaced(self.client.clone(), namespace)
    }

    /// Waits until the build is as `is` says.
    pub async fn wait(&self, name: &str, what: &str, is: impl Fn(&ImageBuild) -> bool) -> ImageBuild {
        let started = Instant::now();
        loop {
            let build = self.builds("default").get(name).await.unwrap();
            if is(&build) {
                return build;
            }
            assert!(started.elapsed() < PATIENCE, "{what}: {:#?}", build.status);
            tokio::time::sleep(Duration::from_millis(100)).await;
        }
    }

    /// Waits until a condition has this status and reason.
    pub async fn condition(&self, name: &str, expected: &str) -> ImageBuild {
        self.wait(name, expected, |build| words(build).contains(&expected.to_owned())).await
    }
}

/// Conditions as `Type=Status/Reason`.
pub fn words(build: &ImageBuild) -> Vec<String> {
    let conditions = build.status.iter().flat_map(|status| &status.conditions);
    conditions.map(|c| format!("{}={}/{}", c.type_, c.status, c.reason)).collect()
}

/// Waits until something holds.
pub async fn until<F: Future<Output = bool>>(what: &str, mut holds: impl FnMut() -> F) {
    let started = Instant::now();
    while !holds().await {
        assert!(started.elapsed() < PATIENCE, "{what} takes too long");
        tokio::time::sleep(Duration::from_millis(100)).await;
    }
}

/// A running replica.
pub struct Operator {
    child: Child,
    log: PathBuf,
}

impl Operator {
    /// Ends it as the kernel does.
    pub fn kill(mut self) {
        self.child.kill().unwrap();
        self.child.wait().unwrap();
    }

    /// Ends it as a kubelet does; it has to end well.
    pub fn terminate(mut self) {
        let pid = rustix::process::Pid::from_child(&self.child);
        rustix::process::kill_process(pid, rustix::process::Signal::TERM).unwrap();
        let status = self.child.wait().unwrap();
        assert!(status.success(), "{status}: {}", self.log());
    }

    /// Its resident memory in KiB: what `field` of its status says.
    pub fn memory(&self, field: &str) -> u64 {
        let status = std::fs::read_to_string(format!("/proc/{}/status", self.child.id())).unwrap();
        let line = status.lines().find_map(|line| line.strip_prefix(field)).unwrap();
        line.trim_start_matches(':').trim().trim_end_matches(" kB").parse().unwrap()
    }

    /// What it has said.
    pub fn log(&self) -> String {
        std::fs::read_to_string(&self.log).unwrap()
    }

    /// One of its pages.
    pub async fn page(&self, path: &str) -> String {
        use tokio::io::{AsyncReadExt, AsyncWriteExt};
        let log = self.log();
        let address = log.rsplit("address=").next().unwrap().split_whitespace().next().unwrap().to_owned();
        let mut stream = tokio::net::TcpStream::connect(&address).await.unwrap();
        stream.write_all(format!("GET {path} HTTP/1.1\r\n\r\n").as_bytes()).await.unwrap();
        let mut page = String::new();
        stream.read_to_string(&mut page).await.unwrap();
        page
    }
}

impl Drop for Operator {
    fn drop(&mut self) {
        let _ = self.child.kill();
        let _ = self.child.wait();
        if std::thread::panicking() {
            let log = self.log();
            let tail: Vec<_> = log.lines().rev().take(60).collect();
            eprintln!("--- the end of {}", self.log.display());
            tail.iter().rev().for_each(|line| eprintln!("{line}"));
        }
    }
}
