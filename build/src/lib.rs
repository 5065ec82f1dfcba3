//! Building images with BuildKit: its client, and what it asks of the side that has the files.

pub mod client;
pub mod context;
pub mod dockerfile;
pub mod fuzzing;
pub mod job;
mod network;
pub mod output;
pub mod progress;
