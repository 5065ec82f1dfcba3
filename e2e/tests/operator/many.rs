//! Many builds at once, and an operator that dies while it starts them.

use std::collections::{BTreeMap, BTreeSet};
use std::time::{Duration, Instant};

use cloister_crds::ImageBuild;
use kube::ResourceExt;
use kube::api::Api;
use serde_json::json;

use crate::kubelet::{Does, Kubelet};
use crate::site::Site;

/// Builds of each of four namespaces.
const EACH: usize = 50;
const NAMESPACES: [&str; 4] = ["a", "b", "c", "d"];

/// Kibibytes that the operator may take.
const MEMORY: u64 = 64 << 10;

#[tokio::test]
async fn two_hundred_builds_two_at_a_time_with_an_operator_that_dies() {
    let site = Site::new(&NAMESPACES).await;
    let applied = Instant::now();
    for namespace in NAMESPACES {
        for number in 0..EACH {
            site.apply(namespace, &format!("b{number:02}"), json!({})).await;
        }
    }
    eprintln!("{} builds applied in {:.1} s", 4 * EACH, applied.elapsed().as_secs_f64());
    let node = Kubelet::start(site.client.clone(), Does::Builds(0));
    let started = Instant::now();
    let all: Api<ImageBuild> = Api::all(site.client.clone());
    let (mut operator, mut kills, mut peak) = (site.operator("mortal", &["--max-concurrent", "2"]), 0, 0);
    loop {
        tokio::time::sleep(Duration::from_millis(500)).await;
        peak = peak.max(operator.memory("VmHWM"));
        let ended = node.seen.lock().unwrap().started.len();
        if kills < 5 && ended > (kills + 1) * 30 {
            operator.kill();
            operator = site.operator("mortal", &["--max-concurrent", "2"]);
            kills += 1;
        }
        if ended >= 4 * EACH && all.list(&Default::default()).await.unwrap().iter().all(is_ready) {
            break;
        }
        assert!(started.elapsed() < Duration::from_secs(240), "{ended} pods were started");
    }
    let took = started.elapsed().as_secs_f64();
    eprintln!(
        "all ready in {took:.1} s, {:.2} s each; operator killed {kills} times",
        took / (4 * EACH) as f64
    );
    peak = peak.max(operator.memory("VmHWM"));
    eprintln!("operator: RSS {} KiB now, {peak} KiB at most", operator.memory("VmRSS"));
    assert_eq!(kills, 5);
    assert!(peak <= MEMORY, "{peak} KiB");
    let seen = node.seen.lock().unwrap();
    assert!(seen.most <= 2, "{} ran at once", seen.most);
    let once: BTreeSet<_> = seen.started.iter().collect();
    assert_eq!((seen.started.len(), once.len()), (4 * EACH, 4 * EACH), "a pod ran twice");
    assert!(seen.started.iter().all(|(_, pod)| pod.ends_with("-1")));
    // Turns: at no time is a namespace far ahead of another.
    let mut counts: BTreeMap<&str, usize> = NAMESPACES.map(|name| (name, 0)).into();
    let mut apart = 0;
    for (namespace, _) in &seen.started {
        *counts.get_mut(namespace.as_str()).unwrap() += 1;
        apart = apart.max(counts.values().max().unwrap() - counts.values().min().unwrap());
    }
    eprintln!("namespaces were at most {apart} builds apart");
    // A restart forgets whose turn it was within the last second: two builds, five times.
    assert!(apart <= 4 + 2 * 5, "{apart}");
}

fn is_ready(build: &ImageBuild) -> bool {
    let conditions = build.status.iter().flat_map(|status| &status.conditions);
    let ready = conditions.into_iter().any(|one| one.type_ == "Ready" && one.status == "True");
    if build.status.iter().any(|status| status.attempts.len() > 1) {
        panic!("{} was built twice: {:#?}", build.name_any(), build.status);
    }
    ready
}
