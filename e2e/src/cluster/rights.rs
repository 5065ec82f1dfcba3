//! What the programs of Cloister may do in a cluster: the tables of their documents, for users of the lab.

use std::path::PathBuf;

use anyhow::Result;
use serde_json::{Value, json};

use super::Cluster;

fn rule(group: &str, resource: &str, verbs: &[&str]) -> Value {
    json!({"apiGroups": [group], "resources": [resource], "verbs": verbs})
}

/// The rules of `cloister-operator`.
fn operator() -> Vec<Value> {
    vec![
        rule("cloister.dev", "imagebuilds", &["get", "list", "watch", "patch", "delete"]),
        rule("cloister.dev", "imagebuilds/status", &["patch"]),
        rule("cloister.dev", "imagebuilds/finalizers", &["update"]),
        rule("", "pods", &["get", "list", "watch", "create", "delete"]),
        rule("", "configmaps", &["get", "create", "delete"]),
        rule("", "nodes", &["list", "watch"]),
        rule("scheduling.k8s.io", "priorityclasses", &["list", "watch"]),
        rule("events.k8s.io", "events", &["create", "patch"]),
        rule("coordination.k8s.io", "leases", &["get", "create", "update"]),
    ]
}

/// The rules of `cloister-node builds`.
fn node() -> Vec<Value> {
    vec![
        rule("cloister.dev", "imagebuilds", &["get", "list", "watch"]),
        rule("cloister.dev", "imagebuilds/status", &["patch"]),
        rule("", "pods", &["get", "list", "watch"]),
        rule("", "nodes", &["get", "list", "watch"]),
        rule("events.k8s.io", "events", &["create", "patch"]),
    ]
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

    /// Gives the user `operator` and the group `cloister-nodes` the rights of these programs.
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
        let items =
            [grant("operator", operator(), "User"), grant("cloister-nodes", node(), "Group")].concat();
        self.apply(&json!({"apiVersion": "v1", "kind": "List", "items": items}).to_string())?;
        Ok(())
    }
}
