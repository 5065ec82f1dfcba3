//! Boots a VM several times and prints how long its guest takes to answer on vsock port 1024.
//!
//! `cargo run --release -p cloister-vmm --example boot -- VIRTIOFSD KERNEL INITRAMFS [RUNS [SHARED_FOLDER]]`
//!
//! Figures are wall-clock milliseconds from the moment QEMU is about to be started, and the processor time QEMU used
//! until the answer, which depends less on what else the machine does.

use std::path::PathBuf;
use std::time::{Duration, Instant};

use cloister_vmm::{Error, Host, Qemu, Result, Share, User, VmConfig, Vmm};

const LIMIT: Duration = Duration::from_secs(60);

struct Run {
    created: Duration,
    answered: Duration,
    cpu_ms: u64,
    pss: u64,
}

async fn boot(host: &Host, config: VmConfig, shared: Option<PathBuf>) -> Result<Run> {
    let began = Instant::now();
    let vm = Qemu::create(host, config).await?;
    let created = began.elapsed();
    vm.start().await?;
    drop(vm.dial_until_ready(1024, LIMIT).await?);
    let answered = began.elapsed();
    let metrics = vm.metrics().await?;
    if let Some(path) = shared {
        let device = vm.plug_share(Share { tag: "shared".into(), path, read_only: true }).await?;
        vm.unplug(&device, LIMIT).await?;
    }
    vm.stop().await;
    Ok(Run { created, answered, cpu_ms: metrics.cpu_ms, pss: metrics.pss })
}

fn median<T: Ord + Copy + Default>(values: impl Iterator<Item = T>) -> T {
    let mut values: Vec<T> = values.collect();
    values.sort_unstable();
    values.get(values.len() / 2).copied().unwrap_or_default()
}

#[tokio::main(flavor = "current_thread")]
async fn main() -> Result<()> {
    let args: Vec<String> = std::env::args().skip(1).collect();
    let [virtiofsd, kernel, initrd, rest @ ..] = args.as_slice() else {
        return Err(Error::Invalid {
            what: "arguments".into(),
            why: "VIRTIOFSD KERNEL INITRAMFS [RUNS [SHARED]]".into(),
        });
    };
    let count = rest.first().and_then(|n| n.parse().ok()).unwrap_or(10);
    let host = Host::debian(virtiofsd.into(), Some(User { uid: 65534, gid: 65534 }));
    let dir = std::env::temp_dir().join(format!("cloister-boot-{}", std::process::id()));
    std::fs::create_dir(&dir).map_err(|source| Error::Os { what: "create a folder", source })?;
    let mut runs = Vec::new();
    for _ in 0..count {
        let config = VmConfig::new(dir.clone(), kernel.into(), Some(initrd.into()));
        runs.push(boot(&host, config, rest.get(1).map(PathBuf::from)).await);
    }
    // Holds the console's log only.
    let _ = std::fs::remove_dir_all(&dir);
    let runs: Vec<Run> = runs.into_iter().collect::<Result<_>>()?;
    let ms = |time: fn(&Run) -> Duration| median(runs.iter().map(|r| time(r).as_millis()));
    let fastest = runs.iter().map(|r| r.answered.as_millis()).min().unwrap_or_default();
    println!(
        "{} boots: QEMU ready {} ms, guest answers {} ms (fastest {fastest} ms), QEMU used {} ms of processor, PSS {} MiB",
        runs.len(),
        ms(|r| r.created),
        ms(|r| r.answered),
        median(runs.iter().map(|r| r.cpu_ms)),
        median(runs.iter().map(|r| r.pss)) >> 20,
    );
    Ok(())
}
