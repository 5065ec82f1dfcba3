//! What placement needs of an `ImageBuild`. Each node keeps this of every build of the cluster, so it is little.

use std::collections::BTreeMap;

use cloister_crds::fingerprint::fingerprint;
use cloister_crds::{Attempt, ImageBuild, NodeImage, NodeState};
use kube::core::{Selector, SelectorExt};

/// Other nodes that are remembered as having the image.
const MAX_OTHERS: usize = 16;

/// A build as this node sees it.
#[derive(Debug, Clone)]
pub struct Build {
    /// Its namespace.
    pub namespace: String,
    /// Its name.
    pub name: String,
    /// Its uid.
    pub uid: String,
    /// Whether it is on its way out.
    pub deleting: bool,
    /// Names that the present spec gives.
    pub images: Vec<String>,
    /// Whether the kubelet's collection has to leave the image.
    pub pin: bool,
    /// Which nodes get the image.
    pub goes: Goes,
    /// The newest result.
    pub result: Option<Outcome>,
    /// Whether an attempt may be running on this node.
    pub runs_here: bool,
    /// This node's entry in the status.
    pub own: Option<NodeImage>,
    /// Other nodes that have the newest result.
    pub others: Vec<String>,
}

/// Which nodes get an image.
#[derive(Debug, Clone, PartialEq)]
pub enum Goes {
    /// None.
    Nowhere,
    /// That which built it.
    ToItsBuilder,
    /// Those with these labels.
    To(Selector),
}

/// What an attempt made.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Outcome {
    /// The digest, as the status has it.
    pub digest: String,
    /// The node that built it.
    pub node: Option<String>,
    /// Whether the present spec is what was built, names included.
    pub is_current: bool,
    /// The name that the status gives for it.
    pub name: Option<String>,
}

impl Build {
    /// What matters of `object` on the node `here`.
    pub fn new(object: &ImageBuild, here: &str) -> Option<Self> {
        let meta = &object.metadata;
        let status = object.status.clone().unwrap_or_default();
        let output = &object.spec.output;
        let goes = match &output.nodes {
            _ if output.images.is_empty() => Goes::Nowhere,
            // A selector that is none selects nothing, as for the operator.
            Some(asked) => Selector::try_from(asked.clone()).map_or(Goes::Nowhere, Goes::To),
            None if output.push.is_some() || output.archive.is_some() => Goes::Nowhere,
            None => Goes::ToItsBuilder,
        };
        let newest = status.attempts.iter().filter(|attempt| succeeded(attempt)).max_by_key(|a| a.number);
        let result = newest.and_then(|attempt| {
            let fingerprint = fingerprint(&object.spec);
            let same = attempt.fingerprint.as_deref() == Some(fingerprint.as_str());
            Some(Outcome {
                digest: attempt.digest.clone()?,
                node: attempt.node.clone(),
                is_current: same || Some(attempt.generation) == meta.generation,
                name: status.image.clone().filter(|_| status.digest == attempt.digest),
            })
        });
        let may_run_here = |attempt: &Attempt| {
            let ended = attempt.completion_time.is_some() || succeeded(attempt);
            !ended && attempt.node.as_deref().is_none_or(|node| node == here)
        };
        let has_it = |entry: &&NodeImage| {
            let digest = result.as_ref().map(|result| &result.digest);
            entry.state == NodeState::Ready && entry.digest.as_ref() == digest && entry.name != here
        };
        Some(Self {
            namespace: meta.namespace.clone()?,
            name: meta.name.clone()?,
            uid: meta.uid.clone()?,
            deleting: meta.deletion_timestamp.is_some(),
            images: output.images.clone(),
            pin: output.pin.unwrap_or(true),
            goes,
            runs_here: status.attempts.iter().any(may_run_here),
            own: status.nodes.iter().find(|entry| entry.name == here).cloned(),
            others: status
                .nodes
                .iter()
                .filter(has_it)
                .take(MAX_OTHERS)
                .map(|entry| entry.name.clone())
                .collect(),
            result,
        })
    }

    /// `NAMESPACE/NAME`, as in the record of its image.
    pub fn key(&self) -> String {
        format!("{}/{}", self.namespace, self.name)
    }

    /// Whether a node gets the image.
    pub fn selects(&self, node: &str, labels: &BTreeMap<String, String>) -> bool {
        match &self.goes {
            Goes::Nowhere => false,
            Goes::ToItsBuilder => self.is_built_on(node),
            Goes::To(selector) => selector.matches(labels),
        }
    }

    /// Whether the newest result was built there.
    pub fn is_built_on(&self, node: &str) -> bool {
        self.result.as_ref().is_some_and(|result| result.node.as_deref() == Some(node))
    }

    /// Nodes to get the image from: its builder first, then those that say they have it, each node asking another one
    /// of these first.
    pub fn peers(&self, here: &str) -> Vec<String> {
        let builder = self.result.as_ref().and_then(|result| result.node.clone());
        let mut others = self.others.clone();
        if !others.is_empty() {
            let turn = here.bytes().map(usize::from).sum::<usize>() % others.len();
            others.rotate_left(turn);
        }
        others.retain(|node| Some(node) != builder.as_ref());
        builder.into_iter().filter(|node| node != here).chain(others).collect()
    }
}

/// Whether there is a result: the digest is what a driver writes last.
fn succeeded(attempt: &Attempt) -> bool {
    attempt.digest.is_some() && attempt.failure.is_none()
}
