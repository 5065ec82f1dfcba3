//! Processors and memory that the host adds while the guest runs.

use std::fs;
use std::path::Path;
use std::sync::OnceLock;

use cloister_protocol::v1;

use crate::error::{Context, Error, Result};
use crate::rootfs::wait_for;

/// Where the kernel lists processors.
const CPUS: &str = "/sys/devices/system/cpu";

/// Bytes that firmware tables and the hole below 1 MiB take from the memory the machine was given.
const FIRMWARE: u64 = 4 << 20;

/// Usable memory when the agent began, in bytes.
static AT_BOOT: OnceLock<u64> = OnceLock::new();

/// Brings processors online or takes them away, waits for memory; says what there is. Blocks.
///
/// # Errors
/// When there are fewer processors, or the memory does not arrive in time.
pub fn grow(request: &v1::GrowRequest) -> Result<v1::GrowResponse> {
    if request.cpus > 0 {
        set_cpus(Path::new(CPUS), request.cpus)?;
    }
    if request.memory_bytes > 0 {
        wait_for_memory(request.memory_bytes)?;
    }
    Ok(v1::GrowResponse { cpus: online(Path::new(CPUS))?, memory_bytes: total() })
}

fn set_cpus(folder: &Path, count: u32) -> Result<()> {
    let present = list(&folder.join("present"))?;
    if count > present {
        return Err(Error::invalid(format!("{count} processors to have online; the machine has {present}")));
    }
    // The first one has no such file: it is always online.
    for number in 1..present {
        let file = folder.join(format!("cpu{number}/online"));
        let wanted = if number < count { "1" } else { "0" };
        let is = fs::read_to_string(&file).context(|| format!("read {}", file.display()))?;
        if is.trim() != wanted {
            fs::write(&file, wanted).context(|| format!("write {wanted} to {}", file.display()))?;
        }
    }
    Ok(())
}

fn online(folder: &Path) -> Result<u32> {
    list(&folder.join("online"))
}

/// How many numbers a list such as `0-2,5` has.
fn list(file: &Path) -> Result<u32> {
    let text = fs::read_to_string(file).context(|| format!("read {}", file.display()))?;
    let mut count = 0;
    for range in text.trim().split(',').filter(|range| !range.is_empty()) {
        let (first, last) = range.split_once('-').unwrap_or((range, range));
        let what = || format!("understand {}", file.display());
        let (first, last): (u32, u32) = (first.parse().context(what)?, last.parse().context(what)?);
        count += last.saturating_sub(first) + 1;
    }
    Ok(count)
}

/// To be called before anything can be plugged.
pub fn remember_boot() {
    let _ = AT_BOOT.set(total());
}

/// What the kernel keeps for itself of the memory it booted with never counts as usable; what is plugged later does to
/// the page, less the 64 bytes that describe each page.
fn wait_for_memory(bytes: u64) -> Result<()> {
    let at_boot = *AT_BOOT.get_or_init(total);
    wait_for(&format!("memory of {bytes} bytes"), || {
        let iomem = fs::read_to_string("/proc/iomem").context(|| "read /proc/iomem".into())?;
        let (boot, plugged) = ram(&iomem);
        let kept = boot.saturating_sub(at_boot) + plugged / 64;
        Ok((total() + kept + FIRMWARE >= bytes).then_some(()))
    })
}

/// Bytes of memory that the machine booted with, and of memory that was plugged.
fn ram(iomem: &str) -> (u64, u64) {
    let (mut boot, mut plugged) = (0, 0);
    for line in iomem.lines() {
        let Some((range, name)) = line.split_once(" : ") else { continue };
        let Some((first, last)) = range.trim().split_once('-') else { continue };
        let (Ok(first), Ok(last)) = (u64::from_str_radix(first, 16), u64::from_str_radix(last, 16)) else {
            continue;
        };
        let bytes = last.saturating_sub(first) + 1;
        match name {
            "System RAM" => boot += bytes,
            "System RAM (virtio_mem)" => plugged += bytes,
            _ => {}
        }
    }
    (boot, plugged)
}

/// Bytes of memory that the kernel hands out.
fn total() -> u64 {
    let info = rustix::system::sysinfo();
    info.totalram.saturating_mul(info.mem_unit.into())
}

#[cfg(test)]
mod tests {
    use super::*;

    fn processors(present: u32, online: &[u32]) -> tempfile::TempDir {
        let folder = tempfile::tempdir().unwrap();
        fs::write(folder.path().join("present"), format!("0-{}\n", present - 1)).unwrap();
        for number in 1..present {
            let file = folder.path().join(format!("cpu{number}"));
            fs::create_dir(&file).unwrap();
            fs::write(file.join("online"), if online.contains(&number) { "1\n" } else { "0\n" }).unwrap();
        }
        folder
    }

    #[test]
    fn processors_come_and_go() {
        let folder = processors(4, &[3]);
        set_cpus(folder.path(), 2).unwrap();
        let is = |n: u32| fs::read_to_string(folder.path().join(format!("cpu{n}/online"))).unwrap();
        assert_eq!([is(1), is(2), is(3)], ["1", "0\n", "0"]);
        assert!(set_cpus(folder.path(), 5).unwrap_err().message.contains("has 4"));
    }

    #[test]
    fn lists_are_counted() {
        let file = tempfile::NamedTempFile::new().unwrap();
        for (text, count) in [("0\n", 1), ("0-3\n", 4), ("0-2,5,7-8\n", 6), ("\n", 0)] {
            fs::write(file.path(), text).unwrap();
            assert_eq!(list(file.path()).unwrap(), count, "{text:?}");
        }
    }

    #[test]
    fn memory_is_told_apart_by_where_it_came_from() {
        let iomem = "00000000-00000fff : Reserved\n00001000-0009fbff : System RAM\n00100000-0fffffff : System RAM\n\
                     \x20 01000000-01ffffff : Kernel code\n140000000-147ffffff : virtio1\n\
                     \x20 140000000-147ffffff : System RAM (virtio_mem)\n";
        assert_eq!(ram(iomem), (0x9ec00 + 0xff0_0000, 0x800_0000));
    }
}
