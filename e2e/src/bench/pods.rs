//! Pods beside runc's: start, files and network, on the same containerd.

use std::time::{Duration, Instant};

use anyhow::{Context, Result, ensure};

use super::guests::Guests;
use super::{Report, Verdict};
use crate::cell::wait_for;
use crate::containerd::{Handler, Version};
use crate::cri::spec::ContainerConfigExt;
use crate::pod_images::{BUSYBOX, PAUSE};
use crate::rig::{Container, Rig};
use crate::stats::Series;

/// What is compared, the peer first.
pub(super) const HANDLERS: [Handler; 3] = [Handler::Runc, Handler::Cloister, Handler::CloisterSandbox];

/// A lab for all of the measurements; pods of each handler have run in it once, so that every image is unpacked.
pub fn lab() -> Result<Rig> {
    let mut rig = Rig::start(Version::V2_1, Handler::Cloister, &[PAUSE, BUSYBOX])?;
    for handler in HANDLERS {
        rig.handler = handler;
        let pod = rig.pod()?;
        pod.once("true")?;
        pod.remove()?;
    }
    Ok(rig)
}

/// The steps of one start, in seconds.
struct Start {
    steps: [f64; 3],
    total: f64,
    removal: f64,
    /// What the microVM had of it.
    guest: Option<Guests>,
}

fn start_once(rig: &Rig) -> Result<Start> {
    let config = rig.config();
    let before = Guests::read(rig)?;
    let begun = Instant::now();
    let pod = rig.run(config)?;
    let run = begun.elapsed().as_secs_f64();
    let container = pod.create(pod.shell("echo up; sleep 1000"))?;
    let create = begun.elapsed().as_secs_f64();
    container.start()?;
    first_output(&container)?;
    let total = begun.elapsed().as_secs_f64();
    let guest =
        rig.handler.is_microvm().then(|| Guests::read(rig)).transpose()?.map(|now| now.since(&before));
    let begun = Instant::now();
    pod.remove()?;
    let removal = begun.elapsed().as_secs_f64();
    Ok(Start { steps: [run, create - run, total - create], total, removal, guest })
}

pub(super) fn first_output(container: &Container<'_>) -> Result<()> {
    let deadline = Instant::now() + Duration::from_secs(60);
    while std::fs::metadata(&container.log).map_or(0, |log| log.len()) == 0 {
        ensure!(Instant::now() < deadline, "no output within a minute");
        std::thread::sleep(Duration::from_millis(1));
    }
    Ok(())
}

/// How long a pod takes from nothing to its first output, step by step.
pub fn start(rig: &mut Rig, report: &mut Report, runs: usize) -> Result<()> {
    let mut all: Vec<Vec<Start>> = HANDLERS.map(|_| Vec::new()).into();
    // In turns, so that whatever else the machine does meets all of them.
    for _ in 0..runs {
        for (handler, starts) in HANDLERS.into_iter().zip(&mut all) {
            rig.handler = handler;
            starts.push(start_once(rig)?);
        }
    }
    for (handler, starts) in HANDLERS.into_iter().zip(all) {
        let name = handler.name();
        for (index, step) in
            ["RunPodSandbox", "CreateContainer", "StartContainer to output"].into_iter().enumerate()
        {
            let runs = starts.iter().map(|start| start.steps[index]).collect();
            report.add(Series { name: format!("{name}: {step}"), unit: "s", runs });
        }
        let totals = starts.iter().map(|start| start.total).collect();
        let total = Series { name: format!("{name}: start of a pod, cold"), unit: "s", runs: totals };
        let median = total.median();
        report.add(total);
        let runs = starts.iter().map(|start| start.removal).collect();
        report.add(Series { name: format!("{name}: removal of a pod"), unit: "s", runs });
        if handler.is_microvm() {
            report.judge(Verdict::at_most(&format!("{name}: start of a pod, cold"), median, "s", 1.6));
            let mut host = Series::new(&format!("{name}: start of a pod, host side"), "s");
            let mut monitor = Series::new(&format!("{name}: start of a pod, processor time of QEMU"), "s");
            for start in &starts {
                let Some(guest) = start.guest else { continue };
                host.runs.push(start.total - guest.seconds);
                monitor.runs.push(guest.processor);
            }
            report.judge(Verdict::at_most(&host.name, host.median(), "s", 0.25));
            report.add(host);
            report.add(monitor);
        }
    }
    Ok(())
}

/// Pods started at once: the time for each against the time of one alone, per core.
pub fn at_once(rig: &mut Rig, report: &mut Report, count: usize) -> Result<()> {
    let cores = std::thread::available_parallelism()?.get() as f64;
    for handler in [Handler::Runc, Handler::Cloister] {
        rig.handler = handler;
        let alone = (0..3).map(|_| Ok(start_once(rig)?.total)).collect::<Result<Vec<f64>>>()?;
        let alone = Series { name: format!("{}: one pod alone", handler.name()), unit: "s", runs: alone };
        let begun = Instant::now();
        let shared = &*rig;
        std::thread::scope(|scope| {
            let starts: Vec<_> = (0..count)
                .map(|_| {
                    scope.spawn(move || -> Result<()> {
                        let pod = shared.pod()?;
                        first_output(&pod.start(pod.shell("echo up; sleep 1000"))?)
                    })
                })
                .collect();
            starts
                .into_iter()
                .try_for_each(|start| start.join().map_err(|_| anyhow::anyhow!("a thread died"))?)
        })?;
        let wall = begun.elapsed().as_secs_f64();
        rig.remove_pods()?;
        let each = wall * cores / count as f64;
        let ratio = each / alone.median();
        report.add(alone);
        let name = format!("{}: {count} pods at once, all running", handler.name());
        report.add(Series { name, unit: "s", runs: vec![wall] });
        let what = format!("{}: {count} pods at once, per pod and core, against one alone", handler.name());
        report.judge(Verdict::at_most(&what, ratio, "ratio", 1.2));
    }
    Ok(())
}

