//! All snapshots: in memory as on disk, changed under one lock.
//!
//! Disk work happens under the lock. It is a few small files for each call, and containerd itself changes its database
//! under one lock, with a sync of its own, around every call.

use std::collections::{BTreeMap, HashSet};
use std::path::Path;
use std::sync::{Mutex, MutexGuard, PoisonError};

use cloister_image::{Digest, LayerFile, Store};

use super::chain::{chain_id, completing};
use super::disk::Disk;
use super::filter::Filter;
use super::index::{Entry, Index};
pub use super::record::{Found, Made};
use super::record::{Kind, Record, TARGET, Time};
use crate::error::{Error, Result};

/// Owner of the holds on layers in the image store.
pub const OWNER: &str = "snapshots";

/// All snapshots.
#[derive(Debug)]
pub struct State {
    disk: Disk,
    store: Store,
    /// Answer at once for layers that are in the store already.
    skip: bool,
    index: Mutex<Index>,
}

impl State {
    /// Reads what is on disk and makes good what a killed daemon left.
    pub fn open(root: &Path, store: Store, skip: bool) -> Result<Self> {
        let disk = Disk::open(root, store.root())?;
        let (records, next_id) = disk.load()?;
        let index = Index::of(records, next_id);
        for layer in index.needed() {
            match store.open_layer(&layer)? {
                Some(layer) => store.hold(&layer, OWNER)?,
                None => {
                    tracing::error!(%layer, "a snapshot needs this layer and it is not in the store; pull the image again")
                }
            }
        }
        Ok(Self { disk, store, skip, index: Mutex::new(index) })
    }

    /// The image store.
    pub fn store(&self) -> &Store {
        &self.store
    }

    fn lock(&self) -> MutexGuard<'_, Index> {
        // A change is made in memory after it is on disk, in steps that do not panic.
        self.index.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Makes a snapshot for one user.
    pub fn create(
        &self,
        kind: Kind,
        name: &str,
        parent: &str,
        labels: BTreeMap<String, String>,
    ) -> Result<Made> {
        if name.is_empty() {
            return Err(Error::Invalid("a snapshot needs a key".into()));
        }
        let mut index = self.lock();
        if index.by_name.contains_key(name) {
            return Err(Error::Exists(format!("snapshot {name}")));
        }
        let below = if parent.is_empty() {
            None
        } else {
            let entry = index.get(parent)?;
            if entry.record.kind != Kind::Committed {
                return Err(Error::Invalid(format!("parent {parent} is not committed")));
            }
            entry.record.chain
        };
        let now = Time::now();
        let record = Record {
            name: name.to_owned(),
            parent: parent.to_owned(),
            kind,
            created: now,
            updated: now,
            labels,
            layer: None,
            chain: None,
            host: false,
        };
        // Only with the label does containerd take "exists" for an answer.
        if kind == Kind::Active && record.labels.contains_key(TARGET) {
            if index.find_target(&record).is_some() {
                return Ok(Made::Known);
            }
            if self.skip
                && let Some(layer) = self.layer_for(&record, below.as_ref())?
            {
                self.store.hold(&layer, OWNER)?;
                let chain = Some(chain_id(below.as_ref(), &layer.diff_id));
                let record = Record { kind: Kind::Committed, layer: Some(layer.diff_id), chain, ..record };
                self.insert(&mut index, record, None)?;
                return Ok(Made::Known);
            }
        }
        let layers = if record.is_unpack() { None } else { Some(index.layers(parent)?) };
        self.insert(&mut index, record, layers.as_deref())?;
        Ok(Made::New)
    }

    fn insert(&self, index: &mut Index, record: Record, layers: Option<&[Digest]>) -> Result<()> {
        self.disk.publish(index.next_id, &record, layers)?;
        index.add(record);
        Ok(())
    }

    /// The layer in the store that would make `record` what its unpacker expects.
    fn layer_for(&self, record: &Record, below: Option<&Digest>) -> Result<Option<LayerFile>> {
        let Some(target) = record.target() else { return Ok(None) };
        if below.is_none() && !record.parent.is_empty() {
            return Ok(None);
        }
        match completing(below, &target, self.store.layers()?) {
            Some(layer) => Ok(self.store.open_layer(&layer)?),
            None => Ok(None),
        }
    }

    /// The snapshot whose folder is `dir`, if it is one that is being unpacked, and the layer it wants if the store has
    /// that already.
    pub fn unpacking(&self, dir: &Path) -> Result<(String, Option<LayerFile>)> {
        let id = self.disk.id_of(dir);
        let index = self.lock();
        let entry = index
            .by_name
            .values()
            .find(|entry| Some(entry.id) == id && entry.record.is_unpack())
            .ok_or_else(|| Error::NotFound(format!("snapshot in {}", dir.display())))?;
        let below = index.by_name.get(&entry.record.parent).and_then(|parent| parent.record.chain);
        Ok((entry.record.name.clone(), self.layer_for(&entry.record, below.as_ref())?))
    }

