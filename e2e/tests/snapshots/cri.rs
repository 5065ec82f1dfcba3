//! Ordinary pods through the CRI on the daemon's layers: what the CRI reads from a snapshot before it knows the container.

use anyhow::{Result, ensure};
use cloister_e2e::Rig;
use cloister_e2e::containerd::{Handler, Version};
use cloister_e2e::pod_images::CONFIGURED;

fn a_container_has_the_images_user_and_its_volumes_contents(rig: &Rig) -> Result<()> {
    let pod = rig.pod()?;
    let mut config = pod.shell("id -u; id -G; cat /data/seed; stat -c %u /data; pwd; echo $GREETING");
    if let Some(image) = &mut config.image {
        image.image = CONFIGURED.to_owned();
    }
    let (code, output) = pod.once_in(config)?;
    let expected = "1000\n1000 2000\nfrom the image\n1000\n/srv/work\nhello from the image\n";
    ensure!((code, output.as_str()) == (0, expected), "{code}: {output}");
    Ok(())
}

#[test]
fn on_1_7() {
    let case = a_container_has_the_images_user_and_its_volumes_contents;
    cloister_e2e::run_case(Version::V1_7, Handler::RuncLayers, &[CONFIGURED], case);
}

#[test]
fn on_2_1() {
    let case = a_container_has_the_images_user_and_its_volumes_contents;
    cloister_e2e::run_case(Version::V2_1, Handler::RuncLayers, &[CONFIGURED], case);
}
