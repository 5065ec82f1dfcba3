//! The behaviours that Kubernetes' CRI validation suite checks, one line each with that suite's name for it, run for
//! runc and for microVMs on one host: `make cri-validation` prints how many of them hold.

mod images;
mod namespaces;
mod small;

use std::panic::{AssertUnwindSafe, catch_unwind};
use std::time::Instant;

use anyhow::Result;
use cloister_e2e::Rig;
use cloister_e2e::containerd::{Handler, Version};
use cloister_e2e::pod_images::{BUSYBOX, CONFIGURED, PAUSE};

use super::{life, logs, network, process, resources, restrictions, rootfs, volumes};

type Case = (&'static str, fn(&Rig) -> Result<()>);

/// Every behaviour, in the suite's order.
const LIST: &[Case] = &[
    ("runtime info: version", small::version_is_told),
    ("runtime info: conditions", small::runtime_and_network_are_ready),
    ("image: pulled and removed by tag", images::by_tag),
    ("image: pulled and removed without tag", images::without_tag),
    ("image: pulled and removed by digest", images::by_digest),
    ("image: status of all kinds of references", images::all_references),
    ("image: status with its user", images::user_of_an_image),
    ("image: three images in the list", images::three_images),
    ("image: three tags of one image", images::three_tags),
    ("image: file system usage", images::usage),
    ("idempotence: removing a pod that is not there", small::removing_a_missing_pod),
    ("idempotence: removing a pod twice", life::stopping_and_removing_twice_is_no_error),
    ("idempotence: removing a container that is not there", small::removing_a_missing_container),
    ("idempotence: removing a container twice", small::removing_a_container_twice),
    ("idempotence: removing an image that is not there", images::removing_a_missing_image),
    ("pod: run", small::pod_runs),
    ("pod: stop", small::pod_stops),
    ("pod: remove", small::pod_is_removed),
    ("pod: counters of one", small::pods_counters_are_told),
    ("pod: list of counters", small::pods_counters_are_listed),
    ("pod: safe sysctls", life::sysctls_of_the_pod_hold),
    ("pod: unsafe sysctls", small::unsafe_sysctls_hold),
    ("container: create", small::container_is_created),
    ("container: start", small::container_is_started),
    ("container: stop", small::container_is_stopped),
    ("container: remove", small::container_is_removed),
    ("container: list by pod, state and label", small::containers_are_found),
    ("container: execSync", process::exec_gives_both_outputs_and_the_exit_code),
    ("container: execSync with timeout", process::exec_that_takes_too_long_is_ended),
    ("container: counters of one", small::containers_counters_are_told),
    ("container: counters of all", small::containers_counters_are_listed),
    ("container: volume", volumes::a_folder_of_the_host_is_shared_both_ways),
    ("container: volume whose host path is a symlink", small::a_symlinked_host_path_works),
    ("container: log", life::a_container_runs_and_its_output_is_logged),
    ("container: log reopened", logs::a_log_goes_on_after_it_was_rotated),
    ("mount: private propagation", small::private_mounts_stay_private),
    ("mount: propagation from the host", small::mounts_of_the_host_arrive),
    ("mount: propagation both ways", small::mounts_of_the_guest_arrive),
    ("mount: read-only", volumes::a_read_only_mount_is_read_only),
    ("mount: recursively read-only", small::read_only_holds_below),
    ("mount: image", images::an_image_is_mounted),
    ("mount: image's volumes keep their content", images::volumes_keep_their_content),
    (
        "OOM: exit code 137 and OOMKilled",
        resources::a_container_over_its_memory_is_oom_killed_and_the_pod_goes_on,
    ),
    ("multiple containers: network", network::containers_of_a_pod_meet_on_loopback),
    ("multiple containers: exec", life::several_containers_run_at_once),
    ("multiple containers: log", small::logs_of_two_containers),
    ("networking: DNS configuration", network::name_servers_hosts_and_hostname_are_the_pods),
    ("networking: hostname", life::containers_share_ipc_and_hostname),
    ("networking: port mapping, container port", network::a_pod_reaches_the_host_and_the_host_the_pod),
    ("networking: port mapping, host port", network::host_ports_lead_into_the_pod),
    ("streaming: exec without terminal", process::a_streamed_exec_sees_its_input_end),
    ("streaming: exec with terminal", process::a_terminal_echoes_and_is_resized),
    ("streaming: attach", process::attach_reads_and_writes_the_first_process),
    ("streaming: port-forward", network::port_forward_reaches_servers_on_loopback),
    ("streaming: port-forward in the host's network", namespaces::port_forward_in_the_hosts_network),
    ("namespaces: HostPID", namespaces::host_pid),
    ("namespaces: HostIPC", namespaces::host_ipc),
    ("namespaces: own IPC", namespaces::own_ipc),
    ("namespaces: PodPID", life::containers_of_a_pod_can_share_their_processes),
    ("namespaces: ContainerPID", life::containers_have_processes_of_their_own),
    ("namespaces: TargetPID", namespaces::target_pid),
    ("namespaces: HostNetwork", namespaces::host_network),
    ("namespaces: own network", namespaces::own_network),
    ("security: user and supplemental groups", restrictions::user_and_groups_are_the_pods),
    ("security: user by name", restrictions::a_user_by_name_has_the_images_groups),
    ("security: group without a user is refused", small::a_group_without_a_user_is_refused),
    ("security: root read-only and writable", restrictions::the_root_can_be_read_only),
    ("security: privileged", small::privileged_may_mount),
    ("security: not privileged", small::unprivileged_may_not_mount),
    ("security: capabilities added and dropped", restrictions::capabilities_are_dropped_and_added),
    ("security: all capabilities added", small::all_capabilities_are_added),
    ("security: masked and read-only paths", restrictions::paths_are_masked_and_read_only),
    ("security: no new privileges", restrictions::privileges_cannot_be_gained_when_forbidden),
    ("security: seccomp default and unconfined", restrictions::the_runtimes_seccomp_profile_is_applied),
    ("security: seccomp profile of the node", restrictions::a_seccomp_profile_of_the_node_is_applied),
    ("security: seccomp is not for privileged containers", small::privileged_is_not_filtered),
    ("image's user, folder, environment and stop signal", rootfs::what_the_image_says_is_the_default),
];

/// The behaviours to look at: all of them, or while working those whose name contains `CRI_VALIDATION`.
fn chosen() -> Vec<&'static Case> {
    let words = std::env::var("CRI_VALIDATION").unwrap_or_default();
    LIST.iter().filter(|(name, _)| name.contains(&words)).collect()
}

