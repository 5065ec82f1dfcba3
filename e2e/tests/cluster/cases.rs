//! What Kubernetes does with pods, once with runc and once with microVMs, on a node of each containerd version: each
//! case has to end the same way, or as its line below says. Part of `make e2e-cluster`; `CLUSTER_CASES='probe|logs'`
//! limits it to the cases with `probe` or `logs` in their name.

mod access;
mod containers;
mod disturbed;
mod node;
mod probes;
mod settings;
mod site;
mod storage;
mod table;
mod workloads;

use std::sync::Mutex;
use std::time::{Duration, Instant};

use anyhow::{Result, ensure};
use cloister_e2e::Cluster;
use cloister_e2e::cell::wait_for;
use cloister_e2e::cluster::Node;

use super::pods::{GONE, with_nodes};
use site::Site;
use table::{Outcome, Table};

/// What is done on a node with pods of a class; gives what was seen, without names and times.
type Work = fn(&Site<'_>) -> Result<String>;

/// How a microVM's result relates to runc's.
#[derive(Clone, Copy)]
enum Expected {
    Same,
    /// Another one, which begins so.
    Other(&'static str),
}
use Expected::{Other, Same};

struct Case(&'static str, Expected, Work);

/// Those that a node carries side by side, the longest waits first.
const TOGETHER: &[Case] = &[
    Case("CronJob", Same, workloads::cron_job),
    Case("ConfigMap and Secret, updated", Same, settings::configuration),
    Case("Deployment, rolling update", Same, workloads::deployment),
    Case("Job", Same, workloads::jobs),
    Case("DaemonSet, rolling update", Same, workloads::daemon_set),
    Case("StatefulSet with claims", Same, storage::stateful_set),
    Case("local block volume", Same, storage::local_block_volume),
    Case("hostPath", Same, storage::host_path),
    Case("emptyDir", Same, storage::empty_dirs),
    Case("emptyDir over its limit", Same, storage::empty_dir_limit),
    Case("ephemeral storage over its limit", Other("written, not evicted"), storage::ephemeral_storage_limit),
    Case("init containers", Same, containers::init_containers),
    Case("lifecycle hooks", Same, containers::lifecycle_hooks),
    Case("ends and restarts", Same, containers::ends_and_restarts),
    Case("termination messages", Same, containers::termination_messages),
    Case("out of memory", Same, containers::out_of_memory),
    Case("resource limits", Same, containers::limits),
    Case("security context", Same, containers::security_context),
    Case("ordinary process", Same, containers::ordinary_process),
    Case("shared process namespace", Same, containers::shared_processes),
    Case("names and DNS", Same, containers::names),
    Case("probes by exec", Same, probes::by_exec),
    Case("probes by HTTP", Same, probes::by_http),
    Case("probes by TCP", Same, probes::by_tcp),
    Case("startup probe", Same, probes::at_start),
    Case("downward API, updated", Same, settings::downward_api),
    Case("service account", Same, settings::service_account),
    Case("logs", Same, access::logs),
    Case("exec", Same, access::exec),
    Case("attach", Same, access::attach),
    Case("cp", Same, access::copy),
    Case("port-forward", Same, access::port_forward),
    Case("host port", Same, access::host_port),
    Case("runc and microVMs, mixed", Same, access::mixed),
    Case("overhead of the runtime class", Same, node::overhead),
    Case("stats for kubectl top", Same, node::stats),
    Case("eviction and disruption budget", Same, node::eviction),
    Case("privileged", Same, node::privileged),
    Case("hostNetwork", Other("refused: hostNetwork"), node::host_network),
    Case("hostIPC", Other("refused: hostIPC"), node::host_ipc),
    Case("hostPID", Other("0: no process of the node"), node::host_processes),
];

/// Those that want a node for themselves.
const ALONE: &[Case] = &[
    Case("kubelet killed", Same, disturbed::kubelet_killed),
    Case("containerd killed", Same, disturbed::containerd_killed),
    Case("drain", Same, disturbed::drain),
    Case("image garbage collection and eviction", Same, disturbed::disk_pressure),
];

/// The peer, with an overhead as microVMs have one. The class `cloister` comes with the cluster.
const RUNC: &str = "apiVersion: node.k8s.io/v1
kind: RuntimeClass
metadata: {name: runc}
handler: runc
overhead: {podFixed: {memory: 16Mi}}
";
const CLASSES: [&str; 2] = ["runc", "cloister"];
/// How many cases run at a time: most of their time is a kubelet's.
const AT_A_TIME: usize = 6;
/// How long the API may take to remove all that the cases have made.
const REMOVED: Duration = Duration::from_secs(180);

#[test]
fn kubernetes_does_the_same_with_microvms() {
    with_nodes(|cluster, nodes| {
        cluster.apply(RUNC)?;
        let only = std::env::var("CLUSTER_CASES").unwrap_or_default();
        let chosen = |case: &&Case| only.split('|').any(|word| case.0.contains(word));
        let both = |case, node| CLASSES.map(|class| Run { case, node, class });
        let table = Mutex::new(Table::default());
        let cases = TOGETHER.iter().filter(chosen);
        let together = cases.flat_map(|case| nodes.iter().flat_map(move |node| both(case, node)));
        run(cluster, together.collect(), AT_A_TIME, &table);
        // What stays is said after the table.
        let removed_first = removed(cluster);
        std::thread::scope(|scope| {
            for node in nodes {
                let alone = ALONE.iter().filter(chosen).flat_map(move |case| both(case, node)).collect();
                let table = &table;
                scope.spawn(move || run(cluster, alone, 1, table));
            }
        });
        let removed_last = removed(cluster);
        let table = table.into_inner().unwrap_or_else(std::sync::PoisonError::into_inner);
        eprintln!("{table}");
        table.write()?;
        removed_first?;
        removed_last?;
        nodes.iter().try_for_each(|node| node.check_traces(GONE))?;
        let wrong = table.wrong();
        ensure!(wrong.is_empty(), "not the same: {wrong:?}");
        Ok(())
    });
}

/// A case on a node with a class.
struct Run<'a> {
    case: &'static Case,
    node: &'a Node,
    class: &'static str,
}

/// Runs these cases, so many at a time, in their order.
fn run(cluster: &Cluster, runs: Vec<Run<'_>>, at_a_time: usize, table: &Mutex<Table>) {
    let queue = Mutex::new(runs.into_iter());
    let next = || queue.lock().ok().and_then(|mut queue| queue.next());
    std::thread::scope(|scope| {
        for _ in 0..at_a_time {
            scope.spawn(|| {
                while let Some(run) = next() {
                    let outcome = one(cluster, &run);
                    if let Ok(mut table) = table.lock() {
                        table.add(run.case, run.node, run.class, outcome);
                    }
                }
            });
        }
    });
}

fn one(cluster: &Cluster, run: &Run<'_>) -> Outcome {
    let start = Instant::now();
    let seen = Site::new(cluster, run.node, run.class, run.case.0).and_then(|site| {
        let seen = (run.case.2)(&site);
        if seen.is_err() {
            eprintln!("--- {}\n{}", site.namespace, site.explain());
        }
        site.end()?;
        seen
    });
    let seconds = start.elapsed().as_secs_f64();
    // Words of the API come with quotation marks here and without them there.
    let seen = seen.map(|seen| seen.replace('"', "")).map_err(|error| format!("{error:#}"));
    eprintln!("{:5.1} s {} with {} on {}: {seen:?}", seconds, run.case.0, run.class, run.node.name());
    Outcome { seen, seconds }
}

/// Waits until the namespaces of all cases are gone.
fn removed(cluster: &Cluster) -> Result<()> {
    wait_for("the end of all namespaces", REMOVED, || {
        let all = cluster.kubectl(&[
            "get",
            "namespaces",
            "--field-selector=status.phase=Terminating",
            "-o",
            "name",
        ])?;
        std::thread::sleep(Duration::from_millis(500));
        Ok(all.is_empty().then_some(()))
    })
}
