//! What the programs of Cloister may do in a cluster: the tables of their documents, for users of the lab.

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

impl Cluster {
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
