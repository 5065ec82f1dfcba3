//! Decisions from tables: each test is a story of one build.

mod ends;
mod images;
mod life;
mod starts;

use cloister_crds::{Failure, NodeImage, NodeState, REBUILD};

use super::*;
use crate::fixture::{at, build};

/// A build, its world, and the time: what a test plays with. `step` carries a plan out as the executor does.
struct World {
    build: ImageBuild,
    observed: Observed,
    refused: Option<String>,
    second: i64,
}

impl World {
    fn new() -> Self {
        let observed = Observed { turn: Turn::Go, jitter: 0.5, ..Observed::default() };
        Self { build: build(), observed, refused: None, second: 1 }
    }

    fn plan(&self) -> Plan {
        plan(&self.build, &self.observed, self.refused.as_deref(), &Settings::default(), at(self.second))
    }

    /// Plans, and does what the plan says.
    fn step(&mut self) -> Plan {
        let plan = self.plan();
        for action in &plan.actions {
            match action {
                Action::CreatePod(number) => self.observed.pods.push(BuildPod {
                    name: format!("app-{number}"),
                    uid: format!("p{number}"),
                    attempt: *number,
                    created: at(self.second),
                    ..BuildPod::default()
                }),
                Action::DeletePod { uid, .. } => {
                    let until = at(self.second + 30);
                    let pods = self.observed.pods.iter_mut().filter(|pod| pod.uid == *uid);
                    pods.for_each(|pod| pod.deleting = Some(until));
                }
                Action::Forget(numbers) => {
                    let status = self.build.status.as_mut().unwrap();
                    status.attempts.retain(|attempt| !numbers.contains(&attempt.number));
                }
                Action::Hold | Action::Release | Action::DeleteBuild => {}
            }
        }
        if let Some(ours) = &plan.status {
            self.merge(ours.clone());
        }
        plan
    }

    /// As an API server merges an apply: what nodes wrote stays.
    fn merge(&mut self, mut ours: ImageBuildStatus) {
        let theirs = self.build.status.clone().unwrap_or_default();
        ours.nodes = theirs.nodes;
        if let Some(theirs) = theirs.triggers {
            let ours = ours.triggers.get_or_insert_default();
            (ours.base_images, ours.latest_base_images) = (theirs.base_images, theirs.latest_base_images);
        }
        if let Some(attempt) = ours.attempts.iter_mut().find(|attempt| is_running(attempt))
            && let Some(before) = theirs.attempts.into_iter().find(|before| before.number == attempt.number)
        {
            let ours: Vec<_> = attempt.stages.iter().map(|stage| stage.name).collect();
            attempt.stages.extend(before.stages.into_iter().filter(|stage| !ours.contains(&stage.name)));
            (attempt.steps, attempt.digest, attempt.failure) = (before.steps, before.digest, before.failure);
        }
        self.build.status = Some(ours);
    }

    /// Steps until nothing changes.
    fn settle(&mut self) {
        for _ in 0..20 {
            let plan = self.step();
            if plan.status.is_none() && plan.actions.is_empty() {
                return;
            }
        }
        panic!("it never settles: {:?}", self.plan());
    }

    /// The pod of an attempt.
    fn pod(&mut self, number: i64) -> &mut BuildPod {
        self.observed.pods.iter_mut().find(|pod| pod.attempt == number).expect("a pod")
    }

    /// Kubelet starts the pod.
    fn runs(&mut self, number: i64) {
        let now = at(self.second);
        let pod = self.pod(number);
        (pod.scheduled, pod.started) = (Some(now), Some(now));
        (pod.node, pod.phase) = (Some("n1".into()), PodPhase::Running);
    }

    /// The pod ends, with what its node wrote before.
    fn ends(&mut self, number: i64, phase: PodPhase) {
        let now = at(self.second);
        let pod = self.pod(number);
        (pod.phase, pod.finished, pod.exit_code) =
            (phase, Some(now), Some(i32::from(phase == PodPhase::Failed)));
    }

    /// The node writes the result.
    fn built(&mut self, number: i64) {
        self.attempt(number).digest = Some(digest());
        self.ends(number, PodPhase::Succeeded);
    }

    /// The node writes a failure.
    fn fails(&mut self, number: i64, reason: BuildReason) {
        self.attempt(number).failure = Some(Failure { reason, message: "why".into(), ..Failure::default() });
        self.ends(number, PodPhase::Failed);
    }

    /// A node has the image.
    fn imported(&mut self, node: &str, state: NodeState) {
        let nodes = &mut self.status().nodes;
        nodes.retain(|entry| entry.name != node);
        let digest = Some(digest());
        nodes.push(NodeImage { name: node.into(), state, digest, ..NodeImage::default() });
    }

    fn status(&mut self) -> &mut ImageBuildStatus {
        self.build.status.get_or_insert_default()
    }

    fn attempt(&mut self, number: i64) -> &mut Attempt {
        self.status().attempts.iter_mut().find(|attempt| attempt.number == number).expect("an attempt")
    }

    /// The spec changes.
    fn change(&mut self, change: impl FnOnce(&mut cloister_crds::ImageBuildSpec)) {
        change(&mut self.build.spec);
        *self.build.metadata.generation.as_mut().unwrap() += 1;
    }

    /// One attempt from its start to its result on its node.
    fn succeed(&mut self) {
        self.settle();
        let number = self.status().attempts.last().unwrap().number;
        self.runs(number);
        self.settle();
        self.built(number);
        self.imported("n1", NodeState::Ready);
        self.settle();
    }

    /// Phase, and conditions as `Type=Status/Reason`.
    fn words(&mut self) -> String {
        let status = self.status().clone();
        let mut conditions: Vec<_> =
            status.conditions.iter().map(|c| format!("{}={}/{}", c.type_, c.status, c.reason)).collect();
        conditions.sort();
        format!("{:?} {}", status.phase.unwrap(), conditions.join(" "))
    }

    /// Numbers of attempts and why they were started.
    fn numbers(&mut self) -> Vec<(i64, TriggerKind)> {
        self.status().attempts.iter().map(|attempt| (attempt.number, attempt.trigger)).collect()
    }
}

fn digest() -> String {
    format!("sha256:{}", "ab".repeat(32))
}
