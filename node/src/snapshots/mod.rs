//! The snapshotter: layers, images and containers as containerd names them.

pub mod chain;
pub mod disk;
mod filter;
mod index;
pub mod record;
pub mod service;
pub mod state;
#[cfg(test)]
mod tests;
mod usage;
