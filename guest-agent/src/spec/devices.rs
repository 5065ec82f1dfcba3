//! Devices, which have other numbers here than on the host: character devices go by their path in this guest's /dev,
//! disks by their serial.

use std::path::{Component, Path, PathBuf};

use cloister_protocol::{limits, v1};
use libcontainer::oci_spec::runtime::{
    Linux, LinuxDevice, LinuxDeviceBuilder, LinuxDeviceCgroup, LinuxDeviceCgroupBuilder, LinuxDeviceType,
};
use rustix::fs::{
    AtFlags, FileType, Gid, Mode, Uid, chmodat, chownat, major, makedev, minor, mknodat, stat, unlinkat,
};
use rustix::io::Errno;

use crate::error::{Context, Error, Result};
use crate::inroot::Root;
use crate::rootfs::disk_by_serial;

/// Major and minor number.
type Number = (u32, u32);

/// A device of the host, and the same here.
type Renumbered = ((i64, i64), (i64, i64));

/// Character devices that have the same number in every Linux: those of mem, tty and pts, and of misc tun and fuse
/// (Documentation/admin-guide/devices.txt).
const STABLE_MAJORS: [i64; 3] = [1, 5, 136];
const STABLE_MISC: [i64; 2] = [200, 229];

/// A device node that the agent makes in the root, because the runtime makes only those below /dev.
#[derive(Debug)]
pub struct Node {
    path: PathBuf,
    device: v1::BlockDevice,
    number: Number,
}

/// Gives the spec's devices this guest's numbers and adds the disks, waiting for them to be plugged.
pub(super) fn fit(linux: &mut Linux, disks: &[v1::BlockDevice]) -> Result<Vec<Node>> {
    if disks.len() > limits::BLOCK_DEVICES {
        return Err(Error::invalid(format!("more than {} block devices", limits::BLOCK_DEVICES)));
    }
    let mut found = Vec::new();
    for disk in disks {
        check(disk)?;
        let node = disk_by_serial(&disk.serial)?;
        let number = number(&node, FileType::BlockDevice)
            .ok_or_else(|| Error::state(format!("{} is no block device", node.display())))?;
        found.push((disk.clone(), number));
    }
    renumber(linux, &found, |path| number(path, FileType::CharacterDevice))
}

fn check(disk: &v1::BlockDevice) -> Result<()> {
    let path = Path::new(&disk.path);
    let plain = path.components().all(|part| matches!(part, Component::RootDir | Component::Normal(_)));
    if !limits::is_serial(&disk.serial) {
        return Err(Error::invalid(format!("{:?} is no disk serial", disk.serial)));
    }
    if !path.is_absolute()
        || !plain
        || path.file_name().is_none()
        || path.as_os_str().len() > limits::PATH_BYTES
    {
        return Err(Error::invalid(format!("{:?} is no path for a device node", disk.path)));
    }
    Ok(())
}

fn number(node: &Path, kind: FileType) -> Option<Number> {
    let stat = stat(node).ok()?;
    (FileType::from_raw_mode(stat.st_mode) == kind).then(|| (major(stat.st_rdev), minor(stat.st_rdev)))
}

/// The number of a device that every Linux has under the same one, whatever it is called: null, zero, full, random,
/// urandom, tty (the kernel's `Documentation/admin-guide/devices.txt`).
fn fixed(device: &LinuxDevice) -> Option<Number> {
    match (device.major(), device.minor()) {
        (1, minor @ (3 | 5 | 7 | 8 | 9)) => Some((1, u32::try_from(minor).ok()?)),
        (5, 0) => Some((5, 0)),
        _ => None,
    }
}

