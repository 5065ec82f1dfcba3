//! Short behaviours that the other cases do not already have by themselves.

use std::fs;

use anyhow::{Context, Result, ensure};
use cloister_e2e::Rig;
use cloister_e2e::cri::api;
use cloister_e2e::cri::spec::{ContainerConfigExt, PodConfigExt};
use cloister_e2e::pod_images::BUSYBOX;

pub fn version_is_told(rig: &Rig) -> Result<()> {
    let version = rig.lab.cri.version(api::VersionRequest::default())?;
    ensure!(version.runtime_name == "containerd" && version.runtime_api_version == "v1", "{version:?}");
    Ok(())
}

pub fn runtime_and_network_are_ready(rig: &Rig) -> Result<()> {
    rig.lab.cri.ready()
}

pub fn removing_a_missing_pod(rig: &Rig) -> Result<()> {
    let request = api::RemovePodSandboxRequest { pod_sandbox_id: "0123456789abcdef".to_owned() };
    rig.lab.cri.remove_pod_sandbox(request)?;
    Ok(())
}

pub fn removing_a_missing_container(rig: &Rig) -> Result<()> {
    let request = api::RemoveContainerRequest { container_id: "0123456789abcdef".to_owned() };
    rig.lab.cri.remove_container(request)?;
    Ok(())
}

pub fn removing_a_container_twice(rig: &Rig) -> Result<()> {
    let container = rig.pod()?.idle()?;
    container.remove()?;
    container.remove()
}

pub fn pod_runs(rig: &Rig) -> Result<()> {
    let pod = rig.pod()?;
    ensure!(pod.is_ready()?);
    let list = rig.lab.cri.list_pod_sandbox(api::ListPodSandboxRequest::default())?.items;
    ensure!(list.iter().any(|item| item.id == pod.id));
    Ok(())
}

pub fn pod_stops(rig: &Rig) -> Result<()> {
    let pod = rig.pod()?;
    pod.stop()?;
    ensure!(!pod.is_ready()?);
    Ok(())
}

pub fn pod_is_removed(rig: &Rig) -> Result<()> {
    let pod = rig.pod()?;
    pod.remove()?;
    ensure!(pod.status().is_err());
    Ok(())
}

pub fn pods_counters_are_told(rig: &Rig) -> Result<()> {
    let pod = rig.pod()?;
    let _container = pod.idle()?;
    let linux = pod.stats()?.linux.context("no counters")?;
    ensure!(linux.memory.and_then(|m| m.working_set_bytes).context("no memory")?.value > 0);
    ensure!(linux.network.and_then(|n| n.default_interface).context("no network")?.rx_bytes.is_some());
    Ok(())
}

pub fn pods_counters_are_listed(rig: &Rig) -> Result<()> {
    let pods = [rig.pod()?, rig.pod()?];
    let stats = rig.lab.cri.list_pod_sandbox_stats(api::ListPodSandboxStatsRequest::default())?.stats;
    for pod in &pods {
        ensure!(stats.iter().any(|s| s.attributes.as_ref().is_some_and(|a| a.id == pod.id)));
    }
    Ok(())
}

pub fn unsafe_sysctls_hold(rig: &Rig) -> Result<()> {
    let mut config = rig.config();
    config.linux().sysctls = [("fs.mqueue.msg_max".to_owned(), "100".to_owned())].into();
    let pod = rig.run(config)?;
    ensure!(pod.once("cat /proc/sys/fs/mqueue/msg_max")?.1 == "100\n");
    Ok(())
}

pub fn container_is_created(rig: &Rig) -> Result<()> {
    let pod = rig.pod()?;
    let container = pod.create(pod.shell("sleep 1000"))?;
    ensure!(container.status()?.state == i32::from(api::ContainerState::ContainerCreated));
    Ok(())
}

pub fn container_is_started(rig: &Rig) -> Result<()> {
    ensure!(rig.pod()?.idle()?.is_running()?);
    Ok(())
}

pub fn container_is_stopped(rig: &Rig) -> Result<()> {
    let container = rig.pod()?.idle()?;
    container.stop(60)?;
    ensure!(container.status()?.state == i32::from(api::ContainerState::ContainerExited));
    Ok(())
}

pub fn container_is_removed(rig: &Rig) -> Result<()> {
    let container = rig.pod()?.idle()?;
    container.remove()?;
    ensure!(container.status().is_err());
    Ok(())
}

