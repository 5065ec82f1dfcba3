//! What pods counted, so that a sum over them never falls: neither when a pod ends, nor when one does not answer.

use std::collections::{BTreeMap, BTreeSet};

use super::text::Sum;

/// What one collection saw. Pods go by names that are never used twice.
#[derive(Debug, Default)]
pub struct Seen {
    /// The pods that are there.
    pub found: BTreeSet<String>,
    /// Those that answered.
    pub fresh: Vec<(String, Sum)>,
    /// The last pages of pods that ended; they may still have been found.
    pub last: Vec<(String, Sum)>,
}

/// What to tell.
#[derive(Debug, Default)]
pub struct Settled {
    /// Of the pods that answered.
    pub living: Sum,
    /// With everything that other pods ever counted.
    pub all: Sum,
    /// Whether pods ended since the collection before.
    pub ended: bool,
}

/// What outlives pods, from one collection to the next.
#[derive(Debug, Default)]
pub struct Ledger {
    /// The sum of pods that ended.
    ended: Sum,
    /// The same of each other pod, as it said last.
    living: BTreeMap<String, Sum>,
    /// Pods that are in `ended` though their folder or their file is still there.
    done: BTreeSet<String>,
}

impl Ledger {
    /// Begins with what is known of pods that ended.
    pub fn new(ended: Sum) -> Self {
        Self { ended, ..Self::default() }
    }

    /// Of pods that ended.
    pub fn ended(&self) -> &Sum {
        &self.ended
    }

    /// Takes a collection in.
    pub fn settle(&mut self, seen: Seen) -> Settled {
        let mut settled = Settled::default();
        let there: BTreeSet<String> =
            seen.found.iter().chain(seen.last.iter().map(|(pod, _)| pod)).cloned().collect();
        for (pod, page) in seen.last {
            if self.done.insert(pod.clone()) {
                self.living.remove(&pod);
                self.ended.merge(&page.split().0);
                settled.ended = true;
            }
        }
        self.done.retain(|pod| there.contains(pod));
        for (pod, page) in seen.fresh {
            if !self.done.contains(&pod) {
                settled.living.merge(&page);
                let (lasting, gauges) = page.split();
                settled.all.merge(&gauges);
                self.living.insert(pod, lasting);
            }
        }
        // A pod that left no page was killed: what it said last has to do.
        let gone: Vec<String> =
            self.living.keys().filter(|pod| !seen.found.contains(*pod)).cloned().collect();
        for page in gone.iter().filter_map(|pod| self.living.remove(pod)) {
            self.ended.merge(&page);
            settled.ended = true;
        }
        settled.all.merge(&self.ended);
        self.living.values().for_each(|page| settled.all.merge(page));
        settled
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn page(counter: u32) -> Sum {
        let mut sum = Sum::default();
        let text = format!(
            "# TYPE cloister_x counter\ncloister_x {counter}\n# TYPE cloister_g gauge\ncloister_g 1\n"
        );
        sum.add(&text, None);
        sum
    }

    /// Counter and gauge of a collection.
    fn settle(
        ledger: &mut Ledger,
        found: &[&str],
        fresh: &[(&str, u32)],
        last: &[(&str, u32)],
    ) -> (u32, u32) {
        let pages =
            |pages: &[(&str, u32)]| pages.iter().map(|(pod, x)| ((*pod).to_owned(), page(*x))).collect();
        let found = found.iter().map(|pod| (*pod).to_owned()).collect();
        let all = ledger.settle(Seen { found, fresh: pages(fresh), last: pages(last) }).all.page();
        let value = |name: &str| {
            all.lines()
                .find_map(|line| line.strip_prefix(name))
                .map_or(u32::MAX, |value| value.parse().unwrap())
        };
        (value("cloister_x "), value("cloister_g "))
    }

    #[test]
    fn a_sum_never_falls() {
        let mut ledger = Ledger::default();
        let ledger = &mut ledger;
        assert_eq!(settle(ledger, &["a", "b"], &[("a", 5), ("b", 7)], &[]), (12, 2));
        // One does not answer.
        assert_eq!(settle(ledger, &["a", "b"], &[("b", 8)], &[]), (13, 1));
        // One ends while it is collected: its last page counts, once, however long its folder and file stay.
        for _ in 0..2 {
            assert_eq!(settle(ledger, &["a", "b"], &[("a", 6), ("b", 8)], &[("a", 9)]), (17, 1));
        }
        assert_eq!(settle(ledger, &["a", "b"], &[("b", 8)], &[]), (17, 1));
        // One is killed and leaves nothing.
        assert_eq!(settle(ledger, &[], &[], &[]), (17, 0));
        assert_eq!(settle(ledger, &["c"], &[("c", 1)], &[]), (18, 1));
        // One was never collected while it lived.
        assert_eq!(settle(ledger, &["c"], &[("c", 1)], &[("d", 2)]), (20, 1));
    }
}
