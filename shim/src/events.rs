//! Events to containerd, in the order they happen.

use std::sync::{Arc, OnceLock};
use std::time::SystemTime;

use containerd_shim::Context;
use containerd_shim::event::Event;
use containerd_shim::protos::events::task::{
    TaskCreate, TaskDelete, TaskExecAdded, TaskExecStarted, TaskExit, TaskIO, TaskOOM, TaskPaused,
    TaskResumed, TaskStart,
};
use containerd_shim::protos::protobuf::MessageDyn;
use containerd_shim::protos::protobuf::well_known_types::timestamp::Timestamp;
use containerd_shim::publisher::RemotePublisher;
use tokio::sync::mpsc;

use crate::io::Names;
use crate::metrics::Counted;

/// Events that may wait for containerd.
const QUEUE: usize = 4096;

type Message = (String, Box<dyn MessageDyn>);

/// Sends events.
#[derive(Clone)]
pub struct Events {
    queue: mpsc::Sender<Message>,
    counted: Arc<Counted>,
}

impl Events {
    /// Begins to send events of `namespace` to containerd's ttrpc address.
    pub fn start(address: String, namespace: String, counted: Arc<Counted>) -> Self {
        let (queue, messages) = mpsc::channel(QUEUE);
        tokio::spawn(publish(address, namespace, messages));
        Self { queue, counted }
    }

    /// Where events are counted.
    pub fn counted(&self) -> Arc<Counted> {
        Arc::clone(&self.counted)
    }

    fn send<E: Event + MessageDyn>(&self, event: E) {
        let topic = event.topic();
        tracing::debug!(topic, "event");
        self.counted.event(&topic);
        if self.queue.try_send((topic, Box::new(event))).is_err() {
            tracing::warn!("containerd does not take events; one is lost");
        }
    }

    /// A container was made.
    pub fn created(&self, id: &str, bundle: &str, names: &Names, pid: u32) {
        let io = TaskIO {
            stdin: names.stdin.clone(),
            stdout: names.stdout.clone(),
            stderr: names.stderr.clone(),
            terminal: names.terminal,
            ..TaskIO::default()
        };
        self.send(TaskCreate {
            container_id: id.to_owned(),
            bundle: bundle.to_owned(),
            io: Some(io).into(),
            pid,
            ..TaskCreate::default()
        });
    }

    /// A container's process runs.
    pub fn started(&self, id: &str, pid: u32) {
        self.send(TaskStart { container_id: id.to_owned(), pid, ..TaskStart::default() });
    }

    /// A process ended; `exec` is empty for a container's own.
    pub fn exited(&self, id: &str, exec: &str, pid: u32, code: u32, at: SystemTime) {
        self.send(TaskExit {
            container_id: id.to_owned(),
            id: if exec.is_empty() { id.to_owned() } else { exec.to_owned() },
            pid,
            exit_status: code,
            exited_at: Some(timestamp(at)).into(),
            ..TaskExit::default()
        });
    }

    /// A container is gone.
    pub fn deleted(&self, id: &str, pid: u32, code: u32, at: SystemTime) {
        self.send(TaskDelete {
            container_id: id.to_owned(),
            pid,
            exit_status: code,
            exited_at: Some(timestamp(at)).into(),
            ..TaskDelete::default()
        });
    }

    /// One more process was announced.
    pub fn exec_added(&self, id: &str, exec: &str) {
        self.send(TaskExecAdded {
            container_id: id.to_owned(),
            exec_id: exec.to_owned(),
            ..TaskExecAdded::default()
        });
    }

    /// One more process runs.
    pub fn exec_started(&self, id: &str, exec: &str, pid: u32) {
        self.send(TaskExecStarted {
            container_id: id.to_owned(),
            exec_id: exec.to_owned(),
            pid,
            ..TaskExecStarted::default()
        });
    }

    /// A container lost a process to a lack of memory.
    pub fn out_of_memory(&self, id: &str) {
        self.send(TaskOOM { container_id: id.to_owned(), ..TaskOOM::default() });
    }

    /// A container stands still, or goes on.
    pub fn paused(&self, id: &str, paused: bool) {
        if paused {
            self.send(TaskPaused { container_id: id.to_owned(), ..TaskPaused::default() });
        } else {
            self.send(TaskResumed { container_id: id.to_owned(), ..TaskResumed::default() });
        }
    }
}

/// One event after the other. The publisher itself tries again when containerd restarts.
async fn publish(address: String, namespace: String, mut messages: mpsc::Receiver<Message>) {
    let publisher = OnceLock::new();
    while let Some((topic, event)) = messages.recv().await {
        while publisher.get().is_none() {
            match RemotePublisher::new(&address).await {
                Ok(made) => drop(publisher.set(made)),
                Err(error) => {
                    tracing::warn!(%error, "cannot reach containerd to send events");
                    tokio::time::sleep(std::time::Duration::from_millis(200)).await;
                }
            }
        }
        if let Some(publisher) = publisher.get()
            && let Err(error) = publisher.publish(Context::default(), &topic, &namespace, event).await
        {
            tracing::warn!(%error, topic, "an event is lost");
        }
    }
}

/// A time in containerd's notation.
pub fn timestamp(at: SystemTime) -> Timestamp {
    let since = at.duration_since(SystemTime::UNIX_EPOCH).unwrap_or_default();
    Timestamp {
        seconds: i64::try_from(since.as_secs()).unwrap_or(i64::MAX),
        nanos: i32::try_from(since.subsec_nanos()).unwrap_or_default(),
        ..Timestamp::default()
    }
}
