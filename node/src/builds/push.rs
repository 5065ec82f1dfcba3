//! The result to a registry. TLS only: no registry of a tenant's choice is spoken to otherwise, least of all on this
//! node's loopback.

use std::path::{Path, PathBuf};
use std::sync::Arc;

use cloister_crds::{BuildOutput, BuildReason, Failure, ImageBuildSpec, PushOutput};
use cloister_image::source::registry::{DockerConfig, PushOptions, push};
use cloister_image::{Digest, Error, Reference, Silent};

use super::failure::failure;
use super::inputs::Mounts;
use super::result::Image;
use crate::import::names;

/// A push to do.
#[derive(Debug)]
pub struct Push {
    credentials: Arc<DockerConfig>,
    certificates: Option<PathBuf>,
}

impl Push {
    /// What there is to know before the build; `None` when nothing is pushed.
    ///
    /// # Errors
    /// When a name is none, or credentials or certificates are missing.
    pub fn prepare(spec: &ImageBuildSpec, mounts: &Mounts, work: &Path) -> Result<Option<Self>, Failure> {
        let Some(to) = &spec.output.push else { return Ok(None) };
        // The digest only becomes a tag.
        targets(&spec.output, to, &Digest::of(b""))?;
        let (credentials, certificates) = (mounts.pushes(to)?.into(), mounts.certificates(spec, work)?);
        Ok(Some(Self { credentials, certificates }))
    }

    /// Pushes the image under every name; each is given last, and only to the whole image. Blocks.
    ///
    /// # Errors
    /// When the registry does not take it.
    pub fn run(&self, image: &Image, names: &[Reference]) -> Result<(), Failure> {
        let options = PushOptions {
            ca_cert: self.certificates.clone(),
            credentials: Some(self.credentials.clone()),
            ..PushOptions::default()
        };
        let push = |name| push(image.whole(), image, name, &options, &Silent);
        names
            .iter()
            .try_for_each(push)
            .map_err(|error| refused("push", "spec.output.push.credentials", &error))
    }
}

/// The names that an image gets at its registry: "registry.example.com/team" has "app:1.4" as
/// "registry.example.com/team/app:1.4"; without it each name says its own.
///
/// # Errors
/// When a name is none, or its registry looks like a folder of Docker's.
pub fn targets(output: &BuildOutput, to: &PushOutput, digest: &Digest) -> Result<Vec<Reference>, Failure> {
    let invalid = |why: String| failure(BuildReason::InvalidSpec, format!("spec.output.push: {why}"));
    let host = to.registry.as_deref().and_then(|registry| registry.split('/').next());
    if let Some(host) = host.filter(|host| *host != "localhost" && !host.contains(['.', ':'])) {
        return Err(invalid(format!("registry {host}: name its domain or port, such as {host}:5000")));
    }
    let named: Vec<String> = output.images.iter().map(|image| to.name(image)).collect();
    let full = names::canonical(&named, digest).map_err(|error| invalid(error.to_string()))?;
    full.iter().map(|name| name.parse().map_err(|error| invalid(format!("{name}: {error}")))).collect()
}

/// Why a registry did not do what it was asked for; `credentials` is the field that has them.
pub fn refused(what: &str, credentials: &str, error: &Error) -> Failure {
    let (reason, help) = match error.status() {
        Some(401 | 403) => (BuildReason::AccessDenied, format!("; does {credentials} allow it?")),
        Some(408 | 429 | 500..) => (BuildReason::RegistryUnavailable, String::new()),
        Some(400..) => (BuildReason::AccessDenied, String::new()),
        // Nothing was said: it is away, or its certificate is not one that is trusted here.
        _ if error.to_string().contains("certificate") => {
            (BuildReason::RegistryUnavailable, "; spec.caBundle can name an authority to trust".to_owned())
        }
        _ => (BuildReason::RegistryUnavailable, String::new()),
    };
    failure(reason, format!("{what}: {error}{help}"))
}

#[cfg(test)]
mod tests {
    use serde_json::{Value, json};

    use super::*;

    fn names(images: Value, registry: Option<&str>) -> Result<Vec<String>, Failure> {
        let output: BuildOutput =
            serde_json::from_value(json!({"images": images, "push": {"registry": registry}})).unwrap();
        let targets = targets(&output, output.push.as_ref().unwrap(), &Digest::of(b""))?;
        Ok(targets.iter().map(ToString::to_string).collect())
    }

    #[test]
    fn images_are_pushed_under_the_names_that_the_spec_means() {
        let team = Some("registry.example.com/team");
        assert_eq!(
            names(json!(["app:1.4", "a/b", "ghcr.io/x/y:2"]), team).unwrap(),
            [
                "registry.example.com/team/a/b:e3b0c44298fc",
                "registry.example.com/team/app:1.4",
                "registry.example.com/team/x/y:2"
            ]
        );
        assert_eq!(names(json!(["r.test:5000/app:1"]), None).unwrap(), ["r.test:5000/app:1"]);
        // What would go to Docker's own registry is not sent there by mistake.
        let error = names(json!(["app:1"]), Some("registry/team")).unwrap_err();
        assert!(error.message.contains("registry:5000"), "{}", error.message);
    }

    #[test]
    fn what_a_registry_says_becomes_a_reason() {
        let answer = |status| Error::Registry {
            registry: "r.test".into(),
            what: "blob".into(),
            why: "no".into(),
            status,
        };
        for (status, reason) in [
            (Some(401), BuildReason::AccessDenied),
            (Some(403), BuildReason::AccessDenied),
            (Some(404), BuildReason::AccessDenied),
            (Some(429), BuildReason::RegistryUnavailable),
            (Some(503), BuildReason::RegistryUnavailable),
            (None, BuildReason::RegistryUnavailable),
        ] {
            let told = refused("push", "spec.x", &answer(status));
            assert_eq!(told.reason, reason, "{}", told.message);
        }
        assert!(refused("push", "spec.x", &answer(Some(401))).message.ends_with("does spec.x allow it?"));
    }
}
