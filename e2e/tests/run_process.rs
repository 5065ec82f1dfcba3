//! `cloister run` as its users see it: what goes in, what comes out, and how it ends.
#![allow(clippy::unwrap_used, clippy::expect_used, clippy::panic, reason = "helpers of tests are tests")]

use std::io::{Read, Write};
use std::process::{Output, Stdio};
use std::time::{Duration, Instant};

use cloister_e2e::Lab;

fn text(output: &Output) -> (String, String) {
    (
        String::from_utf8_lossy(&output.stdout).into_owned(),
        String::from_utf8_lossy(&output.stderr).into_owned(),
    )
}

/// Runs a shell line in a fresh microVM.
fn sh(lab: &Lab, options: &[&str], line: &str) -> Output {
    let mut args = vec!["run", "--rm"];
    args.extend(options);
    args.extend(["debian", "--", "sh", "-c", line]);
    lab.run(&args).unwrap()
}

#[test]
fn exit_codes_are_dockers() {
    let lab = Lab::with_debian().unwrap();
    assert_eq!(sh(&lab, &[], "exit 7").status.code(), Some(7));
    assert_eq!(sh(&lab, &[], "sh -c 'kill -9 $$'; exit $?").status.code(), Some(137));
    assert_eq!(lab.run(&["run", "--rm", "debian", "nosuch"]).unwrap().status.code(), Some(127));
    assert_eq!(lab.run(&["run", "--rm", "debian", "/etc/passwd"]).unwrap().status.code(), Some(126));
    assert_eq!(
        lab.run(&["run", "--rm", "--kernel", "/nowhere", "debian", "true"]).unwrap().status.code(),
        Some(125)
    );
    assert_eq!(
        std::fs::read_dir(lab.root().join("run")).unwrap().flatten().filter(|e| e.path().is_dir()).count(),
        0
    );
}

#[test]
fn streams_are_separate_and_input_ends() {
    let lab = Lab::with_debian().unwrap();
    let mut command = lab.cloister();
    command.args(["run", "--rm", "-i", "debian", "sh", "-c", "cat; echo problem >&2"]);
    let mut child =
        command.stdin(Stdio::piped()).stdout(Stdio::piped()).stderr(Stdio::piped()).spawn().unwrap();
    child.stdin.take().unwrap().write_all(b"through and through\n").unwrap();
    let output = child.wait_with_output().unwrap();
    let (out, err) = text(&output);
    assert!(output.status.success(), "{err}");
    assert_eq!(out, "through and through\n");
    assert!(err.ends_with("problem\n"), "{err}");
}

#[test]
fn without_i_the_input_is_empty() {
    let lab = Lab::with_debian().unwrap();
    let output = sh(&lab, &[], "wc -c");
    assert_eq!(text(&output).0.trim(), "0");
}

#[test]
fn environment_user_and_folder_are_as_asked() {
    let lab = Lab::with_debian().unwrap();
    let output = sh(
        &lab,
        &["-e", "A=1", "-u", "nobody", "-w", "/tmp", "--name", "box"],
        "echo $A $(id -un) $(pwd) $(hostname) $$",
    );
    assert_eq!(text(&output).0, "1 nobody /tmp box 1\n", "{output:?}");
}

#[test]
fn a_privileged_container_mounts_and_a_plain_one_does_not() {
    let lab = Lab::with_debian().unwrap();
    assert!(!sh(&lab, &[], "mount -t tmpfs none /mnt").status.success());
    let output = sh(&lab, &["--privileged"], "mount -t tmpfs none /mnt && grep ' /mnt ' /proc/mounts");
    assert!(output.status.success(), "{output:?}");
}

#[test]
fn a_terminal_has_the_size_it_is_given_and_passes_keys() {
    let lab = Lab::with_debian().unwrap();
    let command = lab.cloister();
    let binary = command.get_program().to_string_lossy().into_owned();
    let line = format!(
        "stty rows 33 cols 101; {binary} --root {} run --rm -it debian sh -c 'stty size; read line; echo got:$line'",
        lab.root().display()
    );
    let mut script = std::process::Command::new("script");
    script.args(["-qec", &line, "/dev/null"]).envs(command.get_envs().filter_map(|(k, v)| Some((k, v?))));
    let mut child = script.stdin(Stdio::piped()).stdout(Stdio::piped()).spawn().unwrap();
    let mut out = child.stdout.take().unwrap();
    let mut input = child.stdin.take().unwrap();
    let mut seen = String::new();
    let mut byte = [0];
    while !seen.contains("33 101") && out.read(&mut byte).unwrap() == 1 {
        seen.push(char::from(byte[0]));
    }
    input.write_all(b"typed\r").unwrap();
    out.read_to_string(&mut seen).unwrap();
    assert!(seen.contains("got:typed"), "{seen}");
    assert!(child.wait().unwrap().success());
}

#[test]
fn t_without_a_terminal_is_refused() {
    let lab = Lab::with_debian().unwrap();
    let output =
        lab.cloister().args(["run", "-it", "--rm", "debian", "true"]).stdin(Stdio::null()).output().unwrap();
    assert_eq!(output.status.code(), Some(125));
    assert!(text(&output).1.contains("not a TTY"), "{output:?}");
}

