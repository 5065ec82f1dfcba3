//! Volumes that outlive pods, and those that do not.

use std::fs;
use std::time::{Duration, Instant};

use anyhow::{Result, ensure};
use serde_json::{Value, json};

use super::site::{IDLE, Site, ended, is_ready, shell, with};

pub fn stateful_set(site: &Site<'_>) -> Result<String> {
    for name in ["a", "b"] {
        site.persistent_volume(name, json!({"hostPath": {"path": site.folder(name)?}}))?;
    }
    site.create(json!({"apiVersion": "v1", "kind": "Service", "metadata": {"name": "db"},
        "spec": {"clusterIP": "None", "selector": {"app": "db"}, "ports": [{"port": 80}]}}))?;
    let container = with(
        shell(&format!("hostname >>/data/log; {IDLE}")),
        json!({"volumeMounts": [{"name": "data", "mountPath": "/data"}]}),
    );
    let claim = json!({"metadata": {"name": "data"}, "spec": {"storageClassName": site.namespace,
        "accessModes": ["ReadWriteOnce"], "resources": {"requests": {"storage": "16Mi"}}}});
    site.create(
        json!({"apiVersion": "apps/v1", "kind": "StatefulSet", "metadata": {"name": "db"}, "spec": {
        "replicas": 2, "serviceName": "db", "selector": {"matchLabels": {"app": "db"}},
        "template": {"metadata": {"labels": {"app": "db"}}, "spec": site.spec(&[container], json!({}))},
        "volumeClaimTemplates": [claim]}}),
    )?;
    site.kubectl(&["rollout", "status", "statefulset/db", "--timeout=200s"])?;
    let before = site.get(&["pod", "db-0"])?["metadata"]["uid"].clone();
    site.delete("db-0")?;
    site.until("the next db-0", || {
        let pod = site.get(&["pod", "db-0"]).unwrap_or_default();
        Ok((is_ready(&pod) && pod["metadata"]["uid"] != before).then_some(()))
    })?;
    site.until("the data of both", || {
        let logs = [site.sh("db-0", "cat /data/log")?, site.sh("db-1", "cat /data/log")?];
        Ok((logs == ["db-0\ndb-0", "db-1"]).then_some(()))
    })?;
    Ok("data of db-0 and db-1 found again".to_owned())
}

pub fn local_block_volume(site: &Site<'_>) -> Result<String> {
    let file = site.folder("disk")?.join("image");
    fs::write(&file, vec![0; 16 << 20])?;
    let cell = &site.node.lab.cell;
    let device = cell.run("losetup", &["--find", "--show", &file.to_string_lossy()])?.trim().to_owned();
    let seen = block_volume(site, &device);
    cell.run("losetup", &["--detach", &device])?;
    let seen = seen?;
    ensure!(fs::read(&file)?[4096..].starts_with(b"from the pod\n"), "nothing arrived");
    Ok(seen)
}

fn block_volume(site: &Site<'_>, device: &str) -> Result<String> {
    let here = json!({"key": "kubernetes.io/hostname", "operator": "In", "values": [site.node.name()]});
    site.persistent_volume(
        "disk",
        json!({"volumeMode": "Block", "local": {"path": device},
            "nodeAffinity": {"required": {"nodeSelectorTerms": [{"matchExpressions": [here]}]}}}),
    )?;
    site.create(
        json!({"apiVersion": "v1", "kind": "PersistentVolumeClaim", "metadata": {"name": "disk"}, "spec": {
        "storageClassName": site.namespace, "volumeMode": "Block", "accessModes": ["ReadWriteOnce"],
        "resources": {"requests": {"storage": "16Mi"}}}}),
    )?;
    let script =
        "blockdev --getsize64 /dev/raw; echo from the pod | dd of=/dev/raw bs=4096 seek=1 conv=fsync 2>&-";
    let container =
        with(shell(script), json!({"volumeDevices": [{"name": "disk", "devicePath": "/dev/raw"}]}));
    let volume = json!({"volumes": [{"name": "disk", "persistentVolumeClaim": {"claimName": "disk"}}]});
    let log = site.once("raw", container, volume)?;
    site.delete("raw")?;
    Ok(format!("{} bytes, written", log.trim()))
}

