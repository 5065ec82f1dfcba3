//! Devices come and go in a running guest.
#![allow(missing_docs, clippy::unwrap_used, clippy::expect_used, clippy::panic)]

mod lab;

use std::ffi::CString;
use std::fs::{self, File};
use std::io::{Read, Seek, SeekFrom, Write};
use std::os::fd::AsRawFd;
use std::time::Duration;

use cloister_vmm::{Event, Extent, ImageDisk, MIB, RawDisk, Share, Tap, Vmm};
use lab::{Guest, LIMIT, children};

fn file(bytes: &[u8]) -> File {
    let mut file = tempfile::tempfile().unwrap();
    file.write_all(bytes).unwrap();
    file
}

#[tokio::test]
async fn an_image_of_130_pieces_is_one_disk_in_order_and_read_only() {
    let guest = Guest::boot().await;
    // Each piece lies behind a sector that must not be seen, and starts with what looks like another format.
    let pieces: Vec<Vec<u8>> = (0..130u8).map(|n| [b"QFI\xfb".as_slice(), &[n; 1020]].concat()).collect();
    let extents = pieces.iter().map(|p| Extent {
        file: file(&[[0xee; 512].as_slice(), p, &[0xee; 512]].concat()).into(),
        offset: 512,
        len: 1024,
    });
    let id = guest
        .vm
        .plug_image(ImageDisk { serial: "image-0".into(), extents: extents.collect() })
        .await
        .unwrap();
    let disk = guest.disk("image-0").await;
    let name = disk.trim_start_matches("/dev/");
    assert_eq!(guest.ask(&format!("cat /sys/block/{name}/size")).await.unwrap().trim(), "260");
    assert_eq!(guest.ask(&format!("cat /sys/block/{name}/ro")).await.unwrap().trim(), "1");
    let seen = lab::ask(&guest.vm, &format!("read {disk} 0 133120")).await.unwrap();
    assert!(seen == pieces.concat());
    assert!(guest.ask(&format!("poke {disk} 0 x")).await.is_err());
    let metrics = guest.vm.metrics().await.unwrap();
    assert!(
        metrics.disks.first().is_some_and(|d| d.read_bytes >= 133_120 && d.written_bytes == 0),
        "{metrics:?}"
    );
    // Only the block nodes hold the files now, and not one of them can be written through.
    let fds = format!("/proc/{}/fd", guest.vm.pid());
    let held = fs::read_dir(&fds).unwrap().count();
    assert!(held < 130 + 64, "{held}");
    guest.vm.unplug(&id, LIMIT).await.unwrap();
    assert!(fs::read_dir(&fds).unwrap().count() < 64);
    assert!(guest.vm.unplug(&id, LIMIT).await.unwrap_err().to_string().contains("is not plugged"));
}

#[tokio::test]
async fn what_the_guest_writes_is_never_taken_for_a_format() {
    let guest = Guest::boot().await;
    let mut scratch = file(&vec![0; 1 << 20]);
    let disk = |file: &File| RawDisk {
        serial: "scratch".into(),
        file: file.try_clone().unwrap().into(),
        read_only: false,
        ephemeral: true,
    };
    let id = guest.vm.plug_disk(disk(&scratch)).await.unwrap();
    let name = guest.disk("scratch").await;
    guest.ask(&format!("poke {name} 0 QFI")).await.unwrap();
    guest.vm.unplug(&id, LIMIT).await.unwrap();
    // The rest of what makes it a qcow2 header: the bytes our test guest cannot put into a command.
    scratch.seek(SeekFrom::Start(0)).unwrap();
    scratch.write_all(b"QFI\xfb\0\0\0\x03").unwrap();

    guest.vm.plug_disk(disk(&scratch)).await.unwrap();
    let name = guest.disk("scratch").await;
    let base = name.trim_start_matches("/dev/");
    // A disk taken for qcow2 would have another size and other content.
    assert_eq!(guest.ask(&format!("cat /sys/block/{base}/size")).await.unwrap().trim(), "2048");
    let bytes = lab::ask(&guest.vm, &format!("read {name} 0 8")).await.unwrap();
    assert_eq!(bytes, b"QFI\xfb\0\0\0\x03");
    guest.ask(&format!("poke {name} 4096 kept")).await.unwrap();
    let mut kept = [0u8; 4];
    scratch.seek(SeekFrom::Start(4096)).unwrap();
    scratch.read_exact(&mut kept).unwrap();
    assert_eq!(&kept, b"kept");
}

