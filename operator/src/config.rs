//! Flags of the operator; each can be given in the environment too, as `CLOISTER_OPERATOR_…`.

use std::net::SocketAddr;
use std::time::Duration;

use clap::Parser;
use cloister_crds::ResourceList;
use cloister_lease::Times;
use jiff::SignedDuration;
use k8s_openapi::apimachinery::pkg::api::resource::Quantity;

use crate::plan::Settings;
use crate::pod::PodSettings;
use crate::quantity::thousandths;
use crate::queue::Limits;

/// The controller of ImageBuild.
#[derive(Debug, Clone, Parser)]
#[command(name = "cloister-operator", version)]
pub struct Args {
    /// Image of the builder's pod, with its digest.
    #[arg(long, env = "CLOISTER_OPERATOR_BUILDER_IMAGE")]
    pub builder_image: String,
    /// RuntimeClass of the builder's pod.
    #[arg(long, default_value = "cloister", env = "CLOISTER_OPERATOR_RUNTIME_CLASS")]
    pub runtime_class: String,
    /// Namespaces to look at, with commas between; all when absent.
    #[arg(long, value_delimiter = ',', env = "CLOISTER_OPERATOR_NAMESPACES")]
    pub namespaces: Vec<String>,
    /// Builds that may run at the same time; 0 is no limit.
    #[arg(long, default_value_t = 10, env = "CLOISTER_OPERATOR_MAX_CONCURRENT")]
    pub max_concurrent: usize,
    /// Builds of one namespace that may run at the same time; 0 is no limit.
    #[arg(long, default_value_t = 0, env = "CLOISTER_OPERATOR_MAX_PER_NAMESPACE")]
    pub max_per_namespace: usize,
    /// Builds that may run at the same time on one node; 0 is no limit.
    #[arg(long, default_value_t = 0, env = "CLOISTER_OPERATOR_MAX_PER_NODE")]
    pub max_per_node: usize,
    /// Processors of a build that sets no limit.
    #[arg(long, value_parser = quantity, env = "CLOISTER_OPERATOR_DEFAULT_CPU")]
    pub default_cpu: Option<Quantity>,
    /// Memory of a build that sets no limit.
    #[arg(long, default_value = "2Gi", value_parser = quantity, env = "CLOISTER_OPERATOR_DEFAULT_MEMORY")]
    pub default_memory: Quantity,
    /// Scratch disk of a build that sets no limit.
    #[arg(long, value_parser = quantity, env = "CLOISTER_OPERATOR_DEFAULT_DISK")]
    pub default_disk: Option<Quantity>,
    /// Size of the cache disk of a build that sets none.
    #[arg(long, default_value = "10Gi", value_parser = quantity, env = "CLOISTER_OPERATOR_DEFAULT_CACHE_SIZE")]
    pub default_cache_size: Quantity,
    /// Time before the first retry of a build, such as 10s; it doubles from one to the next.
    #[arg(long, default_value = "10s", value_parser = duration, env = "CLOISTER_OPERATOR_RETRY_FIRST")]
    pub retry_first: Duration,
    /// Longest time before a retry.
    #[arg(long, default_value = "5m", value_parser = duration, env = "CLOISTER_OPERATOR_RETRY_MOST")]
    pub retry_most: Duration,
    /// How long a result may be on its way after its pod's end.
    #[arg(long, default_value = "20s", value_parser = duration, env = "CLOISTER_OPERATOR_RESULT_GRACE")]
    pub result_grace: Duration,
    /// Namespace of the Lease that decides which replica acts; without it there is one replica.
    #[arg(long, env = "CLOISTER_OPERATOR_LEASE_NAMESPACE")]
    pub lease_namespace: Option<String>,
    /// Name of that Lease.
    #[arg(long, default_value = "cloister-operator", env = "CLOISTER_OPERATOR_LEASE_NAME")]
    pub lease_name: String,
    /// What this replica is called in the Lease and in events; its host's name when absent.
    #[arg(long, env = "CLOISTER_OPERATOR_IDENTITY")]
    pub identity: Option<String>,
    /// How long the lease holds after it was renewed.
    #[arg(long, default_value = "15s", value_parser = duration, env = "CLOISTER_OPERATOR_LEASE_DURATION")]
    pub lease_duration: Duration,
    /// How long its holder tries to renew it before it steps down.
    #[arg(long, default_value = "10s", value_parser = duration, env = "CLOISTER_OPERATOR_LEASE_RENEW")]
    pub lease_renew: Duration,
    /// Time between two tries.
    #[arg(long, default_value = "2s", value_parser = duration, env = "CLOISTER_OPERATOR_LEASE_RETRY")]
    pub lease_retry: Duration,
    /// IP:PORT of /metrics, /healthz and /readyz; port 0 takes a free one, which the log names.
    #[arg(long, default_value = "0.0.0.0:8080", env = "CLOISTER_OPERATOR_METRICS_ADDRESS")]
    pub metrics_address: SocketAddr,
    /// warn, info, debug, or a filter of the tracing crate.
    #[arg(long, default_value = "info", env = "CLOISTER_OPERATOR_LOG_LEVEL")]
    pub log_level: String,
}

