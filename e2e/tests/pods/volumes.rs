//! Volumes as the kubelet hands them over: folders and files of the host, by path.

use std::fs;
use std::os::unix::fs::{PermissionsExt, symlink};
use std::path::{Path, PathBuf};
use std::time::Duration;

use anyhow::{Context, Result};
use cloister_e2e::Rig;
use cloister_e2e::cell::wait_for;
use cloister_e2e::cri::api;
use cloister_e2e::cri::spec::{self, ContainerConfigExt};
use cloister_e2e::pod_images::WATCHER;

cases!([WATCHER]
    a_configmap_is_updated_as_one,
    an_update_of_a_configmap_is_an_event_for_who_watches_it,
    a_secret_keeps_its_modes,
    a_folder_of_the_host_is_shared_both_ways,
    a_file_of_the_host_is_shared_both_ways,
    a_read_only_mount_is_read_only,
    a_socket_of_the_host_is_refused_by_microvms,
    an_empty_dir_is_shared_by_the_pods_containers,
    an_empty_dir_in_memory_is_memory_of_its_size,
    a_subpath_shows_only_its_part,
    symlinks_in_a_volume_never_lead_to_the_host,
    owners_modes_and_links_survive_in_a_shared_folder,
    a_block_device_is_given_raw,
    many_files_in_a_shared_folder_are_all_seen,
);

pub fn text(path: &Path) -> String {
    path.to_string_lossy().into_owned()
}

/// A new folder of the host.
pub fn host_folder(rig: &Rig, name: &str) -> Result<PathBuf> {
    let folder = rig.lab.root().join("host").join(name);
    fs::create_dir_all(&folder)?;
    fs::set_permissions(&folder, fs::Permissions::from_mode(0o777))?;
    Ok(folder)
}

/// Writes a configmap's next version as the kubelet's atomic writer does: a new folder, then one rename of `..data`.
pub fn publish(volume: &Path, version: &str, files: &[(&str, &str)]) -> Result<()> {
    let folder = volume.join(format!("..{version}"));
    fs::create_dir(&folder)?;
    for (name, content) in files {
        fs::write(folder.join(name), content)?;
    }
    let next = volume.join("..data_tmp");
    symlink(format!("..{version}"), &next)?;
    let old = fs::read_link(volume.join("..data")).ok();
    fs::rename(&next, volume.join("..data"))?;
    for (name, _) in files {
        let link = volume.join(name);
        if fs::symlink_metadata(&link).is_err() {
            symlink(format!("..data/{name}"), &link)?;
        }
    }
    if let Some(old) = old {
        fs::remove_dir_all(volume.join(old))?;
    }
    Ok(())
}

pub fn a_configmap_is_updated_as_one(rig: &Rig) -> Result<()> {
    let config = rig.config();
    let volume = rig.volume(&config, "configmap", "settings")?;
    publish(&volume, "2024_01", &[("one", "1a"), ("two", "2a")])?;
    let pod = rig.run(config)?;
    // Reads both files through one look at `..data`, as often as it can: they must always be of one version.
    let script =
        "echo up; while :; do cd -P /config/..data && a=$(cat one) && b=$(cat two) && cd / || continue
        case $a$b in 1a2a|1b2b) ;; *) echo torn $a $b;; esac; done";
    let container = pod.start(pod.shell(script).mounted(&text(&volume), "/config", true))?;
    container.wait_for_output("up\n")?;
    assert_eq!(container.sh("cat /config/one /config/two; readlink /config/one")?, "1a2a..data/one");
    publish(&volume, "2024_02", &[("one", "1b"), ("two", "2b"), ("three", "3b")])?;
    wait_for("the update", Duration::from_secs(10), || {
        Ok((container.sh("cat /config/one /config/two /config/three 2>/dev/null || true")? == "1b2b3b")
            .then_some(()))
    })?;
    assert_eq!(container.sh("touch /config/mine 2>/dev/null || echo refused")?, "refused");
    let output = String::from_utf8(container.output()?)?;
    assert!(!output.contains("torn"), "{output}");
    Ok(())
}