#[tokio::test]
async fn a_share_is_sandboxed_and_its_death_is_reported() {
    let guest = Guest::boot().await;
    let shared = tempfile::tempdir().unwrap();
    let secret = tempfile::tempdir().unwrap();
    fs::write(shared.path().join("hello"), "from the host").unwrap();
    fs::write(secret.path().join("secret"), "not for guests").unwrap();
    let share = |tag: &str, read_only| Share { tag: tag.into(), path: shared.path().to_owned(), read_only };
    let mut events = guest.vm.events();
    guest.vm.plug_share(share("data", false)).await.unwrap();
    guest.vm.plug_share(share("fixed", true)).await.unwrap();
    guest.until("mount virtiofs data /data", "").await;
    assert_eq!(guest.ask("cat /data/hello").await.unwrap(), "from the host");
    guest.ask("write /data/back text").await.unwrap();
    assert_eq!(fs::read_to_string(shared.path().join("back")).unwrap(), "text");
    // Links out of the share resolve in the guest, or inside the share.
    let outside = secret.path().join("secret");
    guest.ask(&format!("link {} /data/out", outside.display())).await.unwrap();
    assert!(guest.ask("cat /data/out").await.is_err());
    guest.until("mount virtiofs fixed /fixed", "").await;
    assert_eq!(guest.ask("cat /fixed/hello").await.unwrap(), "from the host");
    assert!(guest.ask("write /fixed/hello no").await.is_err());

    let daemons = children(&format!("--shared-dir={}", shared.path().display()));
    assert!(daemons.len() >= 2, "{daemons:?}");
    for pid in &daemons {
        let status = fs::read_to_string(format!("/proc/{pid}/status")).unwrap();
        assert!(status.contains("NoNewPrivs:\t1"), "{status}");
    }
    // The process that serves the guest is filtered and in namespaces of its own; its parent only waits for it.
    let ns = |pid: &u32, kind: &str| fs::read_link(format!("/proc/{pid}/ns/{kind}")).unwrap();
    let own = std::process::id();
    let serving: Vec<&u32> = daemons.iter().filter(|pid| ns(pid, "pid") != ns(&own, "pid")).collect();
    assert_eq!(serving.len(), 2, "{daemons:?}");
    for pid in serving {
        let status = fs::read_to_string(format!("/proc/{pid}/status")).unwrap();
        assert!(status.contains("Seccomp:\t2"), "{status}");
        for kind in ["mnt", "net"] {
            assert_ne!(ns(pid, kind), ns(&own, kind));
        }
    }

    let victim = children(&format!("--shared-dir={}", shared.path().display()));
    for pid in victim {
        // The first one takes the other with it.
        let pid = rustix::process::Pid::from_raw(pid.cast_signed()).unwrap();
        let _ = rustix::process::kill_process(pid, rustix::process::Signal::KILL);
    }
    let event = tokio::time::timeout(LIMIT, events.recv()).await.unwrap().unwrap();
    assert!(matches!(&event, Event::ShareFailed { reason, .. } if reason.contains("signal 9")), "{event:?}");
}

#[tokio::test]
async fn a_share_of_nothing_is_one_clear_line() {
    let guest = Guest::boot().await;
    let share = Share { tag: "x".into(), path: "/nonexistent".into(), read_only: true };
    let error = guest.vm.plug_share(share).await.unwrap_err().to_string();
    assert!(error.starts_with("cannot open shared folder /nonexistent: No such file"), "{error}");
    let share = Share { tag: "x".into(), path: "/etc/hostname".into(), read_only: true };
    let error = guest.vm.plug_share(share).await.unwrap_err().to_string();
    assert!(error.starts_with("cannot open shared folder /etc/hostname: Not a directory"), "{error}");
}

/// Memory the guest's kernel counts, in MiB.
async fn total(guest: &Guest) -> u64 {
    let info = guest.ask("cat /proc/meminfo").await.unwrap();
    info.split_whitespace().nth(1).unwrap().parse::<u64>().unwrap() / 1024
}

/// Waits until the guest has at least, or at most, so much memory.
async fn settles(guest: &Guest, good: impl Fn(u64) -> bool) -> u64 {
    let began = std::time::Instant::now();
    loop {
        let now = total(guest).await;
        if good(now) {
            return now;
        }
        assert!(began.elapsed() < LIMIT, "{now} MiB");
        tokio::time::sleep(Duration::from_millis(10)).await;
    }
}

