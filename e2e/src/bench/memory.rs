//! What idle pods cost their host.

use std::time::{Duration, Instant};

use anyhow::{Context, Result};

use super::guests::Guests;
use super::pods::{HANDLERS, first_output};
use super::{Report, Verdict};
use crate::cri::spec::{ContainerConfigExt, PodConfigExt};
use crate::rig::{Pod, Rig};
use crate::stats::Series;

/// Bytes of a pod's limit with which its guest has 128 MiB: the limit, a 48th of it and 64 MiB, in steps of 2 MiB.
const LIMIT: i64 = 62 << 20;
/// How long a pod is left alone before it is looked at, and how long it is watched.
const IDLE: Duration = Duration::from_secs(10);

/// Proportional set sizes in MiB of all processes of a pod, by program.
fn memory_of(rig: &Rig, pod: &Pod<'_>) -> Result<Vec<(String, f64)>> {
    let shim = rig.lab.cell.find(&format!("-id {}", pod.id))?.into_iter().next().context("no shim")?;
    let mut sizes: Vec<(String, f64)> = Vec::new();
    for process in rig.lab.cell.family(shim.pid)? {
        let program = process.command.split(' ').next().unwrap_or_default();
        let name = program.rsplit('/').next().unwrap_or(program).to_owned();
        let file = rig.lab.cell.path(&format!("/proc/{}/smaps_rollup", process.pid));
        let text = std::fs::read_to_string(file).unwrap_or_default();
        let kib = text
            .lines()
            .find_map(|line| line.strip_prefix("Pss:")?.trim().strip_suffix(" kB")?.parse::<f64>().ok());
        let mib = kib.unwrap_or(0.0) / 1024.0;
        match sizes.iter_mut().find(|(known, _)| *known == name) {
            Some((_, sum)) => *sum += mib,
            None => sizes.push((name, mib)),
        }
    }
    Ok(sizes)
}

/// A pod that sleeps; without a limit the guest has the default of 588 MiB.
fn idle_pod(rig: &Rig, limit: Option<i64>) -> Result<Pod<'_>> {
    let mut config = rig.config();
    if let Some(bytes) = limit {
        config.linux().resources.get_or_insert_default().memory_limit_in_bytes = bytes;
    }
    let pod = rig.run(config)?;
    let mut container = pod.shell("echo up; exec sleep 1000");
    if let Some(bytes) = limit {
        container.resources().memory_limit_in_bytes = bytes;
    }
    first_output(&pod.start(container)?)?;
    Ok(pod)
}

/// Idle pods with a guest of the default size and of 128 MiB, and the latter as one of four.
pub fn idle(rig: &mut Rig, report: &mut Report) -> Result<()> {
    for handler in HANDLERS {
        rig.handler = handler;
        for (what, limit, count) in [
            ("idle pod without a limit", None, 1),
            ("idle pod, 128 MiB guest", Some(LIMIT), 1),
            ("one of four idle pods, 128 MiB guest", Some(LIMIT), 4),
        ] {
            let name = format!("{}: {what}", handler.name());
            let pods = (0..count).map(|_| idle_pod(rig, limit)).collect::<Result<Vec<_>>>()?;
            std::thread::sleep(IDLE);
            let (before, begun) = (Guests::read(rig)?, Instant::now());
            std::thread::sleep(IDLE);
            let processor = Guests::read(rig)?.since(&before).processor;
            let sizes = memory_of(rig, pods.first().context("no pod")?)?;
            let mut add = |part: &str, unit, value| {
                report.add(Series { name: format!("{name}, {part}"), unit, runs: vec![value] });
            };
            for (program, mib) in &sizes {
                add(program, "MiB", *mib);
            }
            let sum: f64 = sizes.iter().map(|(_, mib)| mib).sum();
            add("all", "MiB", sum);
            if handler.is_microvm() {
                let each = processor * 1000.0 / begun.elapsed().as_secs_f64() / f64::from(count);
                add("processor time of QEMU per second", "ms", each);
            }
            if handler.is_microvm() && limit.is_some() {
                report.judge(Verdict::at_most(&format!("{name}, all"), sum, "MiB", 90.0));
                let shim = sizes
                    .iter()
                    .find(|(program, _)| program.starts_with("containerd-shim"))
                    .map_or(0.0, |(_, mib)| *mib);
                report.judge(Verdict::at_most(&format!("{name}, shim"), shim, "MiB", 8.0));
            }
            for pod in pods {
                pod.remove()?;
            }
        }
    }
    Ok(())
}
