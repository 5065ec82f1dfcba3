//! What the machine has, and what a container may make of it.

use std::collections::HashSet;
use std::io::Write;

use cloister_protocol::v1::{self, PidNamespace, mount_volume_request::Kind};
use libcontainer::oci_spec::runtime::{LinuxResources, MountBuilder};

use crate::lab::{Lab, outcome, wishes};

/// Lines of what a shell script in container `c` says.
async fn lines(lab: &Lab, name: &str, script: &str) -> Vec<String> {
    let end = lab.exec("c", name, "", &["sh", "-c", script]).await.unwrap();
    assert_eq!(end.code, 0, "{end:?}");
    end.stdout.lines().map(str::to_owned).collect()
}

#[tokio::test]
async fn processors_go_online_and_offline_under_a_running_container() {
    let mut lab = Lab::boot_with(|config| config.max_cpus = 2).await;
    let (process, _out, _err) = lab.start("c", "", wishes(&["sleep", "1000"]), None).await.unwrap();
    assert_eq!(lines(&lab, "one", "nproc").await, ["1"]);
    lab.sandbox.resize(256 << 20, 2).await.unwrap();
    // A process that was there before may use it as well.
    assert_eq!(lines(&lab, "two", "nproc").await, ["2"]);
    let agent = lab.sandbox.agent();
    for (step, (wanted, online)) in [(1, "0"), (2, "0-1"), (1, "0")].into_iter().enumerate() {
        assert_eq!(agent.grow(wanted, 0).await.unwrap().cpus, wanted);
        let seen = lines(&lab, &format!("step{step}"), "cat /sys/devices/system/cpu/online").await;
        assert_eq!(seen, [online]);
    }
    let refused = agent.grow(3, 0).await.unwrap_err().to_string();
    assert!(refused.contains("3 processors to have online; the machine has 2"), "{refused}");
    process.remote().signal(libc::SIGKILL).await.unwrap();
    process.wait().await.unwrap();
    lab.sandbox.stop().await;
}

#[tokio::test]
async fn a_read_only_disk_is_read_only_raw_and_mounted() {
    let lab = Lab::boot(true).await;
    let agent = lab.sandbox.agent();
    let mut file = std::fs::File::options()
        .read(true)
        .write(true)
        .create_new(true)
        .open(lab.folder().join("raw"))
        .unwrap();
    file.write_all(b"of the host").unwrap();
    file.set_len(4 << 20).unwrap();
    let raw = lab.sandbox.plug_disk(file.try_clone().unwrap().into(), true).await.unwrap();
    // A file system that nobody may write to, as a volume.
    let image = lab.folder().join("image");
    std::fs::File::create_new(&image).unwrap().set_len(8 << 20).unwrap();
    let made = std::process::Command::new("mkfs.ext4").args(["-q", "-F"]).arg(&image).status().unwrap();
    assert!(made.success());
    let before = std::fs::read(&image).unwrap();
    let serial = lab.sandbox.plug_disk(std::fs::File::open(&image).unwrap().into(), true).await.unwrap();
    let request = v1::MountVolumeRequest {
        id: "ro".into(),
        kind: Some(Kind::Disk(v1::DiskVolume { serial, read_only: true })),
        mode: 0,
        gid: 0,
    };
    let path = agent.mount_volume(request).await.unwrap();

    // Even for a container that may do everything in the machine.
    let mut all = wishes(&["sleep", "1000"]);
    all.privileged = true;
    let mut container = lab.container("c", &all);
    container.block_devices = vec![v1::BlockDevice {
        serial: raw,
        path: "/dev/xvda".into(),
        read_only: true,
        mode: 0o666,
        uid: 0,
        gid: 0,
    }];
    let mut mounts = container.spec.mounts().clone().unwrap();
    let bind = MountBuilder::default().source(path).destination("/ro").typ("bind");
    mounts.push(bind.options(vec!["rbind".to_owned(), "rw".to_owned()]).build().unwrap());
    container.spec.set_mounts(Some(mounts));
    let (process, _out, _err) = lab.start_container(container, None, None).await.unwrap();
    let script = "head -c 11 /dev/xvda; echo; echo x 2>/dev/null >/dev/xvda || echo refused
        touch /ro/x 2>/dev/null || echo refused; mount -o remount,rw /ro 2>/dev/null || echo refused; ls -d /ro/lost+found
        blockdev --setrw /dev/xvda 2>/dev/null; dd if=/dev/zero of=/dev/xvda bs=4096 count=1 conv=fsync 2>/dev/null || echo refused";
    let expected = ["of the host", "refused", "refused", "refused", "/ro/lost+found", "refused"];
    assert_eq!(lines(&lab, "try", script).await, expected);
    assert!(std::fs::read(lab.folder().join("raw")).unwrap().starts_with(b"of the host"));
    assert!(std::fs::read(&image).unwrap() == before, "the image was written to");
    process.remote().signal(libc::SIGKILL).await.unwrap();
    process.wait().await.unwrap();
    lab.sandbox.stop().await;
}

