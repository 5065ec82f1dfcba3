//! The life of a pod and its containers.

use std::time::{Duration, Instant};

use anyhow::Result;
use cloister_e2e::Rig;
use cloister_e2e::cri::api;
use cloister_e2e::cri::spec::{ContainerConfigExt, PodConfigExt};

cases!(
    a_container_runs_and_its_output_is_logged,
    several_containers_run_at_once,
    a_container_starts_after_the_last_one_ended,
    containers_run_one_after_another_as_init_containers_do,
    a_container_is_created_again_under_the_same_name,
    containers_of_a_pod_can_share_their_processes,
    containers_have_processes_of_their_own,
    containers_share_ipc_and_hostname,
    sysctls_of_the_pod_hold,
    a_pod_lives_until_it_is_removed,
    removing_a_running_pod_ends_its_containers,
    stopping_and_removing_twice_is_no_error,
    a_failing_start_names_the_program_and_leaves_the_pod_usable,
    orphans_are_reaped,
    several_pods_run_at_once,
);

pub fn a_container_runs_and_its_output_is_logged(rig: &Rig) -> Result<()> {
    let pod = rig.pod()?;
    let container = pod.start(pod.shell("echo out; echo err >&2; exit 7"))?;
    let status = container.wait()?;
    assert_eq!((status.exit_code, status.reason.as_str()), (7, "Error"));
    // containerd notes the start after it happened: a process that ends at once may have ended before.
    assert!(status.started_at > 0 && status.finished_at > 0);
    container.output_at_end()?;
    let mut lines = container.lines()?;
    lines.sort_by(|a, b| b.stream.cmp(&a.stream));
    let text: Vec<_> = lines.iter().map(|l| (l.stream.as_str(), l.bytes.as_slice())).collect();
    assert_eq!(text, [("stdout", b"out\n".as_slice()), ("stderr", b"err\n")]);
    assert_eq!(pod.once("exit 0")?.0, 0);
    Ok(())
}

pub fn several_containers_run_at_once(rig: &Rig) -> Result<()> {
    let pod = rig.pod()?;
    let containers = (0..3).map(|_| pod.idle()).collect::<Result<Vec<_>>>()?;
    let list = rig.lab.cri.list_containers(api::ListContainersRequest::default())?.containers;
    assert_eq!(list.len(), 3);
    for container in &containers {
        assert_eq!(container.sh("echo inside")?, "inside");
    }
    containers[1].stop(2)?;
    containers[1].remove()?;
    assert_eq!(containers[0].sh("echo still")?, "still");
    assert_eq!(containers[2].sh("echo still")?, "still");
    Ok(())
}

pub fn a_container_starts_after_the_last_one_ended(rig: &Rig) -> Result<()> {
    let pod = rig.pod()?;
    for round in 0..2 {
        let container = pod.start(pod.shell(&format!("echo round {round}")))?;
        assert_eq!(container.wait()?.exit_code, 0);
        container.remove()?;
        assert!(pod.is_ready()?, "the pod ended with its last container");
    }
    assert_eq!(pod.once("echo again")?, (0, "again\n".to_owned()));
    Ok(())
}

pub fn containers_run_one_after_another_as_init_containers_do(rig: &Rig) -> Result<()> {
    let config = rig.config();
    let shared = rig.volume(&config, "empty-dir", "work")?;
    let shared = shared.to_string_lossy();
    let pod = rig.run(config)?;
    for step in ["one", "two"] {
        let script = format!("echo {step} >>/work/steps");
        assert_eq!(pod.once_in(pod.shell(&script).mounted(&shared, "/work", false))?.0, 0);
    }
    let main = pod.once_in(pod.shell("cat /work/steps").mounted(&shared, "/work", true))?;
    assert_eq!(main, (0, "one\ntwo\n".to_owned()));
    Ok(())
}

pub fn a_container_is_created_again_under_the_same_name(rig: &Rig) -> Result<()> {
    let pod = rig.pod()?;
    let mut config = pod.shell("echo run >>/runs; cat /runs");
    for attempt in 0..3 {
        config.metadata.as_mut().unwrap().attempt = attempt;
        config.log_path = format!("again-{attempt}.log");
        let container = pod.start(config.clone())?;
        assert_eq!(container.wait()?.exit_code, 0);
        assert_eq!(container.output_at_end()?, b"run\n", "a container sees its predecessor's files");
        container.remove()?;
    }
    Ok(())
}

pub fn containers_of_a_pod_can_share_their_processes(rig: &Rig) -> Result<()> {
    let mut config = rig.config();
    let shared = api::NamespaceMode::Pod.into();
    let security = config.linux().security_context.as_mut().unwrap();
    security.namespace_options.as_mut().unwrap().pid = shared;
    let pod = rig.run(config)?;
    let with_shared = |script: &str| {
        let mut container = pod.shell(script);
        container.security().namespace_options.as_mut().unwrap().pid = shared;
        container
    };
    let first = pod.start(with_shared("echo up; exec sleep 4321"))?;
    first.wait_for_output("up\n")?;
    let second = pod.start(with_shared("echo up; exec sleep 1000"))?;
    second.wait_for_output("up\n")?;
    assert!(second.sh("ps")?.contains("sleep 4321"));
    second.sh("pkill -f 'sleep 432[1]' || kill $(pidof sleep | tr ' ' '\\n' | while read p; do grep -q 4321 /proc/$p/cmdline && echo $p; done)")?;
    assert_eq!(first.wait()?.exit_code, 128 + 15);
    assert!(second.is_running()?);
    Ok(())
}