#[tokio::test]
async fn memory_grows_and_shrinks_in_steps_and_vsock_goes_on() {
    let guest = Guest::boot_with(|config| config.max_memory = 2048 * MIB).await;
    let boot = total(&guest).await;
    for step in [384, 512, 1024] {
        guest.vm.set_memory(step * MIB).await.unwrap();
        // The kernel's own tables take a little of what is added.
        let wanted = boot + (step - 256) * 95 / 100;
        settles(&guest, |now| now >= wanted).await;
        assert_eq!(guest.vm.metrics().await.unwrap().memory, step * MIB);
    }
    // The devices in other processes see the new memory too.
    guest.ask("touch 300").await.unwrap();
    assert!(guest.ask("cat /proc/version").await.unwrap().contains("Linux"));
    let shared = tempfile::tempdir().unwrap();
    fs::write(shared.path().join("file"), vec![b'x'; 8 << 20]).unwrap();
    let share = Share { tag: "s".into(), path: shared.path().to_owned(), read_only: true };
    guest.vm.plug_share(share).await.unwrap();
    guest.until("mount virtiofs s /s", "").await;
    assert_eq!(lab::ask(&guest.vm, "cat /s/file").await.unwrap().len(), 8 << 20);
    // And a share that was there before more is added.
    guest.vm.set_memory(1536 * MIB).await.unwrap();
    settles(&guest, |now| now >= boot + 1216).await;
    guest.ask("touch 700").await.unwrap();
    fs::write(shared.path().join("later"), vec![b'y'; 8 << 20]).unwrap();
    assert_eq!(lab::ask(&guest.vm, "cat /s/later").await.unwrap().len(), 8 << 20);
    // Back to what is in use, and no further.
    guest.vm.set_memory(1280 * MIB).await.unwrap();
    settles(&guest, |now| now <= boot + 1024).await;
    let error = guest.vm.set_memory(1 << 40).await.unwrap_err().to_string();
    assert!(error.starts_with("memory: 1099511627776 bytes"), "{error}");
}

#[tokio::test]
async fn processors_come_one_after_the_other() {
    let guest = Guest::boot_with(|config| config.max_cpus = 4).await;
    assert_eq!(guest.ask("cat /sys/devices/system/cpu/online").await.unwrap().trim(), "0");
    for (total, online) in [(2, "0-1"), (3, "0-2"), (4, "0-3")] {
        guest.vm.set_cpus(total).await.unwrap();
        guest.until(&format!("write /sys/devices/system/cpu/cpu{}/online 1", total - 1), "").await;
        assert_eq!(guest.ask("cat /sys/devices/system/cpu/online").await.unwrap().trim(), online);
        assert_eq!(guest.vm.metrics().await.unwrap().cpus, total);
    }
    assert!(guest.vm.set_cpus(99).await.is_err());
}

#[tokio::test]
async fn ports_run_out_with_an_error_and_are_reused() {
    let guest = Guest::boot().await;
    let mut ids = Vec::new();
    let disk = |n: usize| RawDisk {
        serial: format!("d{n}"),
        file: file(&[0; 4096]).into(),
        read_only: true,
        ephemeral: false,
    };
    // One port carries vsock.
    for n in 0..30 {
        ids.push(guest.vm.plug_disk(disk(n)).await.unwrap());
    }
    let error = guest.vm.plug_disk(disk(30)).await.unwrap_err().to_string();
    assert_eq!(error, "no free hot-plug port: all 31 carry a device");
    guest.disk("d29").await;
    guest.vm.unplug(&ids[3], LIMIT).await.unwrap();
    guest.vm.plug_disk(disk(30)).await.unwrap();
    guest.disk("d30").await;
}

/// A tap that vanishes with its descriptor. Needs root.
fn tap(name: &str) -> File {
    const TUNSETIFF: u64 = 0x4004_54ca;
    const IFF_TAP_NO_PI_VNET_HDR: i16 = 0x0002 | 0x1000 | 0x4000;
    let file = File::options().read(true).write(true).open("/dev/net/tun").unwrap();
    // struct ifreq: 16 bytes of name, then the flags.
    let mut request = [0u8; 40];
    request[..name.len()].copy_from_slice(name.as_bytes());
    request[16..18].copy_from_slice(&IFF_TAP_NO_PI_VNET_HDR.to_ne_bytes());
    // SAFETY: the request reads and writes the 40 bytes of a struct ifreq.
    let answer = unsafe { libc::ioctl(file.as_raw_fd(), TUNSETIFF, request.as_mut_ptr()) };
    assert_eq!(answer, 0, "this test needs root: {}", std::io::Error::last_os_error());
    file
}

