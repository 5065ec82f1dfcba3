//! The order in which builds start: by priority, then by turns of the namespaces, then by age. Pure: the same builds
//! give the same order, whoever asks.

use std::cmp::Reverse;
use std::collections::{BTreeMap, BTreeSet, VecDeque};

use jiff::Timestamp;

/// A build that waits for its turn.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Waiting {
    /// The object's uid.
    pub uid: String,
    /// Its namespace.
    pub namespace: String,
    /// Its name.
    pub name: String,
    /// Value of its priority class.
    pub priority: i32,
    /// Since when it waits.
    pub since: Timestamp,
}

/// How many builds may run at the same time; none is no limit.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub struct Limits {
    /// Of all.
    pub total: Option<usize>,
    /// Of one namespace.
    pub namespace: Option<usize>,
    /// On one node.
    pub node: Option<usize>,
}

/// What runs, and who was served when.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Served {
    /// Running builds of each namespace.
    pub active: BTreeMap<String, usize>,
    /// When a build of the namespace was started last.
    pub last: BTreeMap<String, Timestamp>,
}

/// The queue at one moment.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Order {
    /// All that wait, in the order they start in.
    pub line: Vec<Waiting>,
    /// How many of them may start now. They are not always the first: a namespace at its limit is passed over.
    pub go: BTreeSet<String>,
}

impl Order {
    /// The place of a build, from 1.
    pub fn place(&self, uid: &str) -> Option<usize> {
        self.line.iter().position(|waiting| waiting.uid == uid).map(|index| index + 1)
    }
}

/// Lines up. Among equal priorities the namespace with the fewest running builds comes next, of those the one that
/// was served longest ago: each namespace gets a place in turn, however many builds another one has waiting.
pub fn order(waiting: Vec<Waiting>, served: &Served, limits: &Limits) -> Order {
    let mut levels: BTreeMap<Reverse<i32>, BTreeMap<String, Vec<Waiting>>> = BTreeMap::new();
    for build in waiting {
        let level = levels.entry(Reverse(build.priority)).or_default();
        level.entry(build.namespace.clone()).or_default().push(build);
    }
    let mut active = served.active.clone();
    // Turns instead of times, so that whoever is lined up here counts as served after all before.
    let mut last: BTreeMap<String, u64> = BTreeMap::new();
    let mut by_time: Vec<_> = served.last.iter().collect();
    by_time.sort_by_key(|(_, time)| **time);
    let mut turn = 0;
    let mut previous = None;
    for (namespace, time) in by_time {
        turn += u64::from(previous != Some(time));
        previous = Some(time);
        last.insert(namespace.clone(), turn);
    }
    let mut free = limits.total.map(|total| total.saturating_sub(active.values().sum()));
    let mut order = Order::default();
    for level in levels.into_values() {
        let mut lines: BTreeMap<String, VecDeque<Waiting>> = BTreeMap::new();
        for (namespace, mut builds) in level {
            builds.sort_by(|a, b| (a.since, &a.name, &a.uid).cmp(&(b.since, &b.name, &b.uid)));
            lines.insert(namespace, builds.into());
        }
        let key = |namespace: &str, active: &BTreeMap<String, usize>, last: &BTreeMap<String, u64>| {
            let running = active.get(namespace).copied().unwrap_or_default();
            (running, last.get(namespace).copied().unwrap_or_default(), namespace.to_owned())
        };
        let mut next: BTreeSet<_> = lines.keys().map(|namespace| key(namespace, &active, &last)).collect();
        while let Some((running, _, namespace)) = next.pop_first() {
            let Some(build) = lines.get_mut(&namespace).and_then(VecDeque::pop_front) else { continue };
            let room = limits.namespace.is_none_or(|most| running < most);
            if room && free != Some(0) {
                free = free.map(|free| free - 1);
                order.go.insert(build.uid.clone());
            }
            order.line.push(build);
            turn += 1;
            *active.entry(namespace.clone()).or_default() += 1;
            last.insert(namespace.clone(), turn);
            if lines.get(&namespace).is_some_and(|line| !line.is_empty()) {
                next.insert(key(&namespace, &active, &last));
            }
        }
    }
    order
}

/// Builds on one node, or on none yet.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Placed {
    /// The node.
    pub node: Option<String>,
    /// Whether the scheduler has just got it: it may go to any node at this moment.
    pub fresh: bool,
}

