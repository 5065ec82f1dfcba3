//! containerd's Task service.

use std::path::PathBuf;
use std::sync::Arc;

use async_trait::async_trait;
use containerd_shim::protos::api::{
    CheckpointTaskRequest, CloseIORequest, ConnectRequest, ConnectResponse, CreateTaskRequest,
    CreateTaskResponse, DeleteRequest, DeleteResponse, Empty, ExecProcessRequest, KillRequest, PauseRequest,
    PidsRequest, PidsResponse, ProcessInfo, ResizePtyRequest, ResumeRequest, ShutdownRequest, StartRequest,
    StartResponse, StateRequest, StateResponse, StatsRequest, StatsResponse, Status, UpdateTaskRequest,
    WaitRequest, WaitResponse,
};
use containerd_shim::protos::protobuf::well_known_types::any::Any;
use containerd_shim::protos::shim_async::Task;
use containerd_shim::protos::ttrpc::r#async::TtrpcContext;
use containerd_shim::{TtrpcResult, protos::protobuf::MessageField};
use oci_spec::runtime::LinuxResources;
use tracing::{Instrument, info_span};

use crate::events::timestamp;
use crate::failure::{Failure, Result};
use crate::io::Names;
use crate::lasting::to_its_end;
use crate::pod::{NewContainer, Pod};
use crate::process::{End, State};

/// Most bytes of a specification inside a request.
const SPEC_BYTES: usize = 4 << 20;

/// The service of one pod.
pub struct Service(pub Arc<Pod>);

