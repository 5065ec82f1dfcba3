//! What the chart brings for Prometheus, on a real one that scrapes a cluster in which pods and builds come and go: every query of
//! the dashboard has an answer, every alert can be evaluated, and docs/metrics.md lists what was scraped.

use std::collections::{BTreeMap, BTreeSet};
use std::fs;
use std::thread::sleep;
use std::time::Duration;

use anyhow::{Context, Result, ensure};
use cloister_e2e::cell::wait_for;
use cloister_e2e::lab::checkout;
use cloister_e2e::metrics;
use cloister_e2e::prometheus::{Prometheus, time};
use serde_json::{Value, json};

use crate::figures;
use crate::site::{END, Site, attempt, build, pod, with_site};

/// What ends as it should, with 64 MiB in two layers.
const LAYERS: &str = "FROM lab.test/busybox:1\nRUN head -c 33554432 /dev/urandom >/random\n\
    RUN head -c 33554432 /dev/zero | tr '\\0' x >/same\nCMD [\"true\"]\n";
/// A pod that uses network, disk and processor, and ends.
const WORK: &str = "ping -c 3 -q $(ip route | sed -n 's/^default via \\([0-9.]*\\).*/\\1/p') >/dev/null || exit 9; \
    head -c 50331648 /dev/urandom >/file; sync; sha256sum /file; sleep 3; exit ";
/// Microvms that are killed; one more would be a reason to worry twice.
const KILLED: usize = 3;
/// The only alert that this run gives a reason for.
const FIRES: &str = "CloisterMicroVMsLost";
/// What Grafana makes of `$__rate_interval` when Prometheus asks every second and a point is drawn for every five.
const RATE: &str = "15s";
const STEP: u32 = 5;

#[test]
fn dashboard_alerts_and_document_fit_a_prometheus_that_scraped_a_run() {
    with_site(&["--max-concurrent=1"], |site| {
        let rules = checkout().join("charts/cloister/files/alerts.yaml");
        let targets = site.builds.targets(&site.nodes);
        let prometheus = Prometheus::start(&site.cluster, &targets, &rules)?;
        let begun = time();
        let checks = || -> Result<()> {
            run(site)?;
            alerts(&prometheus, &rules)?;
            // What is over is drawn to its end.
            sleep(Duration::from_secs(5));
            let over = (begun, time());
            dashboard(&prometheus, over)?;
            document(&prometheus, site, over)?;
            buckets(&prometheus)?;
            figures::draw(&prometheus, over)
        };
        checks().with_context(|| prometheus.log_tail())?;
        site.clean()
    });
}

