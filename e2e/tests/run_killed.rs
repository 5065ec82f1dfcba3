//! Anything may be killed at any moment: the user gets one clear line and exit code 125 within two seconds, and nothing
//! is left behind.
#![allow(clippy::unwrap_used, clippy::expect_used, clippy::panic, reason = "helpers of tests are tests")]

use std::fs;
use std::io::Read;
use std::path::Path;
use std::process::{Child, Stdio};
use std::time::{Duration, Instant};

use cloister_e2e::{Lab, Leftovers};
use rustix::process::{Pid, Signal, kill_process};

/// How soon a death must be noticed.
const NOTICE: Duration = Duration::from_secs(2);
/// How soon everything must be gone.
const GONE: Duration = Duration::from_secs(3);

/// A foreground command that has begun, in a lab that has run one before.
struct Begun {
    lab: Lab,
    before: Leftovers,
    child: Child,
}

fn begin(options: &[&str]) -> Begun {
    let lab = Lab::with_debian().unwrap();
    lab.ok(&["run", "--rm", "debian", "true"]).unwrap();
    let before = Leftovers::below(lab.root()).unwrap();
    let mut command = lab.cloister();
    command.args(["run", "--rm", "--name", "victim"]).args(options);
    command.args(["debian", "--", "sh", "-c", "echo ready; sleep 1000"]);
    let mut child = command.stdout(Stdio::piped()).stderr(Stdio::piped()).spawn().unwrap();
    let mut ready = [0; 6];
    child.stdout.as_mut().unwrap().read_exact(&mut ready).unwrap();
    Begun { lab, before, child }
}

/// Descendants of a process by name. Of a family of one name only the eldest: `virtiofsd` has a child for a moment that
/// nothing depends on any more when it can be seen.
fn descendants(root: u32, name: &str) -> Vec<u32> {
    let mut parents = Vec::new();
    for entry in fs::read_dir("/proc").unwrap().flatten() {
        let Some(pid) = entry.file_name().to_str().and_then(|n| n.parse::<u32>().ok()) else { continue };
        let Ok(stat) = fs::read_to_string(entry.path().join("stat")) else { continue };
        let Some((head, tail)) = stat.rsplit_once(") ") else { continue };
        let comm = head.split_once('(').map_or("", |(_, comm)| comm).to_owned();
        let parent: u32 = tail.split(' ').nth(1).unwrap().parse().unwrap();
        parents.push((pid, parent, comm));
    }
    let below = |mut pid: u32| loop {
        match parents.iter().find(|(this, ..)| *this == pid) {
            Some((_, parent, _)) if *parent == root => return true,
            Some((_, parent, _)) if *parent > 1 => pid = *parent,
            _ => return false,
        }
    };
    let named = |pid: u32| parents.iter().any(|(this, _, comm)| *this == pid && comm.starts_with(name));
    parents
        .iter()
        .filter(|(pid, parent, _)| named(*pid) && (name.is_empty() || !named(*parent)) && below(*pid))
        .map(|(pid, ..)| *pid)
        .collect()
}

/// The end of a process, or its own end when it does not come in time: nothing here waits for a command that was not killed.
fn ended(child: &mut Child) -> std::process::ExitStatus {
    let deadline = Instant::now() + Duration::from_secs(20);
    loop {
        if let Some(status) = child.try_wait().unwrap() {
            return status;
        }
        if Instant::now() > deadline {
            child.kill().unwrap();
            return child.wait().unwrap();
        }
        std::thread::sleep(Duration::from_millis(1));
    }
}

fn kill(pid: u32) {
    kill_process(Pid::from_raw(pid.cast_signed()).unwrap(), Signal::KILL).unwrap();
}

impl Begun {
    fn one(&self, name: &str) -> u32 {
        descendants(self.child.id(), name).pop().unwrap_or_else(|| panic!("no process {name}"))
    }

    /// The command must end with 125 and one line that contains `words`, in time, and leave nothing.
    fn fails_with(mut self, words: &str) {
        let begun = Instant::now();
        let status = ended(&mut self.child);
        let took = begun.elapsed();
        let mut error = String::new();
        self.child.stderr.take().unwrap().read_to_string(&mut error).unwrap();
        assert_eq!(status.code(), Some(125), "{error}");
        assert!(took < NOTICE, "took {took:?}");
        let line = error.lines().last().unwrap_or_default();
        assert!(line.contains(words), "{error}");
        nothing_left(&self.before, self.lab.root());
    }
}

fn nothing_left(before: &Leftovers, root: &Path) {
    let left = before.new_since(root, GONE).unwrap();
    assert!(left.is_empty(), "left behind: {left:#?}");
}