/// Nodes that take no further build. Those that are just being placed count on every node.
pub fn full_nodes(nodes: &[String], pods: &[Placed], most: Option<usize>) -> Vec<String> {
    let Some(most) = most else { return Vec::new() };
    let underway = pods.iter().filter(|pod| pod.node.is_none() && pod.fresh).count();
    let full =
        |node: &&String| pods.iter().filter(|pod| pod.node.as_ref() == Some(node)).count() + underway >= most;
    nodes.iter().filter(full).cloned().collect()
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    fn waiting(names: &[(&str, &str, i32, i64)]) -> Vec<Waiting> {
        let build = |(namespace, name, priority, since): &(&str, &str, i32, i64)| Waiting {
            uid: format!("{namespace}/{name}"),
            namespace: (*namespace).into(),
            name: (*name).into(),
            priority: *priority,
            since: Timestamp::from_second(*since).unwrap(),
        };
        names.iter().map(build).collect()
    }

    fn line(order: &Order) -> Vec<&str> {
        order.line.iter().map(|waiting| waiting.uid.as_str()).collect()
    }

    fn limits(total: usize, namespace: usize) -> Limits {
        Limits { total: Some(total), namespace: Some(namespace), node: None }
    }

    #[test]
    fn namespaces_take_turns_and_the_oldest_of_each_is_first() {
        let all = waiting(&[
            ("a", "2", 0, 2),
            ("a", "1", 0, 1),
            ("a", "3", 0, 3),
            ("b", "9", 0, 9),
            ("c", "5", 0, 5),
        ]);
        let order = order(all, &Served::default(), &limits(2, 9));
        assert_eq!(line(&order), ["a/1", "b/9", "c/5", "a/2", "a/3"]);
        assert_eq!(order.go, ["a/1", "b/9"].map(str::to_owned).into());
        assert_eq!(order.place("a/2"), Some(4));
    }

    #[test]
    fn a_higher_priority_is_before_every_turn() {
        let all = waiting(&[("a", "1", 0, 1), ("b", "1", 0, 1), ("a", "9", 5, 9), ("a", "8", 5, 8)]);
        assert_eq!(line(&order(all, &Served::default(), &Limits::default())), ["a/8", "a/9", "b/1", "a/1"]);
    }

    #[test]
    fn who_was_served_longest_ago_is_next() {
        let time = |second| Timestamp::from_second(second).unwrap();
        let served = Served {
            last: [("a".to_owned(), time(7)), ("b".to_owned(), time(5))].into(),
            ..Served::default()
        };
        let all = waiting(&[("a", "1", 0, 1), ("b", "2", 0, 2), ("c", "3", 0, 3)]);
        assert_eq!(line(&order(all, &served, &Limits::default())), ["c/3", "b/2", "a/1"]);
    }

    #[test]
    fn a_namespace_at_its_limit_holds_up_nobody() {
        let served = Served { active: [("a".to_owned(), 1)].into(), ..Served::default() };
        let all = waiting(&[("a", "1", 9, 1), ("b", "1", 0, 1)]);
        let order = order(all, &served, &limits(2, 1));
        assert_eq!(line(&order), ["a/1", "b/1"]);
        assert_eq!(order.go, ["b/1".to_owned()].into());
    }

    #[test]
    fn full_nodes_are_those_with_what_may_come_to_them() {
        let nodes = ["x", "y"].map(str::to_owned);
        let on = |node: &str| Placed { node: Some(node.into()), fresh: false };
        let underway = |fresh| Placed { node: None, fresh };
        assert!(full_nodes(&nodes, &[on("x")], None).is_empty());
        assert_eq!(full_nodes(&nodes, &[on("x")], Some(1)), ["x"]);
        assert_eq!(full_nodes(&nodes, &[on("x"), underway(true)], Some(2)), ["x"]);
        assert_eq!(full_nodes(&nodes, &[underway(true)], Some(1)), ["x", "y"]);
        assert!(full_nodes(&nodes, &[underway(false)], Some(1)).is_empty());
    }

    fn builds() -> impl Strategy<Value = Vec<Waiting>> {
        let one = (0..5_u8, 0..3_i32, 0..100_i64);
        proptest::collection::vec(one, 0..60).prop_map(|builds| {
            let build = |(index, (namespace, priority, since)): (usize, (u8, i32, i64))| Waiting {
                uid: index.to_string(),
                namespace: format!("n{namespace}"),
                name: format!("b{index}"),
                priority,
                since: Timestamp::from_second(since).unwrap(),
            };
            builds.into_iter().enumerate().map(build).collect()
        })
    }

    proptest! {
        #[test]
        fn everyone_is_in_line_once_and_limits_hold(
            builds in builds(), total in 0..6_usize, each in 0..4_usize, running in 0..4_usize,
        ) {
            let served = Served { active: [("n0".to_owned(), running)].into(), ..Served::default() };
            let order = order(builds.clone(), &served, &limits(total, each));
            let mut line: Vec<_> = order.line.iter().map(|w| w.uid.clone()).collect();
            let mut all: Vec<_> = builds.iter().map(|w| w.uid.clone()).collect();
            line.sort();
            all.sort();
            prop_assert_eq!(line, all);
            prop_assert!(order.go.len() + running <= total.max(running));
            for namespace in 0..5 {
                let name = format!("n{namespace}");
                let go = builds.iter().filter(|w| w.namespace == name && order.go.contains(&w.uid)).count();
                let active = if namespace == 0 { running } else { 0 };
                prop_assert!(go == 0 || go + active <= each);
            }
        }

        /// One place, and a newcomer of every namespace after each build: whoever waits is served after as many
        /// builds as there are namespaces for each one of its own namespace before it.
        #[test]
        fn nobody_of_equal_priority_starves(mut builds in builds(), flood in 1..4_usize) {
            builds.iter_mut().for_each(|build| build.priority = 0);
            let mut waiting = builds.clone();
            let mut served = Served::default();
            let mut left: BTreeSet<_> = builds.iter().map(|build| build.uid.clone()).collect();
            let mut rounds = 0;
            while !left.is_empty() {
                rounds += 1;
                prop_assert!(rounds <= builds.len() * 6 + 6, "still waiting: {left:?}");
                let order = order(waiting.clone(), &served, &limits(1, 1));
                prop_assert_eq!(order.go.len(), 1);
                let uid = order.go.first().unwrap().clone();
                let started = waiting.iter().position(|build| build.uid == uid).unwrap();
                let started = waiting.remove(started);
                served.last.insert(started.namespace.clone(), Timestamp::from_second(1000 + rounds as i64).unwrap());
                left.remove(&uid);
                for newcomer in 0..flood {
                    waiting.push(Waiting {
                        uid: format!("x{rounds}-{newcomer}"),
                        namespace: "n0".into(),
                        name: "flood".into(),
                        priority: 0,
                        since: Timestamp::from_second(500 + rounds as i64).unwrap(),
                    });
                }
            }
        }
    }
}
