//! Containers and their processes.

use cloister_protocol::{StreamId, limits, v1};
use oci_spec::runtime::LinuxResources;

use super::{Agent, QUICK, SLOW, call};
use crate::error::Error;

/// How a process ended.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Exit {
    /// 0..=255; 128 + the signal for a process that a signal ended.
    pub code: u8,
    /// Whether the guest's kernel killed it for lack of memory.
    pub oom_killed: bool,
}

/// The streams and the size of a process's terminal.
#[derive(Debug, Clone, Copy, Default)]
pub struct Stdio {
    /// Host to guest.
    pub stdin: Option<StreamId>,
    /// Guest to host.
    pub stdout: Option<StreamId>,
    /// Guest to host; unused with a terminal.
    pub stderr: Option<StreamId>,
    /// Rows and columns, when the process has a terminal.
    pub terminal: Option<(u16, u16)>,
}

impl Stdio {
    fn into_message(self) -> v1::Stdio {
        let id = |stream: Option<StreamId>| stream.map(StreamId::to_vec).unwrap_or_default();
        let (rows, columns) = self.terminal.unwrap_or_default();
        v1::Stdio {
            stdin: id(self.stdin),
            stdout: id(self.stdout),
            stderr: id(self.stderr),
            terminal: self.terminal.is_some(),
            rows: rows.into(),
            columns: columns.into(),
        }
    }
}

/// A container to make.
#[derive(Debug, Clone, Default)]
pub struct NewContainer {
    /// `[A-Za-z0-9_.-]`, at most 128 bytes.
    pub id: String,
    /// Its root filesystem.
    pub rootfs: v1::Rootfs,
    /// An OCI runtime `config.json`; `root.path` is ignored.
    pub spec: Vec<u8>,
    /// docker's `USER`, resolved by the guest with the image's own files; empty for the user of `spec`.
    pub user: String,
    /// The streams of its init process.
    pub stdio: Stdio,
    /// Whose process ids it sees.
    pub pid_namespace: v1::PidNamespace,
    /// The container whose process ids it sees, with [`v1::PidNamespace::Container`].
    pub pid_container: String,
    /// Plugged disks that it sees as device nodes.
    pub block_devices: Vec<v1::BlockDevice>,
}

/// A process that the guest lists.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Running {
    /// Its container.
    pub container: String,
    /// Empty for the container's init process.
    pub exec: String,
    /// Its number in the guest.
    pub pid: u32,
    /// False once it has ended.
    pub running: bool,
}

impl Agent {
    /// Stacks a container's root filesystem and prepares its process.
    ///
    /// # Errors
    /// When the agent refuses; [`Error::is_not_found`] and [`Error::is_not_executable`] tell about the program.
    pub async fn create_container(&self, container: NewContainer) -> Result<u32, Error> {
        const CALL: &str = "create the container";
        let request = v1::CreateContainerRequest {
            container_id: container.id,
            rootfs: Some(container.rootfs),
            spec: container.spec,
            user: container.user,
            stdio: Some(container.stdio.into_message()),
            pid_namespace: container.pid_namespace.into(),
            pid_container: container.pid_container,
            block_devices: container.block_devices,
        };
        pid(CALL, call(CALL, SLOW, self.client.clone().create_container(request)).await?.pid)
    }

    /// Runs a created container's process.
    ///
    /// # Errors
    /// As [`Agent::create_container`].
    pub async fn start_container(&self, id: &str) -> Result<(), Error> {
        let request = v1::StartContainerRequest { container_id: id.to_owned() };
        call("start the container", SLOW, self.client.clone().start_container(request)).await?;
        Ok(())
    }

    /// Starts one more process in a running container.
    ///
    /// # Errors
    /// As [`Agent::create_container`].
    pub async fn exec(
        &self,
        container: &str,
        exec: &str,
        process: Vec<u8>,
        user: &str,
        stdio: Stdio,
    ) -> Result<u32, Error> {
        let request = v1::ExecRequest {
            container_id: container.to_owned(),
            exec_id: exec.to_owned(),
            process,
            user: user.to_owned(),
            stdio: Some(stdio.into_message()),
        };
        const CALL: &str = "start the process";
        pid(CALL, call(CALL, SLOW, self.client.clone().exec(request)).await?.pid)
    }

    /// Waits until a process ends; `exec` is empty for the container's own. Has no deadline.
    ///
    /// # Errors
    /// When the connection breaks or the agent does not know the process.
    pub async fn wait(&self, container: &str, exec: &str) -> Result<Exit, Error> {
        let request = v1::WaitRequest { process: Some(reference(container, exec)) };
        let reply = self
            .client
            .clone()
            .wait(request)
            .await
            .map_err(|status| Error::call("wait for the process", &status))?;
        let reply = reply.into_inner();
        Ok(Exit { code: exit_code(reply.exit_code), oom_killed: reply.oom_killed })
    }

    /// Sends a signal to one process, or with `all` to every process of the container.
    ///
    /// # Errors
    /// When the agent refuses; a process that has ended is not an error.
    pub async fn signal(&self, container: &str, exec: &str, signal: i32, all: bool) -> Result<(), Error> {
        let signal = u32::try_from(signal).unwrap_or_default();
        let request = v1::SignalRequest { process: Some(reference(container, exec)), signal, all };
        match call("send a signal", QUICK, self.client.clone().signal(request)).await {
            Ok(_)
            | Err(Error::Call { code: tonic::Code::NotFound | tonic::Code::FailedPrecondition, .. }) => {
                Ok(())
            }
            Err(error) => Err(error),
        }
    }

