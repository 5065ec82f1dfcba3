//! containerd's Sandbox service: a pod without a sandbox container (`sandboxer = "shim"` of containerd 2).

mod request;

use std::sync::Arc;
use std::time::SystemTime;

use async_trait::async_trait;
use containerd_shim::TtrpcResult;
use containerd_shim::protos::sandbox_api::{
    CreateSandboxRequest, CreateSandboxResponse, PingRequest, PingResponse, PlatformRequest,
    PlatformResponse, SandboxMetricsRequest, SandboxMetricsResponse, SandboxStatusRequest,
    SandboxStatusResponse, ShutdownSandboxRequest, ShutdownSandboxResponse, StartSandboxRequest,
    StartSandboxResponse, StopSandboxRequest, StopSandboxResponse, WaitSandboxRequest, WaitSandboxResponse,
};
use containerd_shim::protos::sandbox_async::Sandbox;
use containerd_shim::protos::ttrpc::r#async::TtrpcContext;
use containerd_shim::protos::types::platform::Platform;
use tracing::{Instrument, info_span};

use crate::events::timestamp;
use crate::failure::{Failure, Result};
use crate::pod::{Pod, Stage};

/// The service of one pod.
pub struct Service {
    pod: Arc<Pod>,
    created: SystemTime,
}

impl Service {
    /// Serves a pod.
    pub fn new(pod: Arc<Pod>) -> Self {
        Self { pod, created: SystemTime::now() }
    }

    /// A call about this pod, in a span that carries its id.
    async fn call<T>(
        &self,
        name: &'static str,
        id: &str,
        call: impl Future<Output = Result<T>>,
    ) -> TtrpcResult<T> {
        if id != self.pod.id {
            return Err(Failure::NotFound(format!("sandbox {id} is not known: not found")).into());
        }
        let span = info_span!("sandbox", method = name, pod = id);
        async {
            let begun = std::time::Instant::now();
            let result = call.await;
            let took = begun.elapsed();
            self.pod.counted.request(&format!("sandbox_{name}"), result.is_ok(), took);
            let took_ms = u64::try_from(took.as_millis()).unwrap_or(u64::MAX);
            match &result {
                Ok(_) => tracing::debug!(took_ms, "done"),
                Err(failure) => tracing::info!(took_ms, %failure, "failed"),
            }
            Ok(result?)
        }
        .instrument(span)
        .await
    }

    fn state(&self) -> &'static str {
        match self.pod.stage() {
            Stage::Running(_) => "SANDBOX_READY",
            Stage::Absent | Stage::Booting | Stage::Gone(_) => "SANDBOX_NOTREADY",
        }
    }
}

#[async_trait]
impl Sandbox for Service {
    async fn create_sandbox(
        &self,
        _ctx: &TtrpcContext,
        req: CreateSandboxRequest,
    ) -> TtrpcResult<CreateSandboxResponse> {
        let id = req.sandbox_id.clone();
        let create = async {
            self.pod.boot(request::setup(&req)?).await?;
            Ok(CreateSandboxResponse::default())
        };
        self.call("create", &id, create).await
    }

    async fn start_sandbox(
        &self,
        _ctx: &TtrpcContext,
        req: StartSandboxRequest,
    ) -> TtrpcResult<StartSandboxResponse> {
        let start = async {
            self.pod.machine().await?;
            Ok(StartSandboxResponse {
                pid: self.pod.pid(),
                created_at: Some(timestamp(self.created)).into(),
                ..StartSandboxResponse::default()
            })
        };
        self.call("start", &req.sandbox_id, start).await
    }

    async fn platform(&self, _ctx: &TtrpcContext, req: PlatformRequest) -> TtrpcResult<PlatformResponse> {
        let platform = async {
            let architecture = if cfg!(target_arch = "aarch64") { "arm64" } else { "amd64" };
            let platform = Platform {
                os: "linux".to_owned(),
                architecture: architecture.to_owned(),
                ..Platform::default()
            };
            Ok(PlatformResponse { platform: Some(platform).into(), ..PlatformResponse::default() })
        };
        self.call("platform", &req.sandbox_id, platform).await
    }

    async fn stop_sandbox(
        &self,
        _ctx: &TtrpcContext,
        req: StopSandboxRequest,
    ) -> TtrpcResult<StopSandboxResponse> {
        let stop = async {
            self.pod.stop().await;
            Ok(StopSandboxResponse::default())
        };
        self.call("stop", &req.sandbox_id, stop).await
    }

    async fn wait_sandbox(
        &self,
        _ctx: &TtrpcContext,
        req: WaitSandboxRequest,
    ) -> TtrpcResult<WaitSandboxResponse> {
        let wait = async {
            self.pod.gone().await;
            Ok(WaitSandboxResponse {
                exit_status: 137,
                exited_at: Some(timestamp(SystemTime::now())).into(),
                ..WaitSandboxResponse::default()
            })
        };
        self.call("wait", &req.sandbox_id, wait).await
    }

    async fn sandbox_status(
        &self,
        _ctx: &TtrpcContext,
        req: SandboxStatusRequest,
    ) -> TtrpcResult<SandboxStatusResponse> {
        let status = async {
            let mut answer = SandboxStatusResponse {
                sandbox_id: req.sandbox_id.clone(),
                pid: self.pod.pid(),
                state: self.state().to_owned(),
                created_at: Some(timestamp(self.created)).into(),
                ..SandboxStatusResponse::default()
            };
            if req.verbose
                && let Stage::Running(machine) = self.pod.stage()
            {
                let kernel = machine.sandbox.guest().kernel_release.clone();
                answer.info.insert("kernel".to_owned(), kernel);
            }
            Ok(answer)
        };
        self.call("status", &req.sandbox_id, status).await
    }

    async fn ping_sandbox(&self, _ctx: &TtrpcContext, req: PingRequest) -> TtrpcResult<PingResponse> {
        let ping = async {
            // The monitor's life is watched elsewhere; a busy guest is no dead one.
            self.pod.present()?;
            Ok(PingResponse::default())
        };
        self.call("ping", &req.sandbox_id, ping).await
    }

    async fn shutdown_sandbox(
        &self,
        _ctx: &TtrpcContext,
        req: ShutdownSandboxRequest,
    ) -> TtrpcResult<ShutdownSandboxResponse> {
        let shutdown = async {
            self.pod.stop().await;
            self.pod.finish();
            Ok(ShutdownSandboxResponse::default())
        };
        self.call("shutdown", &req.sandbox_id, shutdown).await
    }

    async fn sandbox_metrics(
        &self,
        _ctx: &TtrpcContext,
        req: SandboxMetricsRequest,
    ) -> TtrpcResult<SandboxMetricsResponse> {
        let metrics = async {
            let machine = self.pod.present()?;
            let stats = machine.sandbox.while_alive(machine.sandbox.agent().stats("")).await?;
            let mut answer = SandboxMetricsResponse::default();
            let metrics = answer.metrics.mut_or_insert_default();
            metrics.timestamp = Some(timestamp(SystemTime::now())).into();
            metrics.id.clone_from(&self.pod.id);
            metrics.data = Some(crate::stats::pack(&stats, true)?).into();
            Ok(answer)
        };
        self.call("metrics", &req.sandbox_id, metrics).await
    }
}
