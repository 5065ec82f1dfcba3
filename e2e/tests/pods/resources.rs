//! Limits hold, change in place and are reported.

use std::time::Duration;

use anyhow::{Context, Result};
use cloister_e2e::cri::api;
use cloister_e2e::cri::spec::{ContainerConfigExt, PodConfigExt};
use cloister_e2e::{Pod, Rig};

cases!(
    a_container_over_its_memory_is_oom_killed_and_the_pod_goes_on,
    a_child_over_the_memory_does_not_end_the_container,
    processor_time_is_limited,
    memory_grows_and_shrinks_in_place,
    processor_time_is_changed_in_place,
    counters_agree_with_the_kernels,
    counters_of_the_pod_are_filled,
    process_numbers_are_limited_by_memory_not_by_the_host,
);

pub const MIB: i64 = 1 << 20;

/// A pod whose limits are known when it is made, as the kubelet tells them.
pub fn sized_pod(rig: &Rig, memory: i64, quota: i64) -> Result<Pod<'_>> {
    let mut config = rig.config();
    config.linux().resources = Some(api::LinuxContainerResources {
        memory_limit_in_bytes: memory,
        cpu_period: 100_000,
        cpu_quota: quota,
        ..api::LinuxContainerResources::default()
    });
    rig.run(config)
}

pub fn a_container_over_its_memory_is_oom_killed_and_the_pod_goes_on(rig: &Rig) -> Result<()> {
    let pod = sized_pod(rig, 128 * MIB, 0)?;
    let other = pod.idle()?;
    let mut config = pod.shell("");
    config.command = ["tail", "/dev/zero"].map(str::to_owned).into();
    config.resources().memory_limit_in_bytes = 48 * MIB;
    let container = pod.start(config)?;
    let status = container.wait()?;
    assert_eq!((status.exit_code, status.reason.as_str()), (137, "OOMKilled"));
    assert_eq!(other.sh("echo alive")?, "alive");
    assert_eq!(pod.once("echo again")?.1, "again\n");
    Ok(())
}

pub fn a_child_over_the_memory_does_not_end_the_container(rig: &Rig) -> Result<()> {
    let pod = sized_pod(rig, 128 * MIB, 0)?;
    let mut config = pod.shell("echo up; while :; do sleep 1; done");
    config.resources().memory_limit_in_bytes = 48 * MIB;
    let container = pod.start(config)?;
    container.wait_for_output("up\n")?;
    assert_eq!(container.exec(&["tail", "/dev/zero"])?.code, 137);
    assert_eq!(container.sh("echo alive")?, "alive");
    Ok(())
}

/// Clock ticks of processor time that a busy loop gets in `seconds`.
const BUSY: &str = "(while :; do :; done) & p=$!; sleep 3; cut -d' ' -f14 /proc/$p/stat; kill -9 $p";

pub fn processor_time_is_limited(rig: &Rig) -> Result<()> {
    let pod = sized_pod(rig, 0, 50_000)?;
    let mut config = pod.shell(BUSY);
    config.resources().cpu_period = 100_000;
    config.resources().cpu_quota = 20_000;
    let ticks: u32 = pod.once_in(config)?.1.trim().parse()?;
    // 20 % of three seconds; the shell that measures may be late in emulation.
    assert!(ticks > 5 && ticks < 110, "{ticks} ticks");
    Ok(())
}

pub fn memory_grows_and_shrinks_in_place(rig: &Rig) -> Result<()> {
    let pod = sized_pod(rig, 64 * MIB, 0)?;
    let mut config = pod.shell("echo up; while :; do sleep 1; done");
    config.resources().memory_limit_in_bytes = 64 * MIB;
    let container = pod.start(config)?;
    container.wait_for_output("up\n")?;
    // `tail` holds all that it may have to print; killed, it prints nothing.
    let eats = |mib: i64| -> Result<bool> {
        let bytes = mib * MIB;
        let output =
            container.exec(&["sh", "-c", &format!("head -c {bytes} /dev/zero | tail -c {bytes} | wc -c")])?;
        Ok(output.text().trim() == bytes.to_string())
    };
    assert!(!eats(80)?);
    let limit = |bytes| api::LinuxContainerResources { memory_limit_in_bytes: bytes, ..Default::default() };
    container.update(limit(400 * MIB))?;
    assert!(eats(80)?, "the limit did not grow");
    container.update(limit(64 * MIB))?;
    assert!(!eats(80)?, "the limit did not shrink");
    assert_eq!(container.sh("echo alive")?, "alive");
    Ok(())
}

