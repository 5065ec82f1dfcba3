//! The newest image: what it is called, and how far it has come.

use std::collections::BTreeSet;
use std::fmt;

use cloister_crds::{Attempt, ImageBuild, ImageBuildStatus, NodeState};

use super::Observed;

/// How far the newest image has come.
#[derive(Debug)]
pub struct Distribution {
    /// Nodes that should have it.
    selected: BTreeSet<String>,
    /// Nodes that have it.
    ready: usize,
    /// Whether nodes were asked for.
    wanted: bool,
    /// What the first node that failed says.
    trouble: Option<String>,
}

impl Distribution {
    /// Whether the image is everywhere.
    pub fn complete(&self) -> bool {
        self.ready == self.selected.len() && !(self.wanted && self.selected.is_empty())
    }
}

impl fmt::Display for Distribution {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        if self.selected.is_empty() {
            return write!(f, "no node has the labels that spec.output.nodes asks for");
        }
        write!(f, "{} of {} nodes have the image", self.ready, self.selected.len())?;
        self.trouble.as_ref().map_or(Ok(()), |trouble| write!(f, "; {trouble}"))
    }
}

/// The newest attempt that succeeded.
fn success(status: &ImageBuildStatus) -> Option<&Attempt> {
    status
        .attempts
        .iter()
        .rev()
        .find(|attempt| attempt.completion_time.is_some() && attempt.failure.is_none())
}

/// How far the newest image has come.
pub fn distribution(build: &ImageBuild, status: &ImageBuildStatus, observed: &Observed) -> Distribution {
    let output = &build.spec.output;
    let success = success(status);
    let selected: BTreeSet<String> = match &output.nodes {
        _ if output.images.is_empty() => BTreeSet::new(),
        Some(_) => observed.nodes.iter().cloned().collect(),
        None if output.push.is_some() || output.archive.is_some() => BTreeSet::new(),
        None => success.and_then(|attempt| attempt.node.clone()).into_iter().collect(),
    };
    let digest = success.and_then(|attempt| attempt.digest.as_ref());
    let entries = || status.nodes.iter().filter(|node| selected.contains(&node.name));
    let ready = entries()
        .filter(|node| {
            node.state == NodeState::Ready && node.digest.is_some() && node.digest.as_ref() == digest
        })
        .count();
    let failed = entries().find(|node| node.state == NodeState::Failed);
    let trouble = failed
        .map(|node| format!("{}: {}", node.name, node.message.as_deref().unwrap_or("could not import it")));
    Distribution { ready, wanted: output.nodes.is_some(), trouble, selected }
}

/// Whether the newest image is what the spec describes and everywhere it should be.
pub fn is_current(build: &ImageBuild, status: &ImageBuildStatus, observed: &Observed) -> bool {
    let same = success(status).is_some_and(|attempt| {
        attempt.fingerprint.as_deref() == Some(&cloister_crds::fingerprint::fingerprint(&build.spec))
            || Some(attempt.generation) == build.metadata.generation
    });
    same && distribution(build, status, observed).complete()
}

/// Writes the newest image and its nodes into the status.
pub fn describe(build: &ImageBuild, status: &mut ImageBuildStatus, observed: &Observed) {
    let Some(digest) = success(status).and_then(|attempt| attempt.digest.clone()) else { return };
    let ended = success(status).map(|attempt| attempt.number) == status.attempts.last().map(|a| a.number);
    // Names are those of the spec that was built: a changed one has its say with the next result.
    if status.image.is_none() || status.digest.as_ref() != Some(&digest) || ended {
        let output = &build.spec.output;
        // Pods of nodes have it by its own name; of what was only pushed the registry's is the one to ask for.
        let pushed = output.push.as_ref().filter(|_| output.nodes.is_none());
        let name = |image: &String| pushed.map_or_else(|| image.clone(), |to| to.name(image));
        status.image = output.images.first().map(|image| crate::names::canonical(&name(image), &digest));
    }
    status.digest = Some(digest);
    let distribution = distribution(build, status, observed);
    let count = |number: usize| i32::try_from(number).ok();
    (status.nodes_ready, status.nodes_selected) =
        (count(distribution.ready), count(distribution.selected.len()));
}
