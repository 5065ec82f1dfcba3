//! From content to an image that pods can use: snapshots, the record, references, and the CRI's word for it.

use std::collections::{BTreeSet, HashMap};
use std::time::Duration;

use cloister_image::{Digest, Whole};

use super::hold::{self, Hold};
use super::record::{BUILD, Record, owner};
use super::{Importer, Ready, kubelet, names, walk};
use crate::containerd::images::Named;
use crate::containerd::scope::Scope;
use crate::error::{Error, Result};

/// What the CRI looks for on each reference (containerd, `internal/cri/labels`).
const PINNED: (&str, &str) = ("io.cri-containerd.pinned", "pinned");
/// How long the CRI may take to learn of references, which it does from events.
const PATIENCE: Duration = Duration::from_secs(30);

/// Why an image is settled.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Mode {
    /// A build is ready: names move to it, and what was made is undone when that fails.
    Import {
        /// Also names of images that no build made.
        replace: bool,
    },
    /// Something of a known image was missing; its names are left to whoever has them now.
    Heal,
    /// A known image is wanted otherwise.
    Change,
}

impl Importer {
    /// Whether nothing is missing of a record's image but, maybe, blobs.
    pub(super) async fn is_settled(&self, record: &Record, whole: &Whole) -> Result<bool> {
        if self.leases_of(&record.build).await?.len() > 1 {
            return Ok(false);
        }
        let image = walk::ours(whole)?;
        for snapshotter in &self.snapshotters {
            if !self.scope.is_unpacked(image, snapshotter).await? {
                return Ok(false);
            }
        }
        for name in names::references(&record.names, &record.top.digest) {
            match self.scope.image(&name).await? {
                Some(named) if is_right(&named, record) => {}
                _ => return Ok(false),
            }
        }
        Ok(true)
    }

    pub(super) async fn settle(
        &self,
        scope: &Scope,
        hold: &Hold,
        record: &Record,
        whole: &Whole,
        mode: &Mode,
    ) -> Result<Ready> {
        let image = walk::ours(whole)?;
        for snapshotter in &self.snapshotters {
            scope.unpack(image, snapshotter, &hold.id).await?;
        }
        let id = image.config.digest;
        let mut made = Vec::new();
        let result = async {
            self.refer(scope, record, mode, &mut made).await?;
            self.verify(record, &id).await
        };
        if let Err(error) = result.await {
            if matches!(mode, Mode::Import { .. }) {
                self.undo(record, &made).await?;
            }
            return Err(error);
        }
        self.retire(record).await?;
        let (digest, bytes) = (record.top.digest, whole.blobs.values().sum());
        let objection = kubelet::objection(&self.kubelet);
        Ok(Ready { digest, id, names: record.names.clone(), bytes, objection })
    }

    /// Writes the record, then the references; notes which of them are new.
    async fn refer(&self, scope: &Scope, record: &Record, mode: &Mode, made: &mut Vec<String>) -> Result<()> {
        let _turn = hold::turn(&self.folder).await?;
        let references = names::references(&record.names, &record.top.digest);
        let mut wrong = Vec::new();
        for name in &references {
            let named = scope.image(name).await?;
            if let Some(named) = &named {
                may_take(named, record, mode)?;
            }
            if named.as_ref().is_none_or(|named| !is_right(named, record)) {
                wrong.push((name, named));
            }
        }
        let lease = record.lease();
        if *mode == Mode::Heal && !self.leases_of(&record.build).await?.contains(&lease) {
            return Err(Error::NotFound(format!("build {}: removed meanwhile", record.build)));
        }
        if scope.create_lease(&lease, record.labels()).await? {
            made.push(lease.clone());
        }
        scope.keep(&lease, &record.top.digest).await?;
        for (name, named) in wrong {
            let labels = labels(record, named.as_ref());
            if !scope.create_image(name, &record.top, labels.clone()).await? {
                scope.update_image(name, &record.top, labels).await?;
            } else {
                made.push(name.clone());
            }
        }
        Ok(())
    }

