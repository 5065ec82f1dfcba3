//! The controller of `ImageBuild`: a pure decision ([`plan`]), a queue, and what carries decisions out.

pub mod cache;
pub mod config;
pub mod cron;
pub mod execute;
pub mod ledger;
pub mod metrics;
pub mod names;
pub mod plan;
pub mod pod;
pub mod quantity;
pub mod queue;
pub mod reconcile;
pub mod run;
pub mod validate;

#[cfg(test)]
mod fixture;
