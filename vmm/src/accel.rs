//! Which accelerator a VM runs on.
//!
//! `/dev/kvm` alone proves nothing: on a host that is itself paravirtual it opens and answers the API
//! version, yet no stock guest ever boots. So KVM is believed only when the processor offers
//! virtualisation, the device opens, and it creates a VM with one virtual processor.

use std::fs;
use std::io;
use std::os::fd::{AsFd, AsRawFd, FromRawFd, OwnedFd};

use crate::{Error, Result};

/// What the user asked for.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default, serde::Serialize, serde::Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum Accel {
    /// KVM where it works, otherwise emulation.
    #[default]
    Auto,
    /// KVM or an error.
    Kvm,
    /// QEMU's own emulation.
    Tcg,
}

/// What the VM will run on.
#[derive(Debug)]
pub enum Chosen {
    /// Hardware virtualisation; carries the opened `/dev/kvm`, which QEMU gets as a descriptor so that
    /// its unprivileged user needs no access to the device node.
    Kvm(OwnedFd),
    /// Software emulation.
    Tcg {
        /// One line for the user, set when emulation was not asked for by name.
        warning: Option<String>,
    },
}

impl Chosen {
    /// `kvm` or `tcg`, as QEMU spells them.
    pub fn name(&self) -> &'static str {
        match self {
            Self::Kvm(_) => "kvm",
            Self::Tcg { .. } => "tcg",
        }
    }
}

impl std::str::FromStr for Accel {
    type Err = Error;

    fn from_str(s: &str) -> Result<Self> {
        match s {
            "auto" => Ok(Self::Auto),
            "kvm" => Ok(Self::Kvm),
            "tcg" => Ok(Self::Tcg),
            other => Err(Error::invalid("accel", format!("{other:?} is none of auto, kvm, tcg"))),
        }
    }
}

/// Decides between KVM and emulation on this host.
///
/// # Errors
/// `Accel::Kvm` on a host where KVM is not usable.
pub fn choose(wanted: Accel) -> Result<Chosen> {
    if wanted == Accel::Tcg {
        return Ok(Chosen::Tcg { warning: None });
    }
    match (probe_kvm(), wanted) {
        (Ok(kvm), _) => Ok(Chosen::Kvm(kvm)),
        (Err(why), Accel::Kvm) => Err(Error::invalid("accel=kvm", why)),
        (Err(why), _) => Ok(Chosen::Tcg {
            warning: Some(format!("{why}: running in software emulation, which is roughly ten times slower")),
        }),
    }
}

/// Opens KVM if it can really start a guest; otherwise says why not.
fn probe_kvm() -> Result<OwnedFd, String> {
    if cfg!(target_arch = "x86_64") {
        let info =
            fs::read_to_string("/proc/cpuinfo").map_err(|e| format!("cannot read /proc/cpuinfo: {e}"))?;
        if !offers_virtualisation(&info) {
            return Err("the processor offers no virtualisation (neither vmx nor svm)".into());
        }
    }
    let kvm = fs::OpenOptions::new()
        .read(true)
        .write(true)
        .open("/dev/kvm")
        .map_err(|e| format!("cannot open /dev/kvm: {e}"))?;
    let kvm = OwnedFd::from(kvm);
    create_one_vcpu(&kvm).map_err(|e| format!("/dev/kvm does not start a guest: {e}"))?;
    Ok(kvm)
}

fn offers_virtualisation(cpuinfo: &str) -> bool {
    cpuinfo
        .lines()
        .filter(|l| l.starts_with("flags"))
        .any(|l| l.split_ascii_whitespace().any(|f| f == "vmx" || f == "svm"))
}

// linux/kvm.h: _IO(KVMIO, nr) with KVMIO = 0xAE.
const KVM_GET_API_VERSION: u64 = 0xAE00;
const KVM_CREATE_VM: u64 = 0xAE01;
const KVM_CREATE_VCPU: u64 = 0xAE41;
/// The only version a usable KVM has ever answered since Linux 2.6.22.
const KVM_API_VERSION: i32 = 12;

fn create_one_vcpu(kvm: &OwnedFd) -> io::Result<()> {
    let version = ioctl(kvm, KVM_GET_API_VERSION)?;
    if version != KVM_API_VERSION {
        return Err(io::Error::other(format!("API version {version}, not {KVM_API_VERSION}")));
    }
    let vm = ioctl_fd(kvm, KVM_CREATE_VM)?;
    ioctl_fd(&vm, KVM_CREATE_VCPU)?;
    Ok(())
}

fn ioctl(fd: &impl AsFd, request: u64) -> io::Result<i32> {
    // SAFETY: the three requests used here take an integer argument and touch no memory of ours.
    let answer = unsafe { libc::ioctl(fd.as_fd().as_raw_fd(), request, 0) };
    if answer < 0 { Err(io::Error::last_os_error()) } else { Ok(answer) }
}

fn ioctl_fd(fd: &impl AsFd, request: u64) -> io::Result<OwnedFd> {
    let new = ioctl(fd, request)?;
    // SAFETY: KVM_CREATE_VM and KVM_CREATE_VCPU return a new descriptor that nothing else owns.
    Ok(unsafe { OwnedFd::from_raw_fd(new) })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn virtualisation_is_read_from_the_flags_line_only() {
        assert!(offers_virtualisation("processor: 0\nflags\t\t: fpu vmx sse\n"));
        assert!(offers_virtualisation("flags : svm\n"));
        assert!(!offers_virtualisation("flags : fpu hypervisor\nvmx flags : vnmi\n"));
        assert!(!offers_virtualisation("model name : vmx\n"));
    }

    #[test]
    fn emulation_asked_for_by_name_gives_no_warning() {
        assert!(matches!(choose(Accel::Tcg), Ok(Chosen::Tcg { warning: None })));
    }

    #[test]
    fn auto_without_virtualisation_warns_and_kvm_refuses() {
        let info = fs::read_to_string("/proc/cpuinfo").unwrap_or_default();
        if cfg!(target_arch = "x86_64") && !offers_virtualisation(&info) {
            let Ok(Chosen::Tcg { warning: Some(w) }) = choose(Accel::Auto) else { panic!("no warning") };
            assert!(w.contains("emulation") && !w.contains('\n'), "{w}");
            assert!(choose(Accel::Kvm).unwrap_err().to_string().contains("vmx"));
        } else {
            assert!(choose(Accel::Auto).is_ok());
        }
    }
}