pub fn an_update_of_a_configmap_is_an_event_for_who_watches_it(rig: &Rig) -> Result<()> {
    let config = rig.config();
    let volume = rig.volume(&config, "configmap", "settings")?;
    publish(&volume, "2024_01", &[("one", "1a")])?;
    let pod = rig.run(config)?;
    // What programs that reload their configuration wait for: the link is replaced, and the new file is there by then.
    // The container stays: runc's shim answers a kill that meets the end of its last process with a closed connection.
    let script =
        "inotifywait -q -t 60 -e moved_to --format '%e %f' /config && cat /config/one && echo; sleep 1000";
    let container = pod.start(spec::container("watch", WATCHER, &["sh", "-c", script]).mounted(
        &text(&volume),
        "/config",
        true,
    ))?;
    wait_for("the watch", Duration::from_secs(20), || {
        Ok(container
            .sh("cat /proc/[0-9]*/fdinfo/* 2>/dev/null | grep -c ^inotify || true")?
            .trim()
            .ne("0")
            .then_some(()))
    })?;
    publish(&volume, "2024_02", &[("one", "1b")])?;
    container.wait_for_output("MOVED_TO ..data\n1b")?;
    Ok(())
}

pub fn a_secret_keeps_its_modes(rig: &Rig) -> Result<()> {
    let config = rig.config();
    let volume = rig.volume(&config, "secret", "token")?;
    publish(&volume, "2024_01", &[("token", "s3cret")])?;
    fs::set_permissions(volume.join("..data/token"), fs::Permissions::from_mode(0o440))?;
    rustix::fs::chown(volume.join("..data/token"), None, Some(rustix::fs::Gid::from_raw(2000)))?;
    let pod = rig.run(config)?;
    let mut container = pod.shell("cat /token/token; stat -L -c ' %a %u:%g' /token/token").mounted(
        &text(&volume),
        "/token",
        true,
    );
    container.security().run_as_user = Some(api::Int64Value { value: 1000 });
    container.security().supplemental_groups = vec![2000];
    assert_eq!(pod.once_in(container)?, (0, "s3cret 440 0:2000\n".to_owned()));
    Ok(())
}

pub fn a_folder_of_the_host_is_shared_both_ways(rig: &Rig) -> Result<()> {
    let folder = host_folder(rig, "shared")?;
    fs::write(folder.join("from-host"), "host\n")?;
    let pod = rig.pod()?;
    let container = pod.start(pod.shell("echo up; sleep 1000").mounted(&text(&folder), "/shared", false))?;
    container.wait_for_output("up\n")?;
    assert_eq!(container.sh("cat /shared/from-host")?, "host");
    container
        .sh("echo guest >/shared/from-guest; mkdir /shared/sub; mv /shared/from-host /shared/sub/moved")?;
    assert_eq!(fs::read_to_string(folder.join("from-guest"))?, "guest\n");
    assert_eq!(fs::read_to_string(folder.join("sub/moved"))?, "host\n");
    fs::write(folder.join("later"), "later\n")?;
    wait_for("the host's new file", Duration::from_secs(5), || {
        Ok((container.sh("cat /shared/later 2>/dev/null || true")? == "later").then_some(()))
    })
}

pub fn a_file_of_the_host_is_shared_both_ways(rig: &Rig) -> Result<()> {
    let folder = host_folder(rig, "file")?;
    let file = folder.join("termination-log");
    fs::write(&file, "")?;
    fs::write(folder.join("neighbour"), "not yours\n")?;
    let pod = rig.pod()?;
    let container = pod.shell("echo last words >/dev/termination-log; cat /dev/termination-log");
    let outcome = pod.once_in(container.mounted(&text(&file), "/dev/termination-log", false))?;
    assert_eq!(outcome, (0, "last words\n".to_owned()));
    assert_eq!(fs::read_to_string(&file)?, "last words\n");
    Ok(())
}

pub fn a_read_only_mount_is_read_only(rig: &Rig) -> Result<()> {
    let folder = host_folder(rig, "read-only")?;
    fs::write(folder.join("file"), "content\n")?;
    let pod = rig.pod()?;
    let script = "cat /ro/file; touch /ro/file /ro/new 2>/dev/null || echo refused; rm /ro/file 2>/dev/null || echo refused";
    let outcome = pod.once_in(pod.shell(script).mounted(&text(&folder), "/ro", true))?;
    assert_eq!(outcome, (0, "content\nrefused\nrefused\n".to_owned()));
    Ok(())
}

pub fn a_socket_of_the_host_is_refused_by_microvms(rig: &Rig) -> Result<()> {
    let socket = host_folder(rig, "socket")?.join("daemon.sock");
    let _listener = std::os::unix::net::UnixListener::bind(&socket)?;
    let pod = rig.pod()?;
    let outcome = pod.start(pod.shell("sleep 1000").mounted(&text(&socket), "/run/daemon.sock", false));
    if rig.handler.is_microvm() {
        let error = format!("{:#}", outcome.map(drop).unwrap_err());
        assert!(error.contains("socket") && error.contains("daemon.sock"), "{error}");
        assert_eq!(pod.once("echo fine")?.1, "fine\n");
    } else {
        assert!(outcome?.sh("[ -S /run/daemon.sock ]").is_ok());
    }
    Ok(())
}