pub fn containers_are_found(rig: &Rig) -> Result<()> {
    let pod = rig.pod()?;
    let mut config = pod.shell("sleep 1000");
    config.labels = [("part".to_owned(), "one".to_owned())].into();
    let running = pod.start(config)?;
    let created = pod.create(pod.shell("sleep 1000"))?;
    let found = |filter: api::ContainerFilter| -> Result<Vec<String>> {
        let filter = Some(api::ContainerFilter { pod_sandbox_id: pod.id.clone(), ..filter });
        let list = rig.lab.cri.list_containers(api::ListContainersRequest { filter })?.containers;
        Ok(list.into_iter().map(|container| container.id).collect())
    };
    ensure!(found(api::ContainerFilter::default())?.len() == 2);
    let label_selector = [("part".to_owned(), "one".to_owned())].into();
    ensure!(found(api::ContainerFilter { label_selector, ..Default::default() })? == [running.id]);
    let state = Some(api::ContainerStateValue { state: api::ContainerState::ContainerCreated.into() });
    ensure!(found(api::ContainerFilter { state, ..Default::default() })? == [created.id]);
    Ok(())
}

pub fn containers_counters_are_told(rig: &Rig) -> Result<()> {
    let container = rig.pod()?.idle()?;
    std::thread::sleep(std::time::Duration::from_secs(1));
    let stats = container.stats()?;
    ensure!(stats.memory.and_then(|m| m.working_set_bytes).context("no memory")?.value > 0);
    Ok(())
}

pub fn containers_counters_are_listed(rig: &Rig) -> Result<()> {
    let pod = rig.pod()?;
    let containers = [pod.idle()?, pod.idle()?];
    let stats = rig.lab.cri.list_container_stats(api::ListContainerStatsRequest::default())?.stats;
    for container in &containers {
        ensure!(stats.iter().any(|s| s.attributes.as_ref().is_some_and(|a| a.id == container.id)));
    }
    Ok(())
}

pub fn a_symlinked_host_path_works(rig: &Rig) -> Result<()> {
    let real = rig.lab.root().join("host/real");
    fs::create_dir_all(&real)?;
    fs::write(real.join("flag"), "seen\n")?;
    let link = rig.lab.root().join("host/link");
    std::os::unix::fs::symlink(&real, &link)?;
    let pod = rig.pod()?;
    let outcome = pod.once_in(pod.shell("cat /v/flag").mounted(&link.to_string_lossy(), "/v", false))?;
    ensure!(outcome.1 == "seen\n", "{outcome:?}");
    Ok(())
}

pub fn logs_of_two_containers(rig: &Rig) -> Result<()> {
    let pod = rig.pod()?;
    ensure!(pod.once("echo one")?.1 == "one\n");
    ensure!(pod.once("echo two")?.1 == "two\n");
    Ok(())
}

/// A privileged pod with a folder of the host that is a mount of its own, shared as asked, and the container in it;
/// `check` gets what the container sees of a mount made later on the host, and the host of one made in the container.
fn propagated(
    rig: &Rig,
    kind: api::MountPropagation,
    check: impl Fn(bool, bool) -> Result<()>,
) -> Result<()> {
    let folder = rig.lab.root().join("host/propagation");
    for name in ["below", "inner"] {
        fs::create_dir_all(folder.join(name))?;
    }
    let path = folder.to_string_lossy().into_owned();
    rig.lab.cell.run("mount", &["--bind", &path, &path])?;
    rig.lab.cell.run("mount", &["--make-shared", &path])?;
    let outcome = (|| {
        let mut config = rig.config();
        config.linux().security_context.get_or_insert_default().privileged = true;
        let pod = rig.run(config)?;
        let mut config = pod.shell("echo up; sleep 1000").mounted(&path, "/v", false);
        config.security().privileged = true;
        config.mounts[0].propagation = kind.into();
        let container = pod.start(config)?;
        container.wait_for_output("up\n")?;
        rig.lab.cell.run("mount", &["-t", "tmpfs", "tmpfs", &format!("{path}/below")])?;
        rig.lab.cell.run("touch", &[&format!("{path}/below/flag")])?;
        let host_to_guest = container.sh("ls /v/below")? == "flag";
        container.sh("mount -t tmpfs tmpfs /v/inner && touch /v/inner/flag")?;
        let guest_to_host = rig.lab.cell.run("ls", &[&format!("{path}/inner")])? == "flag\n";
        pod.remove()?;
        check(host_to_guest, guest_to_host)
    })();
    for mount in ["/inner", "/below", ""] {
        let _ = rig.lab.cell.run("umount", &["-l", &format!("{path}{mount}")]);
    }
    outcome
}

pub fn private_mounts_stay_private(rig: &Rig) -> Result<()> {
    propagated(rig, api::MountPropagation::PropagationPrivate, |into, out| {
        ensure!(!into && !out, "host to container: {into}, container to host: {out}");
        Ok(())
    })
}

pub fn mounts_of_the_host_arrive(rig: &Rig) -> Result<()> {
    propagated(rig, api::MountPropagation::PropagationHostToContainer, |into, out| {
        ensure!(into && !out, "host to container: {into}, container to host: {out}");
        Ok(())
    })
}

pub fn mounts_of_the_guest_arrive(rig: &Rig) -> Result<()> {
    propagated(rig, api::MountPropagation::PropagationBidirectional, |into, out| {
        ensure!(into && out, "host to container: {into}, container to host: {out}");
        Ok(())
    })
}