impl Service {
    /// A call, in a span that carries the ids of pod and container.
    async fn call<T>(
        &self,
        name: &'static str,
        container: &str,
        call: impl Future<Output = Result<T>>,
    ) -> TtrpcResult<T> {
        let span = info_span!("call", method = name, pod = self.0.id, container);
        async {
            let begun = std::time::Instant::now();
            let result = call.await;
            let took = begun.elapsed();
            self.0.counted.request(name, result.is_ok(), took);
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

    async fn state_of(&self, req: &StateRequest) -> Result<StateResponse> {
        let container = self.0.container(&req.id)?;
        let process = container.process(&req.exec_id)?;
        let mut answer = StateResponse {
            id: req.id.clone(),
            exec_id: req.exec_id.clone(),
            bundle: container.bundle.display().to_string(),
            pid: self.0.pid_of(&req.id),
            stdin: process.names.stdin.clone(),
            stdout: process.names.stdout.clone(),
            stderr: process.names.stderr.clone(),
            terminal: process.names.terminal,
            ..StateResponse::default()
        };
        let status = match process.state() {
            State::Created => Status::CREATED,
            State::Running if container.is_paused() => Status::PAUSED,
            State::Running => Status::RUNNING,
            State::Ended(end) => {
                answer.exit_status = end.code;
                answer.exited_at = Some(timestamp(end.at)).into();
                Status::STOPPED
            }
        };
        answer.status = status.into();
        Ok(answer)
    }

    async fn delete_of(&self, req: &DeleteRequest) -> Result<DeleteResponse> {
        let pid = self.0.pid_of(&req.id);
        let end = if req.exec_id.is_empty() {
            self.0.delete(&req.id).await?
        } else {
            let container = self.0.container(&req.id)?;
            let process = container.process(&req.exec_id)?;
            if process.state() == State::Running {
                return Err(Failure::Precondition(format!("process {} runs: kill it first", req.exec_id)));
            }
            container.remove_exec(&req.exec_id);
            process.end().unwrap_or(End { code: 0, at: std::time::SystemTime::now() })
        };
        Ok(DeleteResponse {
            pid,
            exit_status: end.code,
            exited_at: Some(timestamp(end.at)).into(),
            ..DeleteResponse::default()
        })
    }

    async fn stats_of(&self, id: &str) -> Result<StatsResponse> {
        let whole = self.0.container(id)?.is_sandbox();
        let machine = self.0.present()?;
        let name = if whole { "" } else { id };
        let stats = machine.sandbox.while_alive(machine.sandbox.agent().stats(name)).await?;
        Ok(StatsResponse {
            stats: Some(crate::stats::pack(&stats, whole)?).into(),
            ..StatsResponse::default()
        })
    }
}

/// The JSON document inside a message.
fn document(any: &MessageField<Any>) -> Result<&[u8]> {
    let value = any.as_ref().map(|any| any.value.as_slice()).unwrap_or_default();
    if value.is_empty() || value.len() > SPEC_BYTES {
        return Err(Failure::Invalid(format!("a specification of {} bytes", value.len())));
    }
    Ok(value)
}

fn size(rows: u32, columns: u32) -> (u16, u16) {
    let side = |number: u32| u16::try_from(number).unwrap_or(u16::MAX);
    (side(rows), side(columns))
}

#[async_trait]
impl Task for Service {
    async fn state(&self, _ctx: &TtrpcContext, req: StateRequest) -> TtrpcResult<StateResponse> {
        self.call("state", &req.id, self.state_of(&req)).await
    }

    async fn create(&self, _ctx: &TtrpcContext, req: CreateTaskRequest) -> TtrpcResult<CreateTaskResponse> {
        let id = req.id.clone();
        let create = async {
            if !req.checkpoint.is_empty() {
                return Err(Failure::Unimplemented(
                    "a microVM's containers cannot be restored from a checkpoint".to_owned(),
                ));
            }
            let names =
                Names { stdin: req.stdin, stdout: req.stdout, stderr: req.stderr, terminal: req.terminal };
            let new =
                NewContainer { id: req.id, bundle: PathBuf::from(req.bundle), rootfs: req.rootfs, names };
            let pid = self.0.create(new).await?;
            Ok(CreateTaskResponse { pid, ..CreateTaskResponse::default() })
        };
        self.call("create", &id, create).await
    }

    async fn start(&self, _ctx: &TtrpcContext, req: StartRequest) -> TtrpcResult<StartResponse> {
        let start = async {
            let pid = self.0.start(&req.id, &req.exec_id).await?;
            Ok(StartResponse { pid, ..StartResponse::default() })
        };
        self.call("start", &req.id, start).await
    }

    async fn delete(&self, _ctx: &TtrpcContext, req: DeleteRequest) -> TtrpcResult<DeleteResponse> {
        // containerd waits ten seconds and the server gives the call up with it: what is half taken away could never be deleted.
        let service = Self(Arc::clone(&self.0));
        let delete = async move { service.call("delete", &req.id, service.delete_of(&req)).await };
        to_its_end(delete).await.map_err(Failure::other)?
    }

    async fn pids(&self, _ctx: &TtrpcContext, req: PidsRequest) -> TtrpcResult<PidsResponse> {
        let pids = async {
            let pids = self.0.pids(&req.id).await?;
            let processes = pids.into_iter().map(|pid| ProcessInfo { pid, ..ProcessInfo::default() });
            Ok(PidsResponse { processes: processes.collect(), ..PidsResponse::default() })
        };
        self.call("pids", &req.id, pids).await
    }

    async fn pause(&self, _ctx: &TtrpcContext, req: PauseRequest) -> TtrpcResult<Empty> {
        let pause = async { self.0.pause(&req.id, true).await.map(|()| Empty::default()) };
        self.call("pause", &req.id, pause).await
    }

    async fn resume(&self, _ctx: &TtrpcContext, req: ResumeRequest) -> TtrpcResult<Empty> {
        let resume = async { self.0.pause(&req.id, false).await.map(|()| Empty::default()) };
        self.call("resume", &req.id, resume).await
    }

    async fn checkpoint(&self, _ctx: &TtrpcContext, req: CheckpointTaskRequest) -> TtrpcResult<Empty> {
        let never =
            async { Err(Failure::Unimplemented("a microVM's containers cannot be checkpointed".to_owned())) };
        self.call("checkpoint", &req.id, never).await
    }

    async fn kill(&self, _ctx: &TtrpcContext, req: KillRequest) -> TtrpcResult<Empty> {
        let kill = async {
            self.0.signal(&req.id, &req.exec_id, req.signal, req.all).await.map(|()| Empty::default())
        };
        self.call("kill", &req.id, kill).await
    }

    async fn exec(&self, _ctx: &TtrpcContext, req: ExecProcessRequest) -> TtrpcResult<Empty> {
        let exec = async {
            let spec = document(&req.spec)?.to_vec();
            let names = Names {
                stdin: req.stdin.clone(),
                stdout: req.stdout.clone(),
                stderr: req.stderr.clone(),
                terminal: req.terminal,
            };
            self.0.exec(&req.id, &req.exec_id, names, spec).map(|()| Empty::default())
        };
        self.call("exec", &req.id, exec).await
    }

    async fn resize_pty(&self, _ctx: &TtrpcContext, req: ResizePtyRequest) -> TtrpcResult<Empty> {
        let resize = async {
            let size = size(req.height, req.width);
            self.0.resize_terminal(&req.id, &req.exec_id, size).await.map(|()| Empty::default())
        };
        self.call("resize_pty", &req.id, resize).await
    }

    async fn close_io(&self, _ctx: &TtrpcContext, req: CloseIORequest) -> TtrpcResult<Empty> {
        let close = async {
            if req.stdin {
                self.0.container(&req.id)?.process(&req.exec_id)?.close_stdin();
            }
            Ok(Empty::default())
        };
        self.call("close_io", &req.id, close).await
    }

    async fn update(&self, _ctx: &TtrpcContext, req: UpdateTaskRequest) -> TtrpcResult<Empty> {
        let update = async {
            let resources: LinuxResources = serde_json::from_slice(document(&req.resources)?)
                .map_err(|error| Failure::Invalid(format!("the new limits are not understood: {error}")))?;
            self.0.update_container(&req.id, resources).await.map(|()| Empty::default())
        };
        self.call("update", &req.id, update).await
    }

    async fn wait(&self, _ctx: &TtrpcContext, req: WaitRequest) -> TtrpcResult<WaitResponse> {
        let wait = async {
            let process = self.0.container(&req.id)?.process(&req.exec_id)?;
            let end = process.wait().await?;
            Ok(WaitResponse {
                exit_status: end.code,
                exited_at: Some(timestamp(end.at)).into(),
                ..WaitResponse::default()
            })
        };
        self.call("wait", &req.id, wait).await
    }

    async fn stats(&self, _ctx: &TtrpcContext, req: StatsRequest) -> TtrpcResult<StatsResponse> {
        self.call("stats", &req.id, self.stats_of(&req.id)).await
    }

    async fn connect(&self, _ctx: &TtrpcContext, req: ConnectRequest) -> TtrpcResult<ConnectResponse> {
        let connect = async {
            Ok(ConnectResponse {
                shim_pid: std::process::id(),
                task_pid: self.0.pid_of(&req.id),
                version: env!("CARGO_PKG_VERSION").to_owned(),
                ..ConnectResponse::default()
            })
        };
        self.call("connect", &req.id, connect).await
    }

    /// Asked after every deleted container; the shim ends with the last one, unless containerd keeps the pod as a
    /// sandbox of its own.
    async fn shutdown(&self, _ctx: &TtrpcContext, req: ShutdownRequest) -> TtrpcResult<Empty> {
        let shutdown = async {
            if self.0.is_over() {
                self.0.finish();
            }
            Ok(Empty::default())
        };
        self.call("shutdown", &req.id, shutdown).await
    }
}
