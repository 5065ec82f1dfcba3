//! What to build and how, as the Dockerfile frontend and BuildKit's exporters are told.
//!
//! Sources: `frontend/dockerui` and `exporter/containerimage/exptypes` in BuildKit's source, and its README.

mod cache;
mod output;

use std::collections::BTreeMap;
use std::net::IpAddr;
use std::time::Duration;

use bollard_buildkit_proto::moby::buildkit::v1::{CacheOptions, SolveRequest};
use cloister_image::{Digest, Reference};
use serde_json::json;

use super::error::{Error, Result};

pub use self::cache::{CacheFrom, CacheTo};
pub use self::output::Output;

type Attributes = BTreeMap<String, String>;

/// A build of a Dockerfile. The session provides the folders `context` and `dockerfile`.
#[derive(Debug, Clone, Default)]
pub struct Solve {
    /// The Dockerfile's name below the folder `dockerfile`; `Dockerfile` when there is none.
    pub filename: Option<String>,
    /// The stage to build; the last one when there is none.
    pub target: Option<String>,
    /// `ARG`s.
    pub args: BTreeMap<String, String>,
    /// Labels of the image.
    pub labels: BTreeMap<String, String>,
    /// Platforms such as `linux/amd64`; the builder's own when there are none.
    pub platforms: Vec<String>,
    /// What not to take from the cache.
    pub no_cache: NoCache,
    /// Contexts and images by the name that the Dockerfile uses.
    pub contexts: BTreeMap<String, NamedContext>,
    /// Seconds since 1970 that the image's dates are set to.
    pub source_date_epoch: Option<u64>,
    /// Statements about the image.
    pub attestations: Vec<Attestation>,
    /// The network of `RUN`.
    pub network: Network,
    /// The cgroup below which steps run.
    pub cgroup_parent: Option<String>,
    /// Lines for `/etc/hosts`.
    pub add_hosts: Vec<(String, IpAddr)>,
    /// What to do with the result. Without one the build only fills the cache.
    pub outputs: Vec<Output>,
    /// Caches to look into.
    pub cache_from: Vec<CacheFrom>,
    /// Caches to write.
    pub cache_to: Vec<CacheTo>,
    /// How long the build may take.
    pub deadline: Option<Duration>,
}

/// Which steps run again although nothing has changed.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub enum NoCache {
    /// None.
    #[default]
    Off,
    /// Those of every stage.
    All,
    /// Those of these stages.
    Stages(Vec<String>),
}

/// The network of `RUN` steps that don't ask for one.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub enum Network {
    /// Loopback and nothing else.
    #[default]
    None,
    /// Whatever the builder gives.
    Sandbox,
    /// The builder's own; it has to be allowed there.
    Host,
}

/// Where a name of the Dockerfile leads.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum NamedContext {
    /// A folder that the session provides under this name.
    Folder(String),
    /// An image in a store that the session provides by `content("oci:STORE", …)`.
    Image {
        /// `STORE`: lower-case letters, digits and `-`.
        store: String,
        /// Its manifest or index.
        manifest: Digest,
    },
    /// Anything else that the frontend reads: `docker-image://…`, `https://….git#branch`.
    Url(String),
}

/// A statement that goes with the image.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Attestation {
    /// What it was made from.
    Provenance {
        /// With build arguments and the Dockerfile too.
        max: bool,
    },
    /// What is in it, as told by this scanner's image.
    Sbom {
        /// The scanner; BuildKit's own choice when there is none.
        generator: Option<String>,
    },
}

impl Solve {
    /// Has `FROM reference` find the image in the store that the session provides by `content("oci:STORE", …)`.
    pub fn base_image(&mut self, reference: &Reference, store: &str, manifest: Digest) {
        let name = reference.familiar();
        // The frontend looks names up in their short form, without the tag that is the default.
        let name = name.strip_suffix(":latest").unwrap_or(&name).to_owned();
        self.contexts.insert(name, NamedContext::Image { store: store.to_owned(), manifest });
    }

