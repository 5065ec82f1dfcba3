//! Long runs: nothing is lost and nothing grows. `make e2e-full` runs them; `CLOISTER_E2E_HANDLER` names another handler
//! than `cloister`, `CLOISTER_E2E_PERCENT` a share of the usual count.
#![allow(clippy::unwrap_used, clippy::expect_used, clippy::panic, reason = "helpers of tests are tests")]

use std::io::{BufRead, BufReader};
use std::sync::atomic::{AtomicUsize, Ordering};
use std::time::{Duration, Instant};

use anyhow::{Context, Result, ensure};
use cloister_e2e::cell::wait_for;
use cloister_e2e::containerd::{Handler, Version};
use cloister_e2e::cri::spec::ContainerConfigExt;
use cloister_e2e::traces::Traces;
use cloister_e2e::{Rig, run_case};

fn run(case: fn(&Rig) -> Result<()>) {
    let handler = match std::env::var("CLOISTER_E2E_HANDLER").as_deref() {
        Ok("runc") => Handler::Runc,
        Ok("cloister-sandbox") => Handler::CloisterSandbox,
        _ => Handler::Cloister,
    };
    run_case(Version::V2_1, handler, &[], case);
}

/// The usual count or the wanted share of it.
fn scaled(count: usize) -> usize {
    let percent = std::env::var("CLOISTER_E2E_PERCENT").ok().and_then(|p| p.parse().ok()).unwrap_or(100);
    (count * percent / 100).max(1)
}

/// Says now and then how far a run is.
struct Progress {
    what: &'static str,
    total: usize,
    begun: Instant,
    said: Instant,
}

impl Progress {
    fn new(what: &'static str, total: usize) -> Progress {
        Progress { what, total, begun: Instant::now(), said: Instant::now() }
    }

    fn at(&mut self, done: usize) {
        if done == self.total || self.said.elapsed() > Duration::from_secs(10) {
            self.said = Instant::now();
            eprintln!("{}: {done} of {} after {} s", self.what, self.total, self.begun.elapsed().as_secs());
        }
    }
}

/// Resident KiB and open descriptors of the one process with these words on its command line.
fn size(rig: &Rig, words: &str) -> Result<Option<(u64, usize)>> {
    let Some(process) = rig.lab.cell.find(words)?.into_iter().next() else { return Ok(None) };
    let folder = rig.lab.cell.path(&format!("/proc/{}", process.pid));
    let status = std::fs::read_to_string(folder.join("status"))?;
    let line = status.lines().find_map(|line| line.strip_prefix("VmRSS:")).context("no VmRSS")?;
    let resident = line.trim().trim_end_matches(" kB").parse()?;
    Ok(Some((resident, std::fs::read_dir(folder.join("fd"))?.count())))
}

/// The daemons may hold caches, but not grow with every pod.
fn no_growth(before: Option<(u64, usize)>, after: Option<(u64, usize)>, what: &str) -> Result<()> {
    if let (Some((rss, fds)), Some((rss_now, fds_now))) = (before, after) {
        eprintln!("{what}: {rss} → {rss_now} KiB resident, {fds} → {fds_now} descriptors");
        ensure!(rss_now < rss + (8 << 10), "{what} grew from {rss} to {rss_now} KiB");
        ensure!(fds_now < fds + 20, "{what} had {fds} and has {fds_now} descriptors open");
    }
    Ok(())
}

#[test]
fn five_hundred_pods_come_and_go_without_a_trace() {
    run(|rig| {
        let total = scaled(500);
        let mut progress = Progress::new("pods created and removed", total);
        let mut early = None;
        for cycle in 1..=total {
            let pod = rig.pod()?;
            ensure!(pod.once(&format!("echo {cycle}"))? == (0, format!("{cycle}\n")));
            pod.remove()?;
            std::fs::remove_dir_all(&pod.config.log_directory)?;
            if cycle == total.div_ceil(10) {
                early = Some((size(rig, "/cloister-node ")?, size(rig, "/containerd --config")?));
                let left = Traces::settled(&rig.lab, Duration::from_secs(5))?;
                ensure!(left.is_empty(), "left behind after {cycle}: {left:#?}");
            }
            progress.at(cycle);
        }
        let (node, _) = early.context("no cycle")?;
        // containerd's own memory is its collector's affair; its descriptors are ours.
        no_growth(node, size(rig, "/cloister-node ")?, "cloister-node")
    });
}

#[test]
fn a_hundred_random_deaths_leave_nothing() {
    run(|rig| {
        let total = scaled(100);
        let mut progress = Progress::new("pods killed", total);
        // What a run is worth: processes that really were killed, and pods that ran before.
        let (mut killed, ran) = (0, AtomicUsize::new(0));
        // A share, so that there is a virtiofsd to kill.
        let shared = rig.lab.root().join("shared");
        std::fs::create_dir(&shared)?;
        let shared = &*shared.to_string_lossy();
        // A fixed sequence: a failure can be repeated.
        let mut state = 0x2545_f491_4f6c_dd1d_u64;
        let mut random = move |below: u64| {
            state ^= state << 13;
            state ^= state >> 7;
            state ^= state << 17;
            state % below
        };
        for death in 1..=total {
            let victims = ["containerd-shim-", "qemu-system", "virtiofsd"];
            let victim = victims[random(if rig.handler.is_microvm() { 3 } else { 1 }) as usize];
            let delay = Duration::from_millis(random(3000));
            std::thread::scope(|scope| {
                let life = scope.spawn(|| -> Result<()> {
                    let pod = rig.pod()?;
                    let ticking = pod.shell("echo up; while :; do echo tick; sleep 0.05; done");
                    let container = pod.start(ticking.mounted(shared, "/shared", false))?;
                    ran.fetch_add(1, Ordering::Relaxed);
                    std::thread::sleep(Duration::from_millis(500));
                    let _ = container.exec(&["echo", "exec"]);
                    pod.remove()
                });
                std::thread::sleep(delay);
                for process in rig.lab.cell.find(victim)? {
                    killed += usize::from(rig.lab.cell.kill(process.pid, "KILL").is_ok());
                }
                // It may fail or not, but it must end.
                let _ = life.join().unwrap();
                // The kubelet asks again, too, while containerd has not seen every exit yet.
                wait_for("the removal", Duration::from_secs(10), || Ok(rig.remove_pods().ok()))
            })
            .with_context(|| format!("death {death}: {victim} after {delay:?}"))?;
            let left = Traces::settled(&rig.lab, Duration::from_secs(10))?;
            ensure!(left.is_empty(), "death {death}, {victim} after {delay:?}, left behind: {left:#?}");
            progress.at(death);
        }
        let ran = ran.into_inner();
        eprintln!("{killed} processes killed, {ran} of {total} pods ran");
        ensure!(killed >= total / 2 && ran >= total / 5, "too few deaths of too few pods to prove anything");
        Ok(())
    });
}

