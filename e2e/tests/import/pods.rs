//! Pods that run a build's image without a pull: no registry can be reached from the lab.

use anyhow::{Result, ensure};
use cloister_e2e::containerd::{Handler, Version};
use cloister_e2e::cri::{api, spec};
use cloister_e2e::{Pod, Rig};

use crate::bench::{app, image};

fn pods_run_the_image_of_a_build_without_a_pull(rig: &Rig) -> Result<()> {
    let archive = app("built")?;
    let path = rig.lab.root().join("build.tar");
    archive.write(&path)?;
    let path = path.to_string_lossy();
    image(&rig.lab, &["import", "--pin", "--digest", &archive.digest, "-i", &path, "app:1"])?;
    let run = |pod: &Pod<'_>, name: &str| {
        let command = ["/bin/busybox", "cat", "/own"];
        let (code, output) = pod.once_in(spec::container(&format!("c{}", name.len()), name, &command))?;
        ensure!((code, output.as_str()) == (0, "built"), "{name}: {code}: {output}");
        Ok(())
    };
    let spellings = [
        "app:1".to_owned(),
        format!("docker.io/library/app:1@{}", archive.digest),
        format!("app@{}", archive.digest),
    ];
    let pod = rig.pod()?;
    for name in &spellings {
        run(&pod, name)?;
    }
    pod.remove()?;
    // Also where the snapshotter is containerd's own, which unpacks when the container is made.
    let config = rig.config();
    let request = api::RunPodSandboxRequest {
        config: Some(config.clone()),
        runtime_handler: Handler::Runc.name().to_owned(),
    };
    let id = rig.lab.cri.run_pod_sandbox(request)?.pod_sandbox_id;
    let pod = Pod { rig, id, config };
    for name in &spellings {
        run(&pod, name)?;
    }
    pod.remove()
}

#[test]
fn microvms_and_runc_on_2_1() {
    let case = pods_run_the_image_of_a_build_without_a_pull;
    cloister_e2e::run_case(Version::V2_1, Handler::Cloister, &[], case);
}

#[test]
fn layers_for_runc_and_runc_on_1_7() {
    let case = pods_run_the_image_of_a_build_without_a_pull;
    cloister_e2e::run_case(Version::V1_7, Handler::RuncLayers, &[], case);
}
