//! Classes of flaws found in other runtimes, tried on ours.

use std::fs;

use anyhow::Result;
use cloister_e2e::Rig;
use cloister_e2e::cri::api;
use cloister_e2e::cri::spec::{self, ContainerConfigExt};
use cloister_e2e::pod_images::{LINKS, NO_LAYERS};

use crate::volumes::{once_with_device, with_device};

cases!([LINKS]
    a_disk_that_looks_like_another_format_stays_raw,
    a_device_node_of_ones_own_opens_nothing,
    no_working_folder_leads_out_of_the_container,
    a_container_without_proc_is_not_joined_with_more_rights,
    mounts_on_links_of_the_image_stay_in_the_container,
    counters_may_be_asked_for_while_a_pod_ends,
);

/// containerd itself can't make a container of such an image for runc.
mod of_microvms {
    use super::*;
    microvm_cases!([NO_LAYERS] an_image_without_layers_is_an_error_and_no_folder_of_the_host);
}

/// GHSA-jmr4-g2hv-mjj6: what a guest writes into a disk is never taken for a format with files behind it.
pub fn a_disk_that_looks_like_another_format_stays_raw(rig: &Rig) -> Result<()> {
    let file = rig.lab.root().join("disk.img");
    fs::write(&file, vec![0; 4 << 20])?;
    // The head of a qcow2 image of 1 GiB whose backing file is the host's /etc/passwd.
    let head = r"QFI\373\0\0\0\3\0\0\0\0\0\0\0\160\0\0\0\013\0\0\0\020\0\0\0\0\100\0\0\0";
    let write = format!(
        "printf '{head}' | dd of=/dev/raw conv=fsync 2>/dev/null; printf /etc/passwd | dd of=/dev/raw seek=112 bs=1 conv=fsync 2>/dev/null; sync"
    );
    let read = "blockdev --getsize64 /dev/raw; head -c 3 /dev/raw; dd if=/dev/raw bs=1 skip=112 count=11 2>/dev/null";
    with_device(rig, &file, |device| {
        assert_eq!(once_with_device(rig, device, &write)?, (0, String::new()));
        let seen = once_with_device(rig, device, read)?;
        assert_eq!(seen, (0, format!("{}\nQFI/etc/passwd", 4 << 20)));
        Ok(())
    })
}

/// CVE-2026-24834: with `CAP_MKNOD`, which containers have, nodes of every disk can be made, and none opened.
pub fn a_device_node_of_ones_own_opens_nothing(rig: &Rig) -> Result<()> {
    let script = "for d in /sys/class/block/*/dev; do n=$(cat $d); mknod /tmp/disk b ${n%:*} ${n#*:} && head -c 1 /tmp/disk >/dev/null 2>&1 && echo opened $d; rm /tmp/disk; done; \
        mknod /tmp/mem c 1 1; head -c 1 /tmp/mem >/dev/null 2>&1 && echo opened the memory; mknod /tmp/log c 1 11; head -c 1 /tmp/log >/dev/null 2>&1 && echo opened the log; echo done";
    assert_eq!(rig.pod()?.once(script)?, (0, "done\n".to_owned()));
    Ok(())
}

/// CVE-2024-21626: a working folder that is a descriptor of the runtime's.
pub fn no_working_folder_leads_out_of_the_container(rig: &Rig) -> Result<()> {
    let pod = rig.pod()?;
    for number in [3, 4, 5, 6, 7, 8, 9, 10, 11, 12, 16, 20] {
        let mut config = spec::container(
            &format!("from-{number}"),
            LINKS,
            &["sh", "-c", "pwd -P; ls ../../../../../mark 2>/dev/null || ls /proc/self/cwd/../../../../mark"],
        );
        config.working_dir = format!("/proc/self/fd/{number}");
        // Refused, or a folder that is the container's own.
        if let Ok((code, output)) = pod.once_in(config) {
            let inside = output.starts_with('/') && output.trim_end().ends_with("mark");
            assert!(code != 0 || inside, "descriptor {number}: {output}");
        }
    }
    Ok(())
}

