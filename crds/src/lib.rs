//! The custom resources of Cloister: Rust types, the schema and rules that an API server checks, and the YAML, all
//! from one source.

#![allow(rustdoc::bare_urls, reason = "what is written at fields is read with kubectl explain")]

pub mod build_pod;
pub mod fingerprint;
mod image_build;
