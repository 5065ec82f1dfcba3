//! The steps of a Dockerfile among everything that a build reports.

use std::collections::{BTreeMap, BTreeSet};

use cloister_build::progress::{Event, Outcome};
use cloister_crds::Steps;

/// Counts the steps of all stages. A stage's base image is no step of it: nothing runs, and it is nobody's cache.
#[derive(Debug, Default)]
pub struct Counter {
    /// Stage and place by the number of what is reported.
    known: BTreeMap<u32, (String, u32)>,
    /// Steps of each stage.
    stages: BTreeMap<String, u32>,
    /// Stages that begin from an image.
    bases: BTreeSet<String>,
    done: BTreeMap<(String, u32), bool>,
}

impl Counter {
    /// Takes notice of an event; whether a number has changed.
    pub fn note(&mut self, event: &Event) -> bool {
        match event {
            Event::Step { step, name } => {
                let Some((stage, place, of, instruction)) = parse(name) else { return false };
                self.stages.insert(stage.to_owned(), of);
                if instruction == "FROM" {
                    return self.bases.insert(stage.to_owned());
                }
                self.known.insert(*step, (stage.to_owned(), place));
                true
            }
            Event::End { step, outcome } => {
                let cached = match outcome {
                    Outcome::Cached => true,
                    Outcome::Done { .. } => false,
                    _ => return false,
                };
                let Some(of) = self.known.get(step) else { return false };
                self.done.insert(of.clone(), cached);
                true
            }
            _ => false,
        }
    }

    /// The numbers.
    pub fn steps(&self) -> Steps {
        let number = |count: usize| i32::try_from(count).unwrap_or(i32::MAX);
        let all: u32 = self.stages.values().sum();
        let (completed, cached) = (self.done.len(), self.done.values().filter(|cached| **cached).count());
        let total = (all as usize).saturating_sub(self.bases.len()).max(completed);
        let share = (cached * 100).checked_div(completed).unwrap_or(0);
        Steps {
            total: number(total),
            completed: number(completed),
            cached: number(cached),
            cached_percent: number(share),
        }
    }
}

/// Stage, place, number of steps and instruction of `[build 2/3] RUN make`.
fn parse(name: &str) -> Option<(&str, u32, u32, &str)> {
    let (head, text) = name.strip_prefix('[')?.split_once(']')?;
    let (stage, count) = head.rsplit_once(' ').unwrap_or(("", head));
    let (place, of) = count.split_once('/')?;
    let (place, of): (u32, u32) = (place.trim().parse().ok()?, of.parse().ok()?);
    // Of a guest that counts to a billion.
    (of <= 10_000 && (1..=of).contains(&place))
        .then(|| (stage.trim(), place, of, text.split_ascii_whitespace().next().unwrap_or_default()))
}

#[cfg(test)]
mod tests {
    use std::time::Duration;

    use super::*;

    fn counted(steps: &[(&str, Option<Outcome>)]) -> (i32, i32, i32, i32) {
        let mut counter = Counter::default();
        for (number, (name, outcome)) in (1..).zip(steps) {
            counter.note(&Event::Step { step: number, name: (*name).to_owned() });
            if let Some(outcome) = outcome {
                counter.note(&Event::End { step: number, outcome: outcome.clone() });
            }
        }
        let steps = counter.steps();
        (steps.total, steps.completed, steps.cached, steps.cached_percent)
    }

    #[test]
    fn instructions_of_all_stages_are_counted_and_base_images_are_not() {
        let done = || Some(Outcome::Done { time: Duration::ZERO });
        let cached = || Some(Outcome::Cached);
        let steps = [
            ("[internal] load build definition from Dockerfile", done()),
            ("[build 1/3] FROM debian", done()),
            ("[stage-1 1/2] FROM scratch-like", done()),
            ("[build 2/3] RUN a", cached()),
            ("[build 3/3] RUN b", done()),
            ("[stage-1 2/2] COPY --from=build /a /a", None),
            ("exporting to oci image format", done()),
        ];
        assert_eq!(counted(&steps), (3, 2, 1, 50));
        assert_eq!(counted(&[("[1/2] FROM x", done()), ("[2/2] RUN x", cached())]), (1, 1, 1, 100));
        assert_eq!(counted(&[("[ 2/10] RUN x", cached())]), (10, 1, 1, 100));
        assert_eq!(counted(&[]), (0, 0, 0, 0));
    }

    #[test]
    fn what_is_no_step_is_none() {
        for name in ["", "[", "[1/2", "[a b]", "[3/2] RUN", "[0/2] RUN", "[1/99999999999] x", "[1/20000] x"] {
            assert_eq!(parse(name), None, "{name}");
        }
    }
}
