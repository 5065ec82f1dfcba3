//! Caches that live elsewhere than the builder: what a build may take from them, and what it leaves for others.

use cloister_image::Digest;

use crate::client::{CacheFrom, CacheTo, ContentStore, Layout, Session, Solve};

/// A cache that a build looks into.
#[derive(Debug, Clone)]
pub struct Source {
    /// Where its blobs are.
    pub store: ContentStore,
    /// Its manifest or index.
    pub manifest: Digest,
}

/// A cache that a build fills. [`Layout::cache`] tells what came of it.
#[derive(Debug, Clone)]
pub struct Target {
    /// Where its blobs go.
    pub layout: Layout,
    /// With the results of every stage, not only of those that are in the image.
    pub max: bool,
}

/// Caches of one build.
#[derive(Debug, Clone, Default)]
pub struct Caches {
    /// To look into.
    pub from: Vec<Source>,
    /// To fill.
    pub to: Vec<Target>,
}

impl Caches {
    pub(super) fn offer(self, mut session: Session, solve: &mut Solve) -> Session {
        for (number, source) in self.from.into_iter().enumerate() {
            let name = format!("from{number}");
            session = session.content(format!("local:{name}"), source.store);
            solve.cache_from.push(CacheFrom { name, manifest: source.manifest });
        }
        for (number, target) in self.to.into_iter().enumerate() {
            let name = format!("to{number}");
            session = session.content(format!("local:{name}"), target.layout);
            solve.cache_to.push(CacheTo { name, max: target.max });
        }
        session
    }
}
