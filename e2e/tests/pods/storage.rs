//! What Kubernetes promises of volumes beside their content: a group, a size, a part of a part.

use std::fs;
use std::os::unix::fs::{MetadataExt, PermissionsExt, chown};
use std::path::Path;
use std::time::Duration;

use anyhow::{Context, Result};
use cloister_e2e::Rig;
use cloister_e2e::cell::wait_for;
use cloister_e2e::cri::api;
use cloister_e2e::cri::spec::ContainerConfigExt;

use crate::volumes::{host_folder, publish, text};

cases!(
    the_pods_group_may_write_to_every_kind_of_volume,
    an_empty_dirs_size_is_a_limit,
    a_nested_subpath_of_an_empty_dir_is_shared_with_an_init_container,
);

mod of_microvms {
    use super::*;
    microvm_cases!(an_empty_dir_takes_of_the_host_what_is_in_it,);
}

/// The kubelet gives a volume's files to the pod's `fsGroup`, makes folders set-group-ID, and the group supplemental.
pub fn the_pods_group_may_write_to_every_kind_of_volume(rig: &Rig) -> Result<()> {
    const GROUP: u32 = 2345;
    let config = rig.config();
    let empty = rig.volume(&config, "empty-dir", "work")?;
    let settings = rig.volume(&config, "configmap", "settings")?;
    publish(&settings, "2024_01", &[("one", "1\n")])?;
    let host = host_folder(rig, "grouped")?;
    let give = |path: &Path, mode: u32| -> Result<()> {
        chown(path, None, Some(GROUP))?;
        Ok(fs::set_permissions(path, fs::Permissions::from_mode(mode))?)
    };
    give(&empty, 0o2770)?;
    give(&host, 0o2770)?;
    give(&settings.join("..data/one"), 0o440)?;
    give(&fs::canonicalize(settings.join("..data"))?, 0o2750)?;
    give(&settings, 0o2750)?;
    let pod = rig.run(config)?;
    let script = "stat -c '%a %g' /work /host /settings; stat -L -c '%a %g' /settings/one; cat /settings/one
        for folder in /work /host; do touch $folder/mine && stat -c '%u %g' $folder/mine; done";
    let outcome = |groups: Vec<i64>| {
        let mut container = pod.shell(script);
        for (volume, path, read_only) in
            [(&empty, "/work", false), (&host, "/host", false), (&settings, "/settings", true)]
        {
            container = container.mounted(&text(volume), path, read_only);
        }
        container.security().run_as_user = Some(api::Int64Value { value: 1000 });
        container.security().supplemental_groups = groups;
        pod.once_in(container)
    };
    let expected = "2770 2345\n2770 2345\n2750 2345\n440 2345\n1\n1000 2345\n1000 2345\n";
    assert_eq!(outcome(vec![i64::from(GROUP)])?, (0, expected.to_owned()));
    // Who is not of the group gets nowhere.
    let (code, output) = outcome(Vec::new())?;
    assert!(code != 0 && !output.contains("1000 2345") && !output.contains("\n1\n"), "{output}");
    Ok(())
}

pub fn an_empty_dirs_size_is_a_limit(rig: &Rig) -> Result<()> {
    if !rig.handler.is_microvm() {
        // The kubelet measures such a folder of the host and evicts the pod; nothing of the runtime is asked.
        return Ok(());
    }
    let mut config = rig.config();
    config.annotations.insert("cloister.dev/empty-dir.work".to_owned(), "24Mi".to_owned());
    let volume = rig.volume(&config, "empty-dir", "work")?;
    fs::set_permissions(&volume, fs::Permissions::from_mode(0o777))?;
    let pod = rig.run(config)?;
    let script = "df -m /work | tail -n 1 | tr -s ' ' | cut -d' ' -f2
        head -c 10000000 /dev/zero >/work/fits && echo fits
        dd if=/dev/zero of=/work/large bs=1M count=40 2>&1 | grep -o 'No space left on device'
        rm /work/large; echo again >/work/after && cat /work/after";
    let (code, output) = pod.once_in(pod.shell(script).mounted(&text(&volume), "/work", false))?;
    let lines: Vec<&str> = output.lines().collect();
    let size: u32 = lines.first().context("no size")?.parse()?;
    assert!(code == 0 && (16..=24).contains(&size), "{output}");
    assert!(lines.contains(&"fits") && lines.contains(&"No space left on device"), "{output}");
    assert_eq!(lines.last(), Some(&"again"));
    Ok(())
}

/// A kubelet counts the blocks below the volume's folder.
pub fn an_empty_dir_takes_of_the_host_what_is_in_it(rig: &Rig) -> Result<()> {
    const MIB: u64 = 1 << 20;
    let config = rig.config();
    let volume = rig.volume(&config, "empty-dir", "work")?;
    let pod = rig.run(config)?;
    let container = pod.start(pod.shell("exec sleep 1000").mounted(&text(&volume), "/work", false))?;
    let takes = |range: std::ops::Range<u64>| {
        let mut last = 0;
        wait_for("the volume's size", Duration::from_secs(10), || {
            last = fs::metadata(volume.join(".cloister-disk"))?.blocks() * 512;
            Ok(range.contains(&last).then_some(()))
        })
        .with_context(|| format!("{last} bytes"))
    };
    container.sh("for file in 1 2 3 4 5 6; do head -c 8388608 /dev/zero >/work/$file; sync; rm /work/$file; done; sync")?;
    takes(0..6 * MIB)?;
    container.sh("head -c 16777216 /dev/zero >/work/left; sync")?;
    takes(16 * MIB..22 * MIB)
}

pub fn a_nested_subpath_of_an_empty_dir_is_shared_with_an_init_container(rig: &Rig) -> Result<()> {
    let config = rig.config();
    let volume = rig.volume(&config, "empty-dir", "work")?;
    fs::set_permissions(&volume, fs::Permissions::from_mode(0o777))?;
    // What the kubelet does for `subPathExpr: $(POD)/logs`: the folder made, then bound beside the volumes.
    let pod_folder = volume.ancestors().nth(3).context("no pod's folder")?;
    let part = volume.join("web-0/logs");
    let bound = pod_folder.join("volume-subpaths/work/main/0");
    fs::create_dir_all(&part)?;
    fs::create_dir_all(&bound)?;
    let pod = rig.run(config)?;
    let init = "mkdir -p /all/web-0/logs; echo first >/all/web-0/logs/log; echo other >/all/other";
    assert_eq!(pod.once_in(pod.shell(init).mounted(&text(&volume), "/all", false))?.0, 0);
    rig.lab.cell.run("mount", &["--bind", &text(&part), &text(&bound)])?;
    let script = "ls /logs; cat /logs/log; echo second >>/logs/log";
    let main = pod.once_in(pod.shell(script).mounted(&text(&bound), "/logs", false));
    let whole = pod.once_in(pod.shell("cat /all/web-0/logs/log").mounted(&text(&volume), "/all", true));
    pod.remove()?;
    rig.lab.cell.run("umount", &[&text(&bound)])?;
    assert_eq!(main?, (0, "log\nfirst\n".to_owned()));
    assert_eq!(whole?, (0, "first\nsecond\n".to_owned()));
    Ok(())
}