pub fn processor_time_is_changed_in_place(rig: &Rig) -> Result<()> {
    let pod = sized_pod(rig, 0, 100_000)?;
    let mut config = pod.shell("echo up; while :; do sleep 1; done");
    config.resources().cpu_period = 100_000;
    config.resources().cpu_quota = 10_000;
    let container = pod.start(config)?;
    container.wait_for_output("up\n")?;
    let before: u32 = container.sh(BUSY)?.trim().parse()?;
    let resources =
        api::LinuxContainerResources { cpu_period: 100_000, cpu_quota: 60_000, ..Default::default() };
    container.update(resources)?;
    let after: u32 = container.sh(BUSY)?.trim().parse()?;
    assert!(after > before * 2, "{before} ticks before, {after} after");
    Ok(())
}

pub fn counters_agree_with_the_kernels(rig: &Rig) -> Result<()> {
    let pod = sized_pod(rig, 256 * MIB, 0)?;
    let container = pod.start_shell(
        "head -c 60000000 /dev/urandom >/dev/shm/used; i=0; while [ $i -lt 50000 ]; do i=$((i+1)); done; echo up; while :; do sleep 1000; done",
        "up\n",
    )?;
    let kernel = container.sh(
        "cd /sys/fs/cgroup; if [ -e memory.current ]; then cat memory.current; sed -n 's/usage_usec //p' cpu.stat
         else cat memory/memory.usage_in_bytes; echo $(($(cat cpuacct/cpuacct.usage)/1000)); fi",
    )?;
    let kernel: Vec<f64> = kernel.lines().map(|line| line.parse().unwrap()).collect();
    // The stats may be a cached answer of some seconds ago.
    std::thread::sleep(Duration::from_secs(1));
    let stats = container.stats()?;
    let memory = stats.memory.context("memory")?;
    let used = memory.usage_bytes.context("usage")?.value as f64;
    assert!((used / kernel[0] - 1.0).abs() < 0.05, "{used} bytes, the kernel says {}", kernel[0]);
    assert!(memory.working_set_bytes.context("working set")?.value > 50_000_000);
    let cpu = stats.cpu.context("cpu")?.usage_core_nano_seconds.context("usage")?.value as f64 / 1000.0;
    assert!((cpu / kernel[1] - 1.0).abs() < 0.10, "{cpu} µs, the kernel says {}", kernel[1]);
    Ok(())
}

pub fn counters_of_the_pod_are_filled(rig: &Rig) -> Result<()> {
    let pod = sized_pod(rig, 128 * MIB, 0)?;
    let _container = pod.idle()?;
    std::thread::sleep(Duration::from_secs(1));
    let linux = pod.stats()?.linux.context("no Linux stats")?;
    let memory = linux.memory.context("memory")?;
    assert!(memory.working_set_bytes.context("working set")?.value > 0);
    assert!(linux.cpu.context("cpu")?.usage_core_nano_seconds.context("usage")?.value > 0);
    let network = linux.network.context("network")?.default_interface.context("interface")?;
    assert_eq!(network.name, "eth0");
    assert_eq!(linux.containers.len(), 1);
    Ok(())
}

pub fn process_numbers_are_limited_by_memory_not_by_the_host(rig: &Rig) -> Result<()> {
    let pod = sized_pod(rig, 128 * MIB, 0)?;
    let script = "i=0; while [ $i -lt 150 ]; do sleep 100 & i=$((i+1)); done; jobs | wc -l; kill $(jobs -p)";
    assert_eq!(pod.once(script)?.1.trim(), "150");
    Ok(())
}
