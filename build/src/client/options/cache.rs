//! Caches outside of the builder, as folders and offers of the session (BuildKit, `cache/remotecache/local`): whoever drives
//! the build brings them to a registry and back, as the builder has neither network nor credentials.

use bollard_buildkit_proto::moby::buildkit::v1::CacheOptionsEntry;
use cloister_image::Digest;

/// A cache to look into.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct CacheFrom {
    /// The session provides it by `content("local:NAME", …)`.
    pub name: String,
    /// Its manifest or index.
    pub manifest: Digest,
}

/// A cache to write.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct CacheTo {
    /// The session takes it by `content("local:NAME", …)`.
    pub name: String,
    /// With the results of every stage, not only of those that are in the image.
    pub max: bool,
}

impl CacheFrom {
    pub(super) fn entry(&self) -> CacheOptionsEntry {
        entry([("src", self.name.clone()), ("digest", self.manifest.to_string())])
    }
}

impl CacheTo {
    pub(super) fn entry(&self) -> CacheOptionsEntry {
        let mode = if self.max { "max" } else { "min" };
        entry([
            ("dest", self.name.clone()),
            ("mode", mode.to_owned()),
            // A manifest is what registries take; indexes of layers many refuse.
            ("image-manifest", "true".to_owned()),
            ("oci-mediatypes", "true".to_owned()),
            // An image is as good without it.
            ("ignore-error", "true".to_owned()),
        ])
    }
}

fn entry<const N: usize>(attrs: [(&str, String); N]) -> CacheOptionsEntry {
    let attrs = attrs.into_iter().map(|(key, value)| (key.to_owned(), value)).collect();
    CacheOptionsEntry { r#type: "local".to_owned(), attrs }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::client::options::Solve;

    #[test]
    fn caches_are_written_as_manifests_and_read_by_digest() {
        let manifest = Digest::of(b"");
        let solve = Solve {
            cache_from: vec![CacheFrom { name: "a".to_owned(), manifest }],
            cache_to: vec![CacheTo { name: "b".to_owned(), max: true }],
            ..Default::default()
        };
        let request = solve.request("id", "session").unwrap();
        let options = request.cache.unwrap();
        let written = &options.exports[0].attrs;
        assert_eq!((written["mode"].as_str(), written["image-manifest"].as_str()), ("max", "true"));
        assert_eq!(options.imports[0].attrs["digest"], manifest.to_string());
        assert!(request.frontend_attrs["cache-imports"].contains("\"Type\":\"local\""));
    }
}
