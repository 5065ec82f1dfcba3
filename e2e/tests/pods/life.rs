//! The life of a pod and its containers.

use anyhow::Result;
use cloister_e2e::Rig;
use cloister_e2e::cri::api;

cases!(a_container_runs_and_its_output_is_logged, several_containers_run_at_once);

fn a_container_runs_and_its_output_is_logged(rig: &Rig) -> Result<()> {
    let pod = rig.pod()?;
    let (code, output) = pod.once("echo out; echo err >&2; exit 7")?;
    assert_eq!((code, output.as_str()), (7, "out\n"));
    Ok(())
}

fn several_containers_run_at_once(rig: &Rig) -> Result<()> {
    let pod = rig.pod()?;
    let containers = (0..3).map(|_| pod.idle()).collect::<Result<Vec<_>>>()?;
    let list = rig.lab.cri.list_containers(api::ListContainersRequest::default())?.containers;
    assert_eq!(list.len(), 3);
    for container in &containers {
        assert_eq!(container.sh("echo inside")?, "inside");
    }
    Ok(())
}