pub fn containers_have_processes_of_their_own(rig: &Rig) -> Result<()> {
    let pod = rig.pod()?;
    let first = pod.start_shell("echo up; exec sleep 4321", "up\n")?;
    let second = pod.idle()?;
    assert!(!second.sh("ps")?.contains("4321"));
    assert!(first.sh("cat /proc/1/cmdline | tr '\\0' ' '")?.contains("sleep 4321"));
    Ok(())
}

pub fn containers_share_ipc_and_hostname(rig: &Rig) -> Result<()> {
    let pod = rig.pod()?;
    let (first, second) = (pod.idle()?, pod.idle()?);
    assert_eq!(first.sh("hostname")?, pod.config.hostname);
    assert_eq!(second.sh("cat /proc/sys/kernel/hostname")?, pod.config.hostname);
    for namespace in ["ipc", "net", "uts"] {
        let link = format!("readlink /proc/self/ns/{namespace}");
        assert_eq!(first.sh(&link)?, second.sh(&link)?, "{namespace}");
    }
    first.sh("echo memory >/dev/shm/note")?;
    assert_eq!(second.sh("cat /dev/shm/note")?, "memory");
    Ok(())
}

pub fn sysctls_of_the_pod_hold(rig: &Rig) -> Result<()> {
    let mut config = rig.config();
    config.linux().sysctls =
        [("net.ipv4.ip_local_port_range", "20000 30000"), ("kernel.shm_rmid_forced", "1")]
            .map(|(name, value)| (name.to_owned(), value.to_owned()))
            .into();
    let pod = rig.run(config)?;
    let container = pod.idle()?;
    assert_eq!(container.sh("cat /proc/sys/net/ipv4/ip_local_port_range")?, "20000\t30000");
    assert_eq!(container.sh("cat /proc/sys/kernel/shm_rmid_forced")?, "1");
    Ok(())
}

pub fn a_pod_lives_until_it_is_removed(rig: &Rig) -> Result<()> {
    let pod = rig.pod()?;
    assert!(pod.is_ready()?);
    let before = pod.addresses()?;
    std::thread::sleep(Duration::from_secs(2));
    assert!(pod.is_ready()?);
    assert_eq!(pod.addresses()?, before);
    pod.stop()?;
    assert!(!pod.is_ready()?);
    pod.remove()?;
    assert!(pod.status().is_err());
    Ok(())
}

pub fn removing_a_running_pod_ends_its_containers(rig: &Rig) -> Result<()> {
    let pod = rig.pod()?;
    let ignoring = pod.start_shell("trap '' TERM; echo up; while :; do sleep 1; done", "up\n")?;
    let begun = Instant::now();
    pod.remove()?;
    assert!(begun.elapsed() < Duration::from_secs(10), "took {:?}", begun.elapsed());
    assert!(ignoring.status().is_err());
    Ok(())
}

pub fn stopping_and_removing_twice_is_no_error(rig: &Rig) -> Result<()> {
    let pod = rig.pod()?;
    let container = pod.idle()?;
    container.stop(5)?;
    container.stop(5)?;
    container.remove()?;
    container.remove()?;
    pod.stop()?;
    pod.stop()?;
    pod.remove()?;
    pod.remove()?;
    Ok(())
}

pub fn a_failing_start_names_the_program_and_leaves_the_pod_usable(rig: &Rig) -> Result<()> {
    let pod = rig.pod()?;
    let mut config = pod.shell("");
    config.command = vec!["/no/such/program".to_owned()];
    let container = pod.create(config)?;
    let error = container.start().unwrap_err();
    assert!(format!("{error:#}").contains("no/such/program"), "{error:#}");
    assert_eq!(container.status()?.state, i32::from(api::ContainerState::ContainerExited));
    container.remove()?;
    assert_eq!(pod.once("echo fine")?, (0, "fine\n".to_owned()));
    Ok(())
}

pub fn orphans_are_reaped(rig: &Rig) -> Result<()> {
    let mut config = rig.config();
    let security = config.linux().security_context.as_mut().unwrap();
    security.namespace_options.as_mut().unwrap().pid = api::NamespaceMode::Pod.into();
    let pod = rig.run(config)?;
    let mut config = pod.shell("(sleep 0.1 & sleep 0.2 &) ; sleep 1.5; echo done; sleep 1000");
    config.security().namespace_options.as_mut().unwrap().pid = api::NamespaceMode::Pod.into();
    let container = pod.start(config)?;
    container.wait_for_output("done\n")?;
    assert_eq!(container.sh("ps -o stat,args | grep -c '^Z' || true")?, "0");
    Ok(())
}

pub fn several_pods_run_at_once(rig: &Rig) -> Result<()> {
    std::thread::scope(|scope| {
        let runs: Vec<_> = (0..3)
            .map(|number| {
                scope.spawn(move || -> Result<()> {
                    let pod = rig.pod()?;
                    assert_eq!(pod.once(&format!("echo {number}"))?, (0, format!("{number}\n")));
                    pod.remove()
                })
            })
            .collect();
        runs.into_iter().try_for_each(|run| run.join().unwrap())
    })
}