    /// Sets the size of a process's terminal.
    ///
    /// # Errors
    /// When the agent refuses.
    pub async fn resize(&self, container: &str, exec: &str, rows: u16, columns: u16) -> Result<(), Error> {
        let request = v1::ResizeRequest {
            process: Some(reference(container, exec)),
            rows: rows.into(),
            columns: columns.into(),
        };
        call("resize the terminal", QUICK, self.client.clone().resize(request)).await?;
        Ok(())
    }

    /// Closes a process's standard input once everything sent has been read.
    ///
    /// # Errors
    /// When the agent refuses.
    pub async fn close_stdin(&self, container: &str, exec: &str) -> Result<(), Error> {
        let request = v1::CloseStdinRequest { process: Some(reference(container, exec)) };
        call("close the process's input", QUICK, self.client.clone().close_stdin(request)).await?;
        Ok(())
    }

    /// Changes the limits of a container in place.
    ///
    /// # Errors
    /// When the agent refuses; what was changed before the refused value stays.
    pub async fn update_container(&self, id: &str, resources: &LinuxResources) -> Result<(), Error> {
        self.update_cgroup(id, "", resources, false).await
    }

    /// Sets limits of the cgroup `name` right below a container's, made when it is not there. With `end_stalled` its
    /// processes are killed, as for lack of memory, when they do nothing any more but wait for memory.
    ///
    /// # Errors
    /// When the agent refuses; what was changed before the refused value stays.
    pub async fn update_cgroup(
        &self,
        id: &str,
        name: &str,
        resources: &LinuxResources,
        end_stalled: bool,
    ) -> Result<(), Error> {
        let resources = serde_json::to_vec(resources)
            .map_err(|error| Error::Spec(oci_spec::OciSpecError::SerDe(error)))?;
        let request = v1::UpdateContainerRequest {
            container_id: id.to_owned(),
            resources,
            cgroup: name.to_owned(),
            end_stalled,
        };
        call("change the container's limits", QUICK, self.client.clone().update_container(request)).await?;
        Ok(())
    }

    /// Freezes all processes of a container, or lets them go on.
    ///
    /// # Errors
    /// When the agent refuses, or some process could not be frozen in time.
    pub async fn pause_container(&self, id: &str, paused: bool) -> Result<(), Error> {
        let request = v1::PauseContainerRequest { container_id: id.to_owned(), paused };
        call("pause the container", SLOW, self.client.clone().pause_container(request)).await?;
        Ok(())
    }

    /// The processes that the agent knows, ended ones included until their container is deleted.
    ///
    /// # Errors
    /// When the agent does not answer, or answers something that no host asked for.
    pub async fn list(&self) -> Result<Vec<Running>, Error> {
        const CALL: &str = "list the guest's processes";
        let reply = call(CALL, QUICK, self.client.clone().list(v1::ListRequest {})).await?;
        let checked = reply.processes.into_iter().map(|process| {
            let name = process.process.unwrap_or_default();
            let exec = name.exec_id.is_empty() || limits::is_id(&name.exec_id);
            if !limits::is_id(&name.container_id) || !exec {
                return Err(Error::Reply { call: CALL, why: "it names a process by no valid id" });
            }
            let pid = pid(CALL, process.pid)?;
            Ok(Running { container: name.container_id, exec: name.exec_id, pid, running: process.running })
        });
        checked.collect()
    }

    /// Ends what is left of a container and unmounts its filesystems.
    ///
    /// # Errors
    /// When the agent refuses.
    pub async fn delete_container(&self, id: &str) -> Result<(), Error> {
        let request = v1::DeleteContainerRequest { container_id: id.to_owned() };
        call("delete the container", QUICK, self.client.clone().delete_container(request)).await?;
        Ok(())
    }
}

/// A guest may send any number as a process's; the kernel's are below 2²².
fn pid(call: &'static str, raw: u32) -> Result<u32, Error> {
    if (1..=1 << 22).contains(&raw) {
        return Ok(raw);
    }
    Err(Error::Reply { call, why: "a process's number is out of range" })
}

fn reference(container: &str, exec: &str) -> v1::ProcessRef {
    v1::ProcessRef { container_id: container.to_owned(), exec_id: exec.to_owned() }
}

/// A guest may send any number; an exit code has eight bits, and a lie must not read as success.
fn exit_code(raw: u32) -> u8 {
    u8::try_from(raw).unwrap_or(u8::MAX)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_process_has_a_number_the_kernel_can_give() {
        assert_eq!(pid("x", 1).unwrap(), 1);
        assert!(pid("x", 0).is_err() && pid("x", u32::MAX).is_err());
    }

    #[test]
    fn exit_codes_beyond_eight_bits_never_read_as_success() {
        assert_eq!(exit_code(0), 0);
        assert_eq!(exit_code(137), 137);
        assert_eq!(exit_code(256), 255);
        assert_eq!(exit_code(u32::MAX), 255);
    }
}
