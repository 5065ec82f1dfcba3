//! What users of other microVM runtimes reported as broken, one case for each complaint that no other file covers.

use std::fs;
use std::path::Path;

use anyhow::{Context, Result, ensure};
use cloister_e2e::Rig;
use cloister_e2e::cri::spec::{ContainerConfigExt, PodConfigExt};

use crate::resources::{MIB, sized_pod};
use crate::volumes::{host_folder, text};

cases!(
    a_paused_container_holds_nothing_else_up,
    a_crash_loop_wears_nothing_out,
    a_privileged_container_stacks_overlays_on_an_empty_dir,
);

mod of_microvms {
    use super::*;
    microvm_cases!(
        a_storm_of_page_cache_leaves_the_monitor_alive,
        a_walk_through_many_files_does_not_swell_the_share_daemon,
    );
}

/// What a pod may take on the host beside its containers' limits: guest kernel, monitor with its translated code, shim.
const OVERHEAD: i64 = 192 * MIB;

pub fn a_paused_container_holds_nothing_else_up(rig: &Rig) -> Result<()> {
    let pod = rig.pod()?;
    let paused = pod.idle()?;
    let mut second = pod.shell("echo up; sleep 1000");
    second.metadata.get_or_insert_default().name = "second".to_owned();
    second.log_path = "second.log".to_owned();
    let second = pod.start(second)?;
    second.wait_for_output("up\n")?;
    rig.lab.ctr(&["tasks", "pause", &paused.id])?;
    paused.stats()?;
    pod.stats()?;
    ensure!(second.sh("echo goes on")? == "goes on");
    second.stop(0)?;
    rig.lab.ctr(&["tasks", "resume", &paused.id])?;
    ensure!(paused.sh("echo back")? == "back");
    rig.lab.ctr(&["tasks", "pause", &paused.id])?;
    pod.remove()
}

/// More ends of containers than a machine has slots for disks, each with memory of its own.
pub fn a_crash_loop_wears_nothing_out(rig: &Rig) -> Result<()> {
    let pod = sized_pod(rig, 96 * MIB, 0)?;
    let total = "sed -n 's/MemTotal: *//p' /proc/meminfo";
    let mut first = String::new();
    for attempt in 0..40 {
        let mut config = pod.shell(&format!("{total}; exit 3"));
        config.metadata.get_or_insert_default().attempt = attempt;
        config.log_path = format!("crash-{attempt}.log");
        config.resources().memory_limit_in_bytes = 96 * MIB;
        let container = pod.start(config)?;
        let status = container.wait()?;
        ensure!(status.exit_code == 3, "attempt {attempt}: {status:?}");
        let memory = String::from_utf8(container.output_at_end()?)?;
        if attempt == 0 {
            first = memory;
        } else {
            ensure!(memory == first, "attempt {attempt}: memory of {memory} after {first}");
        }
        container.remove()?;
    }
    Ok(())
}

/// What docker and BuildKit need when they run in a pod.
pub fn a_privileged_container_stacks_overlays_on_an_empty_dir(rig: &Rig) -> Result<()> {
    let mut config = rig.config();
    config.linux().security_context.get_or_insert_default().privileged = true;
    let volume = rig.volume(&config, "empty-dir", "docker")?;
    let pod = rig.run(config)?;
    let script = "cd /docker && mkdir lower upper work merged && echo below >lower/file
        mount -t overlay overlay -o lowerdir=lower,upperdir=upper,workdir=work merged
        cat merged/file; rm merged/file; echo above >merged/new; stat -c '%F %t:%T' upper/file; cat upper/new";
    let mut container = pod.shell(script).mounted(&text(&volume), "/docker", false);
    container.security().privileged = true;
    let outcome = pod.once_in(container)?;
    ensure!(outcome == (0, "below\ncharacter special file 0:0\nabove\n".to_owned()), "{outcome:?}");
    Ok(())
}

pub fn a_storm_of_page_cache_leaves_the_monitor_alive(rig: &Rig) -> Result<()> {
    const LIMIT: i64 = 128 * MIB;
    let mut config = rig.config();
    config.linux().resources.get_or_insert_default().memory_limit_in_bytes = LIMIT;
    // The kubelet's part: the pod's cgroup has the sum of the limits and the runtime class's overhead.
    let cgroup = config.linux().cgroup_parent.trim_start_matches('/').to_owned();
    let hierarchy = Path::new("/sys/fs/cgroup");
    let (folder, file) = match hierarchy.join("memory") {
        v1 if v1.is_dir() => (v1.join(&cgroup), "memory.limit_in_bytes"),
        _ => (hierarchy.join(&cgroup), "memory.max"),
    };
    fs::create_dir_all(&folder)?;
    fs::write(folder.join(file), (LIMIT + OVERHEAD).to_string())?;
    let pod = rig.run(config)?;
    let script = "for round in 1 2 3; do
            dd if=/dev/zero of=/storm bs=1M count=200 2>/dev/null && sync && cat /storm >/dev/null && echo $round
        done";
    let mut container = pod.shell(script);
    container.resources().memory_limit_in_bytes = LIMIT;
    let outcome = pod.once_in(container)?;
    let peak = fs::read_to_string(folder.join("memory.max_usage_in_bytes")).unwrap_or_default();
    eprintln!("limit {} bytes, most in use {peak}", LIMIT + OVERHEAD);
    ensure!(outcome == (0, "1\n2\n3\n".to_owned()), "{outcome:?}");
    ensure!(pod.is_ready()?);
    Ok(())
}

pub fn a_walk_through_many_files_does_not_swell_the_share_daemon(rig: &Rig) -> Result<()> {
    const FILES: usize = 10_000;
    let folder = host_folder(rig, "tree")?;
    for number in 0..FILES {
        let below = folder.join((number / 500).to_string());
        if number % 500 == 0 {
            fs::create_dir(&below)?;
        }
        fs::File::create_new(below.join(number.to_string()))?;
    }
    let pod = rig.pod()?;
    let script = "find /tree -type f -exec stat -c %s {} + | wc -l; sleep 1000";
    let container = pod.start(pod.shell(script).mounted(&text(&folder), "/tree", true))?;
    container.wait_for_output(&format!("{FILES}\n"))?;
    for daemon in rig.lab.cell.find("virtiofsd")? {
        let status = fs::read_to_string(rig.lab.cell.path(&format!("/proc/{}/status", daemon.pid)))?;
        let line = status.lines().find_map(|line| line.strip_prefix("VmRSS:")).context("no VmRSS")?;
        let resident: u64 = line.trim().trim_end_matches(" kB").parse()?;
        eprintln!("virtiofsd after {FILES} files: {resident} KiB");
        ensure!(resident < 32 << 10, "{resident} KiB after {FILES} files");
    }
    pod.remove()
}
