//! Figures and log lines of pods.

use std::path::Path;
use std::process::{Command, Stdio};
use std::time::Duration;

use anyhow::{Context, Result};
use cloister_e2e::cell::wait_for;
use cloister_e2e::cri::spec::{ContainerConfigExt, PodConfigExt};
use cloister_e2e::lab::target_dir;
use cloister_e2e::pod_images::lab_program;
use cloister_e2e::{Rig, lab, metrics, node};

microvm_cases!(
    figures_of_pods_are_summed_and_outlive_them,
    every_series_is_documented_and_lint_free,
    the_log_level_changes_while_a_pod_runs,
    a_pods_console_is_shown_and_followed,
    a_boot_that_fails_ends_with_the_guests_last_words,
);

/// What only grows, with what a pod adds to it below.
const COUNTERS: [&str; 8] = [
    "cloister_pod_containers_created_total",
    "cloister_pod_container_restarts_total",
    "cloister_pod_container_exits_total{reason=\"completed\"}",
    "cloister_pod_container_exits_total{reason=\"error\"}",
    "cloister_pod_container_exits_total{reason=\"oom\"}",
    "cloister_pod_container_exits_total{reason=\"stopped\"}",
    "cloister_pod_start_step_duration_seconds_count{step=\"agent\"}",
    "cloister_pod_network_receive_bytes_total",
];

fn read(rig: &Rig, series: &str) -> Result<f64> {
    node::value(&node::page(rig.lab.root())?, series)
}

pub fn figures_of_pods_are_summed_and_outlive_them(rig: &Rig) -> Result<()> {
    let (pod, other) = (rig.pod()?, rig.pod()?);
    let idle = pod.idle()?;
    let _also = other.idle()?;
    assert_eq!(pod.once("ping -c 3 10.88.0.1 >/dev/null; echo data >/file; sync; echo done")?.1, "done\n");
    for attempt in 0..2 {
        let mut config = pod.shell("exit 3");
        let metadata = config.metadata.get_or_insert_default();
        (metadata.name, metadata.attempt) = ("again".to_owned(), attempt);
        assert_eq!(pod.once_in(config)?.0, 3);
    }
    let mut config = pod.shell("tail /dev/zero");
    config.resources().memory_limit_in_bytes = 48 << 20;
    assert_eq!(pod.once_in(config)?.0, 137);

    let page = node::page(rig.lab.root())?;
    let now = |series: &str| node::value(&page, series);
    assert!(!page.contains(&pod.id) && !page.contains("pod_id"), "a series names a pod");
    assert_eq!(now("cloister_node_pods{state=\"answered\"}")?, 2.0);
    assert_eq!(now("cloister_pod_containers")?, 2.0, "containerd deletes tasks that ended");
    let counters = COUNTERS.map(|series| now(series).unwrap());
    assert_eq!(counters[..7], [6.0, 1.0, 1.0, 2.0, 1.0, 0.0, 2.0]);
    // Three echoes of 84 bytes and their frames' heads.
    assert!(counters[7] >= 3.0 * 98.0, "{page}");
    assert!(now("cloister_pod_disk_written_bytes_total")? > 0.0, "{page}");
    assert!(now("cloister_pod_vm_memory_bytes")? >= f64::from(256 << 20), "{page}");
    assert!(now("cloister_pod_vmm_cpu_seconds_total")? > 0.0, "{page}");
    assert!(now("cloister_pod_vsock_streams_opened_total")? >= 10.0, "{page}");

    drop(idle);
    other.remove()?;
    pod.remove()?;
    let after = || -> Result<Vec<f64>> { COUNTERS.iter().map(|series| read(rig, series)).collect() };
    let last = wait_for("the end of every container", Duration::from_secs(5), || {
        let now = after()?;
        // Created, against completed, errors, memory, stopped.
        Ok((now[0] == now[2..6].iter().sum::<f64>()).then_some(now))
    })?;
    for ((series, before), after) in COUNTERS.iter().zip(counters).zip(&last) {
        assert!(*after >= before, "{series} fell from {before} to {after}");
    }
    assert!(read(rig, "cloister_pod_vm_memory_bytes")? < 1.0, "a gauge outlived its pod");
    rig.lab.stop_node(true)?;
    rig.lab.start_node()?;
    assert_eq!(after()?, last, "a restarted daemon forgot");
    Ok(())
}

pub fn every_series_is_documented_and_lint_free(rig: &Rig) -> Result<()> {
    let pod = rig.pod()?;
    assert_eq!(pod.once("echo done")?.1, "done\n");
    metrics::check(&node::page(rig.lab.root())?, &["cloister-node", "pods", "each process"])
}

