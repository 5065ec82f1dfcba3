//! The result to a registry, from the archive that left the machine. TLS only: no registry of a tenant's choice is spoken to
//! otherwise, least of all on this node's loopback.

use std::fs::File;
use std::path::PathBuf;
use std::sync::Arc;

use cloister_crds::{BuildOutput, BuildReason, Failure, PushOutput};
use cloister_image::source::Built;
use cloister_image::source::registry::{DockerConfig, PushOptions, push};
use cloister_image::{Digest, Error, Reference, Silent};

use super::failure::failure;
use crate::blocking;
use crate::import::names;

/// A push to do.
pub struct Push {
    /// Names at the registry.
    pub names: Vec<Reference>,
    /// Credentials.
    pub credentials: Arc<DockerConfig>,
    /// Certificates to trust beside the system's.
    pub certificates: Option<PathBuf>,
}

impl Push {
    /// Checks the archive and pushes its image under every name. It goes on to its end when this is dropped: a name is
    /// given last, and only to the whole image.
    ///
    /// # Errors
    /// When the archive is not the image, or the registry does not take it.
    pub async fn run(self, archive: File, digest: Digest) -> Result<(), Failure> {
        let Self { names, credentials, certificates } = self;
        let work = blocking::run(move || {
            let built = match Built::open(archive, &digest) {
                Ok(built) => built,
                Err(error) => return Ok(Err(of_result(&error))),
            };
            let options = PushOptions {
                ca_cert: certificates,
                credentials: Some(credentials),
                ..PushOptions::default()
            };
            for name in &names {
                if let Err(error) = push(built.whole(), &built, name, &options, &Silent) {
                    return Ok(Err(of_registry(&error)));
                }
            }
            Ok(Ok(()))
        });
        work.await.map_err(|error| failure(BuildReason::RegistryUnavailable, format!("push: {error}")))?
    }
}

/// The names that an image gets at its registry: "registry.example.com/team" has "app:1.4" as
/// "registry.example.com/team/app:1.4"; without it each name says its own.
///
/// # Errors
/// When a name is none.
pub fn targets(output: &BuildOutput, to: &PushOutput, digest: &Digest) -> Result<Vec<Reference>, Failure> {
    let named = output.images.iter().map(|image| match &to.registry {
        Some(registry) => format!("{registry}/{}", without_registry(image)),
        None => image.clone(),
    });
    let invalid =
        |why: &dyn std::fmt::Display| failure(BuildReason::InvalidSpec, format!("spec.output.push: {why}"));
    let full = names::canonical(&named.collect::<Vec<_>>(), digest).map_err(|error| invalid(&error))?;
    full.iter().map(|name| name.parse().map_err(|error| invalid(&error))).collect()
}

/// What a name says behind its registry, when it names one.
fn without_registry(image: &str) -> &str {
    match image.split_once('/') {
        Some((first, rest)) if first == "localhost" || first.contains(['.', ':']) => rest,
        _ => image,
    }
}

fn of_result(error: &Error) -> Failure {
    failure(BuildReason::DigestMismatch, format!("push: {error}"))
}

fn of_registry(error: &Error) -> Failure {
    let reason = match error.status() {
        Some(400..=428 | 430..=499) => BuildReason::AccessDenied,
        _ => BuildReason::RegistryUnavailable,
    };
    failure(reason, format!("push: {error}"))
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;

    #[test]
    fn images_are_pushed_under_the_names_that_the_spec_means() {
        let names = |images: serde_json::Value, registry: Option<&str>| {
            let output: BuildOutput =
                serde_json::from_value(json!({"images": images, "push": {"registry": registry}})).unwrap();
            let targets = targets(&output, output.push.as_ref().unwrap(), &Digest::of(b"")).unwrap();
            targets.iter().map(ToString::to_string).collect::<Vec<_>>()
        };
        let team = Some("registry.example.com/team");
        assert_eq!(
            names(json!(["app:1.4", "a/b", "ghcr.io/x/y:2"]), team),
            [
                "registry.example.com/team/a/b:e3b0c44298fc",
                "registry.example.com/team/app:1.4",
                "registry.example.com/team/x/y:2"
            ]
        );
        assert_eq!(names(json!(["r.test:5000/app:1"]), None), ["r.test:5000/app:1"]);
    }
}
