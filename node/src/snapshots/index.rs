//! Snapshots by name, as they are on disk.

use std::collections::{HashMap, HashSet};

use cloister_image::Digest;

use super::record::{Kind, Record, TARGET};
use crate::error::{Error, Result};

/// All snapshots.
#[derive(Debug, Default)]
pub(super) struct Index {
    pub(super) by_name: HashMap<String, Entry>,
    pub(super) next_id: u64,
}

/// One of them.
#[derive(Debug)]
pub(super) struct Entry {
    pub(super) id: u64,
    pub(super) record: Record,
    /// Snapshots that stand on it.
    pub(super) children: usize,
}

impl Index {
    /// What was read from disk.
    pub(super) fn of(records: impl IntoIterator<Item = (u64, Record)>, next_id: u64) -> Self {
        let mut index = Self { next_id, ..Self::default() };
        for (id, record) in records {
            index.by_name.insert(record.name.clone(), Entry { id, record, children: 0 });
        }
        let parents: Vec<String> = index.by_name.values().map(|entry| entry.record.parent.clone()).collect();
        for parent in parents {
            if let Some(entry) = index.by_name.get_mut(&parent) {
                entry.children += 1;
            }
        }
        index
    }

    /// Adds a snapshot, which has the next number.
    pub(super) fn add(&mut self, record: Record) {
        if let Some(parent) = self.by_name.get_mut(&record.parent) {
            parent.children += 1;
        }
        self.by_name.insert(record.name.clone(), Entry { id: self.next_id, record, children: 0 });
        self.next_id += 1;
    }

    /// Removes a snapshot.
    pub(super) fn remove(&mut self, name: &str) {
        if let Some(Entry { record, .. }) = self.by_name.remove(name)
            && let Some(parent) = self.by_name.get_mut(&record.parent)
        {
            parent.children -= 1;
        }
    }

    pub(super) fn get(&self, name: &str) -> Result<&Entry> {
        self.by_name.get(name).ok_or_else(|| Error::NotFound(format!("snapshot {name}")))
    }

    pub(super) fn get_mut(&mut self, name: &str) -> Result<&mut Entry> {
        self.by_name.get_mut(name).ok_or_else(|| Error::NotFound(format!("snapshot {name}")))
    }

    /// A committed snapshot that is what `wanted` is to become.
    pub(super) fn find_target(&self, wanted: &Record) -> Option<&Entry> {
        let target = wanted.labels.get(TARGET);
        self.by_name.values().find(|entry| {
            entry.record.kind == Kind::Committed
                && entry.record.parent == wanted.parent
                && entry.record.labels.get(TARGET) == target
        })
    }

    /// Diff IDs from the lowest layer up to and with the committed snapshot `name`, or up to what it stands on.
    pub(super) fn layers(&self, name: &str) -> Result<Vec<Digest>> {
        let mut layers = Vec::new();
        let mut at = name;
        while !at.is_empty() {
            let record = &self.get(at)?.record;
            if record.kind == Kind::Committed {
                layers.extend(record.layer);
            }
            at = &record.parent;
        }
        layers.reverse();
        Ok(layers)
    }

    /// All layers that have to stay mounted on the host.
    pub(super) fn host_layers(&self) -> Result<HashSet<Digest>> {
        let mut layers = HashSet::new();
        for entry in self.by_name.values().filter(|entry| entry.record.host) {
            layers.extend(self.layers(&entry.record.name)?);
        }
        Ok(layers)
    }

    pub(super) fn needs(&self, layer: &Digest) -> bool {
        self.by_name.values().any(|entry| entry.record.layer.as_ref() == Some(layer))
    }

    pub(super) fn needed(&self) -> HashSet<Digest> {
        self.by_name.values().filter_map(|entry| entry.record.layer).collect()
    }
}
