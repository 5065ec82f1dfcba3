//! What a platform engineer does with a cluster that has never heard of microVMs: installs the chart, tests it, updates it while
//! pods run, and takes it off again. The chart's own images run in real pods, on a node with a real systemd. Part of
//! `make e2e-cluster`.

use std::collections::BTreeMap;
use std::fmt::Write as _;
use std::io::{Read, Write};
use std::net::{SocketAddr, TcpStream};
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::{Duration, Instant};

use anyhow::{Context, Result, ensure};
use cloister_e2e::Cluster;
use cloister_e2e::cell::wait_for;
use cloister_e2e::cluster::OrdinaryNode;
use cloister_e2e::containerd::Version;
use cloister_e2e::lab::{builder_image, checkout};
use cloister_e2e::pod_images::BUSYBOX;
use cloister_e2e::systemd::Systemd;
use serde_json::Value;

use super::chart::{NAMESPACE, charts, helm, text};

const VERSION: &str = env!("CARGO_PKG_VERSION");
/// How long a step may take that replaces pods or deletes them.
const STEP: Duration = Duration::from_secs(240);
/// Pods in microVMs while everything is updated.
const LIVE: usize = 10;

fn pod(name: &str, more: &str) -> String {
    format!(
        "apiVersion: v1
kind: Pod
metadata: {{name: {name}, labels: {{app: {name}}}}}
spec:
  {more}
  terminationGracePeriodSeconds: 2
  containers:
  - name: main
    image: {BUSYBOX}
    imagePullPolicy: Never
    command: [sh, -c, 'mkdir /tmp/www; hostname >/tmp/www/index.html; exec httpd -f -h /tmp/www -p 80']
    resources: {{limits: {{memory: 32Mi}}}}
---
"
    )
}

pub const MICROVM: &str = "runtimeClassName: cloister";

