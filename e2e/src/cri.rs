//! A client of the Container Runtime Interface v1, as the kubelet is one, with blocking calls.

pub mod spdy;
pub mod spec;
pub mod stream;

use std::path::Path;
use std::time::Duration;

use anyhow::{Context, Result};
use hyper_util::rt::TokioIo;
use tokio::net::UnixStream;
use tokio::runtime::Runtime;
use tonic::transport::{Channel, Endpoint, Uri};

/// The messages and calls, generated from Kubernetes' contract.
#[allow(missing_docs, clippy::all, rustdoc::all, reason = "generated; the contract has the documentation")]
pub mod api {
    tonic::include_proto!("runtime.v1");
}

use api::image_service_client::ImageServiceClient;
use api::runtime_service_client::RuntimeServiceClient;

/// No call of a test takes longer, emulation included.
const DEADLINE: Duration = Duration::from_secs(120);

/// A connection to one containerd.
pub struct Cri {
    runtime: Runtime,
    channel: Channel,
}

/// Makes a blocking method of a call: `name(Request) -> Response`.
macro_rules! calls {
    ($client:ident: $($name:ident($request:ident) -> $response:ident;)*) => {
        impl Cri {$(
            #[doc = concat!("`", stringify!($request), "`.")]
            pub fn $name(&self, request: api::$request) -> Result<api::$response, tonic::Status> {
                let mut client = $client::new(self.channel.clone()).max_decoding_message_size(64 << 20);
                let mut request = tonic::Request::new(request);
                request.set_timeout(DEADLINE);
                self.runtime.block_on(client.$name(request)).map(tonic::Response::into_inner)
            }
        )*}
    };
}

calls! { RuntimeServiceClient:
    version(VersionRequest) -> VersionResponse;
    run_pod_sandbox(RunPodSandboxRequest) -> RunPodSandboxResponse;
    stop_pod_sandbox(StopPodSandboxRequest) -> StopPodSandboxResponse;
    remove_pod_sandbox(RemovePodSandboxRequest) -> RemovePodSandboxResponse;
    pod_sandbox_status(PodSandboxStatusRequest) -> PodSandboxStatusResponse;
    list_pod_sandbox(ListPodSandboxRequest) -> ListPodSandboxResponse;
    create_container(CreateContainerRequest) -> CreateContainerResponse;
    start_container(StartContainerRequest) -> StartContainerResponse;
    stop_container(StopContainerRequest) -> StopContainerResponse;
    remove_container(RemoveContainerRequest) -> RemoveContainerResponse;
    list_containers(ListContainersRequest) -> ListContainersResponse;
    container_status(ContainerStatusRequest) -> ContainerStatusResponse;
    update_container_resources(UpdateContainerResourcesRequest) -> UpdateContainerResourcesResponse;
    reopen_container_log(ReopenContainerLogRequest) -> ReopenContainerLogResponse;
    exec_sync(ExecSyncRequest) -> ExecSyncResponse;
    exec(ExecRequest) -> ExecResponse;
    attach(AttachRequest) -> AttachResponse;
    port_forward(PortForwardRequest) -> PortForwardResponse;
    container_stats(ContainerStatsRequest) -> ContainerStatsResponse;
    list_container_stats(ListContainerStatsRequest) -> ListContainerStatsResponse;
    pod_sandbox_stats(PodSandboxStatsRequest) -> PodSandboxStatsResponse;
    list_pod_sandbox_stats(ListPodSandboxStatsRequest) -> ListPodSandboxStatsResponse;
    status(StatusRequest) -> StatusResponse;
}

calls! { ImageServiceClient:
    list_images(ListImagesRequest) -> ListImagesResponse;
    image_status(ImageStatusRequest) -> ImageStatusResponse;
    pull_image(PullImageRequest) -> PullImageResponse;
    remove_image(RemoveImageRequest) -> RemoveImageResponse;
    image_fs_info(ImageFsInfoRequest) -> ImageFsInfoResponse;
}

impl Cri {
    /// Prepares a connection to containerd's socket; nothing is sent yet, and a restarted daemon is found again.
    pub fn new(socket: &Path) -> Result<Cri> {
        let runtime = tokio::runtime::Builder::new_multi_thread().worker_threads(1).enable_all().build()?;
        let socket = socket.to_path_buf();
        let connector = tower::service_fn(move |_: Uri| {
            let socket = socket.clone();
            async move { UnixStream::connect(socket).await.map(TokioIo::new) }
        });
        let _guard = runtime.enter();
        let channel = Endpoint::from_static("http://containerd").connect_with_connector_lazy(connector);
        Ok(Cri { runtime, channel })
    }

    /// Whether the daemon answers and says that runtime and network are ready.
    pub fn ready(&self) -> Result<()> {
        let status = self.status(api::StatusRequest::default())?.status.context("no status")?;
        for condition in status.conditions {
            anyhow::ensure!(condition.status, "{}: {}", condition.r#type, condition.message);
        }
        Ok(())
    }
}