/// What a pod of two containers has: one writes, the other reads.
pub fn empty_dirs(site: &Site<'_>) -> Result<String> {
    let mounts = json!({"volumeMounts": [{"name": "disk", "mountPath": "/disk"}, {"name": "memory", "mountPath": "/memory"},
        {"name": "disk", "mountPath": "/part", "subPath": "sub"}]});
    let writer = "echo one >/part/file; echo two >/memory/file; touch /disk/written; exec sleep 1000";
    let reader = "until [ -e /disk/written ]; do sleep 1; done; cat /disk/sub/file /memory/file; stat -c '%a %u:%g' /disk /memory; exec sleep 1000";
    let containers =
        [with(shell(reader), mounts.clone()), with(with(shell(writer), mounts), json!({"name": "writer"}))];
    site.pod(
        "both",
        &containers,
        json!({"volumes": [{"name": "disk", "emptyDir": {}}, {"name": "memory", "emptyDir": {"medium": "Memory"}}]}),
    )?;
    site.ready("both")?;
    site.until("what the other wrote", || {
        let log = site.kubectl(&["logs", "both", "-c", "main"])?;
        Ok((log.lines().count() == 4).then(|| log.trim().replace('\n', ", ")))
    })
}

/// How long a kubelet may take to find out what a pod has written.
const FOUND_OUT: Duration = Duration::from_secs(90);

/// What becomes of a pod that writes 32 MiB to `file` where it may write 16.
fn greedy(site: &Site<'_>, file: &str, container: Value, more: Value) -> Result<String> {
    let script = format!("dd if=/dev/zero of={file} bs=1M count=32; sync; echo written; exec sleep 1000");
    let container = with(container, json!({"command": ["sh", "-c", script]}));
    site.create(json!({"apiVersion": "v1", "kind": "Pod", "metadata": {"name": "greedy"},
        "spec": site.spec(&[container], with(more, json!({"restartPolicy": "Never"})))}))?;
    let pod = || site.get(&["pod", "greedy"]);
    site.until("what it writes", || {
        Ok((site.log("greedy").unwrap_or_default().contains("written") || ended(&pod()?)).then_some(()))
    })?;
    let deadline = Instant::now() + FOUND_OUT;
    let evicted = site.until("an eviction", || {
        let pod = pod()?;
        Ok((ended(&pod) || Instant::now() > deadline).then(|| pod["status"]["reason"] == "Evicted"))
    })?;
    Ok(if evicted { "evicted" } else { "written, not evicted" }.to_owned())
}

pub fn empty_dir_limit(site: &Site<'_>) -> Result<String> {
    let container = with(shell(""), json!({"volumeMounts": [{"name": "disk", "mountPath": "/disk"}]}));
    let volume = json!({"name": "disk", "emptyDir": {"sizeLimit": "16Mi"}});
    greedy(site, "/disk/much", container, json!({"volumes": [volume]}))
}

pub fn ephemeral_storage_limit(site: &Site<'_>) -> Result<String> {
    let limit = json!({"resources": {"limits": {"ephemeral-storage": "16Mi"}}});
    greedy(site, "/much", with(shell(""), limit), json!({}))
}

/// A file that a pod of each runtime sees in one folder of the node.
pub fn host_path(site: &Site<'_>) -> Result<String> {
    let folder = site.folder("shared")?;
    fs::write(folder.join("from-node"), "node")?;
    let container = with(
        shell("cat /host/from-node; id -u; echo pod >/host/from-pod; echo no >/fixed/x || echo read-only"),
        json!({"volumeMounts": [{"name": "host", "mountPath": "/host"}, {"name": "host", "mountPath": "/fixed", "readOnly": true}]}),
    );
    let log = site.once(
        "host",
        container,
        json!({"volumes": [{"name": "host", "hostPath": {"path": folder, "type": "Directory"}}]}),
    )?;
    let back = fs::read_to_string(folder.join("from-pod"))?;
    ensure!(back == "pod\n" && log.contains("read-only"), "{back:?} {log:?}");
    Ok("seen both ways, read-only where it should be".to_owned())
}