/// The next version of the node's image, made where it will run.
fn next_image() -> String {
    format!(
        "apiVersion: cloister.dev/v1alpha1
kind: ImageBuild
metadata: {{name: node-next, namespace: {NAMESPACE}}}
spec:
  source:
    inline:
      dockerfile: |
        FROM cloister.dev/node:{VERSION}
        RUN [\"/bin/sh\", \"-ec\", \"echo next >/runtime/note\"]
  resources: {{limits: {{memory: 768Mi}}}}
  output:
    images: [cloister.dev/node:next]
    nodes: {{}}
"
    )
}

/// The images that the chart names, on the node.
fn import(node: &OrdinaryNode) -> Result<()> {
    let images = checkout().join("target/images");
    for (name, archive) in [
        ("operator", images.join("operator.tar")),
        ("node", images.join("node.tar")),
        ("builder", builder_image()?),
    ] {
        let image = format!("cloister.dev/{name}:{VERSION}");
        node.lab.ctr(&["images", "import", "--index-name", &image, text(&archive)])?;
        wait_for(&image, STEP, || Ok(node.lab.image(&image)?.map(drop)))?;
    }
    Ok(())
}

/// Waits until every pod of the DaemonSet is the one that it should be, and ready.
fn rolled_out(cluster: &Cluster) -> Result<()> {
    let timeout = format!("--timeout={}s", STEP.as_secs() - 10);
    cluster.kubectl(&["rollout", "status", "-n", NAMESPACE, "daemonset/cloister-node", &timeout]).map(drop)
}

pub fn ready(cluster: &Cluster, pods: &[&str]) -> Result<()> {
    let timeout = format!("--timeout={}s", STEP.as_secs() - 10);
    cluster.kubectl(&[&["wait", "--for=condition=Ready", &timeout], pods].concat()).map(drop)
}

/// What a restart of a pod would change: its container, and how often it was started.
fn lives(cluster: &Cluster) -> Result<BTreeMap<String, (String, u64)>> {
    let pods = cluster.get(&["pods"])?;
    let life = |pod: &Value| {
        let status = &pod["status"]["containerStatuses"][0];
        let of = |value: &Value| value.as_str().unwrap_or_default().to_owned();
        (
            of(&pod["metadata"]["name"]),
            (of(&status["containerID"]), status["restartCount"].as_u64().unwrap_or(99)),
        )
    };
    Ok(pods["items"].as_array().context("no pods")?.iter().map(life).collect())
}

fn addresses(cluster: &Cluster, label: &str) -> Result<Vec<SocketAddr>> {
    let pods = cluster.get(&["pods", "-l", label])?;
    let of = |pod: &Value| -> Result<SocketAddr> {
        Ok(SocketAddr::new(pod["status"]["podIP"].as_str().context("no address")?.parse()?, 80))
    };
    pods["items"].as_array().context("no pods")?.iter().map(of).collect()
}

/// One page of a pod's server.
fn ask(address: SocketAddr) -> Result<()> {
    let patience = Duration::from_secs(5);
    let mut stream = TcpStream::connect_timeout(&address, patience)?;
    stream.set_read_timeout(Some(patience))?;
    stream.write_all(b"GET / HTTP/1.0\r\n\r\n")?;
    let mut page = String::new();
    stream.read_to_string(&mut page)?;
    ensure!(page.contains(" 200 "), "{page:?}");
    Ok(())
}

/// Asks every pod twice a second until `done`; gives how many answers came.
fn watch(node: &OrdinaryNode, pods: &[SocketAddr], done: &AtomicBool) -> Result<usize> {
    node.lab.cell.inside(|| -> Result<usize> {
        let mut answers = 0;
        while !done.load(Ordering::Relaxed) {
            for &pod in pods {
                ask(pod).with_context(|| format!("{pod} after {answers} answers"))?;
                answers += 1;
            }
            std::thread::sleep(Duration::from_millis(500));
        }
        Ok(answers)
    })?
}

/// Runs `work` while pods are watched.
fn watched(node: &OrdinaryNode, pods: &[SocketAddr], work: impl FnOnce() -> Result<()>) -> Result<usize> {
    let done = AtomicBool::new(false);
    std::thread::scope(|scope| {
        let watcher = scope.spawn(|| watch(node, pods, &done));
        let worked = work();
        done.store(true, Ordering::Relaxed);
        let answers = watcher.join().unwrap_or_else(|_| Err(anyhow::anyhow!("the watcher panicked")));
        worked.and(answers)
    })
}

/// The figures, for people.
#[derive(Default)]
struct Figures(String);

impl Figures {
    fn say(&mut self, what: &str, seen: &str) {
        eprintln!("{what}: {seen}");
        let _ = writeln!(self.0, "| {what} | {seen} |");
    }
}

/// Does this with a node that has the chart's images and nothing else of Cloister; prints what there is when it fails.
pub fn with_node(
    version: Version,
    work: impl FnOnce(&Cluster, &OrdinaryNode, &Systemd<'_>) -> Result<()>,
) -> Result<()> {
    let cluster = Cluster::control_plane()?;
    cluster.start_controllers()?;
    // The chart brings its own.
    cluster.kubectl(&["delete", "runtimeclass", "cloister"])?;
    cluster.kubectl(&["create", "namespace", NAMESPACE])?;
    let node = cluster.ordinary_node("one", version)?;
    let systemd = node.boot(&cluster, &[BUSYBOX])?;
    let outcome = import(&node).and_then(|()| work(&cluster, &node, &systemd));
    if outcome.is_err() {
        for args in [
            ["get", "pods", "-A", "-o", "wide"].as_slice(),
            &["get", "imgb", "-A", "-o", "yaml"],
            &["get", "events", "-A", "--sort-by=.lastTimestamp"],
            &[
                "logs",
                "-n",
                NAMESPACE,
                "-l",
                "app.kubernetes.io/component=node",
                "--all-containers",
                "--tail=40",
            ],
            &["logs", "-n", NAMESPACE, "-l", "app.kubernetes.io/component=node", "-c", "uninstall"],
            &["logs", "-n", NAMESPACE, "-l", "app.kubernetes.io/component=operator", "--tail=40"],
        ] {
            eprintln!("--- {args:?}\n{}", cluster.kubectl(args).unwrap_or_else(|error| format!("{error:#}")));
        }
        node.print_logs();
    }
    drop(systemd);
    outcome
}

fn comes_works_is_updated_and_goes(
    cluster: &Cluster,
    node: &OrdinaryNode,
    _systemd: &Systemd<'_>,
) -> Result<()> {
    let mut figures = Figures::default();
    let (crds, chart) = (charts().join("cloister-crds"), charts().join("cloister"));
    cluster.apply(&pod("ordinary", "restartPolicy: Always"))?;
    ready(cluster, &["pod/ordinary"])?;
    let (before, ordinary) = (node.written()?, lives(cluster)?);

    let begun = Instant::now();
    helm(cluster, &["install", "cloister-crds", text(&crds)]);
    helm(cluster, &["install", "cloister", text(&chart)]);
    cluster.apply(&pod("first", MICROVM))?;
    ready(cluster, &["pod/first"])?;
    figures.say(
        "helm install → first pod in a microVM Ready",
        &format!("{:.1} s", begun.elapsed().as_secs_f64()),
    );
    let kernel = cluster.kubectl(&["exec", "first", "--", "cat", "/proc/version"])?;
    ensure!(kernel.contains("-cloister"), "{kernel}");
    rolled_out(cluster)?;

    let begun = Instant::now();
    helm(cluster, &["test", "cloister"]);
    figures.say("helm test: a pod, a build, its image", &format!("{:.1} s", begun.elapsed().as_secs_f64()));

    let names: Vec<String> = (0..LIVE).map(|number| format!("live-{number}")).collect();
    cluster.apply(&names.iter().map(|name| pod(name, MICROVM)).collect::<String>())?;
    let pods: Vec<String> = names.iter().map(|name| format!("pod/{name}")).collect();
    ready(cluster, &pods.iter().map(String::as_str).collect::<Vec<_>>())?;
    cluster.apply(&next_image())?;
    cluster.kubectl(&[
        "wait",
        "-n",
        NAMESPACE,
        "--for=condition=Ready",
        "--timeout=200s",
        "imgb/node-next",
    ])?;
    let alive = lives(cluster)?;
    let mut all = Vec::new();
    for name in names.iter().map(String::as_str).chain(["first", "ordinary"]) {
        all.extend(addresses(cluster, &format!("app={name}"))?);
    }
    ensure!(all.len() == LIVE + 2, "{all:?}");
    let shims = || -> Result<Vec<String>> {
        let all = node.lab.cell.find("containerd-shim-cloister-v2")?;
        all.iter()
            .map(|shim| {
                let program = std::fs::read_link(node.lab.cell.path(&format!("/proc/{}/exe", shim.pid)))?;
                Ok(program.display().to_string())
            })
            .collect()
    };
    let old = shims()?;
    let begun = Instant::now();
    let answers = watched(node, &all, || {
        helm(cluster, &["upgrade", "cloister", text(&chart), "--set=node.image.tag=next"]);
        rolled_out(cluster)?;
        cluster.apply(&pod("second", MICROVM))?;
        ready(cluster, &["pod/second"])
    })?;
    let took = begun.elapsed().as_secs_f64();
    let mut now = lives(cluster)?;
    now.remove("second").context("no second pod")?;
    ensure!(now == alive, "restarted: {alive:?} then {now:?}");
    let new: Vec<String> = shims()?.into_iter().filter(|program| !old.contains(program)).collect();
    ensure!(new.len() == 1, "the new pod has the new version: {old:?} and {new:?}");
    let count = all.len();
    figures.say(
        "helm upgrade under ten pods, until a further one is Ready",
        &format!("{took:.1} s; none restarted; {answers} of {answers} requests to {count} pods answered"),
    );

    let gone: Vec<&str> =
        now.keys().map(String::as_str).filter(|&name| name != "ordinary").chain(["second"]).collect();
    cluster.kubectl(&[&["delete", "pod", "--timeout=120s"], gone.as_slice()].concat())?;
    cluster.kubectl(&["delete", "imgb", "--all", "-A", "--timeout=120s"])?;
    let begun = Instant::now();
    // With the first image: the next one's build is gone, and the image with it.
    helm(cluster, &["upgrade", "cloister", text(&chart), "--set=node.uninstall=true"]);
    rolled_out(cluster)?;
    helm(cluster, &["uninstall", "cloister"]);
    wait_for("the end of the release's pods", STEP, || {
        let pods = cluster.kubectl(&["get", "pods", "-n", NAMESPACE, "-o", "name"])?;
        std::thread::sleep(Duration::from_millis(500));
        Ok((!pods.contains("cloister-node") && !pods.contains("cloister-operator")).then_some(()))
    })?;
    figures.say("uninstall", &format!("{:.1} s", begun.elapsed().as_secs_f64()));
    let after = node.written()?;
    let differs: Vec<&String> =
        before.keys().chain(after.keys()).filter(|&path| before.get(path) != after.get(path)).collect();
    // Folders in which Kubernetes mounts into pods: nobody removes them, they are empty.
    let folders = ["/etc/cloister", "/opt/cloister"];
    ensure!(differs.iter().all(|path| folders.contains(&path.as_str())), "not as before: {differs:?}");
    ensure!(lives(cluster)? == ordinary, "the ordinary pod was restarted");
    let label = r"jsonpath={.metadata.labels.cloister\.dev/ready}";
    ensure!(cluster.kubectl(&["get", "node", "one", "-o", label])?.is_empty(), "the label is still there");
    let ordinary = addresses(cluster, "app=ordinary")?;
    node.lab.cell.inside(|| ordinary.into_iter().try_for_each(ask))??;
    figures.say("files of the node, the ordinary pod", "as before");
    eprintln!("{}", figures.0);
    Ok(())
}

#[test]
fn comes_works_is_updated_and_goes_on_2_1() {
    with_node(Version::V2_1, comes_works_is_updated_and_goes).unwrap();
}

#[test]
fn comes_works_is_updated_and_goes_on_1_7() {
    with_node(Version::V1_7, comes_works_is_updated_and_goes).unwrap();
}