/// The class of kata-containers#13615: what a process may do is not read from the container's own files.
pub fn a_container_without_proc_is_not_joined_with_more_rights(rig: &Rig) -> Result<()> {
    let pod = rig.pod()?;
    let mut config = pod.shell("mkdir /p && mount -t proc p /p && mount -t tmpfs none /proc && mkdir -p /proc/sys/kernel && echo 3 >/proc/sys/kernel/cap_last_cap && echo up; sleep 1000");
    config.security().capabilities = Some(api::Capability {
        add_capabilities: vec!["SYS_ADMIN".to_owned()],
        ..api::Capability::default()
    });
    // Otherwise its profile keeps it from mounting.
    config.security().seccomp = Some(api::SecurityProfile {
        profile_type: api::security_profile::ProfileType::Unconfined.into(),
        localhost_ref: String::new(),
    });
    let container = pod.start(config)?;
    container.wait_for_output("up\n")?;
    let own = container_rights(&container.exec(&["sh", "-c", "cat /p/1/status"]));
    let joined = container_rights(&container.exec(&["sh", "-c", "cat /p/self/status"]));
    // Refused, as runc does without /proc, or with the container's rights.
    assert!(joined.is_empty() || joined == own, "{joined} is not {own}");
    Ok(())
}

fn container_rights(output: &Result<cloister_e2e::cri::stream::Output>) -> String {
    let text = output.as_ref().map(|output| output.stdout.clone()).unwrap_or_default();
    String::from_utf8_lossy(&text).lines().filter(|line| line.starts_with("Cap")).collect()
}

/// CVE-2019-16884 and kata-containers' softlink escape: mount points that the image made links of.
pub fn mounts_on_links_of_the_image_stay_in_the_container(rig: &Rig) -> Result<()> {
    let folder = rig.lab.root().join("linked");
    fs::create_dir(&folder)?;
    fs::write(folder.join("file"), "of the volume\n")?;
    let pod = rig.pod()?;
    for point in ["/up", "/absolute", "/through/below"] {
        let config = spec::container("links", LINKS, &["sh", "-c", &format!("cat {point}/file; cat /mark")])
            .mounted(&folder.to_string_lossy(), point, true);
        let config = api::ContainerConfig { log_path: format!("{}.log", point.replace('/', "-")), ..config };
        let container = pod.start(config)?;
        container.wait()?;
        assert_eq!(
            String::from_utf8(container.output_at_end()?)?,
            "of the volume\nof the image\n",
            "{point}"
        );
        container.remove()?;
    }
    // A link to /proc is no place for a volume.
    let config =
        spec::container("proc", LINKS, &["true"]).mounted(&folder.to_string_lossy(), "/to-proc", true);
    assert!(pod.start(config).is_err(), "a volume was mounted over /proc");
    Ok(())
}

/// Counters are asked for every few seconds, so also of a pod on its way out.
pub fn counters_may_be_asked_for_while_a_pod_ends(rig: &Rig) -> Result<()> {
    let pod = rig.pod()?;
    let container = pod.idle()?;
    std::thread::scope(|scope| -> Result<()> {
        let asking = scope.spawn(|| {
            let mut answered = 0;
            while let Ok(_counters) = container.stats() {
                answered += 1;
            }
            answered
        });
        std::thread::sleep(std::time::Duration::from_millis(300));
        pod.remove()?;
        assert!(asking.join().unwrap() > 0);
        Ok(())
    })?;
    assert_eq!(rig.pod()?.once("echo next")?.1, "next\n");
    Ok(())
}

/// CVE-2026-24054: no layers are no reason to take something else for the root.
pub fn an_image_without_layers_is_an_error_and_no_folder_of_the_host(rig: &Rig) -> Result<()> {
    let pod = rig.pod()?;
    let outcome = pod.once_in(spec::container("empty", NO_LAYERS, &["/bin/sh", "-c", "echo alive"]));
    let error = format!("{:#}", outcome.unwrap_err());
    assert!(error.contains("/bin/sh") || error.contains("layer"), "{error}");
    assert_eq!(pod.once("echo next")?.1, "next\n");
    Ok(())
}