    pub(super) fn request(&self, id: &str, session: &str) -> Result<SolveRequest> {
        let exporters: Vec<_> = self.outputs.iter().map(Output::exporter).collect();
        // Servers before 0.13 know one exporter, in its own fields.
        let first = exporters.first().cloned().unwrap_or_default();
        let imports: Vec<_> = self.cache_from.iter().map(CacheFrom::entry).collect();
        let mut attributes = self.attributes()?;
        if !imports.is_empty() {
            let list: Vec<_> =
                imports.iter().map(|entry| json!({"Type": entry.r#type, "Attrs": entry.attrs})).collect();
            attributes.insert("cache-imports".to_owned(), json!(list).to_string());
        }
        let entitlements = (self.network == Network::Host).then(|| "network.host".to_owned());
        Ok(SolveRequest {
            r#ref: id.to_owned(),
            session: session.to_owned(),
            frontend: "dockerfile.v0".to_owned(),
            frontend_attrs: attributes.into_iter().collect(),
            exporter_deprecated: first.r#type,
            exporter_attrs_deprecated: first.attrs,
            exporters,
            cache: Some(CacheOptions {
                exports: self.cache_to.iter().map(CacheTo::entry).collect(),
                imports,
                ..Default::default()
            }),
            entitlements: entitlements.into_iter().collect(),
            ..Default::default()
        })
    }

    fn attributes(&self) -> Result<Attributes> {
        let mut all = Attributes::new();
        let mut set = |key: &str, value: String| all.insert(key.to_owned(), value);
        set("filename", self.filename.clone().unwrap_or_else(|| "Dockerfile".to_owned()));
        // With it the frontend takes a `# syntax=` line as read instead of fetching the frontend that the line names: there is
        // no network to fetch it by, and what was fetched would be one more stranger.
        set("cmdline", "dockerfile.v0".to_owned());
        if let Some(target) = &self.target {
            set("target", target.clone());
        }
        if !self.platforms.is_empty() {
            set("platform", self.platforms.join(","));
        }
        match &self.no_cache {
            NoCache::Off => {}
            NoCache::All => drop(set("no-cache", String::new())),
            NoCache::Stages(stages) => drop(set("no-cache", stages.join(","))),
        }
        match self.network {
            Network::None => drop(set("force-network-mode", "none".to_owned())),
            Network::Host => drop(set("force-network-mode", "host".to_owned())),
            Network::Sandbox => {}
        }
        if let Some(parent) = &self.cgroup_parent {
            set("cgroup-parent", parent.clone());
        }
        if !self.add_hosts.is_empty() {
            let hosts: Vec<String> = self.add_hosts.iter().map(|(name, ip)| format!("{name}={ip}")).collect();
            set("add-hosts", hosts.join(","));
        }
        for (key, value) in &self.args {
            set(&format!("build-arg:{key}"), value.clone());
        }
        if let Some(epoch) = self.source_date_epoch {
            set("build-arg:SOURCE_DATE_EPOCH", epoch.to_string());
        }
        for (key, value) in &self.labels {
            set(&format!("label:{key}"), value.clone());
        }
        for attestation in &self.attestations {
            match attestation {
                Attestation::Provenance { max } => {
                    set("attest:provenance", format!("mode={}", if *max { "max" } else { "min" }))
                }
                Attestation::Sbom { generator } => {
                    let generator = generator.as_ref().map(|image| format!("generator={image}"));
                    set("attest:sbom", generator.unwrap_or_default())
                }
            };
        }
        for (name, context) in &self.contexts {
            let value = match context {
                NamedContext::Folder(folder) => format!("local:{folder}"),
                NamedContext::Url(url) => url.clone(),
                NamedContext::Image { store, manifest } => {
                    if store.is_empty()
                        || !store.bytes().all(|b| b.is_ascii_lowercase() || b.is_ascii_digit() || b == b'-')
                    {
                        return Err(Error::invalid(
                            format!("store {store} of {name}"),
                            "not a name for a store",
                        ));
                    }
                    format!("oci-layout://{store}@{manifest}")
                }
            };
            set(&format!("context:{name}"), value);
        }
        Ok(all)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn wishes_become_attributes() {
        let mut solve = Solve {
            target: Some("prod".to_owned()),
            args: [("A".to_owned(), "1".to_owned())].into(),
            platforms: vec!["linux/amd64".to_owned(), "linux/arm64".to_owned()],
            no_cache: NoCache::All,
            source_date_epoch: Some(7),
            outputs: vec![Output::oci().named("a:1").rewrite_timestamps()],
            attestations: vec![Attestation::Provenance { max: true }],
            add_hosts: vec![("h".to_owned(), IpAddr::from([10, 0, 0, 1]))],
            ..Default::default()
        };
        solve.base_image(&"debian".parse().unwrap(), "base0", Digest::of(b""));
        solve.contexts.insert("src".to_owned(), NamedContext::Folder("src".to_owned()));
        let request = solve.request("id", "session").unwrap();
        let get = |key: &str| request.frontend_attrs.get(key).map(String::as_str);
        assert_eq!(get("target"), Some("prod"));
        assert_eq!(get("build-arg:A"), Some("1"));
        assert_eq!(get("build-arg:SOURCE_DATE_EPOCH"), Some("7"));
        assert_eq!(get("platform"), Some("linux/amd64,linux/arm64"));
        assert_eq!((get("no-cache"), get("force-network-mode")), (Some(""), Some("none")));
        assert_eq!((get("add-hosts"), get("attest:provenance")), (Some("h=10.0.0.1"), Some("mode=max")));
        assert_eq!(get("context:debian").unwrap(), format!("oci-layout://base0@{}", Digest::of(b"")));
        assert_eq!(get("context:src"), Some("local:src"));
        assert_eq!((request.exporters.len(), request.exporters[0].attrs.len()), (1, 2));
        assert_eq!(request.exporter_deprecated, "oci");
        assert!(request.entitlements.is_empty());
    }

    #[test]
    fn stores_have_plain_names() {
        let image = NamedContext::Image { store: "../x".to_owned(), manifest: Digest::of(b"") };
        let solve = Solve { contexts: [("a".to_owned(), image)].into(), ..Default::default() };
        assert!(solve.request("id", "session").is_err());
    }
}
