//! What the containers of a pod share, and what the host changes while they run.

use std::collections::HashMap;
use std::os::fd::{AsRawFd, OwnedFd};
use std::time::{Duration, Instant};

use cloister_protocol::v1::{self, PidNamespace, mount_volume_request::Kind};
use cloister_sandbox::{Container, Scratch};
use libcontainer::oci_spec::runtime::{LinuxNamespaceType, LinuxResources, MountBuilder, Spec};
use tokio::io::{AsyncReadExt, AsyncWriteExt};

use crate::lab::{Lab, outcome, wishes};

/// The guest's own hostname, IPC and network, and these bind mounts.
fn of_pod(spec: &mut Spec, binds: &[(&str, &str)]) {
    spec.set_hostname(None);
    let mut linux = spec.linux().clone().unwrap();
    let mut namespaces = linux.namespaces().clone().unwrap();
    namespaces.retain(|n| ![LinuxNamespaceType::Uts, LinuxNamespaceType::Ipc].contains(&n.typ()));
    linux.set_namespaces(Some(namespaces));
    spec.set_linux(Some(linux));
    let mut mounts = spec.mounts().clone().unwrap();
    for (source, destination) in binds {
        mounts.retain(|mount| mount.destination() != std::path::Path::new(destination));
        let mount = MountBuilder::default().source(source).destination(destination).typ("bind");
        mounts.push(mount.options(vec!["rbind".to_owned(), "rw".to_owned()]).build().unwrap());
    }
    spec.set_mounts(Some(mounts));
}

fn container(lab: &Lab, id: &str, command: &[&str], binds: &[(&str, &str)]) -> Container {
    let mut container = lab.container(id, &wishes(command));
    of_pod(&mut container.spec, binds);
    container
}

fn volume(id: &str, kind: Kind) -> v1::MountVolumeRequest {
    v1::MountVolumeRequest { id: id.into(), kind: Some(kind), mode: 0o2775, gid: 2000 }
}

/// A tar archive in kubelet's layout, or of plain files.
fn archive(revision: Option<&str>, files: &[(&str, &str)]) -> Vec<u8> {
    let mut builder = tar::Builder::new(Vec::new());
    let mut add = |name: &str, kind, content: &str| {
        let mut header = tar::Header::new_gnu();
        header.set_entry_type(kind);
        header.set_mode(if kind == tar::EntryType::Directory { 0o755 } else { 0o644 });
        header.set_uid(0);
        header.set_gid(0);
        if kind == tar::EntryType::Symlink {
            header.set_size(0);
            builder.append_link(&mut header, name, content).unwrap();
        } else {
            header.set_size(content.len() as u64);
            builder.append_data(&mut header, name, content.as_bytes()).unwrap();
        }
    };
    if let Some(revision) = revision {
        add(revision, tar::EntryType::Directory, "");
        add("..data", tar::EntryType::Symlink, revision);
    }
    for (name, content) in files {
        match revision {
            Some(revision) => {
                add(&format!("{revision}/{name}"), tar::EntryType::Regular, content);
                add(name, tar::EntryType::Symlink, &format!("..data/{name}"));
            }
            None => add(name, tar::EntryType::Regular, content),
        }
    }
    builder.into_inner().unwrap()
}

/// Prints what inotify(7) tells about a folder until the pipe closes: `MASK NAME` a line.
const WATCH: &str = r#"$|=1; $p="/cfg"; $fd=syscall(294,0); syscall(254,$fd,$p,0x3c6); open($f,"<&=",$fd); print "ready\n";
    while (sysread($f,$b,65536)) { while (length $b) { ($w,$m,$c,$l)=unpack("iIII",$b); $n=unpack("Z*",substr($b,16,$l));
    printf "%x %s\n",$m,$n; $b=substr($b,16+$l); } }"#;

