//! A pod's containers: how they begin, what they may do, how they end.

use std::fs;

use anyhow::{Result, ensure};
use serde_json::{Value, json};

use super::site::{IDLE, Site, container, ended, shell, with};

pub fn init_containers(site: &Site<'_>) -> Result<String> {
    let mount = json!({"volumeMounts": [{"name": "work", "mountPath": "/shared"}]});
    let say = |name: &str, script: &str| with(with(shell(script), mount.clone()), json!({"name": name}));
    let init = [say("first", "echo first >>/shared/log"), say("second", "echo second >>/shared/log")];
    let volume = json!([{"name": "work", "emptyDir": {}}]);
    let log = site.once(
        "good",
        say("main", "cat /shared/log"),
        json!({"initContainers": init, "volumes": volume}),
    )?;
    let bad = [say("first", "exit 4")];
    let more = json!({"restartPolicy": "Never", "initContainers": bad, "volumes": volume});
    site.pod("bad", &[say("main", "echo never")], more)?;
    let pod = site.pod_when("bad", ended)?;
    let first = &pod["status"]["initContainerStatuses"][0]["state"]["terminated"]["exitCode"];
    Ok(format!(
        "{}; {} with {first}, main: {}",
        log.trim().replace('\n', ", "),
        pod["status"]["phase"],
        container(&pod)["state"]["waiting"]["reason"]
    ))
}

pub fn lifecycle_hooks(site: &Site<'_>) -> Result<String> {
    let folder = site.folder("log")?;
    let note = |word: &str| json!({"exec": {"command": ["sh", "-c", format!("echo {word} >>/log/all")]}});
    let script = "trap 'echo ends >>/log/all; exit' TERM; sleep 1000 & wait";
    let hooks = json!({"lifecycle": {"postStart": note("started"), "preStop": note("stops")},
        "volumeMounts": [{"name": "log", "mountPath": "/log"}]});
    let volume = json!({"name": "log", "hostPath": {"path": folder}});
    let more = json!({"terminationGracePeriodSeconds": 30, "volumes": [volume]});
    site.ready_pod("hooked", with(shell(script), hooks), more)?;
    site.delete("hooked")?;
    Ok(fs::read_to_string(folder.join("all"))?.trim().replace('\n', ", "))
}

pub fn ends_and_restarts(site: &Site<'_>) -> Result<String> {
    site.pod("never", &[shell("echo last words; exit 3")], json!({"restartPolicy": "Never"}))?;
    let script = "echo try >>/shared/tries; [ $(wc -l </shared/tries) = 2 ]";
    let mount = json!({"volumeMounts": [{"name": "work", "mountPath": "/shared"}]});
    let volume = json!([{"name": "work", "emptyDir": {}}]);
    site.pod(
        "onfailure",
        &[with(shell(script), mount)],
        json!({"restartPolicy": "OnFailure", "volumes": volume}),
    )?;
    site.pod("always", &[shell("exit 5")], json!({}))?;
    let never = site.pod_when("never", ended)?;
    let onfailure = site.pod_when("onfailure", ended)?;
    let waits = |pod: &Value| container(pod)["state"]["waiting"]["reason"] == "CrashLoopBackOff";
    let always = site.pod_when("always", waits)?;
    let code = |pod: &Value| {
        pod["status"]["phase"].to_string()
            + " "
            + &container(pod)["state"]["terminated"]["exitCode"].to_string()
    };
    Ok(format!(
        "{} {:?}; {} after {} restart; backing off after {}",
        code(&never),
        site.log("never")?,
        code(&onfailure),
        container(&onfailure)["restartCount"],
        container(&always)["lastState"]["terminated"]["exitCode"]
    ))
}

pub fn termination_messages(site: &Site<'_>) -> Result<String> {
    let file = shell("echo from the file >/dev/termination-log; exit 1");
    let log = with(
        shell("echo from the log; exit 1"),
        json!({"name": "log", "terminationMessagePolicy": "FallbackToLogsOnError"}),
    );
    site.pod("says", &[file, log], json!({"restartPolicy": "Never"}))?;
    let pod = site.pod_when("says", ended)?;
    let all = pod["status"]["containerStatuses"].as_array().into_iter().flatten();
    Ok(all.map(|status| status["state"]["terminated"]["message"].to_string()).collect::<Vec<_>>().join(", "))
}

