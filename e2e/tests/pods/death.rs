//! Anything may be killed at any moment: the containers are reported failed in time, the pod can be removed, and
//! nothing is left behind.

use std::time::{Duration, Instant};

use anyhow::{Context, Result};
use cloister_e2e::cell::wait_for;
use cloister_e2e::cri::spec::{ContainerConfigExt, PodConfigExt};
use cloister_e2e::rig::Container;
use cloister_e2e::{Pod, Rig};

cases!(pods_go_on_while_containerd_restarts, pods_go_on_after_containerd_was_killed,);

mod of_microvms {
    use super::*;
    // Not runc's: processes and cgroups of its containers outlive a killed shim.
    microvm_cases!(
        a_killed_shim_fails_the_containers,
        a_killed_monitor_fails_the_containers,
        a_killed_monitor_under_load_fails_the_containers,
        a_monitor_killed_while_it_starts_fails_the_pod,
        a_monitor_killed_while_the_pod_stops_is_no_matter,
        a_killed_share_daemon_fails_the_containers,
        a_crashed_guest_kernel_fails_the_containers,
        a_shim_killed_under_load_takes_everything_along,
        the_shims_delete_alone_cleans,
        pods_go_on_while_the_node_daemon_restarts,
        a_pod_without_the_node_daemon_fails_and_works_after_its_return,
    );
}

/// How soon a death must be noticed.
const NOTICE: Duration = Duration::from_secs(2);
/// The same where containerd's first look fails and the next comes one to two seconds later: it asks a dead shim, runc's too, to
/// delete the task.
const NOTICE_LATE: Duration = Duration::from_secs(3);

/// Kills the one process whose command line has these words.
fn kill(rig: &Rig, words: &str) -> Result<()> {
    let process =
        rig.lab.cell.find(words)?.into_iter().next().with_context(|| format!("no process {words}"))?;
    rig.lab.cell.kill(process.pid, "KILL")
}

/// The container must be reported as failed in time, the pod as not ready, and another pod must work.
fn fails_within(rig: &Rig, pod: &Pod<'_>, container: &Container<'_>, bound: Duration) -> Result<()> {
    let begun = Instant::now();
    let status = container.wait_at_most(Duration::from_secs(20))?;
    let took = begun.elapsed();
    assert_ne!(status.exit_code, 0, "a death was reported as success");
    assert_ne!(status.reason, "Completed");
    eprintln!("noticed after {took:.2?}");
    assert!(took < bound, "noticed after {took:?}");
    wait_for("the pod's end", NOTICE, || Ok((!pod.is_ready()?).then_some(())))?;
    pod.remove()?;
    assert_eq!(rig.pod()?.once("echo next")?.1, "next\n");
    Ok(())
}

pub fn a_killed_shim_fails_the_containers(rig: &Rig) -> Result<()> {
    let pod = rig.pod()?;
    let container = pod.idle()?;
    kill(rig, &format!("-id {}", pod.id))?;
    fails_within(rig, &pod, &container, NOTICE_LATE)
}

pub fn a_killed_monitor_fails_the_containers(rig: &Rig) -> Result<()> {
    let pod = rig.pod()?;
    let (container, other) = (pod.idle()?, pod.idle()?);
    kill(rig, "qemu-system")?;
    let begun = Instant::now();
    assert_ne!(other.wait_at_most(NOTICE)?.exit_code, 0);
    assert!(begun.elapsed() < NOTICE);
    fails_within(rig, &pod, &container, NOTICE)
}

pub fn a_killed_monitor_under_load_fails_the_containers(rig: &Rig) -> Result<()> {
    let pod = rig.pod()?;
    let container = pod.start_shell("echo up; exec yes", "up\n")?;
    kill(rig, "qemu-system")?;
    fails_within(rig, &pod, &container, NOTICE)
}

pub fn a_monitor_killed_while_it_starts_fails_the_pod(rig: &Rig) -> Result<()> {
    let config = rig.config();
    let outcome = std::thread::scope(|scope| -> Result<_> {
        let run = scope.spawn(|| rig.run(config).map(drop));
        wait_for("the monitor", Duration::from_secs(20), || Ok(rig.lab.cell.find("qemu-system")?.pop()))?;
        kill(rig, "qemu-system")?;
        Ok(run.join().unwrap())
    })?;
    let error = format!("{:#}", outcome.unwrap_err());
    assert!(error.contains("virtual machine") || error.contains("VM"), "{error}");
    assert_eq!(rig.pod()?.once("echo next")?.1, "next\n");
    Ok(())
}

pub fn a_monitor_killed_while_the_pod_stops_is_no_matter(rig: &Rig) -> Result<()> {
    let pod = rig.pod()?;
    let _stubborn = pod.start_shell("trap '' TERM; echo up; while :; do sleep 1; done", "up\n")?;
    std::thread::scope(|scope| {
        let stop = scope.spawn(|| pod.remove());
        let _ = kill(rig, "qemu-system");
        stop.join().unwrap()
    })
}

pub fn a_killed_share_daemon_fails_the_containers(rig: &Rig) -> Result<()> {
    let folder = rig.lab.root().join("shared");
    std::fs::create_dir(&folder)?;
    let pod = rig.pod()?;
    let config =
        pod.shell("echo up; while :; do sleep 1; done").mounted(&folder.to_string_lossy(), "/shared", false);
    let container = pod.start(config)?;
    container.wait_for_output("up\n")?;
    kill(rig, "virtiofsd")?;
    fails_within(rig, &pod, &container, NOTICE)
}

