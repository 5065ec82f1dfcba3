//! One build from its parts to its output, whoever asks for it and wherever its buildkitd is.
//!
//! Nothing here knows of machines, terminals or clusters: the caller brings a connection, and learns by events how it goes.

mod base;
pub mod cache;
mod reason;

use std::fmt::Display;
use std::time::{Duration, Instant};

use tokio::io::{AsyncRead, AsyncWrite};
use tokio::sync::mpsc;
use tokio::time::timeout;
use tokio_util::sync::CancellationToken;

use crate::client::{
    self, BuildKit, Error, Layout, Registries, Result, Secrets, Session, Solve, Solved, SshAgents,
};
use crate::context::{Context, FileSyncService};
use crate::output::{FileSendService, Output, Receipt};
use crate::progress::Event;

pub use self::base::Base;
pub use self::cache::Caches;
pub use self::reason::Reason;

/// What BuildKit calls the store that an image goes to blob by blob.
const EXPORT: &str = "export";
/// How long a builder may take to remove what its cache keeps too much.
const GARBAGE: Duration = Duration::from_secs(30);

/// What is built, and what its steps may ask for.
pub struct Job {
    /// What to build. The Dockerfile's name, base images and outputs are added here.
    pub solve: Solve,
    /// The files of the build.
    pub context: Context,
    /// The Dockerfile under its name, first, and the ignore file that belongs to it.
    pub dockerfile: Vec<(String, Vec<u8>)>,
    /// Builds of one folder share what they have transferred when this is the same.
    pub shared_key: String,
    /// Secrets by id.
    pub secrets: Secrets,
    /// SSH agents by id.
    pub agents: SshAgents,
    /// Credentials for what buildkitd itself pulls or pushes.
    pub registries: Option<Registries>,
    /// Images it may begin from.
    pub bases: Vec<Base>,
    /// Caches beside the builder's own.
    pub caches: Caches,
    /// What becomes of the result.
    pub exporter: client::Output,
    /// Where it goes.
    pub delivery: Delivery,
}

/// Where a result goes.
pub enum Delivery {
    /// To one place, which tells when it is there.
    Output(Output, Receipt),
    /// Blob by blob into a folder, but for those that are beside it.
    Blobs(Layout),
}

/// What came of a build.
#[derive(Debug)]
pub struct Built {
    /// What buildkitd says of it.
    pub solved: Solved,
    /// From the connection to buildkitd's answer.
    pub solve: Duration,
    /// From then until the output was complete.
    pub export: Duration,
}

impl Job {
    /// Builds with the buildkitd that `connect` gives a stream to, until `lost` resolves with the reason why it is gone.
    ///
    /// # Errors
    /// See [`Error`]; [`Reason::of`] has a word for each.
    pub async fn run<S, C>(
        self,
        connect: impl Future<Output = Result<S, C>>,
        lost: impl Future<Output = String>,
        events: mpsc::Sender<Event>,
        cancel: CancellationToken,
    ) -> Result<Built>
    where
        S: AsyncRead + AsyncWrite + Unpin + Send + 'static,
        C: Display,
    {
        let Self { mut solve, context, dockerfile, shared_key, secrets, agents, bases, exporter, .. } = self;
        solve.filename = dockerfile.first().map(|(name, _)| name.clone());
        solve.outputs = vec![exporter];
        let unusable = |error: crate::context::ContextError| Error::invalid("Dockerfile", error);
        let dockerfile = Context::inline(dockerfile).map_err(unusable)?;
        let folders = [("context".to_owned(), context), ("dockerfile".to_owned(), dockerfile)];
        let mut session = Session::new("cloister", shared_key)
            .files(FileSyncService::new(folders))
            .secrets(secrets)
            .ssh(agents);
        let (mut receipt, layout) = match self.delivery {
            Delivery::Output(output, receipt) => {
                session = session.output(FileSendService::new([output]));
                (Some(receipt), None)
            }
            Delivery::Blobs(layout) => {
                session = session.content(EXPORT, layout.clone());
                (None, Some(layout))
            }
        };
        if let Some(registries) = self.registries {
            session = session.auth(registries);
        }
        for (number, base) in bases.into_iter().enumerate() {
            session = base.offer(number, session, &mut solve);
        }
        session = self.caches.offer(session, &mut solve);
        let begun = Instant::now();
        let work = async {
            let connection = connect.await.map_err(|error| Error::Lost(error.to_string()))?;
            let buildkit = BuildKit::connect(connection).await?;
            let solved = buildkit.solve(&solve, session, events, cancel.clone()).await;
            let took = begun.elapsed();
            let tidied = cancel.run_until_cancelled(timeout(GARBAGE, buildkit.collect_garbage())).await;
            if !matches!(tidied, Some(Ok(Ok(())))) {
                tracing::debug!(?tidied, "the cache keeps more than it should");
            }
            Ok((solved?, took))
        };
        let (solved, solve) = tokio::select! {
            biased;
            // buildkitd repeats in its own words what we refused; ours say what it was.
            solved = work => match solved {
                Err(failed @ Error::Failed(_)) => {
                    let refused = receipt.as_mut().and_then(Receipt::refused);
                    let refused = refused.or_else(|| layout.as_ref().and_then(Layout::refused));
                    return Err(refused.map_or(failed, Error::from));
                }
                solved => solved?,
            },
            reason = lost => return Err(Error::Lost(reason)),
        };
        let begun = Instant::now();
        if let Some(receipt) = receipt {
            receipt.wait().await?;
        }
        Ok(Built { solved, solve, export: begun.elapsed() })
    }
}
