//! A node whose administrator knows nothing of microVMs yet.

use std::fs;
use std::os::unix::fs::PermissionsExt;
use std::path::{Path, PathBuf};
use std::time::{Duration, SystemTime};

use anyhow::{Context, Result, bail};
use cloister_e2e::Rig;
use cloister_e2e::cell::wait_for;
use cloister_e2e::containerd::config::{Subnets, ordinary, write_network};
use cloister_e2e::containerd::{Containerd, Handler, Version};
use cloister_e2e::cri::api;
use cloister_e2e::lab::{cache, guest, target_dir};
use cloister_e2e::pod_images::{BUSYBOX, PAUSE};
use cloister_e2e::systemd::Systemd;

/// What the administrator has written, and wants to keep.
fn config(root: &Path, version: Version) -> String {
    let folder = root.display();
    let places = format!(
        "root = \"{folder}/containerd\"\nstate = \"/run/containerd\"\n[grpc]\n  address = \"{folder}/containerd.sock\"\n\
         [plugins.\"io.containerd.internal.v1.opt\"]\n  path = \"{folder}/opt\"\n"
    );
    ordinary(root, version, &places)
}

/// A lab with that configuration in place.
pub fn lab(version: Version) -> Result<Containerd> {
    let lab = Containerd::stopped(version)?;
    write_network(lab.root(), Subnets::default())?;
    fs::write(lab.root().join("containerd.toml"), config(lab.root(), version))?;
    fs::write(lab.root().join("config.toml"), format!("disks = {:?}\n", lab.root().join("disks")))?;
    Ok(lab)
}

/// Where what is installed has its guest.
pub const GUEST: &str = "share/cloister/kernel";

/// What is installed: as the node's image has it.
pub fn payload(folder: &Path, note: &str) -> Result<PathBuf> {
    let kernel = folder.join(GUEST);
    for folder in [&kernel, &folder.join("bin"), &folder.join("libexec")] {
        fs::create_dir_all(folder)?;
    }
    for file in ["vmlinux", "initramfs"] {
        fs::copy(guest().join(file), kernel.join(file))?;
    }
    let shim = "containerd-shim-cloister-v2";
    fs::copy(target_dir().join(shim), folder.join("bin").join(shim))?;
    fs::copy(cache()?.join("tools/virtiofsd-1.13.2/bin/virtiofsd"), folder.join("libexec/virtiofsd"))?;
    fs::write(folder.join("note"), note)?;
    Ok(folder.to_owned())
}

/// Where things are on the node of a lab.
pub fn flags(lab: &Containerd, to: &Path) -> Vec<String> {
    let root = lab.root();
    vec![
        format!("--address={}", root.join("node.sock").display()),
        format!("--containerd={}", root.join("containerd.sock").display()),
        format!("--containerd-config={}", root.join("containerd.toml").display()),
        format!("--shim-config={}", root.join("shim.toml").display()),
        format!("--to={}", to.display()),
    ]
}

/// Runs it where systemd sees who asks.
pub fn cloister_node(
    lab: &Containerd,
    systemd: &Systemd<'_>,
    verb: &str,
    to: &Path,
    more: &[&str],
) -> Result<String> {
    let (flags, program) = (flags(lab, to), target_dir().join("cloister-node"));
    let args: Vec<&str> =
        [verb].into_iter().chain(flags.iter().map(String::as_str)).chain(more.iter().copied()).collect();
    systemd.run(&program.to_string_lossy(), &args)
}

pub fn main_pid(systemd: &Systemd<'_>) -> Result<String> {
    systemd.systemctl(&["show", "-p", "MainPID", "--value", "containerd.service"])
}

