//! What the API tells a pod, and keeps telling it.

use anyhow::{Result, ensure};
use serde_json::json;

use super::site::{IDLE, Site, shell, with};

pub fn downward_api(site: &Site<'_>) -> Result<String> {
    let field =
        |name: &str, path: &str| json!({"name": name, "valueFrom": {"fieldRef": {"fieldPath": path}}});
    let limit = json!({"name": "LIMIT", "valueFrom": {"resourceFieldRef": {"resource": "limits.memory"}}});
    let script =
        format!("echo $NAME $NAMESPACE $NODE $LIMIT; [ $IP = $(hostname -i) ] && echo address; {IDLE}");
    let container = with(
        shell(&script),
        json!({"env": [field("NAME", "metadata.name"), field("NAMESPACE", "metadata.namespace"),
            field("NODE", "spec.nodeName"), field("IP", "status.podIP"), limit],
            "resources": {"limits": {"memory": "64Mi"}}, "volumeMounts": [{"name": "about", "mountPath": "/about"}]}),
    );
    let items = json!([{"path": "labels", "fieldRef": {"fieldPath": "metadata.labels"}}]);
    let volume = json!({"volumes": [{"name": "about", "downwardAPI": {"items": items}}]});
    site.labelled("self", json!({"colour": "red"}), &[container], volume)?;
    site.ready("self")?;
    let log = site.log_with("self", "address\n")?;
    let before = site.sh("self", "cat /about/labels")?;
    site.kubectl(&["label", "--overwrite", "pod", "self", "colour=blue"])?;
    // A kubelet looks at a pod's volumes about once a minute.
    let after = site.until("the new label", || {
        let now = site.sh("self", "cat /about/labels")?;
        Ok((now != before).then_some(now))
    })?;
    let words =
        log.replace(&site.namespace, "NAMESPACE").replace(&format!(" {} ", site.node.name()), " NODE ");
    Ok(format!("{}; {before}, then {after}", words.trim().replace('\n', ", ")))
}

pub fn configuration(site: &Site<'_>) -> Result<String> {
    site.kubectl(&["create", "configmap", "settings", "--from-literal=colour=red"])?;
    site.kubectl(&["create", "secret", "generic", "hidden", "--from-literal=word=one"])?;
    let script = format!("echo $COLOUR $WORD; stat -Lc '%a %u:%g' /secret/word; {IDLE}");
    let container = with(
        shell(&script),
        json!({"env": [{"name": "COLOUR", "valueFrom": {"configMapKeyRef": {"name": "settings", "key": "colour"}}},
                {"name": "WORD", "valueFrom": {"secretKeyRef": {"name": "hidden", "key": "word"}}}],
            "volumeMounts": [{"name": "settings", "mountPath": "/settings"}, {"name": "secret", "mountPath": "/secret"},
                {"name": "settings", "mountPath": "/fixed", "subPath": "colour"}]}),
    );
    let volumes = json!([{"name": "settings", "configMap": {"name": "settings"}},
        {"name": "secret", "secret": {"secretName": "hidden", "defaultMode": 0o400}}]);
    site.ready_pod("reads", container, json!({"volumes": volumes}))?;
    let log = site.log_with("reads", ":")?;
    let look = || {
        site.sh("reads", "for file in /settings/colour /secret/word /fixed; do cat $file; echo; done | xargs")
    };
    let before = look()?;
    site.kubectl(&["patch", "configmap", "settings", "-p", r#"{"data": {"colour": "blue"}}"#])?;
    site.kubectl(&["patch", "secret", "hidden", "-p", r#"{"stringData": {"word": "two"}}"#])?;
    let after =
        site.until("both new values", || Ok(Some(look()?).filter(|now| now.starts_with("blue two"))))?;
    Ok(format!("{}; {before}, then {after}", log.trim().replace('\n', ", ")))
}

pub fn service_account(site: &Site<'_>) -> Result<String> {
    let script = "cd /var/run/secrets/kubernetes.io/serviceaccount; cat namespace; echo; head -n 1 ca.crt; cut -c-2 token; touch x 2>/dev/null || echo read-only";
    let log = site.once("account", shell(script), json!({}))?;
    ensure!(log.starts_with(&site.namespace), "{log}");
    Ok(log.trim().replace(&site.namespace, "NAMESPACE").replace('\n', ", "))
}
