use super::process::ALL_CAPABILITIES;
use super::*;
use crate::error::Kind;

fn spec(process: &str, linux: &str, rest: &str) -> Spec {
    let json = format!(
        r#"{{"ociVersion":"1.0.2","process":{{"cwd":"/","args":["sh"],"user":{{"uid":0,"gid":0}}{process}}},
           "linux":{{"namespaces":[{{"type":"mount"}},{{"type":"pid"}}]{linux}}}{rest}}}"#
    );
    serde_json::from_str(&json).unwrap()
}

fn fitted(spec: &mut Spec, privileged: bool) -> Result<()> {
    fitted_with(spec, privileged, &Pids::Spec)
}

fn fitted_with(spec: &mut Spec, privileged: bool, pids: &Pids) -> Result<()> {
    let fit = Fit {
        id: "id",
        root: Path::new("/root"),
        user: None,
        home: "/home/x",
        privileged,
        pids,
        block_devices: &[],
    };
    super::fit(spec, &fit).map(drop)
}

fn namespaces_of(spec: &Spec) -> Vec<(String, Option<std::path::PathBuf>)> {
    let linux = spec.linux().as_ref().unwrap();
    let mut all: Vec<_> = linux
        .namespaces()
        .iter()
        .flatten()
        .map(|namespace| (namespace.typ().to_string(), namespace.path().clone()))
        .collect();
    all.sort();
    all
}

#[test]
fn process_ids_are_the_containers_the_pods_or_the_guests() {
    let plain = |name: &str| (name.to_owned(), None);
    let mut own = spec("", "", "");
    fitted(&mut own, false).unwrap();
    assert_eq!(namespaces_of(&own), [plain("cgroup"), plain("mnt"), plain("pid")]);
    let mut shared = spec("", "", "");
    fitted_with(&mut shared, false, &Pids::Shared("/proc/7/ns/pid".into())).unwrap();
    let pods = ("pid".to_owned(), Some("/proc/7/ns/pid".into()));
    assert_eq!(namespaces_of(&shared), [plain("cgroup"), plain("mnt"), pods]);
    let mut guests = spec("", "", "");
    fitted_with(&mut guests, false, &Pids::Guest).unwrap();
    assert_eq!(namespaces_of(&guests), [plain("cgroup"), plain("mnt")]);
}

#[test]
fn namespaces_of_the_host_are_refused() {
    let json = serde_json::to_string(&spec("", "", "")).unwrap();
    let joined = json.replace(r#"{"type":"pid"}"#, r#"{"type":"network","path":"/proc/1/ns/net"}"#);
    assert_ne!(json, joined);
    let error = parse(joined.as_bytes()).unwrap_err();
    assert!(error.message.contains("net namespace"), "{error}");
}

#[test]
fn what_is_left_out_is_restricted() {
    let mut spec = spec("", "", "");
    fitted(&mut spec, false).unwrap();
    let linux = spec.linux().as_ref().unwrap();
    assert_eq!(linux.masked_paths().as_ref().unwrap().len(), cloister_protocol::paths::MASKED.len());
    assert_eq!(linux.cgroups_path().as_deref(), Some(Path::new("/cloister/id")));
    let process = spec.process().as_ref().unwrap();
    assert!(process.capabilities().as_ref().unwrap().effective().as_ref().unwrap().is_empty());
    assert!(process.env().as_ref().unwrap().contains(&"HOME=/home/x".to_owned()));
}

#[test]
fn everything_needs_a_privileged_vm() {
    let all: Vec<String> = CAPABILITIES.split(' ').map(|name| format!("CAP_{name}")).collect();
    assert_eq!(all.len(), ALL_CAPABILITIES);
    let capabilities = format!(r#","capabilities":{{"bounding":{}}}"#, serde_json::to_string(&all).unwrap());
    let devices = r#","resources":{"devices":[{"allow":true,"access":"rwm"}]}"#;
    for (process, linux) in [(capabilities.as_str(), ""), ("", devices)] {
        let error = fitted(&mut spec(process, linux, ""), false).unwrap_err();
        assert_eq!(error.kind, Kind::Denied, "{error}");
        fitted(&mut spec(process, linux, ""), true).unwrap();
    }
}

const CAPABILITIES: &str = "CHOWN DAC_OVERRIDE DAC_READ_SEARCH FOWNER FSETID KILL SETGID SETUID SETPCAP \
    LINUX_IMMUTABLE NET_BIND_SERVICE NET_BROADCAST NET_ADMIN NET_RAW IPC_LOCK IPC_OWNER SYS_MODULE SYS_RAWIO \
    SYS_CHROOT SYS_PTRACE SYS_PACCT SYS_ADMIN SYS_BOOT SYS_NICE SYS_RESOURCE SYS_TIME SYS_TTY_CONFIG MKNOD LEASE \
    AUDIT_WRITE AUDIT_CONTROL SETFCAP MAC_OVERRIDE MAC_ADMIN SYSLOG WAKE_ALARM BLOCK_SUSPEND AUDIT_READ PERFMON \
    BPF CHECKPOINT_RESTORE";

#[test]
fn denying_rules_and_single_devices_are_fine() {
    let devices = r#","resources":{"devices":[{"allow":false,"access":"rwm"},{"allow":true,"type":"c","major":1,"minor":3,"access":"rwm"},{"allow":true,"type":"c","access":"m"}]}"#;
    fitted(&mut spec("", devices, ""), false).unwrap();
}

#[test]
fn bind_mounts_of_the_guest_are_refused() {
    let mount = |source: &str| {
        let rest = format!(
            r#","mounts":[{{"destination":"/x","type":"bind","source":"{source}","options":["rbind"]}}]"#
        );
        parse(serde_json::to_string(&spec("", "", &rest)).unwrap().as_bytes())
    };
    assert!(mount("/run/cloister/shares/tag").is_ok() && mount("/run/cloister/volumes/v/a/b").is_ok());
    assert!(mount("/").is_err() && mount("/run/cloister/shares/../c").is_err());
}

#[test]
fn false_no_new_privileges_is_the_same_as_none() {
    let mut with = spec(r#","noNewPrivileges":false"#, "", "");
    fitted(&mut with, false).unwrap();
    assert_eq!(with.process().as_ref().unwrap().no_new_privileges(), None);
}
