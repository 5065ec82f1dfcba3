//! containerd's tasks, as far as a sandbox needs them that nobody but the daemon knows of.

use std::path::Path;
use std::time::Duration;

use tonic::transport::Channel;
use tonic::{Code, Status};

use super::failed;
use super::scope::{Scope, found};
use crate::api::containers::v1 as containers;
use crate::api::tasks::v1 as api;
use crate::error::Result;

/// How long a machine may take to boot or to end, in emulation on a busy node.
const DEADLINE: Duration = Duration::from_secs(120);
/// What containerd's own clients call a runtime specification.
const SPEC: &str = "types.containerd.io/opencontainers/runtime-spec/1/Spec";

impl Scope {
    fn tasks(&self) -> api::tasks_client::TasksClient<Channel> {
        api::tasks_client::TasksClient::new(self.channel())
    }

    fn containers(&self) -> containers::containers_client::ContainersClient<Channel> {
        containers::containers_client::ContainersClient::new(self.channel())
    }

    /// Has a shim start a container of this specification, without a root filesystem. What was made stays when it fails.
    pub async fn start_container(&self, id: &str, shim: &Path, spec: &serde_json::Value) -> Result<()> {
        let runtime = containers::container::Runtime { name: shim.display().to_string(), options: None };
        let container = containers::Container {
            id: id.to_owned(),
            runtime: Some(runtime),
            spec: Some(prost_types::Any { type_url: SPEC.to_owned(), value: spec.to_string().into_bytes() }),
            ..containers::Container::default()
        };
        let create = self.request(containers::CreateContainerRequest { container: Some(container) })?;
        let made = self.containers().create(create).await;
        made.map_err(|status| failed(&format!("make container {id}"), &status))?;
        let mut create = self.request(api::CreateTaskRequest { container_id: id.to_owned() })?;
        create.set_timeout(DEADLINE);
        let made = self.tasks().create(create).await;
        made.map_err(|status| failed(&format!("make the task of {id}"), &status))?;
        let mut start =
            self.request(api::StartRequest { container_id: id.to_owned(), exec_id: String::new() })?;
        start.set_timeout(DEADLINE);
        let started = self.tasks().start(start).await;
        started.map_err(|status| failed(&format!("start {id}"), &status)).map(drop)
    }

    /// Ends a container and removes it; one that is not there, or not whole, is no error.
    pub async fn end_container(&self, id: &str) -> Result<()> {
        let what = format!("end {id}");
        let (container_id, exec_id) = (id.to_owned(), String::new());
        let kill = api::KillRequest { container_id, exec_id, signal: 9, all: true };
        ended(&what, self.tasks().kill(self.request(kill)?).await)?;
        let mut wait =
            self.request(api::WaitRequest { container_id: id.to_owned(), exec_id: String::new() })?;
        wait.set_timeout(DEADLINE);
        ended(&what, self.tasks().wait(wait).await)?;
        let mut delete = self.request(api::DeleteTaskRequest { container_id: id.to_owned() })?;
        delete.set_timeout(DEADLINE);
        ended(&what, self.tasks().delete(delete).await)?;
        let delete = self.request(containers::DeleteContainerRequest { id: id.to_owned() })?;
        found(&format!("remove container {id}"), self.containers().delete(delete).await).map(drop)
    }
}

/// Whether a task's end succeeded, or it had come before.
fn ended<T>(what: &str, reply: Result<T, Status>) -> Result<()> {
    match reply {
        Err(status) if status.code() == Code::FailedPrecondition => Ok(()),
        reply => found(what, reply).map(drop),
    }
}
