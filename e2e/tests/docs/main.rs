//! The documents: every command in README.md and docs/ is run, what it shows is what comes, and what it names exists.
#![allow(clippy::unwrap_used, clippy::expect_used, clippy::panic, reason = "helpers of tests are tests")]

mod cluster;
mod compare;
mod demo;
mod help;
mod links;
mod machine;
mod names;
mod page;
mod shell;
mod words;
