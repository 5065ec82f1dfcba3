//! Puts the parts together and runs them until told to stop.

use std::convert::Infallible;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::Duration;

use anyhow::{Context as _, Result};
use cloister_crds::ImageBuild;
use cloister_lease::Election;
use cloister_pages::{Page, Pages};
use futures::FutureExt;
use futures::stream::{self, StreamExt};
use kube::Client;
use kube::api::Api;
use kube::runtime::applier;
use kube::runtime::controller::{Config, ReconcileRequest};
use kube::runtime::events::{Recorder, Reporter};
use kube::runtime::reflector::ObjectRef;
use tokio::net::TcpListener;
use tokio::signal::unix::{SignalKind, signal};
use tokio::sync::mpsc;

use crate::cache::{Cache, Wakes};
use crate::config::Args;
use crate::metrics::Metrics;
use crate::plan::is_running;
use crate::reconcile::{self, Context};

/// Builds that are looked at at the same time.
const PARALLEL: u16 = 8;
/// Changes within this time are one.
const DEBOUNCE: Duration = Duration::from_millis(20);
/// The queue is looked at at least this often.
const PUMP: Duration = Duration::from_secs(5);

/// What is served over HTTP.
struct Site {
    metrics: Arc<Metrics>,
    /// Whether the API server has answered.
    ready: AtomicBool,
}

impl Pages for Site {
    async fn page(&self, path: &str) -> Option<Page> {
        match path {
            "/metrics" => Some(self.metrics.page().map_or_else(Page::failed, Page::ok)),
            "/healthz" => Some(Page::ok("ok\n")),
            "/readyz" => Some(match self.ready.load(Ordering::Relaxed) {
                true => Page::ok("ok\n"),
                false => Page::unavailable("the API server has not answered yet"),
            }),
            _ => None,
        }
    }
}

/// Runs until SIGTERM or SIGINT; a lease is given up then.
///
/// # Errors
/// When the configuration, the address or the API server is not what it should be.
pub async fn run(args: Args) -> Result<()> {
    args.check().map_err(anyhow::Error::msg)?;
    let metrics = Arc::new(Metrics::new().context("metrics")?);
    let site = Arc::new(Site { metrics: metrics.clone(), ready: AtomicBool::new(false) });
    let listener = TcpListener::bind(args.metrics_address)
        .await
        .with_context(|| format!("cannot listen on {}", args.metrics_address))?;
    tracing::info!(address = %listener.local_addr()?, "serving /metrics, /healthz, /readyz");
    let mut terminate = signal(SignalKind::terminate())?;
    let mut interrupt = signal(SignalKind::interrupt())?;
    let client = Client::try_default().await.context("no cluster is configured")?;
    let identity = args.identity.clone().unwrap_or_else(host);
    let mut election = args.lease_namespace.as_ref().map(|namespace| {
        let leases = Api::namespaced(client.clone(), namespace);
        Election::new(leases, args.lease_name.clone(), identity.clone(), args.times())
    });
    let work = async {
        let version = client.apiserver_version().await.context("the API server does not answer")?;
        tracing::info!(version = version.git_version, identity, "connected");
        site.ready.store(true, Ordering::Relaxed);
        lead(&args, &client, &metrics, &identity, election.as_mut()).await
    };
    let stopped = tokio::select! {
        result = work => result,
        () = cloister_pages::serve_tcp(listener, site.clone()) => Ok(()),
        _ = terminate.recv() => Ok(()),
        _ = interrupt.recv() => Ok(()),
    };
    // Nothing acts any more: whoever takes the lease now is alone.
    if let Some(election) = &mut election {
        election.release().await;
    }
    tracing::info!("stopped");
    stopped
}