pub fn a_crashed_guest_kernel_fails_the_containers(rig: &Rig) -> Result<()> {
    let mut config = rig.config();
    config.linux().security_context.as_mut().unwrap().privileged = true;
    let pod = rig.run(config)?;
    // The kernel panics where it would otherwise end the one process that needs too much.
    let mut config =
        pod.shell("echo 2 >/proc/sys/vm/panic_on_oom && echo up; sleep 0.3; exec tail /dev/zero");
    config.security().privileged = true;
    config.resources().memory_limit_in_bytes = 16 << 20;
    let container = pod.start(config)?;
    container.wait_for_output("up\n")?;
    let status = container.wait_at_most(Duration::from_secs(20))?;
    assert_ne!(status.exit_code, 0);
    let log: Vec<u8> = container.lines()?.into_iter().flat_map(|line| line.bytes).collect();
    let log = String::from_utf8_lossy(&log);
    assert!(log.contains("Kernel panic"), "{log}");
    wait_for("the pod's end", NOTICE, || Ok((!pod.is_ready()?).then_some(())))?;
    pod.remove()
}

pub fn a_shim_killed_under_load_takes_everything_along(rig: &Rig) -> Result<()> {
    let pod = rig.pod()?;
    let container = pod.start_shell("echo up; exec yes", "up\n")?;
    let _more = pod.idle()?;
    kill(rig, &format!("-id {}", pod.id))?;
    fails_within(rig, &pod, &container, NOTICE_LATE)
}

pub fn the_shims_delete_alone_cleans(rig: &Rig) -> Result<()> {
    let folder = rig.lab.root().join("shared");
    std::fs::create_dir(&folder)?;
    let pod = rig.pod()?;
    let config = pod.shell("echo up; sleep 1000").mounted(&folder.to_string_lossy(), "/shared", false);
    pod.start(config)?.wait_for_output("up\n")?;
    rig.lab.stop_daemon(true)?;
    kill(rig, &format!("-id {}", pod.id))?;
    let shim = cloister_e2e::lab::target_dir().join("containerd-shim-cloister-v2");
    let socket = rig.lab.root().join("containerd.sock");
    let line = format!(
        // Tasks' bundles are in one plugin's folder, sandboxes' in another's.
        "cd /run/containerd/io.containerd.*/k8s.io/{id} && {} -namespace k8s.io -address {} -id {id} -bundle \"$PWD\" delete >/dev/null",
        shim.display(),
        socket.display(),
        id = pod.id
    );
    for _ in 0..2 {
        rig.lab.cell.run("sh", &["-c", &line])?;
    }
    let left = rig.lab.cell.find("qemu-system")?.len() + rig.lab.cell.find("virtiofsd")?.len();
    assert_eq!(left, 0);
    let state = rig.lab.cell.path(&format!("/run/cloister/pods/k8s.io/{}", pod.id));
    assert!(!state.exists(), "{} is left", state.display());
    rig.lab.start_daemon()?;
    pod.remove()
}

/// Work that must go on: a container that counts, an exec that waits.
fn goes_on(rig: &Rig, kill: bool) -> Result<()> {
    let pod = rig.pod()?;
    let container =
        pod.start_shell("echo up; i=0; while :; do i=$((i+1)); echo tick $i; sleep 0.2; done", "up\n")?;
    rig.lab.stop_daemon(kill)?;
    std::thread::sleep(Duration::from_secs(1));
    rig.lab.start_daemon()?;
    assert!(pod.is_ready()?);
    assert!(container.is_running()?);
    assert_eq!(container.sh("echo exec")?, "exec");
    let before = container.output()?.len();
    wait_for("further output in the log", Duration::from_secs(10), || {
        Ok((container.output()?.len() > before).then_some(()))
    })?;
    let text = String::from_utf8(container.output()?)?;
    let ticks: Vec<u32> = text.lines().filter_map(|l| l.strip_prefix("tick ")?.parse().ok()).collect();
    assert!(ticks.windows(2).all(|pair| pair[1] == pair[0] + 1), "lines were lost: {text}");
    assert_eq!(pod.once("echo new")?.1, "new\n");
    container.stop(0)?;
    assert_eq!(container.wait()?.exit_code, 137);
    Ok(())
}

pub fn pods_go_on_while_containerd_restarts(rig: &Rig) -> Result<()> {
    goes_on(rig, false)
}

pub fn pods_go_on_after_containerd_was_killed(rig: &Rig) -> Result<()> {
    goes_on(rig, true)
}

pub fn pods_go_on_while_the_node_daemon_restarts(rig: &Rig) -> Result<()> {
    let pod = rig.pod()?;
    let container = pod.idle()?;
    rig.lab.stop_node(true)?;
    assert_eq!(container.sh("echo alive")?, "alive");
    rig.lab.start_node()?;
    assert_eq!(pod.once("echo new")?.1, "new\n");
    pod.remove()?;
    assert_eq!(rig.pod()?.once("echo next")?.1, "next\n");
    Ok(())
}

pub fn a_pod_without_the_node_daemon_fails_and_works_after_its_return(rig: &Rig) -> Result<()> {
    rig.lab.stop_node(true)?;
    let begun = Instant::now();
    let failed = rig.pod().and_then(|pod| pod.once("echo never"));
    assert!(failed.is_err(), "{failed:?}");
    assert!(begun.elapsed() < Duration::from_secs(60));
    rig.lab.start_node()?;
    // containerd tries a daemon that was gone again after a while.
    let output = wait_for("a pod", Duration::from_secs(30), || {
        Ok(rig.pod().and_then(|pod| pod.once("echo next")).ok())
    })?;
    assert_eq!(output.1, "next\n");
    Ok(())
}
