//! The custom resources of Cloister: Rust types, the schema and rules that an API server checks, and the YAML, all
//! from one source.

#![allow(rustdoc::bare_urls, reason = "what is written at fields is read with kubectl explain")]

pub mod build_pod;
pub mod fingerprint;
mod image_build;
mod refs;
mod rules;
mod schema;

pub use image_build::*;
pub use refs::{KeyRef, SecretRef};

use k8s_openapi::apiextensions_apiserver::pkg::apis::apiextensions::v1::CustomResourceDefinition;
use kube::CustomResourceExt;

/// The command that writes [`yaml`] to the file that is installed.
pub const REGENERATE: &str =
    "cargo run -p cloister-crds > charts/cloister-crds/files/cloister.dev_imagebuilds.yaml";

/// A definition could not be written.
#[derive(Debug, thiserror::Error)]
pub enum Error {
    /// A schema is no longer one after tidying.
    #[error("schema of {0}: {1}")]
    Schema(&'static str, #[source] serde_json::Error),
    /// YAML cannot express it.
    #[error("YAML of {0}: {1}")]
    Yaml(&'static str, String),
}

/// The definition of [`ImageBuild`] as it is installed.
pub fn image_builds() -> Result<CustomResourceDefinition, Error> {
    schema::tidy(ImageBuild::crd()).map_err(|error| Error::Schema("ImageBuild", error))
}

/// [`image_builds`] as YAML.
pub fn yaml() -> Result<String, Error> {
    let body = serde_saphyr::to_string(&image_builds()?)
        .map_err(|error| Error::Yaml("ImageBuild", error.to_string()))?;
    Ok(format!("# Written by: {REGENERATE}\n---\n{body}"))
}