impl Args {
    /// Checks what one flag says about another.
    ///
    /// # Errors
    /// With the flags that do not fit.
    pub fn check(&self) -> Result<(), String> {
        if self.lease_retry < self.lease_renew && self.lease_renew < self.lease_duration {
            return Ok(());
        }
        Err("--lease-retry has to be below --lease-renew, and that below --lease-duration".to_owned())
    }

    /// How many builds may run.
    pub fn limits(&self) -> Limits {
        let limit = |number: usize| (number > 0).then_some(number);
        Limits {
            total: limit(self.max_concurrent),
            namespace: limit(self.max_per_namespace),
            node: limit(self.max_per_node),
        }
    }

    /// What decisions need.
    pub fn settings(&self) -> Settings {
        let signed = |time: Duration| SignedDuration::try_from(time).unwrap_or(SignedDuration::MAX);
        Settings {
            retry_first: signed(self.retry_first),
            retry_most: signed(self.retry_most),
            result_grace: signed(self.result_grace),
        }
    }

    /// What pods need.
    pub fn pods(&self) -> PodSettings {
        PodSettings {
            image: self.builder_image.clone(),
            runtime_class: self.runtime_class.clone(),
            limits: ResourceList {
                cpu: self.default_cpu.clone(),
                memory: Some(self.default_memory.clone()),
                ephemeral_storage: self.default_disk.clone(),
            },
            cache: self.default_cache_size.clone(),
        }
    }

    /// Times of the lease.
    pub const fn times(&self) -> Times {
        Times { duration: self.lease_duration, renew: self.lease_renew, retry: self.lease_retry }
    }
}

fn quantity(text: &str) -> Result<Quantity, String> {
    let quantity = Quantity(text.to_owned());
    thousandths(&quantity).map(|_| quantity).ok_or_else(|| "no quantity such as 2Gi or 500m".to_owned())
}

fn duration(text: &str) -> Result<Duration, String> {
    let parsed: SignedDuration = text.parse().map_err(|error| format!("{error}"))?;
    Duration::try_from(parsed).map_err(|_| "must not be negative".to_owned())
}

#[cfg(test)]
mod tests {
    use super::*;

    fn args(more: &[&str]) -> Args {
        Args::try_parse_from(["cloister-operator", "--builder-image", "b"].iter().chain(more)).unwrap()
    }

    #[test]
    fn zero_is_no_limit() {
        let limits = args(&["--max-concurrent", "2"]).limits();
        assert_eq!(limits, Limits { total: Some(2), namespace: None, node: None });
        assert_eq!(args(&["--max-concurrent", "0"]).limits(), Limits::default());
    }

    #[test]
    fn a_lease_has_to_outlast_its_renewal() {
        assert_eq!(args(&[]).check(), Ok(()));
        assert!(args(&["--lease-renew", "20s"]).check().is_err());
        assert_eq!(args(&["--lease-duration", "1m30s"]).lease_duration, Duration::from_secs(90));
    }

    #[test]
    fn amounts_are_checked_when_given() {
        let bad = ["cloister-operator", "--builder-image", "b", "--default-memory", "lots"];
        assert!(Args::try_parse_from(bad).is_err());
    }
}