#[tokio::test]
async fn limits_of_huge_pages_and_of_cgroup_files_by_name_hold() {
    let mut lab = Lab::boot(false).await;
    let (process, _out, _err) = lab.start("c", "", wishes(&["sleep", "1000"]), None).await.unwrap();
    let agent = lab.sandbox.agent();
    let resources = |json: &str| serde_json::from_str::<LinuxResources>(json).unwrap();
    let set = resources(
        r#"{"hugepageLimits":[{"pageSize":"2MB","limit":4194304}],
            "unified":{"memory.high":"50331648","pids.max":"77"}}"#,
    );
    agent.update_container("c", &set).await.unwrap();
    let script = "cd /sys/fs/cgroup; cat hugetlb.2MB.max hugetlb.2MB.rsvd.max memory.high pids.max";
    assert_eq!(lines(&lab, "files", script).await, ["4194304", "4194304", "50331648", "77"]);
    // What is no limit is refused and changes nothing.
    for json in [
        r#"{"unified":{"cgroup.procs":"1","pids.max":"3"}}"#,
        r#"{"unified":{"../memory.max":"1"}}"#,
        r#"{"unified":{"memory.high":"a lot"}}"#,
    ] {
        assert!(agent.update_container("c", &resources(json)).await.is_err(), "{json}");
    }
    assert_eq!(lines(&lab, "again", script).await, ["4194304", "4194304", "50331648", "77"]);
    process.remote().signal(libc::SIGKILL).await.unwrap();
    process.wait().await.unwrap();
    lab.sandbox.stop().await;
}

/// Capabilities of the caller's bounding set and effective set by system calls alone: no /proc is asked.
const CAPABILITIES: &str = r#"my @b = grep { syscall(157, 23, $_, 0, 0, 0) == 1 } 0..63;
    my $h = pack("Ii", 0x20080522, 0); my $d = "\0" x 24; syscall(125, $h, $d);
    my ($e, $p, $i, $e2) = unpack("IIII", $d); printf "%s\n%08x%08x\n", join(",", @b), $e2, $e;"#;

/// Kata #13615: the highest capability was read from a /proc that the container had replaced, and exec dropped less.
#[tokio::test]
async fn a_proc_of_the_containers_own_does_not_mislead_exec() {
    let lab = Lab::boot(true).await;
    let plain = lab.container("c", &wishes(&["sleep", "1000"]));
    let (process, _out, _err) = lab.start_container(plain, None, None).await.unwrap();
    let end = lab.exec("c", "plain", "", &["perl", "-e", CAPABILITIES]).await.unwrap();
    let expected = end.stdout;
    assert!(expected.ends_with("\n00000000a80425fb\n") && expected.starts_with("0,1,3,"), "{expected}");
    process.remote().signal(libc::SIGKILL).await.unwrap();
    process.wait().await.unwrap();
    lab.sandbox.delete("c").await.unwrap();

    // A container that may mount lays a /proc of its own over the kernel's; an exec with less rights must get no more.
    let script = "mount -t tmpfs none /proc && mkdir -p /proc/sys/kernel /proc/self /proc/1 /proc/thread-self/attr &&
        echo 0 >/proc/sys/kernel/cap_last_cap && echo 'CapBnd: 0' >/proc/self/status && echo ready; exec sleep 1000";
    let mut all = wishes(&["sh", "-c", script]);
    all.privileged = true;
    let container = lab.container("c", &all);
    let (process, out, _err) = lab.start_container(container, None, None).await.unwrap();
    crate::until(&out, "ready").await;
    let end = lab.exec("c", "shadow", "", &["perl", "-e", CAPABILITIES]).await.unwrap();
    assert_eq!(end.stdout, expected, "{end:?}");
    let shown = lab.exec("c", "seen", "", &["cat", "/proc/sys/kernel/cap_last_cap"]).await.unwrap();
    assert_eq!(shown.stdout, "0\n", "the container's own /proc is not there: {shown:?}");
    process.remote().signal(libc::SIGKILL).await.unwrap();
    process.wait().await.unwrap();
    lab.sandbox.stop().await;
}

#[tokio::test]
async fn containers_in_the_guests_process_ids_see_each_other_and_not_the_agents_files() {
    let lab = Lab::boot(false).await;
    let in_guest = |id: &str, command: &[&str]| {
        let mut container = lab.container(id, &wishes(command));
        container.pid_namespace = PidNamespace::Guest;
        container
    };
    let (first, out, _err) = lab
        .start_container(in_guest("c", &["sh", "-c", "echo $$; exec sleep 1111"]), None, None)
        .await
        .unwrap();
    crate::until(&out, "\n").await;
    let pid = out.text().trim().to_owned();
    let script = format!(
        "tr '\\0' ' ' </proc/{pid}/cmdline; echo; tr '\\0' ' ' </proc/1/cmdline | wc -w; ls /proc/1/root/ 2>&1 | wc -l
         cat /proc/1/environ 2>/dev/null || echo refused; kill -9 1; sleep 5000 & echo $!"
    );
    let (second, out, err) =
        lab.start_container(in_guest("d", &["sh", "-c", &script]), None, None).await.unwrap();
    let end = outcome(second, &out, &err).await;
    let seen: Vec<&str> = end.stdout.lines().collect();
    assert_eq!((seen[0].trim(), seen[3]), ("sleep 1111", "refused"), "{end:?}");
    // What the second left behind went with it, what the first has did not.
    let left: HashSet<String> =
        lines(&lab, "left", &format!("ls -d /proc/{pid} /proc/{} 2>/dev/null; true", seen[4]))
            .await
            .into_iter()
            .collect();
    assert_eq!(left, HashSet::from([format!("/proc/{pid}")]));
    first.remote().signal(libc::SIGKILL).await.unwrap();
    first.wait().await.unwrap();
    lab.sandbox.stop().await;
}