fn renumber(
    linux: &mut Linux,
    disks: &[(v1::BlockDevice, Number)],
    guest: impl Fn(&Path) -> Option<Number>,
) -> Result<Vec<Node>> {
    let invalid = |e| Error::invalid(format!("the container's devices: {e}"));
    let mut devices = Vec::new();
    let mut known = Vec::new(); // the host's number and the guest's
    for mut device in linux.devices().clone().unwrap_or_default() {
        let path = device.path().to_owned();
        match device.typ() {
            LinuxDeviceType::C | LinuxDeviceType::U => {
                let (major, minor) = guest(&path).or_else(|| fixed(&device)).ok_or_else(|| {
                    Error::invalid(format!("device {}: this guest has no such device", path.display()))
                })?;
                known.push(((device.major(), device.minor()), (i64::from(major), i64::from(minor))));
                device.set_major(major.into()).set_minor(minor.into());
                devices.push(device);
            }
            LinuxDeviceType::B if disks.iter().any(|(disk, _)| Path::new(&disk.path) == path) => {}
            LinuxDeviceType::B => {
                let what = "a disk of the host must be plugged into the VM to be a device in it";
                return Err(Error::invalid(format!("device {}: {what}", path.display())));
            }
            _ => devices.push(device),
        }
    }
    let mut resources = linux.resources().clone().unwrap_or_default();
    let mut rules = Vec::new();
    for rule in resources.devices().clone().unwrap_or_default() {
        rules.extend(translate(rule, &known));
    }
    let mut nodes = Vec::new();
    for (disk, (major, minor)) in disks {
        let access = if disk.read_only { "rm" } else { "rwm" };
        let rule = LinuxDeviceCgroupBuilder::default().allow(true).typ(LinuxDeviceType::B);
        let rule = rule.major(i64::from(*major)).minor(i64::from(*minor)).access(access).build();
        rules.push(rule.map_err(invalid)?);
        if Path::new(&disk.path).starts_with("/dev") {
            devices.push(node_of(disk, (*major, *minor)).map_err(invalid)?);
        } else {
            nodes.push(Node { path: (&disk.path).into(), device: disk.clone(), number: (*major, *minor) });
        }
    }
    resources.set_devices(Some(rules));
    linux.set_resources(Some(resources));
    linux.set_devices(Some(devices));
    Ok(nodes)
}

/// A rule about one device of the host is about the same device here, or about nothing.
fn translate(mut rule: LinuxDeviceCgroup, known: &[Renumbered]) -> Option<LinuxDeviceCgroup> {
    let of = |number: Option<i64>| number.filter(|n| *n >= 0);
    let (major, minor) = (of(rule.major()), of(rule.minor()));
    let opens = rule.access().as_deref().is_none_or(|access| access.contains(['r', 'w']));
    let Some(host) = major.filter(|_| rule.allow() && opens) else { return Some(rule) };
    if rule.typ() == Some(LinuxDeviceType::B) {
        return None;
    }
    if let Some((_, (major, minor))) =
        known.iter().find(|(from, _)| (Some(from.0), Some(from.1)) == (major, minor))
    {
        rule.set_major(Some(*major)).set_minor(Some(*minor));
        return Some(rule);
    }
    let stable = STABLE_MAJORS.contains(&host)
        || host == 10 && minor.is_some_and(|minor| STABLE_MISC.contains(&minor));
    stable.then_some(rule)
}

fn node_of(
    disk: &v1::BlockDevice,
    (major, minor): Number,
) -> std::result::Result<LinuxDevice, libcontainer::oci_spec::OciSpecError> {
    LinuxDeviceBuilder::default()
        .path(&disk.path)
        .typ(LinuxDeviceType::B)
        .major(i64::from(major))
        .minor(i64::from(minor))
        .file_mode(disk.mode & 0o7777)
        .uid(disk.uid)
        .gid(disk.gid)
        .build()
}