/// Builds that end well, from the cache, and badly, more of them than run at a time; pods that end well, badly, of memory, and
/// not at all, one that is refused, and machines that are killed.
fn run(site: &Site) -> Result<()> {
    let here = json!({"kubernetes.io/hostname": "one"});
    let mut layers = build("layers", LAYERS, json!({"nodeSelector": here}));
    layers["spec"]["output"]["nodes"] = json!({});
    site.apply(&layers)?;
    let broken = "FROM lab.test/busybox:1\nRUN sleep 2; exit 3\n";
    site.apply(&build("broken", broken, json!({"nodeSelector": here, "retries": 0})))?;
    let small = "FROM lab.test/busybox:1\nRUN echo small >/small\n";
    site.apply(&build("small", small, json!({"nodeSelector": {"kubernetes.io/hostname": "two"}})))?;

    let shell = |name: &str, node: &str, line: &str| -> Value {
        let mut pod = pod(name, "lab.test/busybox:1", node, true);
        pod["spec"]["containers"][0]["command"] = json!(["sh", "-c", line]);
        pod
    };
    let ends = |name: &str, phase: &str| {
        wait_for(&format!("{name} to be {phase}"), END, || {
            Ok((site.cluster.get(&["pod", name])?["status"]["phase"] == phase).then_some(()))
        })
        .with_context(|| site.cluster.kubectl(&["describe", "pod", name]).unwrap_or_default())
    };
    for node in ["one", "two"] {
        site.apply(&shell(&format!("works-{node}"), node, &format!("{WORK} 0")))?;
    }
    site.apply(&shell("errs", "two", &format!("{WORK} 3")))?;
    let mut hungry = shell("hungry", "two", "sleep 2; tail /dev/zero");
    hungry["spec"]["containers"][0]["resources"] = json!({"limits": {"memory": "48Mi"}});
    site.apply(&hungry)?;
    let mut refused = shell("refused", "two", "true");
    refused["spec"]["hostIPC"] = json!(true);
    site.apply(&refused)?;
    for (name, phase) in
        [("works-one", "Succeeded"), ("works-two", "Succeeded"), ("errs", "Failed"), ("hungry", "Failed")]
    {
        ends(name, phase)?;
    }

    site.until("layers", "Ready", "True")?;
    site.until("broken", "Succeeded", "False")?;
    site.until("small", "Ready", "True")?;
    site.cluster.kubectl(&["annotate", "imgb", "layers", "cloister.dev/rebuild=1"])?;
    for microvm in [true, false] {
        site.run("layers:1", "two", microvm)?;
    }
    wait_for("the second attempt", END, || {
        let build = site.get("layers")?;
        Ok((attempt(&build)["number"] == 2 && attempt(&build)["completionTime"].is_string()).then_some(()))
    })?;
    site.cluster.kubectl(&["delete", "pod", "refused", "errs", "hungry", "works-one", "works-two"])?;

    let node = &site.nodes[0];
    for number in 0..KILLED {
        let name = format!("killed-{number}");
        site.apply(&shell(&name, "one", "sleep 600"))?;
        ends(&name, "Running")?;
        // Long enough for the kubelet to have a look, and for Prometheus to have seen its share.
        sleep(Duration::from_secs(2));
        let machine = node.lab.cell.find("qemu-system")?.pop().context("no machine")?;
        node.lab.cell.kill(machine.pid, "KILL")?;
        ends(&name, "Failed")?;
        site.cluster.kubectl(&["delete", "pod", &name])?;
    }
    Ok(())
}

/// Every rule is evaluated, and just the one fires that has a reason to.
fn alerts(prometheus: &Prometheus<'_>, rules: &std::path::Path) -> Result<()> {
    let rules: Value = serde_saphyr::from_str(&fs::read_to_string(rules)?)?;
    let groups = rules["groups"].as_array().context("no groups")?.iter();
    let wanted: BTreeMap<&str, &str> = groups
        .flat_map(|group| group["rules"].as_array().into_iter().flatten())
        .filter_map(|rule| Some((rule["alert"].as_str()?, rule["expr"].as_str()?)))
        .collect();
    let firing = || prometheus.now("ALERTS{alertstate=\"firing\"}");
    wait_for(FIRES, Duration::from_secs(20), || Ok((!firing()?.is_empty()).then_some(())))?;
    let firing: BTreeSet<(String, String)> = firing()?
        .iter()
        .map(|alert| (alert.label("alertname").to_owned(), alert.label("node").to_owned()))
        .collect();
    ensure!(firing == BTreeSet::from([(FIRES.to_owned(), "one".to_owned())]), "{firing:?}");
    for (alert, expression) in &wanted {
        let found = prometheus.now(expression)?.len();
        ensure!((found > 0) == (*alert == FIRES), "{alert} has {found} series");
    }
    let evaluated = prometheus.ask("rules", &[])?;
    let groups = evaluated["groups"].as_array().context("no groups")?.iter();
    let all: Vec<&Value> = groups.flat_map(|group| group["rules"].as_array().into_iter().flatten()).collect();
    ensure!(all.len() == wanted.len(), "{evaluated:#}");
    for rule in all {
        ensure!(rule["health"] == "ok" && rule["lastError"].is_null(), "{rule:#}");
    }
    Ok(())
}

/// The queries of the dashboard by panel, as Grafana sends them for this node.
fn queries(dashboard: &Value, node: &str, (from, to): (f64, f64)) -> Vec<(String, String)> {
    let range = format!("{}s", (to - from).ceil());
    let mut all = Vec::new();
    for panel in dashboard["panels"].as_array().into_iter().flatten() {
        for target in panel["targets"].as_array().into_iter().flatten() {
            let query = target["expr"].as_str().unwrap_or_default();
            let query = query.replace("$__rate_interval", RATE).replace("$__range", &range);
            all.push((panel["title"].as_str().unwrap_or_default().to_owned(), query.replace("$node", node)));
        }
    }
    all
}

