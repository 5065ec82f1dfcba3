//! Every call: the shape of its request checked, its work handed on, blocking work kept off the one thread that answers.

use std::pin::Pin;
use std::sync::Arc;
use std::time::{Duration, Instant};

use cloister_protocol::v1::agent_server::Agent as Service;
use cloister_protocol::{limits, v1};
use tokio_stream::wrappers::BroadcastStream;
use tokio_stream::{Stream, StreamExt};
use tonic::{Request, Response, Status};

use super::{Agent, answers};
use crate::boot::power_off;
use crate::error::{Error, Result};
use crate::grow::grow;
use crate::host::{add_entropy, set_clock};
use crate::inroot::Root;
use crate::{copy, network, pod, stats};

/// How long a shutdown waits at most between TERM and KILL.
const LONGEST_GRACE: Duration = Duration::from_secs(600);

/// How long the processes of a container may take to freeze: one in the kernel goes on until it returns.
const FREEZE: Duration = Duration::from_secs(10);

type Answer<T> = std::result::Result<Response<T>, Status>;

/// Runs blocking work on a thread of its own.
async fn blocking<T: Send + 'static>(work: impl FnOnce() -> Result<T> + Send + 'static) -> Answer<T> {
    match tokio::task::spawn_blocking(work).await {
        Ok(result) => result.map(Response::new).map_err(Status::from),
        Err(error) => Err(Status::internal(error.to_string())),
    }
}

fn answer<T>(result: Result<T>) -> Answer<T> {
    result.map(Response::new).map_err(Status::from)
}

#[tonic::async_trait]
impl Service for Agent {
    async fn hello(&self, request: Request<v1::HelloRequest>) -> Answer<v1::HelloResponse> {
        answer(answers::hello(self, &request.into_inner()))
    }

    async fn health(&self, _: Request<v1::HealthRequest>) -> Answer<v1::HealthResponse> {
        answer(Ok(answers::health(&self.containers)))
    }

    async fn set_clock(&self, request: Request<v1::SetClockRequest>) -> Answer<v1::SetClockResponse> {
        answer(set_clock(request.into_inner().unix_nanos).map(|()| v1::SetClockResponse {}))
    }

    async fn add_entropy(&self, request: Request<v1::AddEntropyRequest>) -> Answer<v1::AddEntropyResponse> {
        answer(add_entropy(&request.into_inner().entropy).map(|()| v1::AddEntropyResponse {}))
    }

    async fn mount_share(&self, request: Request<v1::MountShareRequest>) -> Answer<v1::MountShareResponse> {
        let (shares, request) = (Arc::clone(&self.shares), request.into_inner());
        blocking(move || {
            let path = shares.mount(&request.tag, request.read_only)?;
            Ok(v1::MountShareResponse { path: path.display().to_string() })
        })
        .await
    }

    async fn unmount_share(
        &self,
        request: Request<v1::UnmountShareRequest>,
    ) -> Answer<v1::UnmountShareResponse> {
        let (shares, request) = (Arc::clone(&self.shares), request.into_inner());
        blocking(move || shares.unmount(&request.tag).map(|()| v1::UnmountShareResponse {})).await
    }

    async fn set_up_pod(&self, request: Request<v1::SetUpPodRequest>) -> Answer<v1::SetUpPodResponse> {
        let request = request.into_inner();
        blocking(move || pod::set_up(&request).map(|()| v1::SetUpPodResponse {})).await
    }

    async fn configure_network(
        &self,
        request: Request<v1::ConfigureNetworkRequest>,
    ) -> Answer<v1::ConfigureNetworkResponse> {
        let request = request.into_inner();
        blocking(move || network::configure(&request).map(|()| v1::ConfigureNetworkResponse {})).await
    }

    async fn grow(&self, request: Request<v1::GrowRequest>) -> Answer<v1::GrowResponse> {
        let request = request.into_inner();
        blocking(move || grow(&request)).await
    }

    async fn mount_volume(
        &self,
        request: Request<v1::MountVolumeRequest>,
    ) -> Answer<v1::MountVolumeResponse> {
        let (volumes, request) = (Arc::clone(&self.volumes), request.into_inner());
        blocking(move || {
            let path = volumes.mount(&request)?;
            Ok(v1::MountVolumeResponse { path: path.display().to_string() })
        })
        .await
    }

    async fn unmount_volume(
        &self,
        request: Request<v1::UnmountVolumeRequest>,
    ) -> Answer<v1::UnmountVolumeResponse> {
        let (volumes, request) = (Arc::clone(&self.volumes), request.into_inner());
        blocking(move || volumes.unmount(&request.id).map(|()| v1::UnmountVolumeResponse {})).await
    }

    async fn sync_volume(&self, request: Request<v1::SyncVolumeRequest>) -> Answer<v1::SyncVolumeResponse> {
        let (volumes, request) = (Arc::clone(&self.volumes), request.into_inner());
        let stream = self
            .streams
            .claim(&request.stream)?
            .ok_or_else(|| Error::invalid("a volume without a stream"))?;
        blocking(move || volumes.sync(&request.id, stream).map(|()| v1::SyncVolumeResponse {})).await
    }

    async fn create_container(
        &self,
        request: Request<v1::CreateContainerRequest>,
    ) -> Answer<v1::CreateContainerResponse> {
        let (containers, request) = (Arc::clone(&self.containers), request.into_inner());
        blocking(move || containers.create(&request).map(|pid| v1::CreateContainerResponse { pid })).await
    }

    async fn start_container(
        &self,
        request: Request<v1::StartContainerRequest>,
    ) -> Answer<v1::StartContainerResponse> {
        let (containers, request) = (Arc::clone(&self.containers), request.into_inner());
        blocking(move || containers.start(&request.container_id).map(|()| v1::StartContainerResponse {}))
            .await
    }

