//! What is remembered of a build's image: the labels of a lease in containerd, which keeps the content at the same time.

use std::collections::{BTreeMap, HashMap};

use cloister_image::{BlobRef, Digest};

use crate::containerd::leases::Lease;

/// On leases and on references: the build.
pub const BUILD: &str = "cloister.dev/build";
const OBJECT: &str = "cloister.dev/build-uid";
const DIGEST: &str = "cloister.dev/digest";
const SIZE: &str = "cloister.dev/size";
const TYPE: &str = "cloister.dev/media-type";
const NAMES: &str = "cloister.dev/names";
const PINNED: &str = "cloister.dev/pinned";
const FROM: &str = "cloister.dev/from";

/// The image of a build on this node, as it has to be.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Record {
    /// `NAMESPACE/NAME` of the build.
    pub build: String,
    /// The uid of its `ImageBuild`, if there is one.
    pub object: Option<String>,
    /// Its index or manifest.
    pub top: BlobRef,
    /// Canonical names, each with a tag.
    pub names: Vec<String>,
    /// Whether the kubelet's collection has to leave it.
    pub pin: bool,
    /// `HOST:PORT` of the node it came from, when it was not imported here.
    pub from: Option<String>,
}

impl Record {
    /// The lease's name: another one for each content, because containerd cannot change a lease.
    pub fn lease(&self) -> String {
        let sorted: BTreeMap<_, _> = self.labels().into_iter().collect();
        format!("cloister-build-{}", &Digest::of(format!("{sorted:?}").as_bytes()).hex()[..32])
    }

    /// The lease's labels.
    pub fn labels(&self) -> HashMap<String, String> {
        let mut labels = HashMap::from([
            (BUILD.to_owned(), self.build.clone()),
            (DIGEST.to_owned(), self.top.digest.to_string()),
            (SIZE.to_owned(), self.top.size.to_string()),
            (TYPE.to_owned(), self.top.media_type.clone()),
            (NAMES.to_owned(), self.names.join(" ")),
            (PINNED.to_owned(), self.pin.to_string()),
        ]);
        for (key, value) in [(OBJECT, &self.object), (FROM, &self.from)] {
            if let Some(value) = value {
                labels.insert(key.to_owned(), value.clone());
            }
        }
        labels
    }

    /// What a lease says; `None` when it is not one of ours.
    pub fn of(lease: &Lease) -> Option<Self> {
        let label = |key: &str| lease.labels.get(key).cloned();
        let top = BlobRef {
            digest: label(DIGEST)?.parse().ok()?,
            size: label(SIZE)?.parse().ok()?,
            media_type: label(TYPE)?,
        };
        let names = label(NAMES)?.split(' ').map(str::to_owned).collect();
        let pin = label(PINNED)?.parse().ok()?;
        Some(Self { build: label(BUILD)?, object: label(OBJECT), top, names, pin, from: label(FROM) })
    }
}

/// Who may move a build's names: all builds of the same Kubernetes namespace.
pub fn owner(build: &str) -> &str {
    build.split_once('/').map_or(build, |(namespace, _)| namespace)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_record_is_read_back_from_its_lease() {
        let top = BlobRef { digest: Digest::of(b"x"), size: 7, media_type: "m".into() };
        let names = vec!["docker.io/library/a:1".to_owned(), "docker.io/library/b:2".to_owned()];
        let from = Some("10.0.0.1:9443".to_owned());
        let (build, object) = ("default/app".to_owned(), Some("u1".to_owned()));
        let record = Record { build, object, top, names, pin: true, from };
        let lease = Lease { id: record.lease(), labels: record.labels(), ..Lease::default() };
        assert_eq!(Record::of(&lease).unwrap(), record);
        let unpinned = Record { pin: false, from: None, ..record.clone() };
        assert_ne!(unpinned.lease(), record.lease());
        assert!(Record::of(&Lease::default()).is_none());
        assert_eq!(owner("default/app"), "default");
    }
}
