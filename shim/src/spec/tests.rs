use super::*;

fn spec(linux: &str) -> Spec {
    let json = format!(
        r#"{{"ociVersion":"1.1.0","hostname":"h","annotations":{{"a":"b"}},
            "process":{{"cwd":"/","args":["sh"],"user":{{"uid":0,"gid":0}}}},
            "hooks":{{"prestart":[{{"path":"/bin/x"}}]}},"linux":{{{linux}}}}}"#
    );
    serde_json::from_str(&json).unwrap()
}

fn linux(spec: &Spec) -> oci_spec::runtime::Linux {
    spec.linux().clone().unwrap()
}

#[test]
fn what_names_things_of_the_host_is_left_out() {
    let host = spec(
        r#""cgroupsPath":"/kubepods/x","sysctl":{"net.x":"1"},"rootfsPropagation":"rslave",
           "seccomp":{"defaultAction":"SCMP_ACT_ERRNO"},
           "namespaces":[{"type":"pid"},{"type":"mount"},{"type":"network","path":"/proc/7/ns/net"},
             {"type":"ipc","path":"/proc/7/ns/ipc"},{"type":"uts","path":"/proc/7/ns/uts"},{"type":"cgroup"}]"#,
    );
    let guest = translate(&host, Vec::new()).unwrap();
    let kinds: Vec<_> = linux(&guest).namespaces().clone().unwrap().iter().map(|n| n.typ()).collect();
    assert_eq!(kinds, [LinuxNamespaceType::Mount, LinuxNamespaceType::Pid, LinuxNamespaceType::Cgroup]);
    assert!(linux(&guest).rootfs_propagation().is_none());
    assert!(linux(&guest).cgroups_path().is_none() && guest.hooks().is_none() && guest.hostname().is_none());
    assert!(guest.annotations().as_ref().unwrap().is_empty());
    assert!(linux(&guest).seccomp().is_some(), "the filter stays on");
}

#[test]
fn the_pid_namespace_is_own_pod_or_guest() {
    assert_eq!(pid_namespace(&spec(r#""namespaces":[{"type":"pid"}]"#)), PidNamespace::Own);
    let joined = r#""namespaces":[{"type":"pid","path":"/proc/7/ns/pid"}]"#;
    assert_eq!(pid_namespace(&spec(joined)), PidNamespace::Pod);
    assert_eq!(joined_process(&spec(joined)), Some(7));
    assert_eq!(joined_process(&spec(r#""namespaces":[{"type":"pid"}]"#)), None);
    assert_eq!(joined_process(&spec(r#""namespaces":[{"type":"pid","path":"/proc/self/ns/pid"}]"#)), None);
    assert_eq!(pid_namespace(&spec(r#""namespaces":[{"type":"mount"}]"#)), PidNamespace::Guest);
}

#[test]
fn privileged_gets_no_device_of_the_host() {
    let host = spec(
        r#""resources":{"devices":[{"allow":true,"access":"rwm"}]},
           "devices":[{"path":"/dev/sda","type":"b","major":8,"minor":0},{"path":"/dev/nvme","type":"c","major":240,"minor":0}]"#,
    );
    assert!(is_privileged(&host) && blocks(&host).is_empty());
    let devices = linux(&translate(&host, Vec::new()).unwrap()).devices().clone().unwrap();
    let names: Vec<_> = devices.iter().map(|device| device.path().display().to_string()).collect();
    assert_eq!(names, ["/dev/fuse", "/dev/net/tun", "/dev/kmsg"]);
}

#[test]
fn block_devices_are_plugged_with_the_access_their_rule_gives() {
    let host = spec(
        r#""resources":{"devices":[{"allow":false,"access":"rwm"},
             {"allow":true,"type":"b","major":8,"minor":1,"access":"rwm"},
             {"allow":true,"type":"b","major":8,"minor":2,"access":"rm"}]},
           "devices":[{"path":"/dev/w","type":"b","major":8,"minor":1,"fileMode":384,"uid":5,"gid":6},
             {"path":"/dev/r","type":"b","major":8,"minor":2}]"#,
    );
    let found = blocks(&host);
    assert_eq!(found[0].number, (8, 1));
    assert_eq!((found[0].read_only, found[0].owner), (false, (384, 5, 6)));
    assert!(found[1].read_only);
    let guest = linux(&translate(&host, Vec::new()).unwrap());
    let rules = guest.resources().clone().unwrap().devices().clone().unwrap();
    assert_eq!(rules.len(), 1, "the host's numbers mean nothing in the guest: {rules:?}");
    assert!(guest.devices().clone().unwrap().is_empty());
}

#[test]
fn character_devices_keep_their_names_and_foreign_ones_are_refused() {
    let ask = |path: &str, major: i64, minor: i64| {
        let json = format!(r#""devices":[{{"path":"{path}","type":"c","major":{major},"minor":{minor}}}]"#);
        Ok::<_, Failure>(linux(&translate(&spec(&json), Vec::new())?).devices().clone().unwrap())
    };
    assert_eq!(ask("/dev/net/tun", 10, 200).unwrap()[0].path(), Path::new("/dev/net/tun"));
    assert_eq!(ask("/dev/nothing", 1, 3).unwrap()[0].path(), Path::new("/dev/nothing"));
    assert!(ask("/dev/null", 1, 3).unwrap().is_empty());
    let error = ask("/dev/nvidia0", 195, 0).unwrap_err().to_string();
    assert!(error.contains("/dev/nvidia0"), "{error}");
}

#[test]
fn limits_are_read_in_bytes_and_thousandths() {
    let host = spec(
        r#""resources":{"memory":{"limit":1048576},"cpu":{"quota":150000,"period":100000,"cpus":"3-5","mems":"1"}}"#,
    );
    let resources = linux(&host).resources().clone();
    assert_eq!(limits(resources.as_ref()), Limits { memory: Some(1 << 20), cpu: Some(1500) });
    assert_eq!(limits(None), Limits::default());
    let unlimited = spec(r#""resources":{"memory":{"limit":-1},"cpu":{"quota":-1}}"#);
    assert_eq!(limits(linux(&unlimited).resources().as_ref()), Limits::default());
    let guest = linux(&translate(&host, Vec::new()).unwrap()).resources().clone().unwrap();
    let cpu = guest.cpu().clone().unwrap();
    assert!(
        cpu.cpus().is_none() && cpu.mems().is_none(),
        "processors and memory have other numbers in the guest"
    );
    assert_eq!((cpu.quota(), cpu.period()), (Some(150_000), Some(100_000)), "the limit holds");
}