    /// Ties a layer to the snapshot that is being unpacked.
    pub fn applied(&self, name: &str, layer: &LayerFile) -> Result<()> {
        let mut index = self.lock();
        let entry = index.get_mut(name)?;
        if !entry.record.is_unpack() {
            return Err(Error::Precondition(format!("snapshot {name} is not being unpacked")));
        }
        let record = Record { layer: Some(layer.diff_id), ..entry.record.clone() };
        self.store.hold(layer, OWNER)?;
        self.disk.rewrite(entry.id, &record)?;
        entry.record = record;
        Ok(())
    }

    /// Turns an unpacked snapshot into a committed one.
    pub fn commit(&self, name: &str, key: &str, labels: BTreeMap<String, String>) -> Result<()> {
        let mut index = self.lock();
        let entry = index.get(key)?;
        let (id, old) = (entry.id, entry.record.clone());
        if old.kind != Kind::Active {
            return Err(Error::Precondition(format!("snapshot {key} is not active")));
        }
        let Some(layer) = old.layer else {
            return Err(Error::Precondition(format!(
                "snapshot {key} holds no layer: only what the `cloister` differ has unpacked can be committed (is it in `default` of containerd's diff service?)"
            )));
        };
        if name.is_empty() {
            return Err(Error::Invalid("a committed snapshot needs a name".into()));
        }
        if let Some(there) = index.by_name.get_mut(name) {
            // containerd reuses a name when its own commit failed after ours had succeeded.
            let same = there.record.kind == Kind::Committed
                && (&there.record.parent, there.record.layer) == (&old.parent, old.layer);
            if !same {
                return Err(Error::Exists(format!("snapshot {name}")));
            }
            let record = Record { labels, ..there.record.clone() };
            self.disk.rewrite(there.id, &record)?;
            there.record = record;
            return self.take_out(&mut index, key);
        }
        let below = index.by_name.get(&old.parent).and_then(|parent| parent.record.chain);
        let now = Time::now();
        let record = Record {
            name: name.to_owned(),
            kind: Kind::Committed,
            created: now,
            updated: now,
            labels,
            chain: Some(chain_id(below.as_ref(), &layer)),
            ..old
        };
        self.disk.rewrite(id, &record)?;
        index.by_name.remove(key);
        index.by_name.insert(name.to_owned(), Entry { id, record, children: 0 });
        Ok(())
    }

    /// Removes a snapshot nothing stands on.
    pub fn remove(&self, name: &str) -> Result<()> {
        let mut index = self.lock();
        let entry = index.get(name)?;
        if entry.children > 0 {
            return Err(Error::Precondition(format!("snapshot {name} has others on top of it")));
        }
        self.take_out(&mut index, name)
    }

    fn take_out(&self, index: &mut Index, name: &str) -> Result<()> {
        self.disk.hide(index.get(name)?.id)?;
        index.remove(name);
        Ok(())
    }

    /// Frees what no snapshot needs any more: folders, and layers that no image or VM needs either.
    pub fn cleanup(&self) -> Result<()> {
        self.disk.clean()?;
        for layer in self.store.held_by(OWNER)? {
            {
                let index = self.lock();
                if index.needs(&layer) {
                    continue;
                }
                self.store.release(&layer, OWNER)?;
            }
            if self.store.remove_layer(&layer)? {
                tracing::info!(%layer, "layer removed");
            }
        }
        Ok(())
    }

    /// Looks a snapshot up.
    pub fn find(&self, name: &str) -> Result<Found> {
        let index = self.lock();
        let entry = index.get(name)?;
        Ok(Found {
            dir: self.disk.path(entry.id),
            record: entry.record.clone(),
            layers: index.layers(name)?,
            chain: index.by_name.get(&entry.record.parent).and_then(|parent| parent.record.chain),
        })
    }

    /// The record of a snapshot.
    pub fn stat(&self, name: &str) -> Result<Record> {
        Ok(self.lock().get(name)?.record.clone())
    }

    /// Changes labels: those named by `paths` (`labels` or `labels.KEY`), all if there are none.
    pub fn update(&self, name: &str, labels: BTreeMap<String, String>, paths: &[String]) -> Result<Record> {
        let mut index = self.lock();
        let entry = index.get_mut(name)?;
        let record = entry.record.relabelled(labels, paths)?;
        self.disk.rewrite(entry.id, &record)?;
        entry.record = record.clone();
        Ok(record)
    }

    /// Remembers, before it happens, that the layers below are mounted on the host for this snapshot.
    pub fn set_host(&self, name: &str) -> Result<()> {
        let mut index = self.lock();
        let entry = index.get_mut(name)?;
        if !entry.record.host {
            let record = Record { host: true, ..entry.record.clone() };
            self.disk.rewrite(entry.id, &record)?;
            entry.record = record;
        }
        Ok(())
    }

    /// All layers that have to stay mounted on the host.
    pub fn host_layers(&self) -> Result<HashSet<Digest>> {
        self.lock().host_layers()
    }

    /// Records that match any of the filters, all if there are none; parents before children.
    pub fn list(&self, filters: &[Filter]) -> Vec<Record> {
        let index = self.lock();
        let mut entries: Vec<&Entry> = index.by_name.values().collect();
        entries.sort_by_key(|entry| entry.id);
        entries
            .into_iter()
            .map(|entry| &entry.record)
            .filter(|record| filters.is_empty() || filters.iter().any(|filter| filter.matches(record)))
            .cloned()
            .collect()
    }
}
