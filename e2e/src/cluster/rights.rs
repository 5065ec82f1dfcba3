//! What the programs of Cloister may do in a cluster: what the chart lets them, for users of the lab.

use std::fs;
use std::path::PathBuf;

use anyhow::{Context, Result};
use serde_json::{Value, json};

use super::Cluster;
use crate::lab::checkout;

fn rule(group: &str, resource: &str, verbs: &[&str]) -> Value {
    json!({"apiGroups": [group], "resources": [resource], "verbs": verbs})
}

/// The rules that the chart gives one of its components.
fn charted(component: &str) -> Result<Vec<Value>> {
    let path = checkout().join("charts/cloister/files/rights.yaml");
    let text = fs::read_to_string(&path).with_context(|| format!("cannot read {}", path.display()))?;
    let all: Value = serde_saphyr::from_str(&text)?;
    let scopes = ["cluster", "namespace"].map(|scope| &all[component][scope]);
    Ok(scopes.into_iter().filter_map(Value::as_array).flatten().cloned().collect())
}

/// The rules of a user of `kubectl cloister`: the table of `docs/kubectl.md`.
fn developer() -> Vec<Value> {
    vec![
        rule("cloister.dev", "imagebuilds", &["get", "create", "patch", "watch", "list"]),
        rule("", "pods", &["get"]),
        rule("", "pods/log", &["get"]),
        // Attaching over a WebSocket begins with a GET, which API servers before 1.35 take for the verb.
        rule("", "pods/attach", &["get", "create"]),
        rule("", "secrets", &["create"]),
    ]
}

impl Cluster {
    /// The kubeconfig of somebody who builds in the namespace `default`, and may do nothing else.
    pub fn developer(&self) -> Result<PathBuf> {
        let (version, group) = ("rbac.authorization.k8s.io/v1", "rbac.authorization.k8s.io");
        let items = json!([
            {"apiVersion": version, "kind": "Role", "metadata": {"name": "dev", "namespace": "default"},
                "rules": developer()},
            {"apiVersion": version, "kind": "RoleBinding", "metadata": {"name": "dev", "namespace": "default"},
                "roleRef": {"apiGroup": group, "kind": "Role", "name": "dev"},
                "subjects": [{"apiGroup": group, "kind": "User", "name": "dev"}]},
        ]);
        self.apply(&json!({"apiVersion": "v1", "kind": "List", "items": items}).to_string())?;
        self.kubeconfig_of("dev", &[])
    }

    /// Gives the user `operator` and the groups `cloister-nodes` and `cloister-installers` the rights of these programs.
    pub fn grant_rights(&self) -> Result<()> {
        let (version, group) = ("rbac.authorization.k8s.io/v1", "rbac.authorization.k8s.io");
        let grant = |name: &str, rules: Vec<Value>, kind: &str| {
            [
                json!({"apiVersion": version, "kind": "ClusterRole", "metadata": {"name": name}, "rules": rules}),
                json!({"apiVersion": version, "kind": "ClusterRoleBinding", "metadata": {"name": name},
                    "roleRef": {"apiGroup": group, "kind": "ClusterRole", "name": name},
                    "subjects": [{"apiGroup": group, "kind": kind, "name": name}]}),
            ]
        };
        let items = [
            grant("operator", charted("operator")?, "User"),
            grant("cloister-nodes", charted("builds")?, "Group"),
            grant("cloister-installers", charted("node")?, "Group"),
        ]
        .concat();
        self.apply(&json!({"apiVersion": "v1", "kind": "List", "items": items}).to_string())?;
        Ok(())
    }
}
