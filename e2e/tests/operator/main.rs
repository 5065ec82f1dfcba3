//! The operator with a real API server. No kubelet runs here: [`kubelet::Kubelet`] plays it and the node's build
//! driver, by the contract that `operator/README.md` states.
#![allow(clippy::unwrap_used, clippy::expect_used, clippy::panic, reason = "helpers of tests are tests")]

mod kubectl;
mod kubelet;
mod life;
mod many;
mod replicas;
mod site;
