//! The runtime put on a node and taken off again: real containerds, restarted by a real systemd.
#![allow(clippy::unwrap_used, clippy::expect_used, clippy::panic, reason = "helpers of tests are tests")]

mod keep;
mod node;

use anyhow::Result;
use cloister_e2e::containerd::Version;
use node::Dislike;

#[test]
fn on_1_7() -> Result<()> {
    node::comes_and_goes(Version::V1_7)
}

#[test]
fn on_2_1() -> Result<()> {
    node::comes_and_goes(Version::V2_1)
}

#[test]
fn it_stays_and_says_that_machines_boot_on_1_7() -> Result<()> {
    keep::stays(Version::V1_7)
}

#[test]
fn it_stays_and_says_that_machines_boot_on_2_1() -> Result<()> {
    keep::stays(Version::V2_1)
}

#[test]
fn a_containerd_that_does_not_start_again_is_as_before_on_1_7() -> Result<()> {
    node::is_given_back(Version::V1_7, Dislike::Ends)
}

#[test]
fn a_containerd_that_does_not_start_again_is_as_before_on_2_1() -> Result<()> {
    node::is_given_back(Version::V2_1, Dislike::Ends)
}

#[test]
fn a_containerd_that_serves_no_cri_any_more_is_as_before_on_1_7() -> Result<()> {
    node::is_given_back(Version::V1_7, Dislike::ServesNoCri)
}

#[test]
fn a_containerd_that_serves_no_cri_any_more_is_as_before_on_2_1() -> Result<()> {
    node::is_given_back(Version::V2_1, Dislike::ServesNoCri)
}