impl Node {
    /// Makes the node in a container's root; a file in its place is replaced.
    ///
    /// # Errors
    /// When a folder is in its place, or the root can have no device nodes.
    pub fn make(&self, root: &Root) -> Result<()> {
        let what = || format!("make device node {}", self.path.display());
        let (Some(parent), Some(name)) = (self.path.parent(), self.path.file_name()) else {
            return Err(Error::invalid(what()));
        };
        root.create_dir_all(parent)?;
        let folder = root.folder(parent)?;
        match unlinkat(&folder, name, AtFlags::empty()) {
            Ok(()) | Err(Errno::NOENT) => {}
            Err(e) => return Err(e).context(what),
        }
        let mode = Mode::from_raw_mode(self.device.mode & 0o7777);
        let owner = (Uid::from_raw(self.device.uid), Gid::from_raw(self.device.gid));
        let number = makedev(self.number.0, self.number.1);
        mknodat(&folder, name, FileType::BlockDevice, Mode::empty(), number).context(what)?;
        chownat(&folder, name, Some(owner.0), Some(owner.1), AtFlags::SYMLINK_NOFOLLOW).context(what)?;
        chmodat(&folder, name, mode, AtFlags::empty()).context(what)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn linux(json: &str) -> Linux {
        serde_json::from_str(json).unwrap()
    }

    fn disk(path: &str, read_only: bool) -> (v1::BlockDevice, Number) {
        let device = v1::BlockDevice {
            serial: "block0".into(),
            path: path.into(),
            read_only,
            mode: 0o660,
            uid: 0,
            gid: 6,
        };
        (device, (254, 16))
    }

    fn guest(path: &Path) -> Option<Number> {
        (path == Path::new("/dev/special")).then_some((240, 9))
    }

    #[test]
    fn devices_go_by_name_and_their_rules_follow() {
        let mut linux = linux(
            r#"{"devices":[{"path":"/dev/special","type":"c","major":100,"minor":1}],
                "resources":{"devices":[{"allow":false,"access":"rwm"},
                  {"allow":true,"type":"c","major":100,"minor":1,"access":"rw"},
                  {"allow":true,"type":"c","major":100,"minor":2,"access":"rw"},
                  {"allow":true,"type":"c","major":1,"minor":3,"access":"rwm"},
                  {"allow":true,"type":"b","major":8,"minor":0,"access":"rwm"},
                  {"allow":true,"type":"b","access":"m"}]}}"#,
        );
        renumber(&mut linux, &[], guest).unwrap();
        let device = &linux.devices().as_ref().unwrap()[0];
        assert_eq!((device.major(), device.minor()), (240, 9));
        let rules = linux.resources().as_ref().unwrap().devices().clone().unwrap();
        let numbers: Vec<_> = rules.iter().map(|rule| (rule.major(), rule.minor())).collect();
        assert_eq!(numbers, [(None, None), (Some(240), Some(9)), (Some(1), Some(3)), (None, None)]);
    }

    #[test]
    fn what_the_guest_lacks_is_an_error() {
        for typ in ["c", "b"] {
            let json =
                format!(r#"{{"devices":[{{"path":"/dev/other","type":"{typ}","major":8,"minor":0}}]}}"#);
            let error = renumber(&mut linux(&json), &[], guest).unwrap_err();
            assert!(error.message.contains("/dev/other") && !error.message.contains('\n'), "{error}");
        }
    }

    #[test]
    fn disks_replace_the_hosts_devices_and_read_only_ones_cannot_be_written() {
        let mut linux = linux(r#"{"devices":[{"path":"/dev/xvda","type":"b","major":8,"minor":0}]}"#);
        let nodes =
            renumber(&mut linux, &[disk("/dev/xvda", true), disk("/data/raw", false)], guest).unwrap();
        let devices = linux.devices().as_ref().unwrap();
        assert_eq!((devices.len(), devices[0].major(), devices[0].gid()), (1, 254, Some(6)));
        assert_eq!(nodes.len(), 1);
        let rules = linux.resources().as_ref().unwrap().devices().clone().unwrap();
        let access: Vec<_> = rules.iter().map(|rule| rule.access().clone().unwrap()).collect();
        assert_eq!(access, ["rm", "rwm"]);
    }

    #[test]
    fn nodes_have_plain_absolute_paths() {
        assert!(check(&disk("/dev/xvda", false).0).is_ok());
        for path in ["", "/", "dev/x", "/dev/../x"] {
            assert!(check(&disk(path, false).0).is_err(), "{path:?}");
        }
    }
}