pub fn read_only_holds_below(rig: &Rig) -> Result<()> {
    let folder = rig.lab.root().join("host/recursive");
    fs::create_dir_all(folder.join("below"))?;
    let below = folder.join("below").to_string_lossy().into_owned();
    rig.lab.cell.run("mount", &["-t", "tmpfs", "tmpfs", &below])?;
    let script = "touch /v/below/file 2>/dev/null && echo written || echo refused";
    let outcome = if rig.handler.is_microvm() {
        recursive_without_the_cri(rig, &folder.to_string_lossy(), script)
    } else {
        recursive_through_the_cri(rig, &folder.to_string_lossy(), script)
    };
    let _ = rig.lab.cell.run("umount", &["-l", &below]);
    outcome
}

fn recursive_through_the_cri(rig: &Rig, folder: &str, script: &str) -> Result<()> {
    let handlers = rig.lab.cri.status(api::StatusRequest::default())?.runtime_handlers;
    let own = handlers.into_iter().find(|handler| handler.name == rig.handler.name());
    let features = own.and_then(|handler| handler.features).context("the handler has no features")?;
    ensure!(features.recursive_read_only_mounts, "the handler does not say that it can");
    let pod = rig.pod()?;
    let mut config = pod.shell(script).mounted(folder, "/v", true);
    config.mounts[0].recursive_read_only = true;
    let seen = pod.once_in(config)?.1;
    pod.remove()?;
    ensure!(seen == "refused\n", "{seen}");
    Ok(())
}

/// containerd 2.1's CRI asks for the features of runc alone (later ones ask every runtime), and does not survive such a
/// mount for another handler: what the runtime says, and does, is seen past it.
fn recursive_without_the_cri(rig: &Rig, folder: &str, script: &str) -> Result<()> {
    let runtime = "io.containerd.cloister.v2";
    let said = rig.lab.ctr(&["plugins", "inspect-runtime", "--runtime", runtime])?;
    ensure!(said.contains("\"rro\""), "the runtime does not say that it can: {said}");
    for (options, wanted) in [("rbind:ro:rro", "refused\n"), ("rbind:rw", "written\n")] {
        let mount = format!("type=bind,src={folder},dst=/v,options={options}");
        let run = ["run", "--rm", "--runtime", runtime, "--snapshotter", "cloister", "--mount", &mount];
        let seen = rig.lab.ctr(&[&run[..], &[BUSYBOX, "recursive", "sh", "-c", script]].concat())?;
        ensure!(seen == wanted, "{options}: {seen}");
    }
    Ok(())
}

pub fn a_group_without_a_user_is_refused(rig: &Rig) -> Result<()> {
    let pod = rig.pod()?;
    let mut config = pod.shell("true");
    config.security().run_as_group = Some(api::Int64Value { value: 1000 });
    ensure!(pod.create(config).is_err());
    Ok(())
}

fn mounting(rig: &Rig, privileged: bool) -> Result<String> {
    let mut config = rig.config();
    config.linux().security_context.get_or_insert_default().privileged = privileged;
    let pod = rig.run(config)?;
    let mut config = pod.shell("ip link add lab1 type bridge 2>/dev/null && echo made || echo refused; grep ^Seccomp: /proc/self/status");
    config.security().privileged = privileged;
    Ok(pod.once_in(config)?.1)
}

pub fn privileged_may_mount(rig: &Rig) -> Result<()> {
    let mut config = rig.config();
    config.linux().security_context.get_or_insert_default().privileged = true;
    let pod = rig.run(config)?;
    let mut config = pod.shell("mount -t tmpfs tmpfs /srv && echo mounted");
    config.security().privileged = true;
    ensure!(pod.once_in(config)?.1 == "mounted\n");
    Ok(())
}

pub fn unprivileged_may_not_mount(rig: &Rig) -> Result<()> {
    ensure!(mounting(rig, false)?.starts_with("refused\n"));
    Ok(())
}

pub fn privileged_is_not_filtered(rig: &Rig) -> Result<()> {
    ensure!(mounting(rig, true)?.ends_with("Seccomp:\t0\n"));
    Ok(())
}

pub fn all_capabilities_are_added(rig: &Rig) -> Result<()> {
    let pod = rig.pod()?;
    let mut config = pod.shell("grep ^CapEff /proc/self/status | cut -f2");
    config.security().capabilities =
        Some(api::Capability { add_capabilities: vec!["ALL".to_owned()], ..api::Capability::default() });
    let bits = u64::from_str_radix(pod.once_in(config)?.1.trim(), 16)?;
    // Everything that the host itself may do.
    let host = fs::read_to_string("/proc/self/status")?;
    let host = host.lines().find_map(|line| line.strip_prefix("CapEff:")).context("no CapEff")?;
    let host = u64::from_str_radix(host.trim(), 16)?;
    ensure!(bits & host == host, "{bits:x}");
    Ok(())
}
