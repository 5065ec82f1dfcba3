//! Who of several processes acts: the holder of a Kubernetes Lease. Clocks are not compared: a lease counts as given up
//! when it has not changed for its duration, as this process saw it.

use std::time::Duration;

use jiff::Timestamp;
use k8s_openapi::api::coordination::v1::{Lease, LeaseSpec};
use k8s_openapi::apimachinery::pkg::apis::meta::v1::{MicroTime, ObjectMeta};
use kube::api::{Api, PostParams};
use tokio::time::{Instant, sleep, timeout};

/// Times of an election; a replica that cannot renew stops acting `duration - renew` before another one may start.
#[derive(Debug, Clone, Copy)]
pub struct Times {
    /// How long a lease holds after it was renewed.
    pub duration: Duration,
    /// How long its holder tries to renew it before it steps down.
    pub renew: Duration,
    /// Time between two tries.
    pub retry: Duration,
}

/// One replica's view of the Lease.
pub struct Election {
    leases: Api<Lease>,
    name: String,
    identity: String,
    times: Times,
    /// What the Lease looked like when it last changed, and when that was seen.
    seen: Option<(String, Instant)>,
}

/// A call that did not succeed in time.
#[derive(Debug, thiserror::Error)]
enum Failed {
    #[error(transparent)]
    Api(#[from] kube::Error),
    #[error("no answer in time")]
    Time(#[from] tokio::time::error::Elapsed),
}

impl Election {
    /// An election for the Lease `name`.
    pub const fn new(leases: Api<Lease>, name: String, identity: String, times: Times) -> Self {
        Self { leases, name, identity, times, seen: None }
    }

    /// Waits until this replica holds the lease.
    pub async fn acquire(&mut self) {
        loop {
            match self.claim().await {
                Ok(true) => return,
                Ok(false) => {}
                Err(error) => tracing::warn!(lease = self.name, "cannot claim the lease: {error}"),
            }
            sleep(self.times.retry).await;
        }
    }

    /// Renews the lease until it is lost.
    pub async fn keep(&mut self) {
        let mut renewed = Instant::now();
        while renewed.elapsed() < self.times.renew {
            sleep(self.times.retry.min(self.times.renew.saturating_sub(renewed.elapsed()))).await;
            // What is underway when time is up counts as failed.
            let left = self.times.renew.saturating_sub(renewed.elapsed());
            let asked = Instant::now();
            match timeout(left, self.claim()).await {
                Ok(Ok(true)) => renewed = asked,
                Ok(Ok(false)) => return,
                Ok(Err(error)) => tracing::warn!(lease = self.name, "cannot renew the lease: {error}"),
                Err(_) => return,
            }
        }
    }

    /// Gives the lease up, so that another replica need not wait for its end.
    pub async fn release(&mut self) {
        let given = async {
            let mut lease = self.call(self.leases.get(&self.name)).await?;
            let Some(spec) = lease.spec.as_mut().filter(|spec| self.holds(spec)) else { return Ok(()) };
            spec.holder_identity = Some(String::new());
            spec.lease_duration_seconds = Some(1);
            self.call(self.leases.replace(&self.name, &PostParams::default(), &lease)).await.map(drop)
        };
        let given: Result<(), Failed> = given.await;
        if let Err(error) = given {
            tracing::warn!(lease = self.name, "cannot give up the lease: {error}");
        }
    }

    /// Takes or renews the lease, if it may be taken.
    async fn claim(&mut self) -> Result<bool, Failed> {
        let Some(mut lease) = self.call(self.leases.get_opt(&self.name)).await? else {
            let lease = Lease {
                metadata: ObjectMeta { name: Some(self.name.clone()), ..ObjectMeta::default() },
                spec: Some(self.claimed(&LeaseSpec::default())),
            };
            return self.written(self.call(self.leases.create(&PostParams::default(), &lease)).await);
        };
        let spec = lease.spec.clone().unwrap_or_default();
        if !self.holds(&spec) && !self.is_free(&spec, lease.metadata.resource_version.as_deref()) {
            return Ok(false);
        }
        lease.spec = Some(self.claimed(&spec));
        // The version in it makes sure that nobody else took it since.
        self.written(self.call(self.leases.replace(&self.name, &PostParams::default(), &lease)).await)
    }

    fn written(&mut self, answer: Result<Lease, Failed>) -> Result<bool, Failed> {
        match answer {
            Ok(_) => Ok(true),
            Err(Failed::Api(kube::Error::Api(status))) if status.code == 409 => Ok(false),
            Err(error) => Err(error),
        }
    }

    async fn call<T>(&self, call: impl Future<Output = kube::Result<T>>) -> Result<T, Failed> {
        Ok(timeout(self.times.renew, call).await??)
    }

    fn holds(&self, spec: &LeaseSpec) -> bool {
        spec.holder_identity.as_deref() == Some(&self.identity)
    }

    /// Whether nobody holds it, or has not renewed it for its duration.
    fn is_free(&mut self, spec: &LeaseSpec, version: Option<&str>) -> bool {
        if spec.holder_identity.as_deref().unwrap_or_default().is_empty() {
            return true;
        }
        let version = version.unwrap_or_default();
        let now = Instant::now();
        match &self.seen {
            Some((seen, since)) if seen == version => {
                let seconds =
                    u64::try_from(spec.lease_duration_seconds.unwrap_or_default()).unwrap_or_default();
                since.elapsed() >= Duration::from_secs(seconds)
            }
            _ => {
                self.seen = Some((version.to_owned(), now));
                false
            }
        }
    }

    fn claimed(&self, before: &LeaseSpec) -> LeaseSpec {
        let now = MicroTime(Timestamp::now());
        let ours = self.holds(before);
        let changes = before.lease_transitions.unwrap_or_default();
        LeaseSpec {
            holder_identity: Some(self.identity.clone()),
            // Rounded up: a lease that ends early has two holders.
            lease_duration_seconds: i32::try_from(self.times.duration.as_millis().div_ceil(1000)).ok(),
            acquire_time: if ours { before.acquire_time.clone() } else { Some(now.clone()) },
            renew_time: Some(now),
            lease_transitions: Some(if ours { changes } else { changes + 1 }),
            ..before.clone()
        }
    }
}