/// Seconds that a shell line takes in the container, by its own clock.
fn timed(container: &Container<'_>, line: &str) -> Result<f64> {
    let script = format!("{line}; cat /proc/uptime");
    let before: f64 = container.sh("cut -d' ' -f1 /proc/uptime")?.parse()?;
    let output = container.sh(&script)?;
    let after = output.lines().last().and_then(|line| line.split(' ').next()).context("no clock")?;
    Ok((after.parse::<f64>()? - before).max(0.01))
}

/// Files in the root, in an emptyDir on disk and in a folder of the host.
pub fn files(rig: &mut Rig, report: &mut Report) -> Result<()> {
    const MIB: u32 = 64;
    for handler in [Handler::Runc, Handler::Cloister] {
        rig.handler = handler;
        let folder = rig.lab.root().join(format!("bench-{}", handler.name()));
        std::fs::create_dir_all(&folder)?;
        let config = rig.config();
        let empty = rig.volume(&config, "empty-dir", "work")?;
        let pod = rig.run(config)?;
        let config = pod.shell("mkdir -p /root/bench; echo up; sleep 100000");
        let config = config.mounted(&folder.to_string_lossy(), "/host", false).mounted(
            &empty.to_string_lossy(),
            "/empty",
            false,
        );
        let container = pod.start(config)?;
        first_output(&container)?;
        for (place, path) in [("root", "/root/bench"), ("emptyDir", "/empty"), ("hostPath", "/host")] {
            let name = format!("{}: {place}", handler.name());
            let mut write = Series::new(&format!("{name}, write {MIB} MiB"), "MB/s");
            let mut read = Series::new(&format!("{name}, read {MIB} MiB"), "MB/s");
            let mut small = Series::new(&format!("{name}, 300 small files made and removed"), "s");
            for _ in 0..3 {
                let bytes = f64::from(MIB) * 1.048_576;
                write.runs.push(
                    bytes
                        / timed(
                            &container,
                            &format!(
                                "dd if=/dev/zero of={path}/big bs=1M count={MIB} conv=fsync 2>/dev/null"
                            ),
                        )?,
                );
                container.exec(&["sh", "-c", "echo 3 >/proc/sys/vm/drop_caches 2>/dev/null"])?;
                read.runs.push(
                    bytes / timed(&container, &format!("dd if={path}/big of=/dev/null bs=1M 2>/dev/null"))?,
                );
                let line = format!(
                    "i=0; while [ $i -lt 300 ]; do echo $i >{path}/f$i; i=$((i+1)); done; rm {path}/f* {path}/big"
                );
                small.runs.push(timed(&container, &line)?);
            }
            for series in [write, read, small] {
                report.add(series);
            }
        }
        pod.remove()?;
    }
    Ok(())
}

/// Bytes between the host and a pod, and how long one packet takes there and back.
pub fn network(rig: &mut Rig, report: &mut Report) -> Result<()> {
    const BYTES: u32 = 100_000_000;
    for handler in [Handler::Runc, Handler::Cloister] {
        rig.handler = handler;
        let pod = rig.pod()?;
        let script = format!(
            "mkdir /www; head -c {BYTES} /dev/zero >/www/big; httpd -p 80 -h /www; echo up; sleep 100000"
        );
        let container = pod.start(pod.shell(&script))?;
        first_output(&container)?;
        let address = pod.addresses()?.first().cloned().context("no address")?;
        let busybox = crate::pod_images::lab_program("bin/busybox")?;
        let busybox = busybox.to_string_lossy();
        let name = handler.name();
        let mut out = Series::new(&format!("{name}: pod to host, one connection"), "MB/s");
        let mut latency = Series::new(&format!("{name}: ping of the pod"), "ms");
        for _ in 0..3 {
            let begun = Instant::now();
            rig.lab
                .cell
                .run(&busybox, &["wget", "-q", "-O", "/dev/null", &format!("http://{address}:80/big")])?;
            out.runs.push(f64::from(BYTES) / 1e6 / begun.elapsed().as_secs_f64());
            let answer = rig.lab.cell.run(&busybox, &["ping", "-q", "-c", "20", "-i", "0.05", &address])?;
            let average =
                answer.rsplit("= ").next().and_then(|times| times.split('/').nth(1)).context("no times")?;
            latency.runs.push(average.parse()?);
        }
        let web = rig.lab.root().join("www");
        std::fs::create_dir_all(&web)?;
        std::fs::write(web.join("big"), vec![0; BYTES as usize])?;
        let mut server = rig.lab.cell.spawn(
            std::process::Command::new(&*busybox).args(["httpd", "-f", "-p", "8000", "-h"]).arg(&web),
        )?;
        let mut into = Series::new(&format!("{name}: host to pod, one connection"), "MB/s");
        let gateway = crate::containerd::config::GATEWAYS[0];
        let fetch = format!("timeout 300 wget -q -O /dev/null http://{gateway}:8000/big");
        wait_for("the web server", Duration::from_secs(10), || Ok(container.sh(&fetch).ok()))?;
        for _ in 0..3 {
            into.runs.push(f64::from(BYTES) / 1e6 / timed(&container, &fetch)?);
        }
        server.kill()?;
        server.wait()?;
        for series in [out, into, latency] {
            report.add(series);
        }
        pod.remove()?;
    }
    Ok(())
}