#[tokio::test]
async fn containers_share_volumes_names_and_process_ids() {
    let lab = Lab::boot(false).await;
    let agent = lab.sandbox.agent();

    let sysctls = HashMap::from([("net.ipv4.ip_unprivileged_port_start".to_owned(), "0".to_owned())]);
    agent.set_up_pod("web-0", sysctls, 1 << 20).await.unwrap();
    let denied = HashMap::from([("kernel.core_pattern".to_owned(), "x".to_owned())]);
    assert!(agent.set_up_pod("", denied, 0).await.is_err());

    let serial =
        lab.sandbox.plug_scratch(Scratch::nameless(32 << 20, lab.folder().to_owned())).await.unwrap();
    let disk = Kind::Disk(v1::DiskVolume { serial, read_only: false });
    agent.mount_volume(volume("disk", disk)).await.unwrap();
    agent.mount_volume(volume("mem", Kind::Memory(v1::MemoryVolume { bytes: 1 << 20 }))).await.unwrap();
    for id in ["cfg", "etc"] {
        agent.mount_volume(volume(id, Kind::Files(v1::FilesVolume { bytes: 1 << 20 }))).await.unwrap();
    }
    agent.sync_volume("cfg", &archive(Some("..1"), &[("a", "one"), ("b", "one")])).await.unwrap();
    agent.sync_volume("etc", &archive(None, &[("hosts", "first version\n")])).await.unwrap();

    let binds = [
        ("/run/cloister/volumes/cfg", "/cfg"),
        ("/run/cloister/volumes/etc/hosts", "/etc/hosts"),
        ("/run/cloister/volumes/mem/sub/path", "/mem"),
        ("/run/cloister/volumes/disk", "/disk"),
        ("/run/cloister/shm", "/dev/shm"),
    ];
    let mut first = container(&lab, "first", &["perl", "-e", WATCH], &binds);
    first.pid_namespace = PidNamespace::Pod;
    let (watcher, events, errors) = lab.start_container(first, None, None).await.unwrap();
    crate::until(&events, "ready").await;

    let script = "hostname; cat /cfg/a /etc/hosts; stat -c '%a %g' /mem /disk; stat -f -c %T /disk; \
                  stat -c %i /etc/hosts; df -k --output=size /dev/shm | tail -n 1; \
                  dd if=/dev/zero of=/mem/big bs=1M count=2 2>/dev/null; echo full $?; ln -s / /mem/out; ls /cfg -A | xargs";
    let second = container(&lab, "second", &["sh", "-c", script], &binds);
    let (process, out, err) = lab.start_container(second, None, None).await.unwrap();
    let end = outcome(process, &out, &err).await;
    let lines: Vec<&str> = end.stdout.lines().collect();
    let expected = ["web-0", "onefirst version", "2775 2000", "2775 2000", "ext2/ext3"];
    assert_eq!(lines[..5], expected, "{end:?}");
    let inode = lines[5];
    assert_eq!(lines[7..], ["full 1", "..1 ..data a b"], "{end:?}");
    assert_eq!(lines[6].trim(), "1024");

    // An update is seen as kubelet's own writer makes it, the plain file keeps its inode.
    agent.sync_volume("cfg", &archive(Some("..2"), &[("a", "two"), ("c", "two")])).await.unwrap();
    agent.sync_volume("etc", &archive(None, &[("hosts", "second\n")])).await.unwrap();
    let end = lab
        .exec(
            "first",
            "x",
            "",
            &["sh", "-c", "cat /cfg/a /etc/hosts; stat -c %i /etc/hosts; ls -A /cfg | xargs"],
        )
        .await
        .unwrap();
    assert_eq!(end.stdout, format!("twosecond\n{inode}\n..2 ..data a c\n"), "{end:?}");
    crate::until(&events, " ..1").await;
    let seen = events.text();
    let order = ["40000100 ..2", "100 ..data_tmp", "40 ..data_tmp", "80 ..data", "200 b", "40000200 ..1"];
    let mut at = 0;
    for event in order {
        at += seen[at..].find(event).unwrap_or_else(|| panic!("{event} is missing or early in {seen}"));
    }
    assert_eq!(errors.text(), "");
    let torn = agent.sync_volume("cfg", &archive(Some("..3"), &[("a", "three")])[..700]).await;
    let large = agent.sync_volume("cfg", &archive(Some("..4"), &[("a", &"x".repeat(2 << 20))])).await;
    for (what, result) in [("torn", torn), ("large", large)] {
        assert!(result.is_err(), "{what}");
    }

    // A link that a container planted in a volume leads nowhere outside of it.
    let evil =
        container(&lab, "evil", &["ls", "/x"], &[("/run/cloister/volumes/mem/sub/path/out/proc", "/x")]);
    let (process, out, err) = lab.start_container(evil, None, None).await.unwrap();
    let end = outcome(process, &out, &err).await;
    assert_eq!((end.code, end.stdout.as_str()), (0, ""), "{end:?}");

    // The pod's process ids: a second container sees the first one's, and ends as a whole.
    let script = "cat /proc/1/comm; grep -l perl /proc/[0-9]*/comm | wc -l; ls /proc/1/root/ | wc -l; sleep 1000 & echo $!";
    let mut third = container(&lab, "third", &["sh", "-c", script], &[]);
    third.pid_namespace = PidNamespace::Pod;
    let (process, out, err) = lab.start_container(third, None, None).await.unwrap();
    let end = outcome(process, &out, &err).await;
    let lines: Vec<&str> = end.stdout.lines().collect();
    assert_eq!(lines[..3], ["pod", "1", "0"], "{end:?}");
    let gone = format!("test ! -d /proc/{}", lines[3]);
    let deadline = Instant::now() + Duration::from_secs(10);
    let mut number = 0;
    while lab.exec("first", &format!("gone{number}"), "", &["sh", "-c", &gone]).await.unwrap().code != 0 {
        assert!(Instant::now() < deadline, "a process outlived its container");
        number += 1;
    }
    // Those of one other container.
    let (_target, up, _) = lab
        .start_container(
            container(&lab, "target", &["sh", "-c", "echo up; exec sleep 1000"], &[]),
            None,
            None,
        )
        .await
        .unwrap();
    crate::until(&up, "up").await;
    let joining = |id: &str, target: &str| {
        let mut joining =
            container(&lab, id, &["sh", "-c", "cat /proc/1/comm; ls -d /proc/[0-9]* | wc -l"], &[]);
        (joining.pid_namespace, joining.pid_container) = (PidNamespace::Container, target.to_owned());
        joining
    };
    let (process, out, err) = lab.start_container(joining("debug", "target"), None, None).await.unwrap();
    let end = outcome(process, &out, &err).await;
    assert!(end.stdout.starts_with("sleep\n"), "{end:?}");
    for (id, ended) in [("late", "third"), ("never", "nobody")] {
        assert!(lab.start_container(joining(id, ended), None, None).await.is_err(), "{ended}");
    }
    // A working folder outside of the root is none.
    let mut outside = wishes(&["true"]);
    outside.cwd = Some("/proc/1/root".into());
    assert!(lab.exec_wishes("first", "outside", &outside).await.is_err());
    let end = lab.exec("first", "caps", "", &["grep", "CapEff", "/proc/self/status"]).await.unwrap();
    assert_eq!(end.stdout, "CapEff:\t00000000a80425fb\n");

    watcher.remote().signal(libc::SIGKILL).await.unwrap();
    assert_eq!(watcher.wait().await.unwrap().code, 137);
    for id in ["first", "second", "evil", "third"] {
        lab.sandbox.delete(id).await.unwrap();
    }
    for id in ["disk", "mem", "cfg", "etc"] {
        agent.unmount_volume(id).await.unwrap();
    }
    assert!(agent.unmount_volume("mem").await.is_err());
    // A container after the last one.
    let again = container(&lab, "first", &["true"], &[]);
    let (process, out, err) = lab.start_container(again, None, None).await.unwrap();
    assert_eq!(outcome(process, &out, &err).await.code, 0);
    lab.sandbox.stop().await;
}

