//! What the OCI spec restricts is restricted, in the guest as it would be on the host.

use anyhow::Result;
use cloister_e2e::Rig;
use cloister_e2e::cri::api;
use cloister_e2e::cri::api::security_profile::ProfileType;
use cloister_e2e::cri::spec::{ContainerConfigExt, PodConfigExt};

cases!(
    user_and_groups_are_the_pods,
    a_user_by_name_has_the_images_groups,
    capabilities_are_dropped_and_added,
    the_runtimes_seccomp_profile_is_applied,
    a_seccomp_profile_of_the_node_is_applied,
    privileges_cannot_be_gained_when_forbidden,
    the_root_can_be_read_only,
    paths_are_masked_and_read_only,
    the_usual_devices_work,
    a_device_is_given_under_another_name,
    privileged_means_everything_of_the_pod_and_nothing_of_the_host,
);

/// What only microVMs refuse.
mod of_microvms {
    use super::*;
    microvm_cases!(a_user_namespace_is_refused_with_a_reason);
}

fn number(value: i64) -> Option<api::Int64Value> {
    Some(api::Int64Value { value })
}

fn profile(kind: ProfileType, path: &str) -> Option<api::SecurityProfile> {
    Some(api::SecurityProfile { profile_type: kind.into(), localhost_ref: path.to_owned() })
}

pub fn user_and_groups_are_the_pods(rig: &Rig) -> Result<()> {
    let pod = rig.pod()?;
    let mut config = pod.shell("id -u; id -g; grep ^Groups /proc/self/status | tr -d '\\t'; touch /data/mine /tmp/mine; ls -ln /tmp/mine | tr -s ' ' | cut -d' ' -f3,4");
    config.security().run_as_user = number(1000);
    config.security().run_as_group = number(3000);
    config.security().supplemental_groups = vec![4000, 5000];
    let (code, output) = pod.once_in(config)?;
    assert_eq!((code, output.lines().next()), (0, Some("1000")));
    let lines: Vec<_> = output.lines().collect();
    assert_eq!(lines[1], "3000");
    for group in ["4000", "5000"] {
        assert!(lines[2].trim_start_matches("Groups:").split(' ').any(|g| g == group), "{output}");
    }
    assert_eq!(lines[3], "1000 3000");
    Ok(())
}

pub fn a_user_by_name_has_the_images_groups(rig: &Rig) -> Result<()> {
    let pod = rig.pod()?;
    let mut config = pod.shell("id -u; id -G");
    config.security().run_as_username = "worker".to_owned();
    let (code, output) = pod.once_in(config)?;
    assert_eq!((code, output.as_str()), (0, "1000\n1000 2000\n"));
    Ok(())
}

pub fn capabilities_are_dropped_and_added(rig: &Rig) -> Result<()> {
    let pod = rig.pod()?;
    let script = "grep ^CapEff /proc/self/status | cut -f2; chown 1:1 /tmp && echo chowned || true";
    let (_, usual) = pod.once(script)?;
    assert!(usual.ends_with("chowned\n"), "{usual}");
    let mut config = pod.shell(script);
    config.security().capabilities = Some(api::Capability {
        drop_capabilities: vec!["ALL".to_owned()],
        add_capabilities: vec!["NET_BIND_SERVICE".to_owned()],
        ..api::Capability::default()
    });
    let container = pod.start(config)?;
    container.wait()?;
    assert_eq!(container.output_at_end()?, b"0000000000000400\n");
    let mut config = pod.shell("echo up; sleep 1000");
    config.security().capabilities = Some(api::Capability {
        add_capabilities: vec!["SYS_ADMIN".to_owned()],
        ..api::Capability::default()
    });
    let container = pod.start(config)?;
    container.wait_for_output("up")?;
    let bits = u64::from_str_radix(&container.sh("grep ^CapEff /proc/self/status | cut -f2")?, 16)?;
    assert!(bits & (1 << 21) != 0, "exec lacks the added capability: {bits:x}");
    Ok(())
}

pub fn the_runtimes_seccomp_profile_is_applied(rig: &Rig) -> Result<()> {
    let pod = rig.pod()?;
    let mut config = pod.shell(
        "grep ^Seccomp: /proc/self/status; unshare -U true 2>/dev/null || echo refused; echo up; sleep 1000",
    );
    config.security().seccomp = profile(ProfileType::RuntimeDefault, "");
    let container = pod.start(config)?;
    assert_eq!(container.wait_for_output("up\n")?, "Seccomp:\t2\nrefused\nup\n");
    assert_eq!(container.sh("grep ^Seccomp: /proc/self/status")?, "Seccomp:\t2", "exec is not filtered");
    let mut config = pod.shell("grep ^Seccomp: /proc/self/status");
    config.security().seccomp = profile(ProfileType::Unconfined, "");
    assert_eq!(pod.once_in(config)?, (0, "Seccomp:\t0\n".to_owned()));
    Ok(())
}

pub fn a_seccomp_profile_of_the_node_is_applied(rig: &Rig) -> Result<()> {
    let path = rig.lab.root().join("no-folders.json");
    let text = r#"{"defaultAction": "SCMP_ACT_ALLOW", "architectures": ["SCMP_ARCH_X86_64"],
        "syscalls": [{"names": ["mkdir", "mkdirat"], "action": "SCMP_ACT_ERRNO"}]}"#;
    std::fs::write(&path, text)?;
    let pod = rig.pod()?;
    let mut config =
        pod.shell("mkdir /tmp/x 2>/dev/null && echo made || echo refused; touch /tmp/y && echo touched");
    config.security().seccomp = profile(ProfileType::Localhost, &path.to_string_lossy());
    assert_eq!(pod.once_in(config)?, (0, "refused\ntouched\n".to_owned()));
    Ok(())
}

