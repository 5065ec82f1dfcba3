//! A VM boots, ends, and fails with a reason.
#![allow(missing_docs, clippy::unwrap_used, clippy::expect_used, clippy::panic)]

mod lab;

use std::time::{Duration, Instant};

use cloister_vmm::{Cause, Console, Qemu, Vmm};
use lab::{Guest, LIMIT, config, host};

#[tokio::test]
async fn a_guest_boots_answers_pauses_and_stops() {
    let guest = Guest::boot().await;
    assert!(guest.vm.warning().is_none_or(|w| w.contains("emulation")));
    assert!(guest.ask("cat /proc/version").await.unwrap().contains("Linux version"));
    guest.vm.pause().await.unwrap();
    assert!(guest.vm.dial(1024, Duration::from_millis(200)).await.is_err());
    guest.vm.resume().await.unwrap();
    guest.ask("cat /proc/uptime").await.unwrap();
    let refused = guest.vm.dial(7, LIMIT).await.unwrap_err().to_string();
    assert!(refused.starts_with("cannot reach port 7 of the guest"), "{refused}");
    let metrics = guest.vm.metrics().await.unwrap();
    assert_eq!((metrics.memory, metrics.cpus), (256 << 20, 1));
    assert!(metrics.pss > 10 << 20 && metrics.rss >= metrics.pss && metrics.cpu_ms > 0, "{metrics:?}");
    let pid = guest.vm.pid();
    assert_eq!(guest.vm.stop().await.cause, Cause::Requested);
    assert!(!std::path::Path::new(&format!("/proc/{pid}")).exists());
}

#[tokio::test]
async fn qemu_is_unprivileged_and_filtered() {
    let guest = Guest::boot().await;
    let status = std::fs::read_to_string(format!("/proc/{}/status", guest.vm.pid())).unwrap();
    let line =
        |name: &str| status.lines().find_map(|l| l.strip_prefix(name)).unwrap_or_default().trim().to_owned();
    if rustix::process::geteuid().is_root() {
        assert_eq!(line("Uid:"), "65534\t65534\t65534\t65534");
        assert_eq!(line("Groups:"), "");
    }
    assert_eq!(line("CapEff:"), "0000000000000000");
    assert_eq!(line("NoNewPrivs:"), "1");
    assert_eq!(line("Seccomp:"), "2");
    // The guest's memory is a memfd: a tmpfs of the host's could run full, which is a SIGBUS.
    let maps = std::fs::read_to_string(format!("/proc/{}/maps", guest.vm.pid())).unwrap();
    assert!(maps.contains("/memfd:guest-memory") && !maps.contains("/dev/shm"), "{maps}");
    for fd in std::fs::read_dir(format!("/proc/{}/fd", guest.vm.pid())).unwrap().flatten() {
        let target = std::fs::read_link(fd.path()).unwrap_or_default();
        assert!(!target.starts_with(guest.dir.path()), "QEMU holds {}", target.display());
    }
}

#[tokio::test]
async fn a_guest_that_powers_off_and_one_that_panics_are_told_apart() {
    let guest = Guest::boot().await;
    let mut events = guest.vm.events();
    assert!(guest.ask("poweroff").await.is_err());
    assert_eq!(guest.vm.wait().await.cause, Cause::GuestShutdown);
    assert!(matches!(events.recv().await, Ok(cloister_vmm::Event::Exited(_))));

    let guest = Guest::boot().await;
    assert!(guest.ask("panic").await.is_err());
    let exit = guest.vm.wait().await;
    assert_eq!(exit.cause, Cause::GuestReset);
    assert!(exit.to_string().contains("Attempted to kill init"), "{exit}");
}

