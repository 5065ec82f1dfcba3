//! References to other objects of the build's namespace.

use kube::KubeSchema;
use serde::{Deserialize, Serialize};

use crate::rules::{KEY, SUBDOMAIN};

/// A Secret of the same namespace.
#[derive(KubeSchema, Clone, Debug, Default, PartialEq, Deserialize, Serialize)]
#[serde(rename_all = "camelCase")]
pub struct SecretRef {
    /// Name of the Secret.
    #[schemars(length(min = 1, max = 253), regex(pattern = SUBDOMAIN))]
    pub name: String,
}

/// One key of a Secret or ConfigMap of the same namespace.
#[derive(KubeSchema, Clone, Debug, Default, PartialEq, Deserialize, Serialize)]
#[serde(rename_all = "camelCase")]
pub struct KeyRef {
    /// Name of the object.
    #[schemars(length(min = 1, max = 253), regex(pattern = SUBDOMAIN))]
    pub name: String,
    /// Key in the object.
    #[schemars(length(min = 1, max = 253), regex(pattern = KEY))]
    pub key: String,
}
