//! Boots a VM of 128 MiB and prints what its monitor's memory consists of once the guest is idle.
//!
//! `cargo run -p cloister-vmm --example memory -- VIRTIOFSD KERNEL INITRAMFS [SECONDS_IDLE [SHARED_FOLDER]]`
//!
//! Figures are KiB of proportional set size: pages shared by several processes are divided among them. Another VM of
//! the same kernel therefore makes both look smaller.

use std::collections::BTreeMap;
use std::path::PathBuf;
use std::time::Duration;

use cloister_vmm::{Error, Host, MIB, Qemu, Result, Share, User, VmConfig, Vmm};

const LIMIT: Duration = Duration::from_secs(60);

/// What a mapping of QEMU's is for.
fn purpose(mapping: &str, permissions: &str, size_kb: u64) -> &'static str {
    match mapping {
        name if name.contains("memfd:guest-memory") => "the guest's memory",
        name if name.starts_with('/') && !name.starts_with("/memfd") => "program and libraries",
        "[heap]" => "heap",
        name if name.starts_with("[stack") => "stacks",
        _ if permissions.contains('x') => "translated code",
        "" if size_kb >= 60 << 10 => "arenas of threads, other large mappings",
        _ => "other",
    }
}

/// PSS of a process by purpose, and its sum.
fn breakdown(pid: u32) -> (BTreeMap<&'static str, u64>, u64) {
    let smaps = std::fs::read_to_string(format!("/proc/{pid}/smaps")).unwrap_or_default();
    let (mut parts, mut sum, mut current, mut permissions, mut name) =
        (BTreeMap::new(), 0, 0, String::new(), String::new());
    for line in smaps.lines() {
        let mut words = line.split_whitespace();
        let first = words.next().unwrap_or_default();
        match first {
            "Size:" => current = words.next().and_then(|w| w.parse().ok()).unwrap_or_default(),
            "Pss:" => {
                let pss: u64 = words.next().and_then(|w| w.parse().ok()).unwrap_or_default();
                *parts.entry(purpose(&name, &permissions, current)).or_default() += pss;
                sum += pss;
            }
            _ if !first.ends_with(':') => {
                permissions = words.next().unwrap_or_default().to_owned();
                name = words.skip(3).collect::<Vec<_>>().join(" ");
            }
            _ => {}
        }
    }
    (parts, sum)
}

fn print(what: &str, pid: u32) {
    let (parts, sum) = breakdown(pid);
    println!("{what}: {sum} KiB");
    for (part, kib) in parts {
        println!("  {kib:>8}  {part}");
    }
}

fn helpers(word: &str) -> Vec<u32> {
    let entries = std::fs::read_dir("/proc").into_iter().flatten().flatten();
    let pids = entries.filter_map(|e| e.file_name().to_str()?.parse::<u32>().ok());
    pids.filter(|pid| {
        let line = std::fs::read(format!("/proc/{pid}/cmdline")).unwrap_or_default();
        String::from_utf8_lossy(&line).contains(word)
    })
    .collect()
}

#[tokio::main(flavor = "current_thread")]
async fn main() -> Result<()> {
    let args: Vec<String> = std::env::args().skip(1).collect();
    let [virtiofsd, kernel, initrd, rest @ ..] = args.as_slice() else {
        return Err(Error::Invalid {
            what: "arguments".into(),
            why: "VIRTIOFSD KERNEL INITRAMFS [SECONDS_IDLE [SHARED_FOLDER]]".into(),
        });
    };
    let idle = rest.first().and_then(|n| n.parse().ok()).unwrap_or(5);
    let host = Host::debian(virtiofsd.into(), Some(User { uid: 65534, gid: 65534 }));
    let dir = std::env::temp_dir().join(format!("cloister-memory-{}", std::process::id()));
    std::fs::create_dir(&dir).map_err(|source| Error::Os { what: "create a folder", source })?;
    let mut config = VmConfig::new(dir.clone(), kernel.into(), Some(initrd.into()));
    config.memory = 128 * MIB;
    let vm = Qemu::create(&host, config).await?;
    vm.start().await?;
    drop(vm.dial_until_ready(1024, LIMIT).await?);
    if let Some(path) = rest.get(1).map(PathBuf::from) {
        vm.plug_share(Share { tag: "shared".into(), path, read_only: true }).await?;
    }
    tokio::time::sleep(Duration::from_secs(idle)).await;
    print("QEMU", vm.pid());
    if let Some(path) = rest.get(1) {
        for pid in helpers(&format!("--shared-dir={path}")) {
            print("virtiofsd", pid);
        }
    }
    print("this process", std::process::id());
    vm.stop().await;
    // Holds the console's log only.
    let _ = std::fs::remove_dir_all(&dir);
    Ok(())
}