    async fn exec(&self, request: Request<v1::ExecRequest>) -> Answer<v1::ExecResponse> {
        let (containers, request) = (Arc::clone(&self.containers), request.into_inner());
        blocking(move || containers.exec(&request).map(|pid| v1::ExecResponse { pid })).await
    }

    async fn wait(&self, request: Request<v1::WaitRequest>) -> Answer<v1::WaitResponse> {
        let process = request.into_inner().process.ok_or_else(|| Error::invalid("no process named"))?;
        answer(answers::wait(&self.containers, process).await)
    }

    async fn signal(&self, request: Request<v1::SignalRequest>) -> Answer<v1::SignalResponse> {
        let request = request.into_inner();
        let number = i32::try_from(request.signal).ok().filter(|n| (1..=64).contains(n));
        let number = number.ok_or_else(|| Error::invalid(format!("{} is no signal", request.signal)))?;
        let containers = Arc::clone(&self.containers);
        blocking(move || {
            containers.signal(request.process, number, request.all).map(|()| v1::SignalResponse {})
        })
        .await
    }

    async fn resize(&self, request: Request<v1::ResizeRequest>) -> Answer<v1::ResizeResponse> {
        let request = request.into_inner();
        let process = self.containers.process(request.process)?;
        answer(process.resize(request.rows, request.columns).map(|()| v1::ResizeResponse {}))
    }

    async fn close_stdin(&self, request: Request<v1::CloseStdinRequest>) -> Answer<v1::CloseStdinResponse> {
        self.containers.process(request.into_inner().process)?.close_stdin();
        answer(Ok(v1::CloseStdinResponse {}))
    }

    async fn delete_container(
        &self,
        request: Request<v1::DeleteContainerRequest>,
    ) -> Answer<v1::DeleteContainerResponse> {
        let (containers, request) = (Arc::clone(&self.containers), request.into_inner());
        blocking(move || containers.delete(&request.container_id).map(|()| v1::DeleteContainerResponse {}))
            .await
    }

    async fn update_container(
        &self,
        request: Request<v1::UpdateContainerRequest>,
    ) -> Answer<v1::UpdateContainerResponse> {
        let request = request.into_inner();
        let container = self.containers.get(&request.container_id)?;
        let containers = Arc::clone(&self.containers);
        blocking(move || containers.update(&container, &request).map(|()| v1::UpdateContainerResponse {}))
            .await
    }

    async fn pause_container(
        &self,
        request: Request<v1::PauseContainerRequest>,
    ) -> Answer<v1::PauseContainerResponse> {
        let request = request.into_inner();
        let container = self.containers.get(&request.container_id)?;
        blocking(move || {
            container.cgroup.freeze(request.paused, FREEZE).map(|()| v1::PauseContainerResponse {})
        })
        .await
    }

    async fn list(&self, _: Request<v1::ListRequest>) -> Answer<v1::ListResponse> {
        answer(Ok(answers::list(&self.containers)))
    }

    async fn stats(&self, request: Request<v1::StatsRequest>) -> Answer<v1::StatsResponse> {
        let id = request.into_inner().container_id;
        let container = if id.is_empty() { None } else { Some(self.containers.get(&id)?) };
        blocking(move || Ok(stats::of(container.as_deref()))).await
    }

    type OomEventsStream = Pin<Box<dyn Stream<Item = std::result::Result<v1::OomEvent, Status>> + Send>>;

    async fn oom_events(&self, _: Request<v1::OomEventsRequest>) -> Answer<Self::OomEventsStream> {
        // A listener that fell behind misses the oldest events; the counters of `Stats` are complete.
        let events = BroadcastStream::new(self.containers.oom_events()).filter_map(|event| event.ok());
        answer(Ok(Box::pin(events.map(|container_id| Ok(v1::OomEvent { container_id })))))
    }

    async fn copy_in(&self, request: Request<v1::CopyRequest>) -> Answer<v1::CopyResponse> {
        let import = |root: &Root, path: &str, stream| copy::import(root, path, stream, copy::Bounds::NONE);
        self.copy(request.into_inner(), import).await
    }

    async fn copy_out(&self, request: Request<v1::CopyRequest>) -> Answer<v1::CopyResponse> {
        self.copy(request.into_inner(), copy::export).await
    }

    async fn shutdown(&self, request: Request<v1::ShutdownRequest>) -> Answer<v1::ShutdownResponse> {
        let grace = Duration::from_millis(request.into_inner().grace_millis.into()).min(LONGEST_GRACE);
        let containers = Arc::clone(&self.containers);
        let answered = blocking(move || {
            containers.end_all(Instant::now() + grace);
            rustix::fs::sync();
            Ok(v1::ShutdownResponse {})
        })
        .await;
        tokio::spawn(async {
            // Lets the answer leave; the host does not depend on it.
            tokio::time::sleep(Duration::from_millis(50)).await;
            power_off();
        });
        answered
    }
}

type Copy = fn(&Root, &str, std::os::fd::OwnedFd) -> Result<u64>;

impl Agent {
    async fn copy(&self, request: v1::CopyRequest, copy: Copy) -> Answer<v1::CopyResponse> {
        let stream =
            self.streams.claim(&request.stream)?.ok_or_else(|| Error::invalid("a copy without a stream"))?;
        if !request.path.starts_with('/') || request.path.len() > limits::PATH_BYTES {
            return Err(Error::invalid("the path of a copy is absolute and at most 4096 bytes long").into());
        }
        let container = self.containers.get(&request.container_id)?;
        blocking(move || Ok(v1::CopyResponse { bytes: copy(&container.root()?, &request.path, stream)? }))
            .await
    }
}