#[tokio::test]
async fn a_killed_monitor_is_noticed_at_once_and_named() {
    let dir = tempfile::tempdir().unwrap();
    let vm = Qemu::create(&host(), config(dir.path())).await.unwrap();
    vm.start().await.unwrap();
    // In the middle of the boot.
    tokio::time::sleep(Duration::from_millis(200)).await;
    let waiting = vm.dial_until_ready(1024, LIMIT);
    let kill = async {
        rustix::process::kill_process(
            rustix::process::Pid::from_raw(vm.pid().cast_signed()).unwrap(),
            rustix::process::Signal::KILL,
        )
        .unwrap();
        Instant::now()
    };
    let (dialled, killed) = tokio::join!(waiting, kill);
    assert!(killed.elapsed() < Duration::from_millis(500), "{:?}", killed.elapsed());
    let error = dialled.unwrap_err().to_string();
    assert_eq!(error, "the virtual machine monitor ended unexpectedly: signal 9");
    let exit = vm.wait().await;
    assert_eq!(exit.cause, Cause::Failed);
    let after = vm.metrics().await.unwrap_err().to_string();
    assert_eq!(after, error);
}

#[tokio::test]
async fn missing_programs_and_files_are_named_in_one_line() {
    let dir = tempfile::tempdir().unwrap();
    let expect = async |host: cloister_vmm::Host, config: cloister_vmm::VmConfig, text: &str| {
        let error = Qemu::create(&host, config).await.unwrap_err().to_string();
        assert!(error.contains(text) && !error.contains('\n'), "{error}");
    };
    let mut bad = host();
    bad.qemu = "/nonexistent/qemu".into();
    expect(bad, config(dir.path()), "cannot start QEMU (/nonexistent/qemu): No such file").await;
    let mut bad = host();
    bad.firmware = "/nonexistent/qboot.rom".into();
    expect(bad, config(dir.path()), "cannot open firmware /nonexistent/qboot.rom: No such file").await;
    let mut bad = config(dir.path());
    bad.kernel = "/nonexistent/vmlinux".into();
    expect(host(), bad, "cannot open guest kernel /nonexistent/vmlinux").await;
    let mut bad = config(dir.path());
    bad.memory = 1000;
    expect(host(), bad, "memory: 1000 bytes").await;
    // A program that is not QEMU ends without a greeting.
    let mut bad = host();
    bad.qemu = "/bin/false".into();
    expect(bad, config(dir.path()), "ended unexpectedly: exit code 1").await;
    let mut bad = host();
    bad.user = None;
    if rustix::process::geteuid().is_root() {
        expect(bad, config(dir.path()), "VMM user: must be set").await;
    }
}

#[tokio::test]
async fn an_old_qemu_is_refused() {
    let dir = tempfile::tempdir().unwrap();
    // Greets as QEMU 7.2 did, over the inherited socket named on its command line.
    let fake = dir.path().join("qemu");
    let greeting =
        r#"{"QMP":{"version":{"qemu":{"micro":22,"minor":2,"major":7},"package":""},"capabilities":[]}}"#;
    let script = format!(
        "#!/bin/bash\nfor a; do case $a in socket,id=qmp,fd=*) fd=${{a##*=}};; esac; done\n\
         echo '{greeting}' >&$fd\nread -r _ <&$fd\necho '{{\"return\":{{}},\"id\":1}}' >&$fd\nread -r _ <&$fd\n"
    );
    std::fs::write(&fake, script).unwrap();
    use std::os::unix::fs::PermissionsExt;
    std::fs::set_permissions(&fake, std::fs::Permissions::from_mode(0o755)).unwrap();
    std::fs::set_permissions(dir.path(), std::fs::Permissions::from_mode(0o755)).unwrap();
    let mut old = host();
    old.qemu = fake;
    let error = Qemu::create(&old, config(dir.path())).await.unwrap_err().to_string();
    assert_eq!(error, "QEMU 7.2.22 is too old: 10.0.0 or newer is needed");
}