#[tokio::test]
async fn taps_become_interfaces_with_their_addresses_and_go_again() {
    let guest = Guest::boot().await;
    let mac = |n: u8| [0x02, 0, 0, 0xca, 0xfe, n];
    let mut ids = Vec::new();
    for n in 0..3u8 {
        let tap = Tap { fd: tap(&format!("clstest{n}")).into(), mac: mac(n) };
        ids.push(guest.vm.plug_tap(tap).await.unwrap());
        guest.until("ls /sys/class/net", &format!("eth{n}")).await;
        let address = guest.ask(&format!("cat /sys/class/net/eth{n}/address")).await.unwrap();
        assert_eq!(address.trim(), format!("02:00:00:ca:fe:{n:02x}"));
    }
    guest.vm.unplug(&ids[1], LIMIT).await.unwrap();
    let left = guest.ask("ls /sys/class/net").await.unwrap();
    assert!(left.contains("eth0") && !left.contains("eth1") && left.contains("eth2"), "{left}");
    // QEMU has let go of the tap as well, and its slot is free.
    assert!(!std::path::Path::new("/sys/class/net/clstest1").exists());
    let again = Tap { fd: tap("clstest1").into(), mac: mac(9) };
    guest.vm.plug_tap(again).await.unwrap();
    guest.until("cat /sys/class/net/eth1/address", "02:00:00:ca:fe:09").await;
}

#[tokio::test]
async fn disks_of_128_layers_fill_all_slots_and_free_them_quickly() {
    let guest = Guest::boot().await;
    let layer = file(&[1; 4096]);
    let extents = || {
        (0..128).map(|_| Extent { file: layer.try_clone().unwrap().into(), offset: 0, len: 4096 }).collect()
    };
    let mut ids = Vec::new();
    let began = std::time::Instant::now();
    for n in 0..30 {
        let disk = ImageDisk { serial: format!("i{n}"), extents: extents() };
        ids.push(guest.vm.plug_image(disk).await.unwrap());
    }
    println!("plugged: {:?} each", began.elapsed() / 30);
    guest.disk("i29").await;
    let began = std::time::Instant::now();
    for id in &ids {
        guest.vm.unplug(id, LIMIT).await.unwrap();
    }
    println!("unplugged: {:?} each", began.elapsed() / 30);
    let held = fs::read_dir(format!("/proc/{}/fd", guest.vm.pid())).unwrap().count();
    assert!(held < 64, "{held}");
    guest.vm.plug_image(ImageDisk { serial: "again".into(), extents: extents() }).await.unwrap();
    guest.disk("again").await;
}

#[tokio::test]
async fn nothing_a_guest_makes_in_a_share_leads_out_of_it() {
    let guest = Guest::boot().await;
    let outside = tempfile::tempdir().unwrap();
    fs::write(outside.path().join("secret"), "secret").unwrap();
    let shared = tempfile::tempdir_in(outside.path()).unwrap();
    fs::create_dir(shared.path().join("folder")).unwrap();
    let share = Share { tag: "s".into(), path: shared.path().to_owned(), read_only: false };
    guest.vm.plug_share(share).await.unwrap();
    guest.until("mount virtiofs s /s", "").await;
    let secret = outside.path().join("secret");

    // Links: relative, absolute, through /proc, planted where a folder was.
    for (name, target) in [
        ("relative", "../secret".to_owned()),
        ("absolute", secret.display().to_string()),
        ("root", "/".to_owned()),
        ("proc", "/proc/1/root".to_owned()),
    ] {
        guest.ask(&format!("link {target} /s/{name}")).await.unwrap();
        assert!(guest.ask(&format!("cat /s/{name}/secret")).await.is_err(), "{name}");
        assert!(guest.ask(&format!("hardlink /s/{name} /s/{name}-hard")).await.is_ok(), "{name}");
    }
    assert!(guest.ask("cat /s/absolute").await.is_err());
    assert!(guest.ask("write /s/absolute overwritten").await.is_err());
    guest.ask("write /s/folder/file first").await.unwrap();
    guest.ask("rename /s/folder /s/moved").await.unwrap();
    guest.ask(&format!("link {} /s/folder", outside.path().display())).await.unwrap();
    assert!(guest.ask("cat /s/folder/secret").await.is_err());
    assert_eq!(guest.ask("cat /s/moved/file").await.unwrap(), "first");
    // Above the share is the guest's own root.
    assert!(guest.ask("cat /s/../secret").await.is_err());
    assert!(guest.ask("cat /s/moved/../../secret").await.is_err());
    // No device of the host: neither made, nor opened when it is there.
    for mode in ["20666", "60666"] {
        assert!(guest.ask(&format!("mknod /s/device {mode} 259")).await.is_err(), "{mode}");
    }
    let null = CString::new(shared.path().join("null").into_os_string().into_encoded_bytes()).unwrap();
    // SAFETY: the path ends with a zero and outlives the call.
    assert_eq!(unsafe { libc::mknod(null.as_ptr(), libc::S_IFCHR | 0o666, libc::makedev(1, 5)) }, 0);
    let opened = guest.ask("read /s/null 0 4").await;
    // A character device in a share is the guest's of that number, never the host's.
    assert!(opened.as_ref().is_ok_and(|bytes| bytes == "\0\0\0\0") || opened.is_err(), "{opened:?}");
    assert_eq!(fs::read_to_string(&secret).unwrap(), "secret");
}
