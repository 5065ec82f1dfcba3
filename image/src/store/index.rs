//! Names. `index.json` is an OCI image index whose entries carry our record as an annotation.

use std::collections::HashMap;

use oci_spec::image::{Descriptor, ImageIndex, MediaType};

use super::{ImageRecord, NamedLock, Store};
use crate::error::{Error, IoContext, Result};
use crate::reference::Reference;

/// Annotation with the canonical name, as other tools write and read it.
const REF_NAME: &str = "org.opencontainers.image.ref.name";
/// Annotation with the rest of the [`ImageRecord`], as JSON.
const RECORD: &str = "dev.cloister.image.record";
/// Shortest accepted abbreviation of an image id, in hex digits.
const MIN_SHORT_ID: usize = 6;

/// Writes the empty index of a new store. An index that is already there belongs to a store whose making was cut short.
pub(super) fn create(store: &Store) -> Result<()> {
    if store.index_path().exists() { Ok(()) } else { write(store, &[]) }
}

fn read(store: &Store) -> Result<Vec<ImageRecord>> {
    let path = store.index_path();
    let damaged = |why: String| Error::Damaged {
        path: path.clone(),
        why: format!(
            "{why}; nothing was changed: restore the file, or move the whole store away to start again"
        ),
    };
    let text = match std::fs::read(&path) {
        Ok(text) => text,
        Err(error) if error.kind() == std::io::ErrorKind::NotFound => {
            return Err(damaged("the file is missing".to_owned()));
        }
        Err(error) => return Err(error).at("read", &path),
    };
    let index: ImageIndex = serde_json::from_slice(&text).map_err(|error| damaged(error.to_string()))?;
    index
        .manifests()
        .iter()
        .map(|entry| {
            let record =
                entry.annotations().as_ref().and_then(|annotations| annotations.get(RECORD)).ok_or_else(
                    || damaged(format!("the entry for {} was not written by Cloister", entry.digest())),
                )?;
            serde_json::from_str(record)
                .map_err(|error| damaged(format!("the entry for {}: {error}", entry.digest())))
        })
        .collect()
}

fn write(store: &Store, records: &[ImageRecord]) -> Result<()> {
    let path = store.index_path();
    let failed = |why: String| Error::Damaged { path: path.clone(), why };
    let mut manifests = Vec::with_capacity(records.len());
    for record in records {
        let digest: oci_spec::image::Digest = record
            .manifest
            .to_string()
            .parse()
            .map_err(|error: oci_spec::OciSpecError| failed(error.to_string()))?;
        let mut entry =
            Descriptor::new(MediaType::from(record.media_type.as_str()), record.manifest_size, digest);
        let json = serde_json::to_string(record).map_err(|error| failed(error.to_string()))?;
        entry.set_annotations(Some(HashMap::from([
            (REF_NAME.to_owned(), record.name.clone()),
            (RECORD.to_owned(), json),
        ])));
        manifests.push(entry);
    }
    // Written by hand around the entries, so that an empty store is valid too.
    let json = serde_json::to_vec(&serde_json::json!({
        "schemaVersion": 2,
        "mediaType": MediaType::ImageIndex,
        "manifests": manifests,
    }))
    .map_err(|error| failed(error.to_string()))?;
    store.replace_file(&path, &json)
}

impl Store {
    /// All names, sorted.
    pub fn list(&self) -> Result<Vec<ImageRecord>> {
        let mut records = read(self)?;
        records.sort_by(|a, b| a.name.cmp(&b.name));
        Ok(records)
    }

    /// The image of exactly this name.
    pub fn get(&self, name: &Reference) -> Result<Option<ImageRecord>> {
        let name = name.to_string();
        Ok(read(self)?.into_iter().find(|record| record.name == name))
    }

    /// The image a user means: a name, a digest of its manifest, or (the start of) its image id.
    pub fn find(&self, text: &str) -> Result<ImageRecord> {
        let records = read(self)?;
        let reference = text.parse::<Reference>();
        if let Ok(reference) = &reference {
            let canonical = reference.to_string();
            if let Some(record) = records.iter().find(|record| record.name == canonical) {
                return Ok(record.clone());
            }
            // NAME@DIGEST and NAME:TAG@DIGEST also fit an image of that repository known by its tag.
            if let Some(digest) = reference.digest()
                && let Some(record) = records.iter().find(|record| {
                    (record.manifest == digest || record.index == Some(digest))
                        && record.name.parse::<Reference>().is_ok_and(|known| {
                            (known.registry(), known.repository())
                                == (reference.registry(), reference.repository())
                        })
                })
            {
                return Ok(record.clone());
            }
        }
        let hex = text.strip_prefix("sha256:").unwrap_or(text);
        if hex.len() >= MIN_SHORT_ID && hex.bytes().all(|b| b.is_ascii_digit() || (b'a'..=b'f').contains(&b))
        {
            let fits: Vec<&ImageRecord> = records
                .iter()
                .filter(|record| {
                    record.config.hex().starts_with(hex) || record.manifest.hex().starts_with(hex)
                })
                .collect();
            if let Some(first) = fits.first() {
                if fits.iter().any(|record| record.manifest != first.manifest) {
                    let candidates = fits.iter().map(|record| record.name.clone()).collect();
                    return Err(Error::Ambiguous { text: text.to_owned(), candidates });
                }
                return Ok((*first).clone());
            }
        } else if let Err(error) = reference {
            return Err(error.into());
        }
        Err(Error::NoSuchImage(text.to_owned()))
    }

    /// Gives an image another name as well; an existing name moves.
    pub fn tag(&self, source: &str, target: &Reference) -> Result<ImageRecord> {
        self.update(|records| {
            // Looked up under the lock, so that no prune removes the source in between.
            let mut record = self.find(source)?;
            record.name = target.to_string();
            put(records, record.clone());
            Ok(record)
        })
    }

    /// Removes a name. What only this name needed stays until [`Store::prune`].
    pub fn remove(&self, name: &str) -> Result<ImageRecord> {
        self.update(|records| {
            let found = self.find(name)?;
            records.retain(|record| record.name != found.name);
            Ok(found)
        })
    }

    /// Publishes names, all in one step. Everything they need must be in the store and pinned by the caller.
    pub(crate) fn publish_names(&self, new: &[ImageRecord]) -> Result<()> {
        self.update(|records| {
            new.iter().for_each(|record| put(records, record.clone()));
            Ok(())
        })
    }

    /// Changes the names; nobody else does so meanwhile.
    fn update<T>(&self, change: impl FnOnce(&mut Vec<ImageRecord>) -> Result<T>) -> Result<T> {
        let mut names = self.lock_names()?;
        let before = names.records.clone();
        let out = change(&mut names.records)?;
        if names.records != before {
            names.save()?;
        }
        Ok(out)
    }

    /// Reads the names and keeps everyone else from changing them.
    pub(super) fn lock_names(&self) -> Result<Names<'_>> {
        let lock = self.index_lock()?;
        Ok(Names { records: read(self)?, store: self, _lock: lock })
    }
}

/// The names, with the right to change them.
pub(super) struct Names<'a> {
    pub(super) records: Vec<ImageRecord>,
    store: &'a Store,
    _lock: NamedLock,
}

impl Names<'_> {
    /// Writes the names back.
    pub(super) fn save(&self) -> Result<()> {
        write(self.store, &self.records)
    }
}

fn put(records: &mut Vec<ImageRecord>, record: ImageRecord) {
    records.retain(|known| known.name != record.name);
    records.push(record);
}