#[tokio::test]
async fn limits_pauses_and_disks_change_while_a_container_runs() {
    let lab = Lab::boot(false).await;
    let agent = lab.sandbox.agent();
    let file = std::fs::File::options()
        .read(true)
        .write(true)
        .create(true)
        .truncate(true)
        .open(lab.folder().join("raw"))
        .unwrap();
    file.set_len(4 << 20).unwrap();
    let serial = lab.sandbox.plug_disk(file.into(), false).await.unwrap();
    let mut c = container(&lab, "c", &["sh", "-c", "while :; do sleep 0.02; echo tick; done"], &[]);
    let device = |path: &str, read_only| v1::BlockDevice {
        serial: serial.clone(),
        path: path.into(),
        read_only,
        mode: 0o640,
        uid: 1,
        gid: 6,
    };
    c.block_devices = vec![device("/dev/xvda", false), device("/data/raw", false)];
    let (process, out, _err) = lab.start_container(c, None, None).await.unwrap();
    let script = "stat -c '%a %u %g %F' /dev/xvda /data/raw; echo hi >/dev/xvda; head -c 3 /data/raw; mknod /dev/m b 1 0; cat /dev/m";
    let end = lab.exec("c", "disk", "", &["sh", "-c", script]).await.unwrap();
    let node = "640 1 6 block special file";
    assert_eq!(end.stdout, format!("{node}\n{node}\nhi\n"), "{end:?}");
    assert!(end.stderr.contains("not permitted"), "{end:?}");

    let resources: LinuxResources =
        serde_json::from_str(r#"{"cpu":{"quota":90000,"period":100000,"shares":512},"memory":{"limit":67108864},"pids":{"limit":50}}"#).unwrap();
    agent.update_container("c", &resources).await.unwrap();
    let stats = agent.stats("c").await.unwrap();
    assert_eq!((stats.memory_limit_bytes, stats.pids_limit), (64 << 20, 50));
    assert!(
        stats.memory_bytes > 0 && stats.memory_stat.contains_key("anon") && stats.scratch_used_inodes > 0,
        "{stats:?}"
    );
    assert!(!stats.disks.is_empty(), "{stats:?}");
    let whole = agent.stats("").await.unwrap();
    assert!(whole.memory_bytes > stats.memory_bytes && whole.memory_limit_bytes == 0, "{whole:?}");

    agent.pause_container("c", true).await.unwrap();
    let before = out.text().len();
    tokio::time::sleep(Duration::from_millis(300)).await;
    let frozen = out.text().len();
    assert!(frozen - before <= 5, "what was in the pipe, at most");
    agent.stats("c").await.unwrap();
    assert!(lab.exec("c", "no", "", &["true"]).await.unwrap_err().to_string().contains("paused"));
    agent.pause_container("c", false).await.unwrap();
    let deadline = Instant::now() + Duration::from_secs(10);
    while out.text().len() <= frozen {
        assert!(Instant::now() < deadline, "it goes on");
        tokio::time::sleep(Duration::from_millis(10)).await;
    }

    // Kills are told as they happen; the agent goes on.
    let mut kills = agent.oom_events().await.unwrap();
    let hungry = ["sh", "-c", "head -c 200M /dev/zero | tail -c 150M | wc -c"];
    lab.exec("c", "hungry", "", &hungry).await.unwrap();
    let told = tokio::time::timeout(Duration::from_secs(10), kills.next()).await.unwrap().unwrap();
    assert_eq!(told.as_deref(), Some("c"));

    lab.sandbox.resize(512 << 20, 1).await.unwrap();
    let grown = agent.grow(0, 512 << 20).await.unwrap();
    assert!(grown.cpus == 1 && grown.memory_bytes > 450 << 20, "{grown:?}");
    assert!(agent.grow(9, 0).await.is_err());

    process.remote().signal(libc::SIGKILL).await.unwrap();
    process.wait().await.unwrap();
    lab.sandbox.stop().await;
}

/// A tap in a network namespace that lives as long as the descriptor.
fn tap() -> OwnedFd {
    let made = std::thread::spawn(|| {
        // SAFETY: only this thread, which ends here, changes its namespace.
        assert_eq!(unsafe { libc::unshare(libc::CLONE_NEWNET) }, 0);
        let tun = std::fs::File::options().read(true).write(true).open("/dev/net/tun").unwrap();
        // SAFETY: all zeroes is a valid `ifreq`.
        let mut request: libc::ifreq = unsafe { std::mem::zeroed() };
        request.ifr_name[0] = b't' as libc::c_char;
        request.ifr_ifru.ifru_flags = (libc::IFF_TAP | libc::IFF_NO_PI | libc::IFF_VNET_HDR) as libc::c_short;
        // SAFETY: TUNSETIFF reads an `ifreq` that outlives the call.
        assert_eq!(unsafe { libc::ioctl(tun.as_raw_fd(), libc::TUNSETIFF as _, &raw const request) }, 0);
        tun.into()
    });
    made.join().unwrap()
}

#[tokio::test]
async fn the_network_becomes_what_the_host_says() {
    let lab = Lab::boot(false).await;
    let agent = lab.sandbox.agent();
    let (process, _out, _err) =
        lab.start_container(container(&lab, "c", &["sleep", "1000"], &[]), None, None).await.unwrap();
    let mac = |last| [2, 0, 0, 0, 0, last];
    let prefix = |address: &[u8], length| v1::Prefix { address: address.to_vec(), length };
    let v6 = |last| [0xfd, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, last];
    let interface = |name: &str, last, mtu, addresses| v1::Interface {
        name: name.into(),
        mac: mac(last).to_vec(),
        mtu,
        addresses,
    };
    let hop = |interface: &str, gateway: &[u8]| v1::NextHop {
        interface: interface.into(),
        gateway: gateway.to_vec(),
        ..v1::NextHop::default()
    };
    let route = |to: Option<v1::Prefix>, gateway: &[u8], family, scope| v1::Route {
        destination: to,
        family,
        scope,
        hops: vec![hop("eth0", gateway)],
        ..v1::Route::default()
    };
    let local = |last| [0xfe, 0x80, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, last];
    let mut request = v1::ConfigureNetworkRequest {
        interfaces: vec![
            interface("eth0", 1, 1400, vec![prefix(&[10, 1, 0, 7], 32), prefix(&v6(7), 64)]),
            interface("net1", 2, 0, vec![prefix(&[10, 2, 0, 7], 24)]),
        ],
        // In an order that does not work as it is: as Calico has it, the gateway is on the link only by its own route.
        routes: vec![
            route(None, &[169, 254, 1, 1], 4, 0),
            route(Some(prefix(&[169, 254, 1, 1], 32)), &[], 4, 253),
            route(None, &v6(1), 6, 0),
            // The networks of addresses are routes like others: nothing is added to what the host has.
            route(Some(prefix(&v6(0), 64)), &[], 6, 0),
            // An IPv4 route by an IPv6 gateway, and an IPv6 one by two.
            route(Some(prefix(&[10, 31, 0, 0], 16)), &local(9), 4, 0),
            v1::Route {
                hops: vec![hop("eth0", &v6(2)), hop("net1", &local(3))],
                ..route(Some(prefix(&[0xfd, 0x31, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0], 64)), &[], 6, 0)
            },
            // Two ways; a kernel without multipath has the first.
            v1::Route {
                hops: vec![hop("eth0", &[169, 254, 1, 1]), hop("net1", &[10, 2, 0, 1])],
                ..route(Some(prefix(&[10, 33, 0, 0], 16)), &[], 4, 0)
            },
            // The same network on two interfaces: neither replaces the other.
            route(Some(prefix(&[10, 2, 0, 0], 24)), &[], 4, 253),
            v1::Route {
                hops: vec![hop("net1", &[])],
                ..route(Some(prefix(&[10, 2, 0, 0], 24)), &[], 4, 253)
            },
        ],
        neighbours: vec![v1::Neighbour {
            address: vec![169, 254, 1, 1],
            mac: vec![0xee; 6],
            interface: "eth0".into(),
        }],
    };
    // The call waits for interfaces that are still on their way.
    let plug = async {
        for last in [1, 2] {
            lab.sandbox.plug_tap(cloister_vmm::Tap { fd: tap(), mac: mac(last) }).await.unwrap();
        }
    };
    let (configured, ()) = tokio::join!(agent.configure_network(request.clone()), plug);
    configured.unwrap();

    let script = "cat /sys/class/net/eth0/mtu /sys/class/net/eth0/address; cat /proc/net/route /proc/net/arp; cat /proc/net/if_inet6; cat /proc/net/fib_trie; cat /proc/net/ipv6_route";
    let end = lab.exec("c", "a", "", &["sh", "-c", script]).await.unwrap();
    for part in [
        "1400\n02:00:00:00:00:01\n",
        "eth0\t00000000\t0101FEA9\t0003",
        "eth0\t0101FEA9\t00000000\t0005",
        "169.254.1.1      0x1         0x6         ee:ee:ee:ee:ee:ee",
        "fd000000000000000000000000000007",
        "40 00 82     eth0",
        "00000000000000000000000000000001 01 80 10 80       lo",
        "|-- 127.0.0.1",
        "|-- 10.2.0.7",
        "eth0\t00001F0A\t00000000\t0003",
        "eth0\t0000210A\t0101FEA9\t0003",
        "fd310000000000000000000000000000 40 00000000000000000000000000000000 00 fd000000000000000000000000000002",
        "fd310000000000000000000000000000 40 00000000000000000000000000000000 00 fe800000000000000000000000000003",
        "eth0\t0000020A\t00000000\t0001",
        "net1\t0000020A\t00000000\t0001",
    ] {
        assert!(end.stdout.contains(part), "{part:?} is not in {}", end.stdout);
    }
    // Twice is as once; something else replaces it.
    agent.configure_network(request.clone()).await.unwrap();
    request.interfaces[0].addresses = vec![prefix(&[10, 3, 0, 7], 24)];
    request.interfaces[0].name = "net1".into();
    request.interfaces[1].name = "eth0".into();
    let by_net1 = |to, gateway: &[u8], scope| v1::Route {
        hops: vec![hop("net1", gateway)],
        ..route(to, &[], 4, scope)
    };
    request.routes =
        vec![by_net1(Some(prefix(&[10, 3, 0, 0], 24)), &[], 253), by_net1(None, &[10, 3, 0, 1], 0)];
    request.neighbours.clear();
    agent.configure_network(request.clone()).await.unwrap();
    let end = lab.exec("c", "b", "", &["sh", "-c", script]).await.unwrap();
    for part in ["net1\t00000000\t0100030A\t0003", "|-- 10.3.0.7", "|-- 10.2.0.7"] {
        assert!(end.stdout.contains(part), "{part:?} is not in {}", end.stdout);
    }
    for part in ["10.1.0.7", "0101FEA9", "169.254.1.1", "fd00000000000000", "fd31", "00001F0A", "0000020A"] {
        assert!(!end.stdout.contains(part), "{part:?} is in {}", end.stdout);
    }
    let stats = agent.stats("c").await.unwrap();
    let mut names: Vec<_> = stats.interfaces.iter().map(|i| i.name.as_str()).collect();
    names.sort_unstable();
    assert_eq!(names, ["eth0", "net1"]);

    // Servers of the loopback are reached, each family, both halves; ports without one are refused.
    for (family, address, port) in [
        (2, r#"pack("Sna4x8",2,7001,"\x7f\0\0\1")"#, 7001),
        (10, r#"pack("SnNa16N",10,7002,0,"\0"x15 ."\1",0)"#, 7002),
        (1, r#"pack("Sa*",1,"/tmp/server")"#, 0),
    ] {
        let server = format!(
            r#"socket(S,{family},1,0)||die "socket $!"; bind(S,{address})||die "bind $!"; listen(S,5);
               if (fork) {{ exit }} close STDOUT; close STDERR; accept(C,S); local $/; $_=<C>; syswrite(C,"got $_"); close C;"#
        );
        let name = format!("server{port}");
        let end = lab.exec("c", &name, "", &["perl", "-e", &server]).await.unwrap();
        assert_eq!(end.code, 0, "{end:?}");
        let mut connection = match port {
            0 => agent.forward_unix("c", "/tmp/server").await.unwrap(),
            port => agent.forward(port).await.unwrap(),
        };
        connection.write_all(b"everything").await.unwrap();
        connection.shutdown().await.unwrap();
        let mut answer = String::new();
        connection.read_to_string(&mut answer).await.unwrap();
        assert_eq!(answer, "got everything");
    }
    for refused in [
        agent.forward(7009).await.unwrap_err(),
        agent.forward(0).await.unwrap_err(),
        agent.forward_unix("c", "/tmp/other").await.unwrap_err(),
        agent.forward_unix("nobody", "/tmp/server").await.unwrap_err(),
        agent.forward_unix("c", "relative").await.unwrap_err(),
    ] {
        assert!(matches!(refused, cloister_sandbox::Error::Refused(_)), "{refused}");
    }
    process.remote().signal(libc::SIGKILL).await.unwrap();
    process.wait().await.unwrap();
    lab.sandbox.stop().await;
}
