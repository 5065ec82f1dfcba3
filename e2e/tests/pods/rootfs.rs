//! The container's root is its image.

use anyhow::Result;
use cloister_e2e::Rig;
use cloister_e2e::cri::spec;
use cloister_e2e::pod_images::{CONFIGURED, LAYER_COUNT, LAYERS};

cases!([LAYERS, CONFIGURED]
    all_of_many_layers_are_there,
    what_the_image_says_is_the_default,
    the_image_is_not_changed_by_writing,
    a_shadowed_folder_of_the_image_fills_nothing_else,
);

mod of_our_snapshotter {
    use super::*;
    cases!(@module cloister_on_1_7 V1_7 Cloister [] what_a_container_writes_is_counted);
    cases!(@module cloister_on_2_1 V2_1 Cloister [] what_a_container_writes_is_counted);
}

/// Images that the overlayfs snapshotter unpacked, in microVMs; layers that `cloister-node` mounts, in containers.
mod of_other_snapshotters {
    use super::*;
    cases!(@module cloister_overlayfs_on_1_7 V1_7 CloisterOverlayfs [LAYERS, CONFIGURED] all_of_many_layers_are_there, what_the_image_says_is_the_default, the_image_is_not_changed_by_writing);
    cases!(@module cloister_overlayfs_on_2_1 V2_1 CloisterOverlayfs [LAYERS, CONFIGURED] all_of_many_layers_are_there, what_the_image_says_is_the_default, the_image_is_not_changed_by_writing);
    cases!(@module runc_layers_on_1_7 V1_7 RuncLayers [LAYERS, CONFIGURED] all_of_many_layers_are_there, what_the_image_says_is_the_default, the_image_is_not_changed_by_writing);
    cases!(@module runc_layers_on_2_1 V2_1 RuncLayers [LAYERS, CONFIGURED] all_of_many_layers_are_there, what_the_image_says_is_the_default, the_image_is_not_changed_by_writing);
}

pub fn all_of_many_layers_are_there(rig: &Rig) -> Result<()> {
    let pod = rig.pod()?;
    let config = spec::container(
        "layers",
        LAYERS,
        &[
            "sh",
            "-c",
            "ls /layers | wc -l; cat /top /layers/1 /layers/127; rm /top /layers/64; ls /layers | wc -l",
        ],
    );
    let count = LAYER_COUNT - 1;
    assert_eq!(pod.once_in(config)?, (0, format!("{count}\n{count}\n1\n127\n{}\n", count - 1)));
    Ok(())
}

pub fn what_the_image_says_is_the_default(rig: &Rig) -> Result<()> {
    let pod = rig.pod()?;
    assert_eq!(pod.once_in(spec::container("plain", CONFIGURED, &[]))?, (0, "from the image\n".to_owned()));
    let mut config = spec::container("args", CONFIGURED, &[]);
    config.args = vec![
        "id -u; id -G; pwd; echo $GREETING; cat /data/seed; touch here /data/there && echo written"
            .to_owned(),
    ];
    let wanted = "1000\n1000 2000\n/srv/work\nhello from the image\nfrom the image\nwritten\n";
    assert_eq!(pod.once_in(config)?, (0, wanted.to_owned()));
    let mut config = spec::container("signal", CONFIGURED, &[]);
    config.args = vec!["trap 'echo USR1; exit 4' USR1; echo up; while :; do sleep 0.1; done".to_owned()];
    let container = pod.start(config)?;
    container.wait_for_output("up\n")?;
    container.stop(10)?;
    assert_eq!(container.wait()?.exit_code, 4);
    Ok(())
}

pub fn the_image_is_not_changed_by_writing(rig: &Rig) -> Result<()> {
    let pod = rig.pod()?;
    let script = "ls -la / | wc -l; rm -rf /srv /etc/group; echo x >/new; head -c 20000000 /dev/zero >/big && ls -l /big | tr -s ' ' | cut -d' ' -f5";
    let first = pod.once(script)?;
    assert!(first.1.ends_with("20000000\n"), "{first:?}");
    assert_eq!(pod.once(script)?, first);
    Ok(())
}

pub fn a_shadowed_folder_of_the_image_fills_nothing_else(rig: &Rig) -> Result<()> {
    use cloister_e2e::cri::spec::ContainerConfigExt;
    let config = rig.config();
    let volume = rig.volume(&config, "empty-dir", "over")?;
    let pod = rig.run(config)?;
    let mount = volume.to_string_lossy();
    let outcome =
        pod.once_in(pod.shell("ls /data; mkdir -p /data/x; ls /data").mounted(&mount, "/data", false))?;
    assert_eq!(outcome, (0, "x\n".to_owned()));
    Ok(())
}

/// What containerd asks the snapshotter for; it does so by itself for the default one only.
pub fn what_a_container_writes_is_counted(rig: &Rig) -> Result<()> {
    let pod = rig.pod()?;
    let container =
        pod.start_shell("head -c 33554432 /dev/zero >/much; sync; echo up; exec sleep 1000", "up\n")?;
    let usage = rig.lab.ctr(&["snapshots", "--snapshotter", "cloister", "usage", &container.id])?;
    assert!(usage.lines().any(|line| line.starts_with(&container.id) && line.contains(" 32.")), "{usage}");
    Ok(())
}
