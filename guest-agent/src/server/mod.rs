//! The gRPC service: what it serves from, and on which sockets.

mod answers;
mod service;

use std::sync::Arc;

use cloister_protocol::limits;
use cloister_protocol::v1::agent_server::AgentServer;
use tokio_vsock::VsockListener;

use crate::boot::Boot;
use crate::cgroup::Cgroup;
use crate::containers::Containers;
use crate::error::{Context, Result};
use crate::forward;
use crate::reaper::Reaper;
use crate::rootfs::Shares;
use crate::streams::Streams;
use crate::volumes::Volumes;

/// Bytes of memory that containers cannot take from the agent: more than it ever used in tests.
const SHELTER: u64 = 16 << 20;

/// Serves until the guest is powered off.
///
/// # Errors
/// When the runtime or a listener fails.
pub fn run(boot: Boot) -> Result<()> {
    let runtime = tokio::runtime::Builder::new_current_thread()
        .enable_all()
        .max_blocking_threads(64)
        .thread_stack_size(512 << 10)
        .build()
        .context(|| "start the runtime".into())?;
    runtime.block_on(serve(boot))
}

async fn serve(boot: Boot) -> Result<()> {
    let Boot { started, listening, cmdline, control, streams, forward } = boot;
    let reaper = Arc::new(Reaper::default());
    let unclaimed = Arc::new(Streams::default());
    // Beside the first calls: it takes the kernel a moment.
    tokio::task::spawn_blocking(|| {
        if let Err(error) = Cgroup::agent().shelter(SHELTER) {
            tracing::warn!(%error, "the agent has no memory of its own");
        }
    });
    let containers =
        Arc::new(Containers::new(cmdline.privileged, Arc::clone(&reaper), Arc::clone(&unclaimed)));
    let forwarded = forward::run(VsockListener::from(forward), Arc::clone(&containers));
    let agent = Agent {
        started,
        listening,
        privileged: cmdline.privileged,
        containers,
        streams: Arc::clone(&unclaimed),
        shares: Arc::default(),
        volumes: Arc::default(),
    };
    let service = AgentServer::new(agent)
        .max_decoding_message_size(limits::MESSAGE_BYTES)
        .max_encoding_message_size(limits::MESSAGE_BYTES);
    let control = tonic::transport::Server::builder()
        .serve_with_incoming(service, VsockListener::from(control).incoming());
    tokio::select! {
        ended = control => ended.context(|| "serve control calls".into()),
        () = unclaimed.run(VsockListener::from(streams)) => Ok(()),
        () = forwarded => Ok(()),
        ended = reaper.run() => ended,
    }
}

/// What the calls work on.
struct Agent {
    started: u64,
    listening: u64,
    privileged: bool,
    containers: Arc<Containers>,
    streams: Arc<Streams>,
    shares: Arc<Shares>,
    volumes: Arc<Volumes>,
}