pub fn privileges_cannot_be_gained_when_forbidden(rig: &Rig) -> Result<()> {
    let pod = rig.pod()?;
    for (forbidden, flag) in [(true, "1"), (false, "0")] {
        let mut config = pod.shell("grep ^NoNewPrivs /proc/self/status | cut -f2");
        config.security().no_new_privs = forbidden;
        assert_eq!(pod.once_in(config)?, (0, format!("{flag}\n")));
    }
    Ok(())
}

pub fn the_root_can_be_read_only(rig: &Rig) -> Result<()> {
    let pod = rig.pod()?;
    let mut config = pod
        .shell("touch /file 2>/dev/null && echo written || echo refused; echo ok >/dev/null && echo device");
    config.security().readonly_rootfs = true;
    assert_eq!(pod.once_in(config)?, (0, "refused\ndevice\n".to_owned()));
    assert_eq!(pod.once("touch /file && echo written")?, (0, "written\n".to_owned()));
    Ok(())
}

pub fn paths_are_masked_and_read_only(rig: &Rig) -> Result<()> {
    let pod = rig.pod()?;
    let mut config = pod.shell(
        "wc -c </proc/kallsyms; ls /proc/irq | wc -l; (echo 0 >/proc/sys/net/ipv4/ip_forward) 2>/dev/null && echo written || echo refused",
    );
    config.security().masked_paths =
        ["/proc/kallsyms", "/proc/irq", "/proc/nowhere"].map(str::to_owned).into();
    config.security().readonly_paths = ["/proc/sys", "/proc/nowhere"].map(str::to_owned).into();
    assert_eq!(pod.once_in(config)?, (0, "0\n0\nrefused\n".to_owned()));
    Ok(())
}

pub fn the_usual_devices_work(rig: &Rig) -> Result<()> {
    let pod = rig.pod()?;
    let script = "for d in null zero full random urandom tty ptmx; do [ -c /dev/$d ] || [ -L /dev/$d ] || echo no $d; done
        head -c 4 /dev/zero | wc -c; head -c 16 /dev/urandom | wc -c; echo x >/dev/null
        (echo x >/dev/full) 2>/dev/null || echo full; readlink /dev/stdin; df -m /dev/shm | tail -n 1 | tr -s ' ' | cut -d' ' -f2
        (mknod /tmp/disk b 254 0 && head -c 1 /tmp/disk >/dev/null) 2>/dev/null && echo opened || echo denied";
    assert_eq!(pod.once(script)?, (0, "4\n16\nfull\n/proc/self/fd/0\n64\ndenied\n".to_owned()));
    Ok(())
}

pub fn a_device_is_given_under_another_name(rig: &Rig) -> Result<()> {
    let pod = rig.pod()?;
    let mut config = pod.shell("head -c 3 /dev/nothing | wc -c");
    config.devices.push(api::Device {
        container_path: "/dev/nothing".to_owned(),
        host_path: "/dev/zero".to_owned(),
        permissions: "rw".to_owned(),
    });
    assert_eq!(pod.once_in(config)?, (0, "3\n".to_owned()));
    Ok(())
}

pub fn privileged_means_everything_of_the_pod_and_nothing_of_the_host(rig: &Rig) -> Result<()> {
    let mut config = rig.config();
    config.linux().security_context.as_mut().unwrap().privileged = true;
    let pod = rig.run(config)?;
    let mut config = pod.shell(
        "grep ^CapEff /proc/self/status | cut -f2; grep ^Seccomp: /proc/self/status | cut -f2
         mount -t tmpfs none /srv && echo mounted; [ -w /proc/sys/kernel/domainname ] && echo writable; cat /proc/partitions",
    );
    config.security().privileged = true;
    let (code, output) = pod.once_in(config)?;
    assert_eq!(code, 0);
    let mut lines = output.lines();
    let bits = u64::from_str_radix(lines.next().unwrap(), 16)?;
    assert!(bits & (1 << 21) != 0 && bits & 0x1f_ffff == 0x1f_ffff, "{bits:x}");
    assert_eq!(lines.next(), Some("0"));
    assert_eq!(lines.next(), Some("mounted"));
    assert_eq!(lines.next(), Some("writable"));
    if rig.handler.is_microvm() {
        let sizes = |text: &str| -> Vec<String> {
            let disks = text.lines().filter_map(|line| line.split_whitespace().nth(2).map(str::to_owned));
            disks.filter(|size| size.parse::<u64>().is_ok_and(|blocks| blocks > 0)).collect()
        };
        let host = sizes(&std::fs::read_to_string("/proc/partitions")?);
        let guest = sizes(&output);
        assert!(
            !guest.iter().any(|size| host.contains(size)),
            "a disk of the host is in the guest: {output}"
        );
    }
    Ok(())
}

pub fn a_user_namespace_is_refused_with_a_reason(rig: &Rig) -> Result<()> {
    let ids = vec![api::IdMapping { host_id: 100_000, container_id: 0, length: 65_536 }];
    let users = api::UserNamespace { mode: api::NamespaceMode::Pod.into(), uids: ids.clone(), gids: ids };
    let mut config = rig.config();
    let security = config.linux().security_context.get_or_insert_default();
    security.namespace_options.get_or_insert_default().userns_options = Some(users);
    let error = rig.run(config).err().map(|error| format!("{error:#}")).unwrap_or_default();
    // With a sandbox container the snapshotter is asked first.
    assert!(error.contains("hostUsers: false") && error.contains("remove it from the pod"), "{error}");
    Ok(())
}
