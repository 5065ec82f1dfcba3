//! ImageBuild from `kubectl apply` to a pod that runs the image: a real API server, kubelets, containerds, BuildKit in VMs.
#![allow(clippy::unwrap_used, clippy::expect_used, clippy::panic, reason = "helpers of tests are tests")]

mod ends;
mod figures;
mod kubectl;
mod life;
mod many;
mod monitoring;
mod outputs;
mod renewal;
mod secrets;
mod site;
mod steps;
