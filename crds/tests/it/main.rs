//! The definition, its rules, examples and words.
#![allow(clippy::unwrap_used, clippy::expect_used, clippy::panic, reason = "helpers of tests are tests")]

mod documents;
mod examples;
mod golden;
mod reasons;
mod rules;
mod support;
