//! The builder image in the node-local store.
//!
//! It is kept under a name of its own, marked as [`HIDDEN`], so that lists of images leave it out, and is imported again
//! only when the digest of its source is another one.

use std::collections::BTreeMap;
use std::path::PathBuf;

use cloister_image::source::archive::{self, Input, Request};
use cloister_image::source::registry::{self, PullOptions};
use cloister_image::{Image, Progress, Reference, Store, import};

use super::error::{Error, Result};

/// The fact about an image (in [`cloister_image::ImageRecord::build`]) that keeps it out of lists; its value says what the
/// image is for.
pub const HIDDEN: &str = "hidden";

/// The name of a builder image that came from an archive.
const NAME: &str = "cloister.dev/builder:archive";

/// Where the builder image comes from.
#[derive(Debug, Clone)]
pub enum ImageSource {
    /// An OCI archive, not compressed as a whole, or an OCI layout folder.
    Archive(PathBuf),
    /// A registry, such as any release of `moby/buildkit`; asked once.
    Registry(Reference, Box<PullOptions>),
}

/// The builder image, imported or pulled when the store does not have it. Blocks.
///
/// # Errors
/// When it can't be read, imported or pulled.
pub fn load(store: &Store, source: &ImageSource, progress: &dyn Progress) -> Result<Image> {
    let facts = || BTreeMap::from([(HIDDEN.to_owned(), "builder".to_owned())]);
    match source {
        ImageSource::Archive(path) => {
            let name = NAME
                .parse::<Reference>()
                .map_err(|error| Error::NotAnImage { path: path.clone(), why: error.to_string() })?;
            let digest = archive::digest(path)?;
            let known = store
                .get(&name)?
                .is_some_and(|record| record.manifest == digest || record.index == Some(digest));
            if !known {
                let options = import::Options { build: facts(), ..import::Options::default() };
                let request = Request { name: Some(name), select: None, options };
                archive::import(store, Input::Path(path.clone()), &request, progress)?;
            }
            Ok(store.open_image(NAME)?)
        }
        ImageSource::Registry(reference, options) => {
            if store.get(reference)?.is_none() {
                let mut options = options.clone();
                options.import.build.extend(facts());
                registry::pull(store, reference, None, &options, progress)?;
            }
            Ok(store.open_image(&reference.to_string())?)
        }
    }
}

#[cfg(test)]
mod tests {
    use std::fs::{self, File};
    use std::path::Path;

    use cloister_image::Silent;

    use super::*;

    /// An OCI layout of an image without layers.
    fn layout(folder: &Path, user: &str) {
        let blobs = folder.join("blobs/sha256");
        fs::create_dir_all(&blobs).unwrap();
        let blob = |text: String| {
            let digest = cloister_image::Digest::of(text.as_bytes());
            fs::write(blobs.join(digest.hex()), &text).unwrap();
            format!(r#""digest":"{digest}","size":{}"#, text.len())
        };
        let kind = "application/vnd.oci.image";
        let config = blob(format!(
            r#"{{"architecture":"amd64","os":"linux","config":{{"User":"{user}"}},"rootfs":{{"type":"layers","diff_ids":[]}}}}"#
        ));
        let manifest = blob(format!(
            r#"{{"schemaVersion":2,"mediaType":"{kind}.manifest.v1+json","config":{{"mediaType":"{kind}.config.v1+json",{config}}},"layers":[]}}"#
        ));
        let index = format!(
            r#"{{"schemaVersion":2,"manifests":[{{"mediaType":"{kind}.manifest.v1+json",{manifest}}}]}}"#
        );
        fs::write(folder.join("index.json"), index).unwrap();
        fs::write(folder.join("oci-layout"), r#"{"imageLayoutVersion":"1.0.0"}"#).unwrap();
    }

    #[test]
    fn it_is_imported_again_only_when_its_digest_changes() {
        let folder = tempfile::tempdir().unwrap();
        let store = Store::open(folder.path().join("store")).unwrap();
        let (path, source) = (folder.path().join("a.tar"), folder.path().join("layout"));
        let pack = |user: &str| {
            layout(&source, user);
            let mut tar = tar::Builder::new(File::create(&path).unwrap());
            tar.append_dir_all(".", &source).unwrap();
            tar.finish().unwrap();
        };
        pack("one");
        let source = ImageSource::Archive(path.clone());
        let first = load(&store, &source, &Silent).unwrap().record;
        assert_eq!(first.build.get(HIDDEN).map(String::as_str), Some("builder"));
        assert_eq!(load(&store, &source, &Silent).unwrap().record.imported, first.imported);
        pack("two");
        let second = load(&store, &source, &Silent).unwrap();
        assert_eq!(second.config.user, "two");
        assert_ne!(second.record.manifest, first.manifest);
        assert_eq!(store.list().unwrap().len(), 1);
    }
}
