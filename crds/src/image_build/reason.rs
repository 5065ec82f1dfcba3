//! Conditions and their reasons: words that programs may rely on.

use serde::{Deserialize, Serialize};

/// Types of an `ImageBuild`'s conditions, as kstatus and `kubectl wait` understand them.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum ConditionType {
    /// True when every selected node can run the image (or registry and archive have it).
    Ready,
    /// True while work goes on; absent otherwise.
    Reconciling,
    /// True when nothing will happen until the spec, or what it refers to, changes; absent otherwise.
    Stalled,
    /// Result of the newest attempt: True, False, or Unknown while it runs.
    Succeeded,
}

impl ConditionType {
    /// The condition's `type`.
    pub const fn as_str(self) -> &'static str {
        match self {
            Self::Ready => "Ready",
            Self::Reconciling => "Reconciling",
            Self::Stalled => "Stalled",
            Self::Succeeded => "Succeeded",
        }
    }
}

/// Defines [`BuildReason`] from one table: name, whether another attempt can help, meaning.
macro_rules! reasons {
    ($($name:ident $retry:literal $meaning:literal)*) => {
        /// Why a condition is as it is: `reason` of conditions and of a failure.
        #[derive(schemars::JsonSchema, Clone, Copy, Debug, Default, PartialEq, Eq, Deserialize, Serialize)]
        pub enum BuildReason {
            $(#[doc = $meaning] $name,)*
            /// Written by a newer version.
            #[default]
            #[serde(other)]
            Unknown,
        }

        impl BuildReason {
            /// Every reason, in the order of the documentation.
            pub const ALL: &[Self] = &[$(Self::$name,)* Self::Unknown];

            /// The reason as it stands in a condition.
            pub const fn as_str(self) -> &'static str {
                match self {
                    $(Self::$name => stringify!($name),)*
                    Self::Unknown => "Unknown",
                }
            }

            /// Whether another attempt with the same spec can end better.
            pub const fn is_retried(self) -> bool {
                match self {
                    $(Self::$name => $retry,)*
                    Self::Unknown => false,
                }
            }

            /// The reasons for which an attempt may have failed.
            pub fn failures() -> impl Iterator<Item = Self> {
                Self::ALL.iter().copied().skip_while(|reason| *reason != Self::Cancelled)
            }

            /// What the reason means, in one sentence.
            pub const fn meaning(self) -> &'static str {
                match self {
                    $(Self::$name => $meaning,)*
                    Self::Unknown => "Written by a newer version.",
                }
            }
        }
    };
}

reasons! {
    // What is going on.
    Queued              false "Waits for its turn."
    Scheduling          false "Its pod waits for a node."
    Starting            false "The microVM boots or BuildKit starts."
    Building            false "The Dockerfile's steps run."
    Distributing        false "The image is on its way to nodes, registry or archive."
    RetryScheduled      false "An attempt failed through no fault of its own; the next one waits."
    // What has ended well, or by wish.
    ImageReady          false "The image is everywhere it should be."
    Suspended           false "spec.suspend is true."
    Cancelled           false "spec.cancel is true."
    // What another attempt would not change.
    InvalidSpec         false "The spec contradicts itself in a way that no rule of the schema could see."
    SourceNotFound      false "The source, or what it refers to, does not exist."
    SourceInvalid       false "The source is of a kind that is not taken, is damaged, or goes over a bound."
    SourceMismatch      false "The source does not have the digest that the spec says."
    SecretNotFound      false "A Secret or ConfigMap, or a key of it, does not exist."
    AccessDenied        false "A registry, repository or server refused the credentials."
    BaseImageNotFound   false "A base image does not exist, or not for this platform."
    DockerfileInvalid   false "The Dockerfile is missing or cannot be parsed."
    StepFailed          false "A RUN step ended with an exit code other than 0."
    NetworkDisabled     false "A RUN step needed the network, which spec.network does not allow."
    OutOfMemory         false "The build needed more memory than its limit."
    OutOfDisk           false "The build needed more disk than its limit."
    ResultTooLarge      false "The result has more bytes than the build's disk, or than a node takes."
    CacheTooLarge       false "The cache disk is larger than all of them may be on a node."
    DeadlineExceeded    false "An attempt took longer than spec.timeout."
    DigestMismatch      false "What left the guest does not have the digest that it claims."
    ArchiveFailed       false "The archive could not be written to its volume."
    // What may pass.
    SourceUnavailable   true  "The source's server did not answer."
    RegistryUnavailable true  "A registry did not answer."
    PodEvicted          true  "The pod was evicted or preempted."
    NodeLost            true  "The node was lost."
    BuilderLost         true  "The microVM or BuildKit ended unexpectedly."
    ImportFailed        true  "The node could not import the image."
}
