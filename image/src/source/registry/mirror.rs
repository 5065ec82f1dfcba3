//! Which hosts to ask for a registry's images, and in which order.

use std::collections::BTreeMap;

use serde::{Deserialize, Serialize};

use crate::error::{Error, Result};
use crate::reference::{DEFAULT_REGISTRY, Reference};

/// Mirrors by registry, such as `{"docker.io": ["https://mirror.example"]}`; `*` is for registries not listed.
///
/// A URL without a path means its `/v2` API; one with a path is the base to which `/REPOSITORY/manifests/…` is appended.
/// `http://` asks for plain HTTP to that mirror. Mirrors are asked in order, the registry itself last. A mirror gets its own
/// credentials and never those of the registry.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(transparent)]
pub struct Mirrors(pub BTreeMap<String, Vec<String>>);

/// One place that serves a repository.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) struct Endpoint {
    /// Base URL, such as `https://registry-1.docker.io/v2`.
    pub(super) api: String,
    /// What to look credentials up by.
    pub(super) registry: String,
    /// `?ns=REGISTRY` for mirrors that serve several registries, as containerd sends it.
    pub(super) query: String,
}

impl Mirrors {
    /// Adds a mirror behind those that are there: `REGISTRY=URL`, or a URL alone for Docker Hub, as docker's
    /// `registry-mirrors` means it.
    ///
    /// # Errors
    /// The URL is none.
    pub fn add(&mut self, text: &str) -> Result<()> {
        let (registry, url) = match text.split_once('=') {
            Some((registry, url)) if !registry.is_empty() && !registry.contains('/') => (registry, url),
            _ => (DEFAULT_REGISTRY, text),
        };
        endpoint(registry, url)?;
        self.0.entry(registry.to_owned()).or_default().push(url.to_owned());
        Ok(())
    }

    /// The endpoints for an image, in the order to ask them.
    pub(super) fn endpoints(&self, reference: &Reference, plain_http: bool) -> Result<Vec<Endpoint>> {
        let registry = reference.registry();
        let listed = self.0.get(registry).or_else(|| self.0.get("*")).map_or(&[][..], Vec::as_slice);
        let mut out = Vec::with_capacity(listed.len() + 1);
        for url in listed {
            out.push(endpoint(registry, url)?);
        }
        let host = if registry == DEFAULT_REGISTRY { "registry-1.docker.io" } else { registry };
        let scheme = if plain_http { "http" } else { "https" };
        out.push(Endpoint {
            api: format!("{scheme}://{host}/v2"),
            registry: registry.to_owned(),
            query: String::new(),
        });
        Ok(out)
    }
}

/// A mirror's URL taken apart.
fn endpoint(registry: &str, url: &str) -> Result<Endpoint> {
    let rest = url.strip_prefix("https://").or_else(|| url.strip_prefix("http://"));
    let Some(rest) = rest
        .map(|rest| rest.trim_end_matches('/'))
        .filter(|rest| !rest.is_empty() && !rest.contains(['?', '#', '@']))
    else {
        let subject = format!("mirror {} of {registry}", crate::oci::short(url));
        return Err(Error::invalid(subject, "not an http(s) URL"));
    };
    let (host, path) = rest.split_once('/').map_or((rest, None), |(host, path)| (host, Some(path)));
    let base = url.trim_end_matches('/');
    Ok(Endpoint {
        api: if path.is_some() { base.to_owned() } else { format!("{base}/v2") },
        registry: host.to_owned(),
        query: format!("?ns={registry}"),
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    fn apis(json: &str, reference: &str) -> Vec<String> {
        let mirrors: Mirrors = serde_json::from_str(json).unwrap();
        let reference = reference.parse().unwrap();
        mirrors
            .endpoints(&reference, false)
            .unwrap()
            .into_iter()
            .map(|endpoint| endpoint.api + &endpoint.query)
            .collect()
    }

    #[test]
    fn mirrors_come_before_the_registry() {
        let json = r#"{"docker.io":["http://near:5000/","https://proxy.example/v2/hub"],"*":["https://all.example"]}"#;
        assert_eq!(
            apis(json, "debian"),
            [
                "http://near:5000/v2?ns=docker.io",
                "https://proxy.example/v2/hub?ns=docker.io",
                "https://registry-1.docker.io/v2"
            ]
        );
        assert_eq!(apis(json, "ghcr.io/a/b"), ["https://all.example/v2?ns=ghcr.io", "https://ghcr.io/v2"]);
        assert_eq!(apis("{}", "localhost:5000/a"), ["https://localhost:5000/v2"]);
    }

    #[test]
    fn mirrors_are_added_as_people_write_them() {
        let mut mirrors = Mirrors::default();
        for text in ["https://near:5000", "ghcr.io=http://a/v2/x=y", "ghcr.io=https://b", "*=https://all"] {
            mirrors.add(text).unwrap();
        }
        let of = |registry: &str| mirrors.0[registry].join(" ");
        assert_eq!(of("docker.io"), "https://near:5000");
        assert_eq!((of("ghcr.io"), of("*")), ("http://a/v2/x=y https://b".into(), "https://all".into()));
        for text in ["", "near:5000", "ghcr.io=near:5000", "=https://a", "ghcr.io=", "ghcr.io=https://"] {
            assert!(mirrors.add(text).is_err(), "{text}");
        }
    }

    #[test]
    fn what_is_no_url_is_refused() {
        let mirrors = Mirrors(BTreeMap::from([("docker.io".to_owned(), vec!["ftp://x".to_owned()])]));
        assert!(mirrors.endpoints(&"debian".parse().unwrap(), false).is_err());
    }
}