/// Acts whenever this replica holds the lease.
async fn lead(
    args: &Args,
    client: &Client,
    metrics: &Arc<Metrics>,
    identity: &str,
    mut election: Option<&mut Election>,
) -> Result<()> {
    loop {
        if let Some(election) = &mut election {
            election.acquire().await;
            tracing::info!("holds the lease");
        }
        metrics.leads.set(1);
        let kept = async {
            match &mut election {
                Some(election) => election.keep().await,
                None => std::future::pending().await,
            }
        };
        // Whatever is underway is dropped with the future.
        tokio::select! {
            () = act(args, client, metrics, identity) => anyhow::bail!("the watches have ended"),
            () = kept => {}
        }
        metrics.leads.set(0);
        tracing::warn!("lost the lease");
    }
}

/// Looks at builds until dropped.
async fn act(args: &Args, client: &Client, metrics: &Arc<Metrics>, identity: &str) {
    let (cache, wakes, watches) = Cache::start(client, &args.namespaces, metrics);
    let reporter = Reporter { controller: "cloister-operator".into(), instance: Some(identity.to_owned()) };
    let context = Arc::new(Context {
        client: client.clone(),
        cache,
        ledger: Default::default(),
        failures: Default::default(),
        limits: args.limits(),
        settings: args.settings(),
        pods: args.pods(),
        metrics: metrics.clone(),
        recorder: Recorder::new(client.clone(), reporter),
    });
    let (pumps, pumped): (Vec<_>, Vec<_>) = wakes.iter().map(|_| mpsc::channel(64)).unzip();
    let looks = looks(wakes, pumped, &context);
    tokio::select! {
        () = looks => {}
        () = pump(&context, &pumps) => {}
    }
    drop(watches);
}

/// Looks at the builds that are woken.
async fn looks(wakes: Wakes, pumped: Wakes, context: &Arc<Context>) {
    let scopes = context.cache.scopes.iter().cloned();
    let all = scopes.zip(wakes.into_iter().zip(pumped)).map(|(scope, (wakes, pumped))| {
        let queue = stream::select(received(wakes), received(pumped));
        let queue = queue.map(|build| Ok::<_, Infallible>(ReconcileRequest::from(build)));
        let builds = scope.builds.clone();
        let config = Config::default().concurrency(PARALLEL).debounce(DEBOUNCE);
        let one = move |build, context| Box::pin(reconcile::reconcile(build, scope.clone(), context));
        let failed =
            |build: Arc<_>, error: &_, context: Arc<Context>| reconcile::failed(&build, error, &context);
        // Each error has had its line and its number in `failed`.
        applier(one, failed, context.clone(), builds, queue, config).for_each(|_| async {}).boxed_local()
    });
    stream::iter(all.collect::<Vec<_>>()).for_each_concurrent(None, |look| look).await;
}

fn received<T: Send + 'static>(receiver: mpsc::Receiver<T>) -> stream::BoxStream<'static, T> {
    stream::unfold(receiver, |mut receiver| async move { Some((receiver.recv().await?, receiver)) }).boxed()
}

/// Wakes builds whose turn comes because others have ended, and all that select nodes when nodes change.
async fn pump(context: &Context, pumps: &[mpsc::Sender<ObjectRef<ImageBuild>>]) {
    context.cache.ready().await;
    loop {
        let mut nodes = false;
        tokio::select! {
            () = context.cache.changed.notified() => tokio::time::sleep(DEBOUNCE).await,
            () = context.cache.nodes_changed.notified() => nodes = true,
            () = tokio::time::sleep(PUMP) => {}
        }
        let mut wake = reconcile::next(context);
        let (mut active, mut all) = (0, 0);
        for build in context.cache.builds() {
            all += 1;
            active += i64::from(build.status.iter().flat_map(|status| &status.attempts).any(is_running));
            if nodes && build.spec.output.nodes.is_some() {
                wake.push(ObjectRef::from_obj(&*build));
            }
        }
        context.metrics.active.set(active);
        tracing::trace!(all, active, wake = wake.len(), "pump");
        for build in wake {
            let holds = |scope: &crate::cache::Scope| scope.builds.get(&build).is_some();
            if let Some(index) = context.cache.scopes.iter().position(holds) {
                let _ = pumps[index].send(build).await;
            }
        }
    }
}

/// This host's name: in a pod, the pod's.
fn host() -> String {
    rustix::system::uname().nodename().to_string_lossy().into_owned()
}