#[test]
fn signals_reach_the_process() {
    let lab = Lab::with_debian().unwrap();
    let line = "trap 'echo caught; exit 5' TERM; echo ready; while :; do sleep 0.1; done";
    let mut command = lab.cloister();
    command.args(["run", "--rm", "debian", "--", "sh", "-c", line]);
    let mut child = command.stdout(Stdio::piped()).spawn().unwrap();
    let mut out = child.stdout.take().unwrap();
    let mut ready = [0; 6];
    out.read_exact(&mut ready).unwrap();
    let pid = rustix::process::Pid::from_child(&child);
    rustix::process::kill_process(pid, rustix::process::Signal::TERM).unwrap();
    let mut rest = String::new();
    out.read_to_string(&mut rest).unwrap();
    assert_eq!(rest, "caught\n");
    assert_eq!(child.wait().unwrap().code(), Some(5));
}

#[test]
fn folders_and_single_files_are_shared() {
    let lab = Lab::with_debian().unwrap();
    let host = tempfile::tempdir_in(lab.root()).unwrap();
    std::fs::create_dir(host.path().join("d")).unwrap();
    std::fs::write(host.path().join("d/in"), "from the host\n").unwrap();
    std::fs::write(host.path().join("one"), "alone\n").unwrap();
    let folder = format!("{}:/data", host.path().join("d").display());
    let file = format!("{}:/etc/one:ro", host.path().join("one").display());
    let output = sh(
        &lab,
        &["-v", &folder, "-v", &file],
        "cat /data/in /etc/one; echo back >/data/out; echo x >/etc/one || echo refused",
    );
    let (out, err) = text(&output);
    assert_eq!(out, "from the host\nalone\nrefused\n", "{err}");
    assert_eq!(std::fs::read_to_string(host.path().join("d/out")).unwrap(), "back\n");
    assert_eq!(std::fs::read_to_string(host.path().join("one")).unwrap(), "alone\n");
}

#[test]
fn memory_is_limited_and_its_end_is_told() {
    let lab = Lab::with_debian().unwrap();
    let output = sh(&lab, &["--memory", "32m"], "tail /dev/zero");
    let (_, err) = text(&output);
    assert_eq!(output.status.code(), Some(137), "{err}");
    assert!(err.contains("memory"), "{err}");
}

#[test]
fn a_detached_machine_is_listed_entered_copied_stopped_and_removed() {
    let lab = Lab::with_debian().unwrap();
    let line = "echo started; echo wrong >&2; trap 'echo bye; exit 3' TERM; while :; do sleep 0.1; done";
    let name = lab.ok(&["run", "--detach", "--name", "web", "debian", "--", "sh", "-c", line]).unwrap();
    assert_eq!(name, "web\n");
    assert!(lab.ok(&["ps"]).unwrap().contains("running"));
    let again = lab.run(&["run", "--name", "web", "debian", "true"]).unwrap();
    assert_eq!(again.status.code(), Some(125));
    assert!(text(&again).1.contains("in use"), "{again:?}");

    assert_eq!(lab.run(&["exec", "web", "sh", "-c", "exit 9"]).unwrap().status.code(), Some(9));
    assert_eq!(lab.run(&["exec", "web", "nosuch"]).unwrap().status.code(), Some(127));
    let file = lab.root().join("sent");
    std::fs::write(&file, "cargo\n").unwrap();
    lab.ok(&["cp", &file.to_string_lossy(), "web:/tmp/renamed"]).unwrap();
    assert_eq!(lab.ok(&["exec", "web", "cat", "/tmp/renamed"]).unwrap(), "cargo\n");
    lab.ok(&["cp", &file.to_string_lossy(), "web:/tmp"]).unwrap();
    let back = lab.root().join("back");
    lab.ok(&["cp", "web:/tmp/sent", &back.to_string_lossy()]).unwrap();
    assert_eq!(std::fs::read_to_string(&back).unwrap(), "cargo\n");

    assert_eq!(lab.ok(&["stop", "web"]).unwrap(), "web\n");
    assert_eq!(lab.ok(&["ps"]).unwrap().lines().count(), 1);
    assert!(lab.ok(&["ps", "-a"]).unwrap().contains("exited (3)"));
    let (out, err) = text(&lab.run(&["logs", "web"]).unwrap());
    assert_eq!((out.as_str(), err.as_str()), ("started\nbye\n", "wrong\n"));
    assert!(lab.run(&["exec", "web", "true"]).unwrap().status.code() == Some(125));
    lab.ok(&["rm", "web"]).unwrap();
    assert!(!lab.root().join("run/web").exists());
}

#[test]
fn the_output_of_a_fast_end_is_complete() {
    let lab = Lab::with_debian().unwrap();
    let output = sh(&lab, &[], "head -c 20000000 /dev/zero");
    assert_eq!(output.stdout.len(), 20_000_000);
}

#[test]
fn a_reader_that_stops_ends_the_writer() {
    let lab = Lab::with_debian().unwrap();
    let mut command = lab.cloister();
    command.args(["run", "--rm", "debian", "yes"]);
    let mut child = command.stdout(Stdio::piped()).stderr(Stdio::null()).spawn().unwrap();
    let mut some = [0; 1000];
    child.stdout.take().unwrap().read_exact(&mut some).unwrap();
    let begun = Instant::now();
    assert!(!child.wait().unwrap().success());
    assert!(begun.elapsed() < Duration::from_secs(10));
}
