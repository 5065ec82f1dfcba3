//! Many builds at once while whatever they depend on is killed: `make e2e-full`. `CLOISTER_E2E_PERCENT` is a share of the
//! usual count.

use std::collections::BTreeMap;
use std::time::{Duration, Instant};

use anyhow::{Context, Result, bail, ensure};
use serde_json::{Value, json};

use crate::site::{Site, build, condition, with_site};

/// How many builds.
const BUILDS: usize = 200;
/// Time between two deaths.
const PAUSE: Duration = Duration::from_secs(12);
/// How long one build may take on average, deaths included.
const EACH: Duration = Duration::from_secs(20);
/// Most resident memory of the operator, in bytes.
const OPERATOR: u64 = 64 << 20;

fn count() -> usize {
    let percent = std::env::var("CLOISTER_E2E_PERCENT").ok().and_then(|p| p.parse().ok()).unwrap_or(100);
    (BUILDS * percent / 100).max(1)
}

#[test]
fn two_hundred_builds_end_right_whatever_dies_meanwhile() {
    with_site(&["--max-concurrent=2", "--retry-first=2s"], |site| {
        let count = count();
        let builds: Vec<Value> = (0..count).map(one).collect();
        site.apply(&json!({"apiVersion": "v1", "kind": "List", "items": builds}))?;
        let begun = Instant::now();
        let (mut chance, mut last, mut peak) = (Chance(0x9e37_79b9), Instant::now(), 0);
        let mut deaths = BTreeMap::<&str, usize>::new();
        loop {
            std::thread::sleep(Duration::from_secs(1));
            peak = peak.max(site.builds.operator.memory().unwrap_or_default());
            if last.elapsed() > PAUSE {
                *deaths.entry(death(site, &mut chance)?).or_default() += 1;
                last = Instant::now();
            }
            // Its server may be away.
            let Ok(all) = site.cluster.get(&["imgb"]) else { continue };
            let all = all["items"].as_array().cloned().unwrap_or_default();
            let is = |build: &Value, status: &str| condition(build, "Ready")["status"] == status;
            let ready = all.iter().filter(|build| is(build, "True")).count();
            eprintln!("{ready} of {count} after {:.0?}; deaths: {deaths:?}", begun.elapsed());
            if let Some(stalled) = all.iter().find(|build| condition(build, "Stalled")["status"] == "True") {
                bail!("{:#}", stalled["status"]);
            }
            if ready == count {
                check(&all)?;
                break;
            }
            ensure!(begun.elapsed() < EACH * u32::try_from(count)? + Duration::from_secs(300), "too slow");
        }
        eprintln!("the operator's peak: {} KiB", peak >> 10);
        ensure!(peak <= OPERATOR, "the operator used {peak} bytes");
        site.clean()
    });
}

/// A build with a result of its own that is the same each time.
fn one(number: usize) -> Value {
    let dockerfile = format!("FROM lab.test/busybox:1\nRUN echo {number} >/number\n");
    let mut object =
        build(&format!("many-{number}"), &dockerfile, json!({"sourceDateEpoch": 0, "retries": 5}));
    object["spec"]["output"]["pin"] = json!(false);
    object
}

/// No build had two results, and no two builds the same.
fn check(all: &[Value]) -> Result<()> {
    let mut results = BTreeMap::new();
    for build in all {
        let name = build["metadata"]["name"].as_str().context("no name")?;
        let digest = build["status"]["digest"].as_str().context("no digest")?;
        if let Some(other) = results.insert(digest.to_owned(), name.to_owned()) {
            bail!("{name} and {other} are the same");
        }
        for attempt in build["status"]["attempts"].as_array().context("no attempts")? {
            let said = &attempt["digest"];
            ensure!(said.is_null() || said == digest, "{name} has two results: {:#}", build["status"]);
        }
    }
    Ok(())
}

/// Kills something and starts it again.
fn death(site: &Site, chance: &mut Chance) -> Result<&'static str> {
    let number = usize::try_from(chance.next() % 2)?;
    let node = &site.nodes[number];
    let victim = match chance.next() % 5 {
        0 => {
            site.builds.operator.stop(true)?;
            site.builds.operator.start(site.cluster.cell())?;
            "operator"
        }
        1 => {
            site.builds.drivers[number].stop(true)?;
            site.builds.drivers[number].start(&node.lab.cell)?;
            "build driver"
        }
        2 => {
            site.cluster.stop("kube-apiserver", true)?;
            site.cluster.start("kube-apiserver")?;
            "API server"
        }
        3 => {
            node.lab.stop_node(true)?;
            node.lab.start_node()?;
            "node daemon"
        }
        _ => match node.lab.cell.find("qemu-system")?.first() {
            Some(machine) => {
                node.lab.cell.kill(machine.pid, "KILL")?;
                "VM"
            }
            None => "nobody",
        },
    };
    Ok(victim)
}

/// Numbers that look random and are the same in every run (xorshift).
struct Chance(u64);

impl Chance {
    fn next(&mut self) -> u64 {
        self.0 ^= self.0 << 13;
        self.0 ^= self.0 >> 7;
        self.0 ^= self.0 << 17;
        self.0 >> 11
    }
}