pub fn the_log_level_changes_while_a_pod_runs(rig: &Rig) -> Result<()> {
    let root = rig.lab.root();
    let log = |level: &str| {
        let log = format!("level = {level:?}\njson = true");
        node::configure(root, &node::Shim { log: &log, ..node::Shim::default() })
    };
    log("info")?;
    let pod = rig.pod()?;
    let container = pod.idle()?;
    let lines = || -> Result<Vec<serde_json::Value>> {
        let text = std::fs::read_to_string(root.join("containerd.log"))?;
        let of_shim = text.lines().filter(|line| line.starts_with("{\"timestamp\":"));
        of_shim.map(|line| serde_json::from_str(line).with_context(|| line.to_owned())).collect()
    };
    let debug = |line: &serde_json::Value| line["level"] == "DEBUG";
    let first = wait_for("JSON in containerd's log", Duration::from_secs(10), || {
        Ok(Some(lines()?).filter(|lines| !lines.is_empty()))
    })?;
    assert!(!first.iter().any(debug), "{first:?}");

    log("debug")?;
    let words = format!("-id {}", pod.id);
    let shim = rig.lab.cell.find(&words)?.pop().context("no shim")?;
    rig.lab.cell.kill(shim.pid, "USR1")?;
    assert_eq!(container.sh("echo more")?, "more");
    // From containerd's call down to the agent's, with the ids of pod and container.
    wait_for("lines of an agent's call inside containerd's", Duration::from_secs(10), || {
        Ok(lines()?.iter().filter(|line| debug(line)).find_map(|line| {
            let [call, agent] = line["spans"].as_array()?.as_slice() else { return None };
            let fits = call["name"] == "call"
                && call["method"] == "start"
                && call["pod"] == pod.id.as_str()
                && call["container"] == container.id.as_str()
                && agent["name"] == "agent"
                && line["fields"]["message"] == "answered"
                && line["fields"]["took_ms"].is_u64();
            fits.then_some(())
        }))
    })
    .with_context(|| format!("{:#?}", lines().unwrap_or_default().iter().rev().take(20).collect::<Vec<_>>()))
}

pub fn a_pods_console_is_shown_and_followed(rig: &Rig) -> Result<()> {
    let mut config = rig.config();
    config.linux().security_context.get_or_insert_default().privileged = true;
    let (pod, _other) = (rig.run(config)?, rig.pod()?);
    // The guest's kernel is quiet unless asked.
    let mut config = pod.shell("echo 8 >/proc/sys/kernel/printk && echo asked");
    config.security().privileged = true;
    assert_eq!(pod.once_in(config)?.1, "asked\n");
    assert_eq!(pod.once("echo mounted")?.1, "mounted\n");
    let metadata = pod.config.metadata.clone().context("no metadata")?;
    let cloister = target_dir().join("cloister");
    let program = cloister.to_string_lossy();
    let full = format!("{}/{}", metadata.namespace, metadata.name);
    for name in [pod.id.as_str(), &pod.id[..12], &metadata.name, &full] {
        let shown = rig.lab.cell.run(&program, &["console", name])?;
        assert!(shown.contains("EXT4-fs"), "{name}: {shown}");
        assert!(!shown.contains(|c: char| c.is_control() && !matches!(c, '\n' | '\t')), "{shown:?}");
    }
    let error = rig.lab.cell.run(&program, &["console", "nobody"]).unwrap_err();
    assert!(format!("{error:#}").contains("no pod nobody"), "{error:#}");

    let mut follow = Command::new(&cloister);
    follow.args(["console", "--follow", &full]).stdin(Stdio::null()).stdout(Stdio::null());
    let mut follow = rig.lab.cell.spawn(&mut follow)?;
    std::thread::sleep(Duration::from_millis(500));
    assert!(follow.try_wait()?.is_none(), "it did not follow");
    pod.remove()?;
    let status = wait_for("the end of the console", Duration::from_secs(5), || Ok(follow.try_wait()?))?;
    assert!(status.success(), "{status}");
    Ok(())
}

pub fn a_boot_that_fails_ends_with_the_guests_last_words(rig: &Rig) -> Result<()> {
    let folder = rig.lab.root().join("kernel");
    std::fs::create_dir(&folder)?;
    std::fs::copy(lab::guest().join("vmlinux"), folder.join("vmlinux"))?;
    let fails = |boot_seconds| -> Result<String> {
        node::configure(
            rig.lab.root(),
            &node::Shim { kernel: folder.clone(), boot_seconds, ..node::Shim::default() },
        )?;
        Ok(format!("{:#}", rig.pod().map(drop).unwrap_err()))
    };
    std::fs::write(folder.join("initramfs"), "not an archive")?;
    let error = fails(60)?;
    assert!(error.contains("Kernel panic"), "{error}");
    // An agent that says nothing.
    silent(&folder)?;
    let error = fails(8)?;
    let (_, words) = error.split_once("the guest's console ends with: ").context(error.clone())?;
    assert!(words.contains("console") || words.contains("no agent here"), "{error}");
    assert!(words.len() < 600, "{error}");
    assert!(!words.contains(char::is_control), "{error:?}");

    node::configure(rig.lab.root(), &node::Shim::default())?;
    assert_eq!(rig.pod()?.once("echo next")?.1, "next\n");
    Ok(())
}

/// An initramfs whose first process runs for ever.
fn silent(folder: &Path) -> Result<()> {
    let tree = folder.join("tree");
    std::fs::create_dir_all(tree.join("bin"))?;
    std::fs::copy(lab_program("bin/busybox")?, tree.join("bin/sh"))?;
    std::fs::write(tree.join("init"), "#!/bin/sh\necho no agent here\nwhile :; do :; done\n")?;
    let line =
        "chmod 755 init bin/sh && printf 'init\nbin\nbin/sh\n' | cpio -o -H newc --quiet >../initramfs";
    let status = Command::new("sh").args(["-c", line]).current_dir(&tree).status()?;
    anyhow::ensure!(status.success(), "cpio: {status}");
    Ok(())
}