    /// Removes a record whose writer died before it kept any content; whether it was one.
    pub(super) async fn forget_unfinished(&self, record: &Record) -> Result<bool> {
        let _turn = hold::turn(&self.folder).await?;
        let lease = record.lease();
        let unfinished = self.scope.keeps_nothing(&lease).await?;
        if unfinished {
            self.scope.delete_lease(&lease, false).await?;
        }
        Ok(unfinished)
    }

    /// Removes what the same build had before.
    async fn retire(&self, record: &Record) -> Result<()> {
        let _turn = hold::turn(&self.folder).await?;
        let (lease, build) = (record.lease(), &record.build);
        let leases = self.leases_of(build).await?;
        if !leases.contains(&lease) {
            return Err(Error::NotFound(format!("build {build}: removed, or imported again, meanwhile")));
        }
        for other in leases.iter().filter(|other| **other != lease) {
            self.scope.delete_lease(other, false).await?;
        }
        let references = names::references(&record.names, &record.top.digest);
        let before = self.scope.images_labelled(BUILD, build).await?;
        self.drop_references(before.iter().filter(|named| !references.contains(&named.name))).await
    }

    /// Waits until the CRI gives the image for every name that a pod may use.
    async fn verify(&self, record: &Record, id: &Digest) -> Result<()> {
        let wanted = id.to_string();
        let waiting = async {
            for name in names::spellings(&record.names, &record.top.digest) {
                let mut pause = Duration::from_millis(10);
                loop {
                    let image = self.scope.cri_image(&name).await?;
                    if image.is_some_and(|image| image.id == wanted && (image.pinned || !record.pin)) {
                        break;
                    }
                    tokio::time::sleep(pause).await;
                    pause = (pause * 2).min(Duration::from_millis(500));
                }
            }
            Ok(())
        };
        tokio::time::timeout(PATIENCE, waiting).await.map_err(|_| {
            let (names, seconds) = (record.names.join(", "), PATIENCE.as_secs());
            Error::Containerd(format!("the CRI does not give image {id} for {names} after {seconds} s"))
        })?
    }

    /// Takes back what a failed import made.
    async fn undo(&self, record: &Record, made: &[String]) -> Result<()> {
        let _turn = hold::turn(&self.folder).await?;
        let lease = record.lease();
        if made.contains(&lease) {
            self.scope.delete_lease(&lease, false).await?;
        }
        let references = self.scope.images_of(&record.top.digest.to_string()).await?;
        self.drop_references(references.iter().filter(|named| made.contains(&named.name))).await
    }

    /// Forgets a build: its references and its content, unless somebody else needs it.
    ///
    /// # Errors
    /// When containerd fails; calling again goes on.
    pub async fn remove(&self, build: &str) -> Result<()> {
        let _turn = hold::turn(&self.folder).await?;
        // Records first: nothing brings the references back then.
        for lease in self.leases_of(build).await? {
            self.scope.delete_lease(&lease, false).await?;
        }
        self.drop_references(self.scope.images_labelled(BUILD, build).await?.iter()).await
    }

    /// Removes references, and after the last one of an image the one by ID that the CRI made for itself.
    async fn drop_references(&self, references: impl Iterator<Item = &Named>) -> Result<()> {
        let mut digests = BTreeSet::new();
        for named in references {
            self.scope.delete_image(&named.name, false).await?;
            digests.insert(&named.digest);
        }
        for digest in digests {
            let left = self.scope.images_of(digest).await?;
            if left.iter().all(|named| named.name.starts_with("sha256:")) {
                for named in left {
                    self.scope.delete_image(&named.name, true).await?;
                }
            }
        }
        Ok(())
    }

    /// The names of a build's leases.
    async fn leases_of(&self, build: &str) -> Result<Vec<String>> {
        let leases = self.scope.leases_labelled(BUILD).await?;
        let ours = leases.into_iter().filter(|lease| lease.labels.get(BUILD).is_some_and(|b| b == build));
        Ok(ours.map(|lease| lease.id).collect())
    }
}

pub(super) fn is_right(named: &Named, record: &Record) -> bool {
    let pinned = named.labels.get(PINNED.0).is_some_and(|value| value == PINNED.1);
    // Two builds may have made the same image under one name: the first one's label stays.
    let (of, same) = (named.labels.get(BUILD), named.digest == record.top.digest.to_string());
    match of {
        Some(of) if *of != record.build => same && (pinned || !record.pin),
        Some(_) => same && pinned == record.pin,
        None => false,
    }
}

