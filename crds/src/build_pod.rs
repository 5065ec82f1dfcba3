//! What the pod of an attempt is called by and says: the contract of operator, shim and the node's build driver.

/// Label with the name of the `ImageBuild`.
pub const IMAGE_BUILD: &str = "cloister.dev/image-build";
/// Label with the number of the attempt.
pub const ATTEMPT: &str = "cloister.dev/attempt";
/// Label with the generation that the attempt builds.
pub const GENERATION: &str = "cloister.dev/generation";
/// What build pods are found by.
pub const SELECTOR: &str = "app.kubernetes.io/managed-by=cloister-operator,app.kubernetes.io/component=build";

/// Annotation that makes a pod a builder's: privileged inside its VM, with [`HOST`] kept outside.
pub const BUILDER: &str = "cloister.dev/builder";
/// Annotation with the network that the VM gets: `None` or `Egress`.
pub const NETWORK: &str = "cloister.dev/network";
/// Annotation with the key of the cache disk, which builds of one namespace share; absent for none.
pub const CACHE_KEY: &str = "cloister.dev/cache-key";
/// Annotation with the size of that disk in bytes.
pub const CACHE_BYTES: &str = "cloister.dev/cache-bytes";
/// Annotation with the seconds after which the VM ends, whatever it does.
pub const DEADLINE: &str = "cloister.dev/deadline-seconds";

/// Where the pod mounts what only the host's side reads.
pub const HOST: &str = "/run/cloister/host";
/// Key of the frozen spec in the attempt's ConfigMap.
pub const SPEC: &str = "spec.json";