/// Every query gives something to draw, for all nodes and for each.
fn dashboard(prometheus: &Prometheus<'_>, over: (f64, f64)) -> Result<()> {
    let dashboard = fs::read_to_string(checkout().join("charts/cloister/files/dashboard.json"))?;
    let dashboard: Value = serde_json::from_str(&dashboard)?;
    let variable = &dashboard["templating"]["list"][1];
    ensure!(variable["query"] == "label_values(cloister_node_snapshots, node)", "{variable:#}");
    let nodes = prometheus.ask("label/node/values", &[("match[]", "cloister_node_snapshots")])?;
    ensure!(nodes == json!(["one", "two"]), "{nodes}");
    let mut empty = Vec::new();
    for node in [".*", "one", "two"] {
        let queries = queries(&dashboard, node, over);
        ensure!(queries.len() > 30, "{} queries", queries.len());
        for (panel, query) in queries {
            ensure!(!query.contains('$'), "{panel}: {query}");
            let series = prometheus.over(&query, over, STEP)?;
            if series.is_empty() {
                empty.push(format!("{panel}, node {node}: {query}"));
            }
        }
    }
    ensure!(empty.is_empty(), "nothing to draw: {empty:#?}");
    Ok(())
}

/// Each page is as the document says, and so is what Prometheus knows of the families; nobody was out of reach.
fn document(prometheus: &Prometheus<'_>, site: &Site, (from, to): (f64, f64)) -> Result<()> {
    for target in site.builds.targets(&site.nodes) {
        let container = target.labels.iter().find(|(label, _)| *label == "container");
        let parts: &[&str] = match container.map(|(_, name)| name.as_str()) {
            Some("operator") => &["cloister-operator", "each process"],
            Some("builds") => &["cloister-node builds", "each process"],
            _ => &["cloister-node", "pods", "each process"],
        };
        metrics::check(&prometheus.get(&target.address, "/metrics")?, parts)
            .with_context(|| target.address.clone())?;
    }
    let parts = ["cloister-operator", "cloister-node builds", "cloister-node", "pods", "each process"];
    let documented = metrics::documented(&parts)?;
    let known = prometheus.ask("metadata", &[])?;
    let known = known.as_object().context("no metadata")?;
    let names: BTreeSet<&String> = known.keys().collect();
    ensure!(names == documented.keys().collect(), "{names:?}");
    for (name, family) in &documented {
        let told = known[name].as_array().context("no list")?;
        // One for each help that there is.
        ensure!(told.len() == 1, "{name}: {told:?}");
        ensure!(
            told[0]["type"] == family.kind.as_str() && told[0]["help"] == family.help.as_str(),
            "{told:?}"
        );
    }
    let reached = prometheus.now(&format!("avg_over_time(up[{}s])", (to - from).ceil()))?;
    ensure!(reached.len() == 5, "{reached:?}");
    for target in reached {
        let share = target.points.last().map_or(0.0, |point| point.1);
        ensure!(share > 0.9, "{} was reached {share} of the time", target.label("instance"));
    }
    Ok(())
}

/// The tests of the alerts use bounds of histograms that exist: a quantile is never above the largest.
fn buckets(prometheus: &Prometheus<'_>) -> Result<()> {
    let tests = fs::read_to_string(checkout().join("charts/cloister/tests/alerts.yaml"))?;
    let mut checked = 0;
    for line in tests.lines().filter(|line| line.contains("_bucket{")) {
        let series = line.split('\'').nth(1).context("no series")?;
        let name = series.split('{').next().unwrap_or_default();
        let bound =
            series.split("le=\"").nth(1).and_then(|rest| rest.split('"').next()).context("no bound")?;
        let there = prometheus.now(&format!("{name}{{le=\"{bound}\"}}"))?;
        ensure!(!there.is_empty(), "{name} has no bucket up to {bound}");
        checked += 1;
    }
    ensure!(checked > 0, "no test of an alert has a histogram");
    Ok(())
}
