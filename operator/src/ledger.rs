//! The queue over the cache: which builds wait, which run, and whose turn it is.

use std::collections::{BTreeMap, BTreeSet, HashMap};
use std::time::Duration;

use cloister_crds::ImageBuild;
use jiff::Timestamp;
use kube::ResourceExt;
use tokio::time::Instant;

use crate::cache::Cache;
use crate::plan::{Settings, Turn, is_running, next_due};
use crate::pod;
use crate::queue::{Limits, Order, Placed, Served, Waiting, full_nodes, order};

/// How long a start counts before it is seen in the cache.
const UNSEEN: Duration = Duration::from_secs(30);
/// How long the scheduler may take to place a pod before it is taken for one that fits nowhere.
const PLACING: jiff::SignedDuration = jiff::SignedDuration::from_secs(10);

/// What the cache does not show yet, and what it never shows.
#[derive(Debug, Default)]
pub struct Ledger {
    /// Builds that were given a turn: their namespace, and when.
    given: HashMap<String, (String, Instant)>,
    /// When a build of each namespace was started last; finer than what stands in objects.
    served: BTreeMap<String, Timestamp>,
    /// Builds whose pod could not be made: until then others go first, and after that they wait in line once more.
    blocked: HashMap<String, Instant>,
}

impl Ledger {
    /// Takes a turn for the build, if it is its turn.
    pub fn turn(&mut self, build: &ImageBuild, cache: &Cache, limits: &Limits, settings: &Settings) -> Turn {
        let (Some(uid), Some(namespace)) = (build.uid(), build.namespace()) else { return Turn::None };
        if self.given.contains_key(&uid) {
            return Turn::Go;
        }
        let now = Timestamp::now();
        let order = self.order(cache, limits, settings, now);
        if order.go.contains(&uid) {
            self.blocked.remove(&uid);
            self.given.insert(uid, (namespace.clone(), Instant::now()));
            self.served.insert(namespace, now);
            return Turn::Go;
        }
        match order.place(&uid) {
            Some(place) => Turn::Wait { place, of: order.line.len() },
            None => Turn::None,
        }
    }

    /// [`Ledger::turn`] for a build that had its turn and has no pod: it needs another one when its pod was refused.
    pub fn resume(
        &mut self,
        build: &ImageBuild,
        cache: &Cache,
        limits: &Limits,
        settings: &Settings,
    ) -> Turn {
        match build.uid().is_some_and(|uid| self.blocked.contains_key(&uid)) {
            true => self.turn(build, cache, limits, settings),
            false => Turn::Go,
        }
    }

    /// The turn was not used.
    pub fn give_back(&mut self, uid: &str) {
        self.given.remove(uid);
    }

    /// The build's pod could not be made; it waits before its next try, and others do not wait for it.
    pub fn block(&mut self, uid: &str, time: Duration) {
        self.given.remove(uid);
        self.blocked.insert(uid.to_owned(), Instant::now() + time);
    }

    /// The builds that may start now.
    pub fn next(&mut self, cache: &Cache, limits: &Limits, settings: &Settings) -> Order {
        self.order(cache, limits, settings, Timestamp::now())
    }

    fn order(&mut self, cache: &Cache, limits: &Limits, settings: &Settings, now: Timestamp) -> Order {
        self.given.retain(|_, (_, when)| when.elapsed() < UNSEEN);
        let occupied: BTreeSet<String> = cache
            .pods()
            .filter(|pod| pod::observe(pod).is_some_and(|seen| seen.occupies(now)))
            .filter_map(|pod| pod::owner(&pod).map(|(_, uid)| uid.to_owned()))
            .collect();
        let mut served = Served { last: self.served.clone(), ..Served::default() };
        let mut waiting = Vec::new();
        for build in cache.builds() {
            let (Some(uid), Some(namespace)) = (build.uid(), build.namespace()) else { continue };
            let attempts = build.status.as_ref().map_or(&[][..], |status| &status.attempts);
            for start in attempts.iter().filter_map(|attempt| attempt.start_time.as_ref()) {
                let last = served.last.entry(namespace.clone()).or_insert(start.0);
                *last = start.0.max(*last);
            }
            let refused = self.blocked.get(&uid).filter(|_| !occupied.contains(&uid)).copied();
            let runs = occupied.contains(&uid) || (attempts.iter().any(is_running) && refused.is_none());
            if runs {
                self.given.remove(&uid);
                self.blocked.remove(&uid);
            }
            if runs || self.given.contains_key(&uid) {
                *served.active.entry(namespace).or_default() += 1;
                continue;
            }
            let since = match refused {
                Some(until) if until > Instant::now() => None,
                Some(_) => Some(now),
                None => {
                    let due = next_due(&build, jitter(&build), settings, now);
                    due.filter(|due| due.at <= now).map(|due| due.since)
                }
            };
            if let Some(since) = since {
                let priority = cache.priority(build.spec.priority_class_name.as_deref());
                waiting.push(Waiting { uid, namespace, name: build.name_any(), priority, since });
            }
        }
        order(waiting, &served, &capacity(limits, cache.nodes.len()))
    }

    /// Nodes that the next pod must not go to.
    pub fn full(cache: &Cache, limits: &Limits) -> Vec<String> {
        let now = Timestamp::now();
        let seen = cache.pods().filter_map(|pod| pod::observe(&pod)).filter(|pod| pod.occupies(now));
        let placed: Vec<_> = seen
            .map(|pod| Placed { node: pod.node, fresh: now.duration_since(pod.created) < PLACING })
            .collect();
        let nodes: Vec<_> = cache.nodes.state().iter().map(|node| node.name_any()).collect();
        full_nodes(&nodes, &placed, limits.node)
    }
}

/// What nodes can take together is a limit too.
fn capacity(limits: &Limits, nodes: usize) -> Limits {
    let together = limits.node.map(|most| most * nodes);
    let total = [limits.total, together].into_iter().flatten().min();
    Limits { total, ..*limits }
}

/// Between 0 and 1: the same at each look at one attempt of one build, and different from one to the next.
pub fn jitter(build: &ImageBuild) -> f64 {
    let attempts = build.status.as_ref().and_then(|status| status.attempts.last());
    let number = attempts.map_or(0, |attempt| attempt.number);
    let text = format!("{}/{number}", build.metadata.uid.as_deref().unwrap_or_default());
    // FNV-1a; its high bits are mixed best.
    let hash = text.bytes().fold(0xcbf2_9ce4_8422_2325_u64, |hash, byte| {
        (hash ^ u64::from(byte)).wrapping_mul(0x0100_0000_01b3)
    });
    f64::from(u32::try_from(hash >> 32).unwrap_or_default()) / f64::from(u32::MAX)
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::fixture;

    #[test]
    fn jitter_is_steady_and_spread() {
        let of = |uid: &str| {
            let mut build = fixture::build();
            build.metadata.uid = Some(uid.into());
            jitter(&build)
        };
        assert_eq!(of("a").to_bits(), of("a").to_bits());
        let all: Vec<_> = (0..200).map(|number| of(&format!("uid-{number}"))).collect();
        assert!(all.iter().all(|one| (0.0..=1.0).contains(one)));
        assert!(all.iter().filter(|one| **one < 0.5).count().abs_diff(100) < 40);
    }

    #[test]
    fn nodes_together_are_a_limit() {
        let limits = Limits { total: Some(10), namespace: None, node: Some(2) };
        assert_eq!(capacity(&limits, 3).total, Some(6));
        assert_eq!(capacity(&limits, 9).total, Some(10));
        assert_eq!(capacity(&Limits::default(), 9).total, None);
    }
}
