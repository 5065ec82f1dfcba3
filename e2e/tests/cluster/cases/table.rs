//! What all cases came to.

use std::collections::BTreeMap;
use std::fmt;
use std::fs;

use anyhow::Result;
use cloister_e2e::cluster::Node;
use cloister_e2e::containerd::Version;
use cloister_e2e::lab::checkout;
use serde_json::{Value, json};

use super::{CLASSES, Case, Expected};

/// What was seen, or why the case failed.
pub struct Outcome {
    pub seen: Result<String, String>,
    pub seconds: f64,
}

/// A case on one node.
struct Line {
    case: &'static Case,
    version: &'static str,
    /// By class.
    outcomes: BTreeMap<&'static str, Outcome>,
}

/// All cases on all nodes.
#[derive(Default)]
pub struct Table(Vec<Line>);

impl Table {
    /// Adds the result of a case.
    pub fn add(&mut self, case: &'static Case, node: &Node, class: &'static str, outcome: Outcome) {
        let version = match node.lab.version() {
            Version::V1_7 => "1.7",
            Version::V2_1 => "2.1",
        };
        let known = self.0.iter().position(|line| line.case.0 == case.0 && line.version == version);
        let index = known.unwrap_or_else(|| {
            self.0.push(Line { case, version, outcomes: BTreeMap::new() });
            self.0.len() - 1
        });
        self.0[index].outcomes.insert(class, outcome);
    }

    /// The cases that did not end as they should.
    pub fn wrong(&self) -> Vec<String> {
        let wrong = self.0.iter().filter(|line| !line.is_right());
        wrong.map(|line| format!("{} on {}", line.case.0, line.version)).collect()
    }

    /// Writes `target/e2e-cluster.json`.
    pub fn write(&self) -> Result<()> {
        let lines: Vec<Value> = self.0.iter().map(Line::json).collect();
        let text = serde_json::to_string_pretty(&json!({"cases": lines}))?;
        Ok(fs::write(checkout().join("target/e2e-cluster.json"), text)?)
    }
}

impl Line {
    fn seen(&self, class: &str) -> Option<&str> {
        self.outcomes.get(class)?.seen.as_deref().ok()
    }

    fn is_right(&self) -> bool {
        let [Some(runc), Some(microvm)] = CLASSES.map(|class| self.seen(class)) else { return false };
        match self.case.1 {
            Expected::Same => runc == microvm,
            Expected::Other(begin) => runc != microvm && microvm.starts_with(begin),
        }
    }

    fn json(&self) -> Value {
        let outcome = |class| {
            let Outcome { seen, seconds } = self.outcomes.get(class)?;
            let key = if seen.is_ok() { "seen" } else { "failed" };
            let text = seen.as_ref().unwrap_or_else(|error| error);
            Some(json!({key: text, "seconds": (seconds * 10.0).round() / 10.0}))
        };
        json!({"case": self.case.0, "containerd": self.version, "right": self.is_right(),
            "runc": outcome("runc"), "cloister": outcome("cloister")})
    }
}

impl fmt::Display for Table {
    fn fmt(&self, to: &mut fmt::Formatter<'_>) -> fmt::Result {
        writeln!(to, "| case | containerd | runc | cloister | seconds |\n| --- | --- | --- | --- | --- |")?;
        let text = |seen: &Result<String, String>| match seen {
            Ok(seen) => seen.clone(),
            Err(error) => format!("FAILED: {error}"),
        };
        for line in &self.0 {
            let [runc, microvm] = CLASSES.map(|class| line.outcomes.get(class));
            let (Some(runc), Some(microvm)) = (runc, microvm) else { continue };
            let same = if runc.seen == microvm.seen { "the same".to_owned() } else { text(&microvm.seen) };
            let wrong = if line.is_right() { "" } else { " (wrong)" };
            writeln!(
                to,
                "| {} | {} | {} | {same}{wrong} | {:.0}, {:.0} |",
                line.case.0,
                line.version,
                text(&runc.seen),
                runc.seconds,
                microvm.seconds
            )?;
        }
        Ok(())
    }
}