#[test]
fn ten_thousand_execs_in_one_pod_are_all_answered() {
    run(|rig| {
        let total = scaled(10_000);
        let pod = rig.pod()?;
        let container = &pod.idle()?;
        let shim = format!("-id {}", pod.id);
        for _ in 0..20 {
            container.sh("true")?;
        }
        let before = size(rig, &shim)?;
        let next = AtomicUsize::new(1);
        let up_to = |last: usize| {
            std::thread::scope(|scope| {
                let workers: Vec<_> = (0..4)
                    .map(|worker| {
                        let next = &next;
                        scope.spawn(move || -> Result<()> {
                            let mut progress = Progress::new("execs", total);
                            while let Ok(number) =
                                next.fetch_update(Ordering::Relaxed, Ordering::Relaxed, |n| {
                                    (n <= last).then_some(n + 1)
                                })
                            {
                                let line = format!("echo {number}; exit {}", number % 100);
                                let output = container.exec(&["sh", "-c", &line])?;
                                ensure!(
                                    output.text() == format!("{number}\n"),
                                    "exec {number} said {output:?}"
                                );
                                let code = output.code as usize;
                                ensure!(code == number % 100, "exec {number} ended with {code}");
                                if worker == 0 {
                                    progress.at(number);
                                }
                            }
                            Ok(())
                        })
                    })
                    .collect();
                workers.into_iter().try_for_each(|worker| worker.join().unwrap())
            })
        };
        // What it needs to work, and then what stays of each.
        up_to(total / 50)?;
        let warm = size(rig, &shim)?;
        no_growth(before, warm, "the shim, first execs")?;
        up_to(total)?;
        no_growth(warm, size(rig, &shim)?, "the shim, all others")
    });
}

#[test]
fn a_gigabyte_of_logs_is_complete_and_in_order() {
    run(|rig| {
        let mebibytes = scaled(1024);
        let pod = rig.pod()?;
        // Each block of one MiB begins with its number and is then filled up.
        let script = format!(
            "yes fillingfillingfillingfillingfillingfillingfillingfillingfilling | head -c {} >/tmp/filling
             i=0; while [ $i -lt {mebibytes} ]; do printf '%063d\\n' $i; cat /tmp/filling; i=$((i+1)); done",
            (1 << 20) - 64
        );
        let container = pod.start(pod.shell(&script))?;
        let status = container.wait_at_most(Duration::from_secs(3600))?;
        ensure!(status.exit_code == 0, "ended with {}", status.exit_code);
        std::thread::sleep(Duration::from_secs(2));
        let mut log = BufReader::new(std::fs::File::open(&container.log)?);
        let (mut line, mut bytes, mut blocks) = (Vec::new(), 0, 0);
        let mut progress = Progress::new("MiB read back", mebibytes);
        while log.read_until(b'\n', &mut line)? > 0 {
            let text = line.splitn(4, |&byte| byte == b' ').nth(3).context("not a line of a log")?;
            if text.starts_with(b"0") {
                let number: usize = std::str::from_utf8(&text[..63])?.parse()?;
                ensure!(number == blocks, "block {number} where {blocks} was due");
                ensure!(bytes == blocks << 20, "block {blocks} begins at byte {bytes}");
                blocks += 1;
                progress.at(blocks);
            } else {
                ensure!(
                    b"fillingfillingfillingfillingfillingfillingfillingfillingfilling\n"
                        .starts_with(&text[..text.len() - 1])
                );
            }
            bytes += text.len();
            line.clear();
        }
        ensure!(bytes == mebibytes << 20, "{bytes} bytes instead of {}", mebibytes << 20);
        Ok(())
    });
}

#[test]
fn twenty_pods_start_at_once() {
    run(|rig| {
        let total = scaled(20);
        let begun = Instant::now();
        let outcome = std::thread::scope(|scope| {
            let runs: Vec<_> = (0..total)
                .map(|number| {
                    scope.spawn(move || -> Result<()> {
                        let pod = rig.pod()?;
                        let container = pod.start_shell(
                            &format!("echo up {number}; sleep 1000"),
                            &format!("up {number}\n"),
                        )?;
                        ensure!(container.sh("echo exec")? == "exec");
                        Ok(())
                    })
                })
                .collect();
            runs.into_iter().try_for_each(|run| run.join().unwrap())
        });
        eprintln!("{total} pods after {:.1} s", begun.elapsed().as_secs_f64());
        outcome
    });
}