/// Whether a name that stands for something already may stand for the record's image from now on.
fn may_take(named: &Named, record: &Record, mode: &Mode) -> Result<()> {
    if named.digest == record.top.digest.to_string() {
        return Ok(());
    }
    let refused = |who: &str| {
        let Named { name, digest, .. } = named;
        Err(Error::Exists(format!("image name {name}: it stands for {digest} of {who}")))
    };
    match (named.labels.get(BUILD), mode) {
        (Some(build), _) if *build == record.build => Ok(()),
        (Some(build), Mode::Import { .. }) if owner(build) == owner(&record.build) => Ok(()),
        (Some(build), _) => refused(&format!("build {build}")),
        (None, Mode::Import { replace: true }) => Ok(()),
        (None, _) => refused("no build"),
    }
}

/// The labels to set on a reference; its others are its own, or the CRI's.
fn labels(record: &Record, named: Option<&Named>) -> HashMap<String, String> {
    let mut labels = HashMap::new();
    let of = named.filter(|named| named.digest == record.top.digest.to_string());
    match of.and_then(|named| named.labels.get(BUILD)) {
        Some(build) if *build != record.build => {}
        _ => drop(labels.insert(BUILD.to_owned(), record.build.clone())),
    }
    let was = named.is_some_and(|named| named.labels.contains_key(PINNED.0));
    if record.pin || was {
        let value = if record.pin { PINNED.1 } else { "" };
        labels.insert(PINNED.0.to_owned(), value.to_owned());
    }
    labels
}

#[cfg(test)]
mod tests {
    use super::*;
    use cloister_image::BlobRef;

    fn record(build: &str, pin: bool) -> Record {
        let top = BlobRef { digest: Digest::of(b"new"), size: 1, media_type: "m".into() };
        let names = vec!["docker.io/library/a:1".into()];
        Record { build: build.into(), object: None, top, names, pin, from: None }
    }

    fn named(content: &[u8], labels: &[(&str, &str)]) -> Named {
        let labels = labels.iter().map(|&(key, value)| (key.to_owned(), value.to_owned())).collect();
        Named { name: "docker.io/library/a:1".into(), digest: Digest::of(content).to_string(), labels }
    }

    #[test]
    fn names_move_within_a_namespace_and_only_to_new_imports() {
        let (import, replace) = (Mode::Import { replace: false }, Mode::Import { replace: true });
        let table = [
            (Some("a/one"), import, true),
            (Some("a/two"), import, true),
            (Some("a/two"), Mode::Heal, false),
            (Some("b/one"), replace, false),
            (None, import, false),
            (None, replace, true),
            (None, Mode::Heal, false),
        ];
        for (of, mode, expected) in table {
            let labels: Vec<_> = of.map(|build| (BUILD, build)).into_iter().collect();
            let taken = may_take(&named(b"old", &labels), &record("a/one", false), &mode);
            assert_eq!(taken.is_ok(), expected, "{of:?} {mode:?}: {taken:?}");
        }
        assert!(may_take(&named(b"new", &[(BUILD, "b/one")]), &record("a/one", false), &Mode::Heal).is_ok());
    }

    #[test]
    fn pins_are_set_and_lifted_on_a_builds_own_references() {
        let pinned = named(b"new", &[(BUILD, "a/one"), PINNED]);
        assert!(is_right(&pinned, &record("a/one", true)));
        assert!(!is_right(&pinned, &record("a/one", false)));
        assert_eq!(labels(&record("a/one", false), Some(&pinned))[PINNED.0], "");
        assert!(!is_right(&named(b"new", &[(BUILD, "a/one")]), &record("a/one", true)));
        assert!(!is_right(&named(b"new", &[PINNED]), &record("a/one", true)));
        let others = named(b"new", &[(BUILD, "b/one")]);
        assert!(is_right(&others, &record("a/one", false)));
        assert!(!labels(&record("a/one", true), Some(&others)).contains_key(BUILD));
    }
}
