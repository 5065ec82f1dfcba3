//! Outputs of many files: `local`. fsutil's receiver (`receive.go`) for a sender that can't be trusted, into a folder that
//! is new, so that every file is asked for.

use std::collections::{HashMap, VecDeque};
use std::fs::File;
use std::io::Write;
use std::time::Duration;

use bollard_buildkit_proto::fsutil::types::packet::PacketType;
use bollard_buildkit_proto::fsutil::types::{Packet, Stat};

use super::staging::{Attributes, Staging, finish};
use super::{Limits, OutputError, Received};
use crate::context::{clean, mode};

/// Nothing came for so long: the builder is stuck.
pub(super) const STALL: Duration = Duration::from_secs(600);
/// Files that are asked for at one time; each has a descriptor.
const AT_ONCE: usize = 8;
/// Longest path and longest target of a link, in bytes.
const MAX_PATH: usize = 4095;
/// Longest part of a path, in bytes.
const MAX_PART: usize = 255;
/// Bytes of all names together, which are kept until the end.
const MAX_NAMES: usize = 64 << 20;

/// A tree on its way in. Every packet of the builder goes through [`Receiver::take`].
pub(crate) struct Receiver {
    /// Gone when the tree has its name.
    staging: Option<Staging>,
    limits: Limits,
    entries: u32,
    names: usize,
    bytes: u64,
    listed: bool,
    waiting: VecDeque<(u32, Waiting)>,
    open: HashMap<u32, Open>,
}

struct Waiting {
    path: String,
    size: u64,
    last: Attributes,
}

struct Open {
    file: File,
    left: u64,
    waiting: Waiting,
}

impl Receiver {
    pub(crate) fn new(staging: Staging, limits: Limits) -> Self {
        let (waiting, open) = Default::default();
        let staging = Some(staging);
        Self { staging, limits, entries: 0, names: 0, bytes: 0, listed: false, waiting, open }
    }

    /// Does what a packet says, and puts answers into `answers`. With the last one the tree has its name, and what was
    /// received is returned; an error leaves nothing behind.
    pub(crate) fn take(
        &mut self,
        packet: Packet,
        answers: &mut Vec<Packet>,
    ) -> Result<Option<Received>, OutputError> {
        match (PacketType::try_from(packet.r#type), packet.stat) {
            (Ok(PacketType::PacketErr), _) => {
                return Err(OutputError::Sender(String::from_utf8_lossy(&packet.data).into_owned()));
            }
            (Ok(PacketType::PacketStat), Some(stat)) if !self.listed => self.entry(stat)?,
            (Ok(PacketType::PacketStat), None) if !self.listed => self.listed = true,
            (Ok(PacketType::PacketData), _) => self.data(packet.id, &packet.data)?,
            _ => return Err(OutputError::Protocol("a packet out of place")),
        }
        let Some(staging) = &self.staging else {
            return Err(OutputError::Protocol("a packet after the end"));
        };
        while self.open.len() < AT_ONCE
            && let Some((id, waiting)) = self.waiting.pop_front()
        {
            let file = staging.open_file(&waiting.path)?;
            self.open.insert(id, Open { file, left: waiting.size, waiting });
            answers.push(Packet { r#type: PacketType::PacketReq.into(), id, ..Packet::default() });
        }
        if !self.listed || !self.open.is_empty() {
            return Ok(None);
        }
        if let Some(staging) = self.staging.take() {
            staging.publish()?;
        }
        answers.push(Packet { r#type: PacketType::PacketFin.into(), ..Packet::default() });
        Ok(Some(Received { bytes: self.bytes, digest: None }))
    }

    fn entry(&mut self, stat: Stat) -> Result<(), OutputError> {
        let Some(staging) = &mut self.staging else {
            return Err(OutputError::Protocol("an entry after the end"));
        };
        let id = self.entries;
        self.entries += 1;
        self.names += stat.path.len() + stat.linkname.len();
        if self.entries > self.limits.entries || self.names > MAX_NAMES {
            return Err(OutputError::TooMany(self.limits.entries));
        }
        let path = stat.path.as_str();
        let name = name(path).map_err(|why| OutputError::Refused(path.into(), why))?;
        let last = Attributes { mode: stat.mode & 0o777, modified: stat.mod_time };
        let target = stat.linkname.as_str();
        match stat.mode & mode::KIND {
            mode::FOLDER => staging.make_folder(path, name, last),
            mode::LINK if target.is_empty() || target.len() > MAX_PATH || target.contains('\0') => {
                Err(OutputError::Refused(path.into(), "it is a link to what can't be a path"))
            }
            mode::LINK => staging.make_link(path, name, target),
            0 if !target.is_empty() => {
                self::name(target).map_err(|why| OutputError::Refused(target.into(), why))?;
                staging.make_name(path, name, target)
            }
            0 => {
                let size =
                    u64::try_from(stat.size).map_err(|_| OutputError::Protocol("a size below zero"))?;
                self.bytes = self.bytes.saturating_add(size);
                if self.bytes > self.limits.bytes {
                    return Err(OutputError::TooLarge(self.limits.bytes));
                }
                staging.make_file(path, name)?;
                self.waiting.push_back((id, Waiting { path: stat.path, size, last }));
                Ok(())
            }
            _ => Err(OutputError::Refused(
                path.into(),
                "devices, pipes and sockets are not taken from a build",
            )),
        }
    }

    /// Bytes of a file; none are its end.
    fn data(&mut self, id: u32, bytes: &[u8]) -> Result<(), OutputError> {
        let asked = OutputError::Protocol("bytes of a file that was not asked for");
        let Some(open) = self.open.get_mut(&id) else { return Err(asked) };
        let failed = |path: &str, error| OutputError::Write(path.escape_debug().to_string(), error);
        if !bytes.is_empty() {
            let length = bytes.len() as u64;
            open.left = open
                .left
                .checked_sub(length)
                .ok_or(OutputError::Protocol("a file longer than it was said to be"))?;
            return open.file.write_all(bytes).map_err(|error| failed(&open.waiting.path, error));
        }
        let Some(Open { file, left, waiting }) = self.open.remove(&id) else { return Err(asked) };
        if left > 0 {
            return Err(OutputError::Protocol("a file shorter than it was said to be"));
        }
        finish(&file, waiting.last).map_err(|error| failed(&waiting.path, error.into()))
    }
}

/// The last part of a path that a guest says: relative, clean, and of parts that a file system takes.
fn name(path: &str) -> Result<&str, &'static str> {
    if path.is_empty() || path.len() > MAX_PATH || path.contains('\0') {
        return Err("its name is empty, too long or has a zero byte");
    }
    if path.starts_with('/') || path == "." || path.split('/').any(|part| part == "..") || clean(path) != path
    {
        return Err("its name is not relative and clean");
    }
    let name = path.rsplit_once('/').map_or(path, |(_, name)| name);
    if name.len() > MAX_PART { Err("its name is too long") } else { Ok(name) }
}
