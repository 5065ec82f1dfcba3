//! `cloister build`: a Dockerfile becomes an image of this machine in a microVM without a network, and `run` runs it.
#![allow(clippy::unwrap_used, clippy::expect_used, clippy::panic, reason = "helpers of tests are tests")]

mod cache;
mod egress;
mod features;
mod hostile;
mod life;
mod network;
mod secrets;
mod site;
mod world;
