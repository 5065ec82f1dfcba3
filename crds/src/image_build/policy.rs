//! When a build runs again, and what is kept of the times it ran.

use kube::KubeSchema;
use kube::core::Duration;
use serde::{Deserialize, Serialize};

use crate::rules::{ANNOTATION_KEY, CRON, between};

/// How many finished attempts are kept.
#[derive(KubeSchema, Clone, Debug, PartialEq, Deserialize, Serialize)]
#[serde(rename_all = "camelCase")]
pub struct History {
    /// Attempts that succeeded.
    #[serde(default = "kept")]
    #[schemars(range(min = 0, max = 10))]
    pub successful: i32,
    /// Attempts that failed or were cancelled.
    #[serde(default = "kept")]
    #[schemars(range(min = 0, max = 10))]
    pub failed: i32,
}

impl Default for History {
    fn default() -> Self {
        Self { successful: kept(), failed: kept() }
    }
}

fn kept() -> i32 {
    3
}

/// A new value of this annotation starts an attempt, unless [`Triggers::annotation`] names another one.
pub const REBUILD: &str = "cloister.dev/rebuild";

/// What else than a changed spec starts a new attempt.
#[derive(KubeSchema, Clone, Debug, Default, PartialEq, Deserialize, Serialize)]
#[serde(rename_all = "camelCase")]
#[x_kube(validation = Rule::new("has(self.baseImage) || has(self.schedule) || has(self.annotation)")
    .message("set baseImage, schedule or annotation"))]
pub struct Triggers {
    /// Build again when the digest behind a base image's tag has changed.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub base_image: Option<BaseImageTrigger>,
    /// Build again at certain times.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub schedule: Option<ScheduleTrigger>,
    /// Build again when the value of this annotation of the object has changed, such as "cloister.dev/rebuild".
    #[serde(skip_serializing_if = "Option::is_none")]
    #[schemars(length(min = 1, max = 316), regex(pattern = ANNOTATION_KEY))]
    pub annotation: Option<String>,
}

/// Looking for new base images.
#[derive(KubeSchema, Clone, Debug, PartialEq, Deserialize, Serialize)]
#[serde(rename_all = "camelCase")]
pub struct BaseImageTrigger {
    /// How often to ask, such as "6h": registries without credentials, and the node that built for images of other builds.
    #[serde(default = "interval")]
    #[schemars(schema_with = "crate::schema::duration")]
    #[x_kube(validation = between("1m", "720h"))]
    pub interval: Duration,
}

impl Default for BaseImageTrigger {
    fn default() -> Self {
        Self { interval: interval() }
    }
}

fn interval() -> Duration {
    std::time::Duration::from_secs(3600).into()
}

/// Times to build at.
#[derive(KubeSchema, Clone, Debug, Default, PartialEq, Deserialize, Serialize)]
#[serde(rename_all = "camelCase")]
pub struct ScheduleTrigger {
    /// Minute, hour, day of month, month, day of week, as in a CronJob: "30 4 * * 1" is Monday at 4:30.
    #[schemars(length(max = 128), regex(pattern = CRON))]
    pub cron: String,
    /// Time zone of these, such as "Europe/Berlin". Default: UTC.
    #[serde(skip_serializing_if = "Option::is_none")]
    #[schemars(length(min = 1, max = 64), regex(pattern = r"^[A-Za-z0-9_+-]+(/[A-Za-z0-9_+-]+)*$"))]
    pub time_zone: Option<String>,
}