pub fn an_empty_dir_is_shared_by_the_pods_containers(rig: &Rig) -> Result<()> {
    let config = rig.config();
    let volume = text(&rig.volume(&config, "empty-dir", "work")?);
    fs::set_permissions(&volume, fs::Permissions::from_mode(0o777))?;
    let pod = rig.run(config)?;
    let writer = pod.start(pod.shell("echo up; sleep 1000").mounted(&volume, "/a", false))?;
    let reader = pod.start(pod.shell("echo up; sleep 1000").mounted(&volume, "/b/c", false))?;
    writer.wait_for_output("up\n")?;
    reader.wait_for_output("up\n")?;
    writer.sh("echo shared >/a/file; mkfifo /a/pipe; ln -s file /a/link")?;
    assert_eq!(reader.sh("cat /b/c/link; [ -p /b/c/pipe ] && echo pipe")?, "shared\npipe");
    writer.remove()?;
    let again = pod.once_in(pod.shell("cat /a/file").mounted(&volume, "/a", false))?;
    assert_eq!(again, (0, "shared\n".to_owned()));
    Ok(())
}

pub fn an_empty_dir_in_memory_is_memory_of_its_size(rig: &Rig) -> Result<()> {
    let config = rig.config();
    let volume = text(&rig.volume(&config, "empty-dir", "memory")?);
    rig.lab.cell.run("mount", &["-t", "tmpfs", "-o", "size=16m,mode=777", "tmpfs", &volume])?;
    let pod = rig.run(config)?;
    let script =
        "grep ' /memory ' /proc/mounts | cut -d' ' -f3; df -m /memory | tail -n 1 | tr -s ' ' | cut -d' ' -f2
        head -c 20000000 /dev/zero >/memory/too-much 2>/dev/null || echo full";
    let outcome = pod.once_in(pod.shell(script).mounted(&volume, "/memory", false))?;
    pod.remove()?;
    rig.lab.cell.run("umount", &[&volume])?;
    assert_eq!(outcome, (0, "tmpfs\n16\nfull\n".to_owned()));
    Ok(())
}

pub fn a_subpath_shows_only_its_part(rig: &Rig) -> Result<()> {
    let config = rig.config();
    let volume = rig.volume(&config, "configmap", "settings")?;
    publish(&volume, "2024_01", &[("one", "1"), ("two", "2")])?;
    let folder = host_folder(rig, "whole")?;
    fs::create_dir(folder.join("part"))?;
    fs::write(folder.join("part/inside"), "inside\n")?;
    fs::write(folder.join("outside"), "outside\n")?;
    let uid = config.metadata.as_ref().context("metadata")?.uid.clone();
    let base = rig.lab.root().join("kubelet/pods").join(uid).join("volume-subpaths");
    let bind = |from: &Path, name: &str, is_file: bool| -> Result<String> {
        let target = base.join(name).join("main");
        fs::create_dir_all(&target)?;
        let target = target.join("0");
        if is_file {
            fs::write(&target, "")?
        } else {
            fs::create_dir(&target)?
        }
        rig.lab.cell.run("mount", &["--bind", &text(from), &text(&target)])?;
        Ok(text(&target))
    };
    let part = bind(&folder.join("part"), "data", false)?;
    let one = bind(&volume.join("..data/one"), "settings", true)?;
    let pod = rig.run(config)?;
    let container =
        pod.shell("ls /part; cat /part/inside /etc/one; echo new >/part/new").mounted(&part, "/part", false);
    let outcome = pod.once_in(container.mounted(&one, "/etc/one", true))?;
    pod.remove()?;
    for target in [&part, &one] {
        rig.lab.cell.run("umount", &[target])?;
    }
    assert_eq!(outcome, (0, "inside\ninside\n1".to_owned()));
    assert_eq!(fs::read_to_string(folder.join("part/new"))?, "new\n");
    Ok(())
}