pub fn comes_and_goes(version: Version) -> Result<()> {
    let rig = Rig::of(lab(version)?, Handler::Runc);
    let unit = rig.lab.unit()?;
    let group = rig.lab.cgroup().trim_start_matches('/').to_owned();
    let (main, to) = (rig.lab.root().join("containerd.toml"), rig.lab.root().join("opt-cloister"));
    let before = fs::read(&main)?;
    fs::set_permissions(&main, fs::Permissions::from_mode(0o600))?;
    rig.lab.start_node()?;
    let systemd = Systemd::start(
        &rig.lab.cell,
        &rig.lab.root().join("units"),
        &group,
        &[("containerd.service", &unit)],
    )?;
    systemd.systemctl(&["start", "containerd.service"])?;
    rig.lab.import(&[PAUSE, BUSYBOX])?;
    let ordinary = rig.pod()?;
    let stays = ordinary.start_shell("echo up; sleep 1000", "up\n")?;

    let first = payload(&rig.lab.root().join("first"), "1")?;
    let from = format!("--from={}", first.display());
    let old = main_pid(&systemd)?;
    cloister_node(&rig.lab, &systemd, "install", &to, &[&from])?;
    let restarted = main_pid(&systemd)?;
    assert_ne!(restarted, old, "containerd reads its configuration when it starts");
    let text = fs::read_to_string(&main)?;
    assert!(text.contains("# Node of the lab") && text.contains("# of the lab"), "{text}");
    assert_eq!(fs::metadata(&main)?.permissions().mode() & 0o777, 0o600);
    let micro = |name: &str| -> Result<String> {
        let config = rig.config();
        let request =
            api::RunPodSandboxRequest { config: Some(config), runtime_handler: "cloister".to_owned() };
        Ok(rig.lab.cri.run_pod_sandbox(request).with_context(|| name.to_owned())?.pod_sandbox_id)
    };
    let one = micro("the first microVM")?;
    rig.pod().context("an ordinary pod")?;

    // Once more changes nothing, another version of the runtime does not restart containerd either.
    cloister_node(&rig.lab, &systemd, "install", &to, &[&from])?;
    let second = payload(&rig.lab.root().join("second"), "2")?;
    let from = format!("--from={}", second.display());
    cloister_node(&rig.lab, &systemd, "install", &to, &[&from])?;
    assert_eq!(main_pid(&systemd)?, restarted);
    let two = micro("the second microVM")?;
    let of = |id: &str| -> Result<PathBuf> {
        let shim =
            rig.lab.cell.find("containerd-shim-cloister-v2")?.into_iter().find(|p| p.command.contains(id));
        let pid = shim.with_context(|| format!("no shim of {id}"))?.pid;
        Ok(fs::read_link(rig.lab.cell.path(&format!("/proc/{pid}/exe")))?)
    };
    assert_ne!(of(&one)?, of(&two)?, "a pod keeps the version it started with");
    // Long after, the first version is still there for its pod, and goes with it.
    let folder = of(&one)?.ancestors().nth(2).context("no folder")?.to_owned();
    fs::File::open(&folder)?.set_modified(SystemTime::UNIX_EPOCH + Duration::from_secs(1_000_000_000))?;
    cloister_node(&rig.lab, &systemd, "install", &to, &[&from])?;
    assert!(folder.exists());
    rig.lab.cri.stop_pod_sandbox(api::StopPodSandboxRequest { pod_sandbox_id: one.clone() })?;
    rig.lab.cri.remove_pod_sandbox(api::RemovePodSandboxRequest { pod_sandbox_id: one })?;
    wait_for("the end of the old version", Duration::from_secs(10), || {
        cloister_node(&rig.lab, &systemd, "install", &to, &[&from])?;
        Ok((!folder.exists()).then_some(()))
    })?;

    let refused = cloister_node(&rig.lab, &systemd, "uninstall", &to, &[]).unwrap_err();
    assert!(format!("{refused:#}").contains("delete the pods of the runtime class"), "{refused:#}");
    rig.lab.cri.stop_pod_sandbox(api::StopPodSandboxRequest { pod_sandbox_id: two.clone() })?;
    rig.lab.cri.remove_pod_sandbox(api::RemovePodSandboxRequest { pod_sandbox_id: two })?;
    wait_for("the end of the shim", Duration::from_secs(10), || {
        Ok(rig.lab.cell.find("containerd-shim-cloister-v2")?.is_empty().then_some(()))
    })?;
    cloister_node(&rig.lab, &systemd, "uninstall", &to, &[])?;
    assert_eq!(fs::read(&main)?, before);
    assert!(!to.exists() && !rig.lab.root().join("conf.d/cloister.toml").exists());
    assert_eq!(stays.sh("echo still here")?, "still here");
    let Err(error) = micro("nobody knows the handler any more") else { bail!("the handler is still there") };
    assert!(format!("{error:#}").contains("no runtime for"), "{error:#}");
    rig.remove_pods()
}

/// What a containerd makes of a configuration that it does not like.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Dislike {
    /// It does not start.
    Ends,
    /// It starts without the CRI.
    ServesNoCri,
}

/// The unit of a containerd that dislikes whatever speaks of a folder "poison".
fn disliking(lab: &Containerd, dislike: Dislike) -> Result<String> {
    let (root, unit) = (lab.root(), lab.unit()?);
    let start = unit.lines().find_map(|line| line.strip_prefix("ExecStart=")).context("no program")?;
    let poisoned = match dislike {
        Dislike::Ends => "exit 1".to_owned(),
        Dislike::ServesNoCri => {
            let deaf = "\ndisabled_plugins = [\"io.containerd.grpc.v1.cri\"]\n";
            fs::write(root.join("deaf.toml"), config(root, lab.version()).replacen('\n', deaf, 1))?;
            format!("exec {}", start.replace("containerd.toml", "deaf.toml"))
        }
    };
    let root = root.display();
    let choose = format!(
        "/bin/sh -c 'grep -rqs poison {root}/containerd.toml {root}/conf.d && {poisoned}; exec {start}'"
    );
    Ok(unit.replace(start, &choose))
}

pub fn is_given_back(version: Version, dislike: Dislike) -> Result<()> {
    let rig = Rig::of(lab(version)?, Handler::Runc);
    let root = rig.lab.root();
    let unit = disliking(&rig.lab, dislike)?;
    let group = rig.lab.cgroup().trim_start_matches('/').to_owned();
    rig.lab.start_node()?;
    let systemd =
        Systemd::start(&rig.lab.cell, &root.join("units"), &group, &[("containerd.service", &unit)])?;
    systemd.systemctl(&["start", "containerd.service"])?;
    wait_for("containerd", Duration::from_secs(20), || Ok(rig.lab.cri.ready().ok()))?;
    let before = fs::read(root.join("containerd.toml"))?;
    let from = format!("--from={}", payload(&root.join("first"), "1")?.display());
    // Of several units the one that runs is restarted.
    let more = [from.as_str(), "--restart=systemd:absent.service,containerd.service"];
    let error = cloister_node(&rig.lab, &systemd, "install", &root.join("poison"), &more).unwrap_err();
    let error = format!("{error:#}");
    assert!(error.contains("containerd is as it was"), "{error}");
    assert_eq!(error.contains("serves no CRI"), dislike == Dislike::ServesNoCri, "{error}");
    assert_eq!(fs::read(root.join("containerd.toml"))?, before);
    rig.lab.cri.ready().context("containerd runs with its old configuration")?;
    drop(systemd);
    Ok(())
}
