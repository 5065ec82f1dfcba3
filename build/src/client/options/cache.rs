//! Caches outside of the builder.

use std::collections::HashMap;

use bollard_buildkit_proto::moby::buildkit::v1::CacheOptionsEntry;
use cloister_image::Digest;

use crate::client::error::{Error, Result};

/// A cache outside of the builder.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Cache {
    /// A store that the session provides by `content("local:NAME", …)`.
    Layout {
        /// `NAME`.
        name: String,
        /// The manifest, to read it; see `Layout::find`.
        manifest: Option<Digest>,
    },
    /// In a registry under a reference.
    Registry(String),
}

impl Cache {
    pub(super) fn entry(&self, write: bool) -> Result<CacheOptionsEntry> {
        let mut attrs = HashMap::new();
        let mut set = |key: &str, value: String| attrs.insert(key.to_owned(), value);
        let kind = match self {
            Self::Layout { name, manifest } => {
                set(if write { "dest" } else { "src" }, name.clone());
                match manifest {
                    Some(manifest) if !write => drop(set("digest", manifest.to_string())),
                    None if !write => {
                        return Err(Error::invalid(format!("cache {name}"), "no manifest to read"));
                    }
                    _ => {}
                }
                "local"
            }
            Self::Registry(reference) => {
                set("ref", reference.clone());
                "registry"
            }
        };
        if write {
            // Every step's result, not only those that are in the image.
            set("mode", "max".to_owned());
        }
        Ok(CacheOptionsEntry { r#type: kind.to_owned(), attrs })
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::client::options::Solve;

    #[test]
    fn caches_are_written_whole_and_read_by_digest() {
        let manifest = Digest::of(b"");
        let cache = |manifest| vec![Cache::Layout { name: "c".to_owned(), manifest }];
        let solve = Solve { cache_from: cache(Some(manifest)), cache_to: cache(None), ..Default::default() };
        let request = solve.request("id", "session").unwrap();
        let cache_options = request.cache.unwrap();
        assert_eq!(cache_options.exports[0].attrs["mode"], "max");
        assert_eq!(cache_options.imports[0].attrs["digest"], manifest.to_string());
        assert!(request.frontend_attrs["cache-imports"].contains("\"Type\":\"local\""));
        let blind = Solve { cache_from: cache(None), ..Default::default() };
        assert!(blind.request("id", "session").is_err());
    }
}
