//! One node at a time: what every node of a cluster does, and only one may be doing, is done under a Lease.

use std::future::Future;
use std::time::Duration;

use cloister_lease::{Election, Times};
use k8s_openapi::api::coordination::v1::Lease;
use kube::Client;
use kube::api::Api;
use tokio::select;
use tokio_util::sync::CancellationToken;
use tracing::{info, warn};

/// Name of the Lease, in the namespace of the credentials.
const NAME: &str = "cloister-node-install";
/// A node that vanishes in its turn holds up the others for a minute.
const TIMES: Times = Times {
    duration: Duration::from_secs(60),
    renew: Duration::from_secs(40),
    retry: Duration::from_secs(5),
};

/// What decides whose turn it is.
pub struct Turns(Option<Election>);

impl Turns {
    /// Those of the nodes of a cluster; without one it is always this node's turn.
    pub fn new(client: Option<&Client>, node: &str) -> Self {
        Self(client.map(|client| {
            let leases: Api<Lease> = Api::default_namespaced(client.clone());
            Election::new(leases, NAME.to_owned(), node.to_owned(), TIMES)
        }))
    }

    /// Does `work` when it is this node's turn. `None` when told to stop before; what has begun is finished.
    pub async fn take<T>(&mut self, stop: &CancellationToken, work: impl Future<Output = T>) -> Option<T> {
        let Some(election) = &mut self.0 else { return Some(work.await) };
        info!(lease = NAME, "waiting for this node's turn");
        let come = select! {
            () = election.acquire() => true,
            () = stop.cancelled() => false,
        };
        let mut done = None;
        if come {
            tokio::pin!(work);
            done = Some(select! {
                done = &mut work => done,
                () = election.keep() => {
                    warn!(lease = NAME, "lost: what has begun is finished all the same");
                    work.await
                }
            });
        }
        election.release().await;
        done
    }
}
