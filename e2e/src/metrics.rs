//! `docs/metrics.md` as a test reads it, and pages that have to be as it says.

use std::collections::{BTreeMap, BTreeSet};
use std::io::Write;
use std::process::{Command, Stdio};

use anyhow::{Context, Result, ensure};

use crate::lab::{cache, checkout};

/// One family.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Family {
    /// `counter`, `gauge`, `histogram`.
    pub kind: String,
    /// The names of its labels; on a page, of those that were seen.
    pub labels: BTreeSet<String>,
    /// What it means.
    pub help: String,
}

/// Families by name.
pub type Families = BTreeMap<String, Family>;

/// What the document has under `<!-- metrics of PART -->`, for each of these parts.
pub fn documented(parts: &[&str]) -> Result<Families> {
    let text = std::fs::read_to_string(checkout().join("docs/metrics.md"))?;
    let mut all = Families::new();
    for part in parts {
        let table = text
            .split_once(&format!("<!-- metrics of {part} -->\n"))
            .and_then(|(_, rest)| rest.split_once(&format!("<!-- end of {part} -->")))
            .with_context(|| format!("docs/metrics.md has no metrics of {part}"))?;
        for row in table.0.lines().filter(|line| line.starts_with("| `")) {
            let cells: Vec<&str> = row.trim_matches('|').split('|').map(str::trim).collect();
            let [name, kind, _, labels, help] = cells[..] else { anyhow::bail!("not a row: {row}") };
            let labels = labels.split(", ").filter(|label| !label.is_empty());
            let family = Family {
                kind: kind.to_owned(),
                labels: labels.map(|label| label.trim_matches('`').to_owned()).collect(),
                help: help.to_owned(),
            };
            all.insert(name.trim_matches('`').to_owned(), family);
        }
    }
    Ok(all)
}

/// What is on a page in Prometheus' text format.
pub fn served(page: &str) -> Families {
    let mut all = Families::new();
    let mut last = String::new();
    for line in page.lines() {
        if let Some((name, help)) = line.strip_prefix("# HELP ").and_then(|rest| rest.split_once(' ')) {
            all.entry(name.to_owned()).or_default().help = help.to_owned();
        } else if let Some((name, kind)) = line.strip_prefix("# TYPE ").and_then(|rest| rest.split_once(' '))
        {
            name.clone_into(&mut last);
            all.entry(last.clone()).or_default().kind = kind.to_owned();
        } else if let Some(family) = all.get_mut(&last) {
            let labels = line.split(['{', ',']).filter_map(|part| Some(part.split_once("=\"")?.0.to_owned()));
            family.labels.extend(labels.filter(|label| label != "le"));
        }
    }
    all
}

/// Fails unless the page has what these parts of the document list, all of it and nothing else, with the same types, labels and
/// meanings, and `promtool` finds nothing against Prometheus' rules.
pub fn check(page: &str, parts: &[&str]) -> Result<()> {
    let (served, mut wanted) = (served(page), documented(parts)?);
    // Labels of a family that has no series yet cannot be seen.
    for (name, family) in &mut wanted {
        if served.get(name).is_some_and(|served| served.labels.is_empty()) {
            family.labels.clear();
        }
    }
    ensure!(served == wanted, "docs/metrics.md has for {parts:?}\n{wanted:#?}\nand the page is\n{page}");
    lint(page)
}

/// Prometheus' rules for names, types and meanings.
fn lint(page: &str) -> Result<()> {
    let promtool = cache()?.join("tools/promtool/usr/bin/promtool");
    let mut lint = Command::new(&promtool)
        .args(["check", "metrics"])
        .stdin(Stdio::piped())
        .stdout(Stdio::piped())
        .stderr(Stdio::piped())
        .spawn()
        .with_context(|| format!("{}: run make setup", promtool.display()))?;
    lint.stdin.take().context("no pipe")?.write_all(page.as_bytes())?;
    let said = lint.wait_with_output()?;
    let words = String::from_utf8(said.stdout)? + &String::from_utf8(said.stderr)?;
    ensure!(said.status.success() && words.is_empty(), "promtool: {words}\n{page}");
    Ok(())
}
