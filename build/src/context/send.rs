//! One context on its way to a builder (fsutil's `send.go`): entries as they are found, then the bytes of those files that
//! are asked for by their number among all entries, at most once each.

use std::collections::HashMap;
use std::fs::File;
use std::io::Read;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::sync::{Arc, Mutex, PoisonError};
use std::time::Duration;

use bollard_buildkit_proto::fsutil::types::packet::PacketType;
use bollard_buildkit_proto::fsutil::types::{Packet, Stat};
use tokio::runtime::Handle;
use tokio::sync::mpsc;
use tokio::time::timeout;
use tonic::{Status, Streaming};

use super::filter::Filter;
use super::tree::{Content, Tree};
use super::walk::{Walk, gone};
use super::{ContextError, mode};

/// Bytes of a file in one packet, as the model has it.
const CHUNK: usize = 32 << 10;
/// Nothing moved in either direction for so long: the builder is stuck.
const STALL: Duration = Duration::from_secs(600);

/// Why sending ended before its end.
#[derive(Debug, thiserror::Error)]
pub(crate) enum Failure {
    #[error(transparent)]
    Context(#[from] ContextError),
    #[error("the builder asked for file {0} of the context, which it was not told of, or got already")]
    Unknown(u32),
    #[error("the builder sent a packet of type {0} while a context was sent to it")]
    Unexpected(i32),
    #[error("the builder gave up on the context: {0}")]
    Refused(String),
    #[error("the builder took nothing of the context for {} s", STALL.as_secs())]
    Stalled,
    #[error("the builder is gone")]
    Gone,
}

/// What walking, sending and listening share.
#[derive(Clone)]
pub(crate) struct Sender {
    pub(crate) tree: Tree,
    pub(crate) packets: mpsc::Sender<Result<Packet, Status>>,
    files: Arc<Mutex<HashMap<u32, Announced>>>,
    stopped: Arc<AtomicBool>,
    moved: Arc<AtomicU64>,
    runtime: Handle,
}

/// A file that may be asked for, as the walk found it.
pub(crate) struct Announced {
    path: String,
    size: i64,
    modified: i64,
}

impl Sender {
    pub(crate) fn new(tree: Tree, packets: mpsc::Sender<Result<Packet, Status>>) -> Self {
        let (files, stopped, moved) = Default::default();
        Self { tree, packets, files, stopped, moved, runtime: Handle::current() }
    }

    /// Tells of all entries. Blocks.
    pub(crate) fn walk(&self, filter: Filter) -> Result<(), Failure> {
        let mut walk = Walk::new(&self.tree, filter)?;
        let mut id = 0;
        while let Some(stat) = walk.step()? {
            if mode::is_regular(stat.mode) {
                let file = Announced { path: stat.path.clone(), size: stat.size, modified: stat.mod_time };
                self.files.lock().unwrap_or_else(PoisonError::into_inner).insert(id, file);
            }
            id += 1;
            self.put(PacketType::PacketStat, 0, Vec::new(), Some(stat))?;
        }
        self.put(PacketType::PacketStat, 0, Vec::new(), None)
    }

    /// Sends the files of the queue until it is closed. Blocks.
    pub(crate) fn send(&self, mut queue: mpsc::UnboundedReceiver<(u32, Announced)>) -> Result<(), Failure> {
        while let Some((id, file)) = queue.blocking_recv() {
            let read = |error| {
                let path = file.path.clone();
                if gone(&error) { ContextError::Changed(path) } else { ContextError::Read(path, error) }
            };
            match self.tree.open_file(&file.path).map_err(read)? {
                Content::Bytes(bytes) => {
                    for chunk in bytes.chunks(CHUNK) {
                        self.put(PacketType::PacketData, id, chunk.to_vec(), None)?;
                    }
                }
                Content::File(open) => self.send_file(id, &file, open)?,
            }
            self.put(PacketType::PacketData, id, Vec::new(), None)?;
        }
        Ok(())
    }

    /// Sends just the file that was announced: another size or time of change before or after means torn bytes.
    fn send_file(&self, id: u32, file: &Announced, mut open: File) -> Result<(), Failure> {
        let read = |error| ContextError::Read(file.path.clone(), error);
        let same = |open: &File| -> Result<(), ContextError> {
            let (mode, size, modified) = super::disk::modified(open).map_err(read)?;
            let same = mode::is_regular(mode) && size == file.size && modified == file.modified;
            if same { Ok(()) } else { Err(ContextError::Changed(file.path.clone())) }
        };
        same(&open)?;
        let mut left = u64::try_from(file.size).unwrap_or(0);
        while left > 0 {
            let mut chunk = vec![0; usize::try_from(left).unwrap_or(CHUNK).min(CHUNK)];
            let length = open.read(&mut chunk).map_err(read)?;
            if length == 0 {
                return Err(ContextError::Changed(file.path.clone()).into());
            }
            chunk.truncate(length);
            left -= length as u64;
            self.put(PacketType::PacketData, id, chunk, None)?;
        }
        Ok(same(&open)?)
    }

    /// Takes requests until the builder has everything. Whatever it asks for must have been announced.
    ///
    /// It never waits for the files: BuildKit asks for thousands at once, and the HTTP/2 library takes so many small
    /// frames that nobody reads for an attack, and ends the connection. The queue only gets what was announced.
    pub(crate) async fn listen(
        &self,
        mut incoming: Streaming<Packet>,
        queue: mpsc::UnboundedSender<(u32, Announced)>,
    ) -> Result<(), Failure> {
        loop {
            let before = self.moved.load(Ordering::Relaxed);
            let packet = match timeout(STALL, incoming.message()).await {
                Ok(Ok(Some(packet))) => packet,
                Ok(Ok(None) | Err(_)) => return Err(Failure::Gone),
                Err(_) if self.moved.load(Ordering::Relaxed) != before => continue,
                Err(_) => return Err(Failure::Stalled),
            };
            match PacketType::try_from(packet.r#type) {
                Ok(PacketType::PacketReq) => {
                    let file = self.files.lock().unwrap_or_else(PoisonError::into_inner).remove(&packet.id);
                    let file = file.ok_or(Failure::Unknown(packet.id))?;
                    queue.send((packet.id, file)).map_err(|_| Failure::Gone)?;
                }
                Ok(PacketType::PacketFin) => {
                    self.stop();
                    return Ok(());
                }
                Ok(PacketType::PacketErr) => {
                    return Err(Failure::Refused(String::from_utf8_lossy(&packet.data).into_owned()));
                }
                _ => return Err(Failure::Unexpected(packet.r#type)),
            }
        }
    }

    /// Ends walking and sending at their next packet.
    pub(crate) fn stop(&self) {
        self.stopped.store(true, Ordering::Relaxed);
    }

    fn put(&self, kind: PacketType, id: u32, data: Vec<u8>, stat: Option<Stat>) -> Result<(), Failure> {
        if self.stopped.load(Ordering::Relaxed) {
            return Err(Failure::Gone);
        }
        let packet = Packet { r#type: kind.into(), id, data, stat };
        let sent = self.runtime.block_on(timeout(STALL, self.packets.send(Ok(packet))));
        self.moved.fetch_add(1, Ordering::Relaxed);
        sent.map_err(|_| Failure::Stalled)?.map_err(|_| Failure::Gone)
    }
}