#[test]
fn a_killed_monitor_is_reported() {
    let begun = begin(&[]);
    kill(begun.one("qemu-system"));
    begun.fails_with("the virtual machine ended");
}

#[test]
fn a_killed_supervisor_is_reported_and_takes_its_machine_along() {
    let begun = begin(&[]);
    let supervisor = descendants(begun.child.id(), "").into_iter().find(|pid| {
        fs::read(format!("/proc/{pid}/cmdline"))
            .is_ok_and(|line| line.windows(11).any(|w| w == b"__supervise"))
    });
    kill(supervisor.unwrap());
    begun.fails_with("supervisor");
}

#[test]
fn a_killed_command_takes_everything_along() {
    let mut begun = begin(&[]);
    kill(begun.child.id());
    begun.child.wait().unwrap();
    nothing_left(&begun.before, begun.lab.root());
}

#[test]
fn a_killed_share_daemon_is_reported() {
    let host = tempfile::tempdir().unwrap();
    let begun = begin(&["-v", &format!("{}:/data", host.path().display())]);
    kill(begun.one("virtiofsd"));
    begun.fails_with("share");
}

#[test]
fn a_command_killed_while_it_starts_leaves_nothing() {
    let lab = Lab::with_debian().unwrap();
    lab.ok(&["run", "--rm", "debian", "true"]).unwrap();
    let before = Leftovers::below(lab.root()).unwrap();
    for millis in [5, 30, 80, 200, 500, 900] {
        let mut child = lab
            .cloister()
            .args(["run", "--rm", "debian", "true"])
            .stdout(Stdio::null())
            .stderr(Stdio::null())
            .spawn()
            .unwrap();
        std::thread::sleep(Duration::from_millis(millis));
        // It may have ended before.
        let _ = child.kill();
        child.wait().unwrap();
        // Whoever comes next puts right what was cut off between two files.
        lab.ok(&["ps", "-a"]).unwrap();
        nothing_left(&before, lab.root());
    }
}

#[test]
fn a_detached_machine_whose_supervisor_is_killed_is_marked_and_its_name_explained() {
    let lab = Lab::with_debian().unwrap();
    lab.ok(&["run", "-d", "--name", "web", "debian", "sleep", "1000"]).unwrap();
    let record: serde_json::Value =
        serde_json::from_slice(&fs::read(lab.root().join("run/web/state.json")).unwrap()).unwrap();
    kill(record["pid"].as_u64().unwrap().try_into().unwrap());
    std::thread::sleep(Duration::from_millis(500));
    let list = lab.ok(&["ps", "-a"]).unwrap();
    assert!(list.contains("failed") && list.contains("supervisor"), "{list}");
    assert!(!lab.root().join("run/web/door").exists());
    lab.ok(&["rm", "web"]).unwrap();
}

/// The VMM or the share's daemon killed at several moments between its birth and the process's start.
#[test]
fn a_helper_killed_while_the_machine_starts_is_reported_and_nothing_left() {
    let lab = Lab::with_debian().unwrap();
    lab.ok(&["run", "--rm", "debian", "true"]).unwrap();
    let host = tempfile::tempdir().unwrap();
    let share = format!("{}:/data", host.path().display());
    let before = Leftovers::below(lab.root()).unwrap();
    for helper in ["qemu-system", "virtiofsd"] {
        for millis in [0, 20, 100, 300] {
            let mut command = lab.cloister();
            command.args(["run", "--rm", "-v", &share, "debian", "sleep", "1000"]);
            let mut child = command.stdout(Stdio::null()).stderr(Stdio::piped()).spawn().unwrap();
            let deadline = Instant::now() + Duration::from_secs(20);
            let pid = loop {
                if let Some(pid) = descendants(child.id(), helper).pop() {
                    break pid;
                }
                assert!(Instant::now() < deadline, "{helper} never came");
                std::thread::sleep(Duration::from_millis(2));
            };
            std::thread::sleep(Duration::from_millis(millis));
            kill(pid);
            let killed = Instant::now();
            let status = ended(&mut child);
            let took = killed.elapsed();
            let mut error = String::new();
            child.stderr.take().unwrap().read_to_string(&mut error).unwrap();
            let case = format!("{helper} after {millis} ms: {took:?}, {error}");
            assert_eq!(status.code(), Some(125), "{case}");
            assert!(took < NOTICE, "{case}");
            let last = error.trim_end().lines().last().unwrap_or_default();
            assert!(last.starts_with("cloister: "), "{case}");
            nothing_left(&before, lab.root());
        }
    }
}