pub fn symlinks_in_a_volume_never_lead_to_the_host(rig: &Rig) -> Result<()> {
    let secret = rig.lab.root().join("secret-of-the-host");
    fs::write(&secret, "secret\n")?;
    let folder = host_folder(rig, "links")?;
    symlink(&secret, folder.join("absolute"))?;
    symlink("../../secret-of-the-host", folder.join("upwards"))?;
    symlink("/", folder.join("root"))?;
    let pod = rig.pod()?;
    let secret = text(&secret);
    let script = format!(
        "for path in /v/absolute /v/upwards /v/root{secret} /v/../../../../{secret}; do cat $path 2>/dev/null && echo escaped; done
         ln -s {secret} /v/mine && cat /v/mine 2>/dev/null && echo escaped; ln /v/absolute /v/hard 2>/dev/null
         ls -d /v/root/v >/dev/null && echo own root; mkdir /v/dir; cd /v/dir && cat ../../../../../..{secret} 2>/dev/null && echo escaped; true"
    );
    let outcome = pod.once_in(pod.shell(&script).mounted(&text(&folder), "/v", false))?;
    assert_eq!(outcome, (0, "own root\n".to_owned()));
    Ok(())
}

pub fn owners_modes_and_links_survive_in_a_shared_folder(rig: &Rig) -> Result<()> {
    let folder = host_folder(rig, "fidelity")?;
    let pod = rig.pod()?;
    let script = "cd /v; echo x >f; chown 1234:4321 f; chmod 4751 f; ln f hard; ln -s f soft; touch -d @1000000000 f; mkdir -m 2770 d";
    assert_eq!(pod.once_in(pod.shell(script).mounted(&text(&folder), "/v", false))?.0, 0);
    use std::os::unix::fs::MetadataExt;
    let file = fs::metadata(folder.join("f"))?;
    assert_eq!(
        (file.uid(), file.gid(), file.mode() & 0o7777, file.nlink(), file.mtime()),
        (1234, 4321, 0o4751, 2, 1_000_000_000)
    );
    assert_eq!(fs::read_link(folder.join("soft"))?, Path::new("f"));
    assert_eq!(fs::metadata(folder.join("d"))?.mode() & 0o7777, 0o2770);
    Ok(())
}

/// Does something with a block device of the host that is this file.
pub fn with_device(rig: &Rig, file: &Path, work: impl FnOnce(&str) -> Result<()>) -> Result<()> {
    let device = rig.lab.cell.run("losetup", &["--find", "--show", &text(file)])?.trim().to_owned();
    let outcome = std::panic::catch_unwind(std::panic::AssertUnwindSafe(|| work(&device)));
    rig.lab.cell.run("losetup", &["--detach", &device])?;
    outcome.unwrap_or_else(|panic| std::panic::resume_unwind(panic))
}

/// What a script says that has this device as /dev/raw, in a pod of its own.
pub fn once_with_device(rig: &Rig, device: &str, script: &str) -> Result<(i32, String)> {
    let pod = rig.pod()?;
    let mut config = pod.shell(script);
    config.devices.push(api::Device {
        container_path: "/dev/raw".to_owned(),
        host_path: device.to_owned(),
        permissions: "rwm".to_owned(),
    });
    let outcome = pod.once_in(config)?;
    pod.remove()?;
    Ok(outcome)
}

pub fn a_block_device_is_given_raw(rig: &Rig) -> Result<()> {
    let file = rig.lab.root().join("disk.img");
    fs::write(&file, vec![0; 8 << 20])?;
    let script = "blockdev --getsize64 /dev/raw; echo written by the guest | dd of=/dev/raw bs=4096 seek=1 conv=fsync 2>/dev/null; sync; dd if=/dev/raw bs=4096 skip=1 count=1 2>/dev/null | head -n 1";
    with_device(rig, &file, |device| {
        let outcome = once_with_device(rig, device, script)?;
        assert_eq!(outcome, (0, format!("{}\nwritten by the guest\n", 8 << 20)));
        Ok(())
    })?;
    assert!(fs::read(&file)?[4096..].starts_with(b"written by the guest\n"));
    Ok(())
}

pub fn many_files_in_a_shared_folder_are_all_seen(rig: &Rig) -> Result<()> {
    let folder = host_folder(rig, "many")?;
    for number in 0..2000 {
        fs::write(folder.join(format!("file-{number}")), "x")?;
    }
    let pod = rig.pod()?;
    let outcome = pod.once_in(pod.shell("ls /many | wc -l; cat /many/* | wc -c").mounted(
        &text(&folder),
        "/many",
        true,
    ))?;
    assert_eq!(outcome, (0, "2000\n2000\n".to_owned()));
    Ok(())
}