#[tokio::test]
async fn a_guest_that_floods_its_console_fills_nothing() {
    let dir = tempfile::tempdir().unwrap();
    let mut config = config(dir.path());
    config.console = Console { path: dir.path().join("console.log"), limit: 64 << 10 };
    let vm = Qemu::create(&host(), config).await.unwrap();
    vm.start().await.unwrap();
    drop(vm.dial_until_ready(1024, LIMIT).await.unwrap());
    lab::ask(&vm, "print 2000").await.unwrap();
    vm.stop().await;
    let size: u64 =
        std::fs::read_dir(dir.path()).unwrap().map(|e| e.unwrap().metadata().unwrap().len()).sum();
    assert!(size > 8 << 10 && size <= 64 << 10, "{size}");
}

#[tokio::test]
async fn qemu_runs_in_the_network_namespace_it_is_given() {
    let name = format!("clvmm-{}", std::process::id());
    let ip = |arguments: &[&str]| {
        assert!(std::process::Command::new("ip").args(arguments).status().unwrap().success());
    };
    ip(&["netns", "add", &name]);
    let path = std::path::PathBuf::from(format!("/run/netns/{name}"));
    let guest = Guest::boot_with(|config| config.netns = Some(path.clone())).await;
    use std::os::unix::fs::MetadataExt;
    let inode = |path: &str| std::fs::metadata(path).unwrap().ino();
    let qemus = inode(&format!("/proc/{}/ns/net", guest.vm.pid()));
    assert_eq!(qemus, inode(path.to_str().unwrap()));
    assert_ne!(qemus, inode("/proc/self/ns/net"));
    let status = std::fs::read_to_string(format!("/proc/{}/status", guest.vm.pid())).unwrap();
    assert!(status.contains("Uid:\t65534\t65534\t65534\t65534"), "{status}");
    guest.ask("cat /proc/version").await.unwrap();
    drop(guest);
    ip(&["netns", "del", &name]);

    let dir = tempfile::tempdir().unwrap();
    let mut bad = config(dir.path());
    bad.netns = Some("/nonexistent".into());
    let error = Qemu::create(&host(), bad).await.unwrap_err().to_string();
    assert!(error.starts_with("cannot open network namespace /nonexistent: No such file"), "{error}");
}

/// Memory a process has of a mapping, in KiB (`Rss:` of proc_pid_smaps(5)).
fn resident(pid: u32, mapping: &str) -> u64 {
    let smaps = std::fs::read_to_string(format!("/proc/{pid}/smaps")).unwrap();
    let mut inside = false;
    let mut sum = 0;
    for line in smaps.lines() {
        if let Some(value) = line.strip_prefix("Rss:") {
            let kib: u64 = value.trim().trim_end_matches(" kB").parse().unwrap();
            sum += if inside { kib } else { 0 };
        } else if line.split(' ').next().is_some_and(|first| first.contains('-')) {
            inside = line.contains(mapping);
        }
    }
    sum
}

#[tokio::test]
async fn what_only_the_boot_needs_is_not_kept() {
    let guest = Guest::boot().await;
    let maps = std::fs::read_to_string(format!("/proc/{}/maps", guest.vm.pid())).unwrap();
    assert!(maps.contains("/memfd:boot-file"), "{maps}");
    // All but what QEMU has changed in its copy.
    assert!(resident(guest.vm.pid(), "/memfd:boot-file") < 64);
}

#[tokio::test]
async fn memory_the_guest_has_freed_goes_back_to_the_host() {
    let guest = Guest::boot().await;
    guest.ask("churn 128").await.unwrap();
    let began = Instant::now();
    while resident(guest.vm.pid(), "/memfd:guest-memory") > 100 << 10 {
        assert!(began.elapsed() < LIMIT, "{} KiB", resident(guest.vm.pid(), "/memfd:guest-memory"));
        tokio::time::sleep(Duration::from_millis(100)).await;
    }
    // What was given back can be used again.
    guest.ask("touch 100").await.unwrap();
}
