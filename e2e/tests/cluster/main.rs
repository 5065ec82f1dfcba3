//! Cloister in a real Kubernetes: its definition in an API server, and pods in microVMs on nodes with kubelets.
#![allow(clippy::unwrap_used, clippy::expect_used, clippy::panic, reason = "helpers of tests are tests")]

mod cases;
mod chart;
mod definition;
mod kubectl;
mod lab;
mod pods;
mod release;
mod shutdown;