pub fn out_of_memory(site: &Site<'_>) -> Result<String> {
    let limit = json!({"resources": {"limits": {"memory": "64Mi"}}});
    site.pod("hungry", &[with(shell("exec tail /dev/zero"), limit)], json!({"restartPolicy": "Never"}))?;
    let pod = site.pod_when("hungry", ended)?;
    let end = &container(&pod)["state"]["terminated"];
    Ok(format!("{} with {}", end["reason"], end["exitCode"]))
}

/// The limits as a container sees them, with either version of cgroups.
pub fn limits(site: &Site<'_>) -> Result<String> {
    let limits = json!({"resources": {"limits": {"memory": "96Mi", "cpu": "500m"}}});
    let script = "cd /sys/fs/cgroup; cat memory/memory.limit_in_bytes || cat memory.max
        if [ -e cpu.max ]; then cat cpu.max; else echo $(cat cpu/cpu.cfs_quota_us cpu/cpu.cfs_period_us); fi";
    let seen = site.once("limited", with(shell(&format!("exec 2>&-; {script}")), limits), json!({}))?;
    ensure!(seen == "100663296\n50000 100000\n", "{seen}");
    Ok("96 MiB, half a processor".to_owned())
}

pub fn security_context(site: &Site<'_>) -> Result<String> {
    let script = "id; grep -E '^(Cap|NoNewPrivs|Seccomp:)' /proc/self/status | tr -s '\\t\\n' ' '; echo
        touch /x 2>&1; touch /shared/x && stat -c '%u:%g' /shared/x; stat -c '%a %g' /shared";
    let context = json!({"securityContext": {"runAsUser": 1000, "runAsGroup": 1000, "readOnlyRootFilesystem": true,
            "allowPrivilegeEscalation": false, "capabilities": {"drop": ["ALL"], "add": ["NET_BIND_SERVICE"]}},
        "volumeMounts": [{"name": "work", "mountPath": "/shared"}]});
    let pod = json!({"volumes": [{"name": "work", "emptyDir": {}}], "securityContext": {"fsGroup": 2000,
        "supplementalGroups": [3000], "seccompProfile": {"type": "RuntimeDefault"}}});
    Ok(site.once("restricted", with(shell(script), context), pod)?.trim().replace('\n', "; "))
}

/// What programs take for granted, but for names of the API's own service.
pub fn ordinary_process(site: &Site<'_>) -> Result<String> {
    let script = "set -- $(id) in $(pwd) umask $(umask) core $(ulimit -c); echo $*
        env | cut -d= -f1 | grep -v KUBERNETES | sort | xargs
        grep -E '^(Cap|NoNewPrivs|Seccomp:)' /proc/self/status | xargs; ls /dev | xargs
        awk '$2 !~ \"^/sys/fs/cgroup/\" {print $2}' /proc/mounts | sort | xargs";
    Ok(site.once("plain", shell(script), json!({"hostname": "plain"}))?.trim().replace('\n', "; "))
}

pub fn shared_processes(site: &Site<'_>) -> Result<String> {
    let second = with(shell("exec sleep 1234"), json!({"name": "second"}));
    site.pod("family", &[shell(IDLE), second], json!({"shareProcessNamespace": true}))?;
    site.ready("family")?;
    let count = site.sh("family", "ps -o args | grep -c '[s]leep 1234'")?;
    site.sh("family", "kill -9 $(pidof sleep | tr ' ' '\\n' | while read p; do grep -q 1234 /proc/$p/cmdline && echo $p; done)")?;
    site.pod_when("family", |pod| {
        let mut all = pod["status"]["containerStatuses"].as_array().into_iter().flatten();
        all.any(|status| status["name"] == "second" && status["restartCount"] == 1)
    })?;
    Ok(format!("{count} seen and ended"))
}

pub fn names(site: &Site<'_>) -> Result<String> {
    let script = "hostname; hostname -f; grep -c '10.1.2.3.*other.test' /etc/hosts; cat /etc/resolv.conf";
    let pod = json!({"hostname": "first", "subdomain": "second", "hostAliases": [{"ip": "10.1.2.3", "hostnames": ["other.test"]}],
        "dnsPolicy": "None", "dnsConfig": {"nameservers": ["10.9.9.9"], "searches": ["lab.test"], "options": [{"name": "ndots", "value": "3"}]}});
    let log = site.once("named", shell(script), pod)?;
    Ok(log.trim().replace(&site.namespace, "NAMESPACE").replace('\n', "; "))
}
