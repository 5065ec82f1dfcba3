//! The connections themselves: found by ports, by index and by deadline.

use std::collections::{BTreeSet, HashMap};
use std::time::Instant;

use crate::budget::Budget;
use crate::config::Limits;
use crate::conn::{Conn, Key};
use crate::token::ConnId;

/// Host ports of connections the host makes start here, as in other hybrid implementations; guests listen lower.
const FIRST_HOST_PORT: u32 = 1 << 30;

#[derive(Debug, Default)]
struct Slot {
    generation: u32,
    conn: Option<Conn>,
}

/// The connection table.
#[derive(Debug)]
pub(crate) struct Table {
    slots: Vec<Slot>,
    free: Vec<u32>,
    by_key: HashMap<Key, ConnId>,
    deadlines: BTreeSet<(Instant, ConnId)>,
    budget: Budget,
    next_port: u32,
}

impl Table {
    pub(crate) fn new(limits: &Limits) -> Self {
        Self {
            slots: Vec::new(),
            free: Vec::new(),
            by_key: HashMap::new(),
            deadlines: BTreeSet::new(),
            budget: Budget::new(limits.total_buffer, limits.connections, limits.connection_buffer),
            next_port: FIRST_HOST_PORT,
        }
    }

    pub(crate) fn len(&self) -> usize {
        self.slots.len() - self.free.len()
    }

    /// Reserves the buffer of one more connection.
    pub(crate) fn reserve(&mut self) -> Option<usize> {
        self.budget.reserve()
    }

    /// Returns the buffer of a connection that was not made after all.
    pub(crate) fn release(&mut self, credit: usize) {
        self.budget.release(credit);
    }

    /// Reserves the buffer and a host port for one more connection to `guest_port`.
    pub(crate) fn admit(&mut self, guest_port: u32) -> Option<(usize, u32)> {
        let credit = self.budget.reserve()?;
        loop {
            let host_port = self.next_port;
            // u32::MAX is VMADDR_PORT_ANY.
            self.next_port = if host_port >= u32::MAX - 1 { FIRST_HOST_PORT } else { host_port + 1 };
            // Ends: there are far more ports than connections.
            if !self.by_key.contains_key(&Key { guest_port, host_port }) {
                return Some((credit, host_port));
            }
        }
    }

    /// Adds a connection whose buffer has been reserved.
    pub(crate) fn insert(&mut self, conn: Conn) -> ConnId {
        let slot = self.free.pop().unwrap_or_else(|| {
            self.slots.push(Slot::default());
            // Fewer than 2³² connections fit in memory.
            (self.slots.len() - 1) as u32
        });
        let entry = &mut self.slots[slot as usize];
        entry.generation = (entry.generation + 1) & (u32::MAX >> 1);
        let id = ConnId { slot, generation: entry.generation };
        self.by_key.insert(conn.key, id);
        entry.conn = Some(conn);
        id
    }

    pub(crate) fn get(&self, id: ConnId) -> Option<&Conn> {
        let slot = self.slots.get(id.slot as usize)?;
        slot.conn.as_ref().filter(|_| slot.generation == id.generation)
    }

    pub(crate) fn get_mut(&mut self, id: ConnId) -> Option<&mut Conn> {
        let slot = self.slots.get_mut(id.slot as usize)?;
        slot.conn.as_mut().filter(|_| slot.generation == id.generation)
    }

    pub(crate) fn find(&self, key: Key) -> Option<ConnId> {
        self.by_key.get(&key).copied()
    }

    /// The guest may use the ports of this connection anew.
    pub(crate) fn forget_key(&mut self, id: ConnId) {
        if let Some(key) = self.get(id).map(|conn| conn.key)
            && self.by_key.get(&key) == Some(&id)
        {
            self.by_key.remove(&key);
        }
    }

    pub(crate) fn remove(&mut self, id: ConnId) -> Option<Conn> {
        self.get(id)?;
        self.forget_key(id);
        self.set_deadline(id, None);
        let conn = self.slots.get_mut(id.slot as usize)?.conn.take()?;
        self.free.push(id.slot);
        self.budget.release(conn.credit());
        Some(conn)
    }

    pub(crate) fn set_deadline(&mut self, id: ConnId, deadline: Option<Instant>) {
        let Some(conn) = self.get_mut(id) else { return };
        let old = std::mem::replace(&mut conn.deadline, deadline);
        if let Some(old) = old {
            self.deadlines.remove(&(old, id));
        }
        if let Some(new) = deadline {
            self.deadlines.insert((new, id));
        }
    }

    pub(crate) fn next_deadline(&self) -> Option<Instant> {
        self.deadlines.first().map(|(at, _)| *at)
    }

    /// Takes one connection out of the deadlines whose time has come.
    pub(crate) fn expired(&mut self, now: Instant) -> Option<ConnId> {
        let (at, id) = self.deadlines.first().copied()?;
        if at > now {
            return None;
        }
        self.deadlines.pop_first();
        Some(id)
    }

    pub(crate) fn ids(&self) -> Vec<ConnId> {
        let used = self.slots.iter().enumerate().filter(|(_, slot)| slot.conn.is_some());
        used.map(|(slot, entry)| ConnId { slot: slot as u32, generation: entry.generation }).collect()
    }

    pub(crate) fn iter(&self) -> impl Iterator<Item = &Conn> {
        self.slots.iter().filter_map(|slot| slot.conn.as_ref())
    }
}
