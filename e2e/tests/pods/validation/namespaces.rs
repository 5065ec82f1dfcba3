//! Namespaces that a pod asks for.

use anyhow::{Result, ensure};
use cloister_e2e::Rig;
use cloister_e2e::cri::api::{self, NamespaceMode};
use cloister_e2e::cri::spec::{ContainerConfigExt, PodConfigExt};

/// The options of a pod and of all its containers.
fn pod_with(rig: &Rig, change: impl Fn(&mut api::NamespaceOption)) -> api::PodSandboxConfig {
    let mut config = rig.config();
    change(config.linux().security_context.get_or_insert_default().namespace_options.get_or_insert_default());
    config
}

fn container_with(
    mut config: api::ContainerConfig,
    change: impl Fn(&mut api::NamespaceOption),
) -> api::ContainerConfig {
    change(config.security().namespace_options.get_or_insert_default());
    config
}

/// Names a namespace of one kernel: the numbers of the first namespaces are the same on all of them.
fn namespace(name: &str) -> String {
    format!("cat /proc/sys/kernel/random/boot_id; readlink /proc/self/ns/{name}")
}

pub fn host_pid(rig: &Rig) -> Result<()> {
    // A microVM has no processes of the host to show; containers of the pod see each other's all the same.
    let node = |options: &mut api::NamespaceOption| options.pid = NamespaceMode::Node.into();
    let pod = rig.run(pod_with(rig, node))?;
    let first = pod.start(container_with(pod.shell("echo up; exec sleep 4321"), node))?;
    first.wait_for_output("up\n")?;
    let second = pod.start(container_with(pod.shell("echo up; exec sleep 1000"), node))?;
    second.wait_for_output("up\n")?;
    ensure!(second.sh("ps")?.contains("sleep 4321"));
    Ok(())
}

pub fn host_ipc(rig: &Rig) -> Result<()> {
    let node = |options: &mut api::NamespaceOption| options.ipc = NamespaceMode::Node.into();
    let pod = rig.run(pod_with(rig, node))?;
    let (_, seen) = pod.once_in(container_with(pod.shell(&namespace("ipc")), node))?;
    ensure!(seen == rig.lab.cell.run("sh", &["-c", &namespace("ipc")])?, "another IPC namespace: {seen}");
    Ok(())
}

pub fn own_ipc(rig: &Rig) -> Result<()> {
    let pod = rig.pod()?;
    let seen = pod.once(&namespace("ipc"))?.1;
    ensure!(seen != rig.lab.cell.run("sh", &["-c", &namespace("ipc")])?);
    Ok(())
}

pub fn target_pid(rig: &Rig) -> Result<()> {
    let pod = rig.pod()?;
    let target = pod.start_shell("echo up; exec sleep 4321", "up\n")?;
    let other = container_with(pod.shell("echo up; exec sleep 1000"), |options| {
        options.pid = NamespaceMode::Target.into();
        options.target_id.clone_from(&target.id);
    });
    let other = pod.start(other)?;
    other.wait_for_output("up\n")?;
    ensure!(other.sh("cat /proc/1/cmdline | tr '\\0' ' '")?.contains("sleep 4321"));
    Ok(())
}

pub fn host_network(rig: &Rig) -> Result<()> {
    let node = |options: &mut api::NamespaceOption| options.network = NamespaceMode::Node.into();
    let mut config = pod_with(rig, node);
    config.hostname.clear();
    let pod = rig.run(config)?;
    let (_, seen) = pod.once_in(container_with(pod.shell(&namespace("net")), node))?;
    ensure!(seen == rig.lab.cell.run("sh", &["-c", &namespace("net")])?);
    Ok(())
}

pub fn own_network(rig: &Rig) -> Result<()> {
    let pod = rig.pod()?;
    let seen = pod.once(&namespace("net"))?.1;
    ensure!(seen != rig.lab.cell.run("sh", &["-c", &namespace("net")])?);
    Ok(())
}

pub fn port_forward_in_the_hosts_network(rig: &Rig) -> Result<()> {
    let node = |options: &mut api::NamespaceOption| options.network = NamespaceMode::Node.into();
    let mut config = pod_with(rig, node);
    config.hostname.clear();
    let pod = rig.run(config)?;
    let script =
        "mkdir /www; echo web >/www/index.html; httpd -p 127.0.0.1:12003 -h /www; echo up; sleep 1000";
    let server = pod.start(container_with(pod.shell(script), node))?;
    server.wait_for_output("up\n")?;
    ensure!(pod.forward(12003, b"GET / HTTP/1.0\r\n\r\n")?.ends_with(b"web\n"));
    Ok(())
}