/// Runs the behaviours with one handler; gives the names of what does not hold, and why.
fn run(handler: Handler, cases: &[&Case]) -> Vec<(&'static str, String)> {
    let rig = Rig::start(Version::V2_1, handler, &[PAUSE, BUSYBOX, CONFIGURED]).unwrap();
    let mut failed = Vec::new();
    for (name, case) in cases {
        let begun = Instant::now();
        let outcome = catch_unwind(AssertUnwindSafe(|| case(&rig)));
        let why = match outcome {
            Ok(Ok(())) => String::new(),
            Ok(Err(error)) => format!("{error:#}"),
            Err(_) => "see the assertion above".to_owned(),
        };
        let verdict = if why.is_empty() { "pass" } else { "FAIL" };
        eprintln!("{} {verdict} {name} ({:.1} s) {why}", handler.name(), begun.elapsed().as_secs_f64());
        if !why.is_empty() {
            failed.push((*name, why));
            eprintln!("{}", rig.lab.log_tail("containerd.log", 5));
        }
        if let Err(error) = rig.remove_pods() {
            eprintln!("{} pods are left: {error:#}", handler.name());
        }
        let _ = std::fs::remove_dir_all(rig.lab.root().join("host"));
    }
    rig.finish().unwrap();
    failed
}

/// What a microVM does not have, as the documents say, and what whoever asks for it is told.
const NOT_IN_A_VM: [(&str, &str); 4] = [
    (
        "streaming: port-forward in the host's network",
        "hostNetwork pods cannot run in a microVM: its network is not",
    ),
    ("namespaces: HostIPC", "hostIPC pods cannot run in a microVM: its kernel has no"),
    ("namespaces: HostNetwork", "hostNetwork pods cannot run in a microVM: its network is not"),
    ("mount: propagation both ways", "Bidirectional: mounts made in a microVM are not the host's"),
];

#[test]
fn cri_validation_of_microvms_beside_containers() {
    let handlers = [Handler::Runc, Handler::Cloister];
    let cases = chosen();
    assert!(!cases.is_empty(), "no behaviour has this name");
    let failures = handlers.map(|handler| run(handler, &cases));
    for (handler, failed) in handlers.iter().zip(&failures) {
        let failed: Vec<_> = failed.iter().map(|(name, _)| name).collect();
        eprintln!("{}: {} of {}; not: {failed:?}", handler.name(), cases.len() - failed.len(), cases.len());
    }
    let [containers, microvms] = failures;
    let holds = |name: &str| !containers.iter().any(|(failed, _)| *failed == name);
    let refused =
        |name: &str, why: &str| NOT_IN_A_VM.iter().any(|(of, words)| *of == name && why.contains(words));
    let missing: Vec<_> =
        microvms.into_iter().filter(|(name, why)| holds(name) && !refused(name, why)).collect();
    assert!(missing.is_empty(), "containers can and microVMs cannot: {missing:?}");
}
