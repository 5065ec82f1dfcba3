//! The API server that a kubeconfig names, and what its answers mean.

use std::time::Duration;

use anyhow::{Context as _, Result, anyhow};
use cloister_crds::ImageBuild;
use k8s_openapi::api::core::v1::Pod;
use kube::config::{KubeConfigOptions, Kubeconfig};
use kube::{Api, Client, Config, Error};

use crate::args::kube::KubeGlobal;

/// How long the API server may take for an answer; a watch or a log is none.
pub const ANSWER: Duration = Duration::from_secs(30);

/// A cluster, and the namespace that is meant.
pub struct Cluster {
    /// Its API.
    pub client: Client,
    /// The namespace of what has a name.
    pub namespace: String,
}

impl Cluster {
    /// Reads the kubeconfig. Nothing is asked of the server yet.
    pub async fn connect(global: &KubeGlobal) -> Result<Self> {
        let options =
            KubeConfigOptions { context: global.kube_context.clone(), ..KubeConfigOptions::default() };
        let config = match &global.kubeconfig {
            Some(path) => {
                let read = Kubeconfig::read_from(path)
                    .with_context(|| format!("cannot read the kubeconfig {}", path.display()))?;
                Config::from_custom_kubeconfig(read, &options).await
            }
            None => Config::from_kubeconfig(&options).await,
        };
        let mut config = config.context("no cluster is configured: see --kubeconfig and --context")?;
        config.connect_timeout = Some(Duration::from_secs(10));
        let namespace = global.namespace.clone().unwrap_or_else(|| config.default_namespace.clone());
        let client = Client::try_from(config).context("the kubeconfig can't be used")?;
        Ok(Self { client, namespace })
    }

    /// The namespace's builds.
    pub fn builds(&self) -> Api<ImageBuild> {
        Api::namespaced(self.client.clone(), &self.namespace)
    }

    /// The namespace's pods.
    pub fn pods(&self) -> Api<Pod> {
        Api::namespaced(self.client.clone(), &self.namespace)
    }

    /// A build that must be there.
    pub async fn build(&self, name: &str) -> Result<ImageBuild> {
        let build =
            answer(self.builds().get_opt(name)).await.with_context(|| format!("imagebuild {name}"))?;
        build.with_context(|| format!("there is no imagebuild {name} in namespace {}", self.namespace))
    }
}

/// Waits for an answer, not for ever.
pub async fn answer<T>(asked: impl Future<Output = kube::Result<T>>) -> Result<T> {
    match tokio::time::timeout(ANSWER, asked).await {
        Ok(answered) => answered.map_err(plain),
        Err(_) => Err(anyhow!("the API server did not answer within {} s", ANSWER.as_secs())),
    }
}

/// An error in the API server's own words.
pub fn plain(error: Error) -> anyhow::Error {
    match error {
        Error::Api(status) => anyhow!(status.message),
        other => anyhow::Error::new(other).context("cannot reach the API server"),
    }
}

/// Whether the same request may succeed in a moment.
pub fn may_pass(error: &Error) -> bool {
    match error {
        Error::Api(status) => matches!(status.code, 408 | 429 | 500 | 502 | 503 | 504),
        Error::HyperError(_) | Error::Service(_) | Error::ReadEvents(_) => true,
        _ => false,
    }
}

/// Whether the answer was that there is no such thing.
pub fn is_missing(error: &Error) -> bool {
    matches!(error, Error::Api(status) if status.code == 404)
}

/// Time between attempts: it doubles, up to 5 s.
pub struct Pause(Duration);

impl Pause {
    /// The shortest one is first.
    pub const fn new() -> Self {
        Self(Duration::from_millis(100))
    }

    /// Waits.
    pub async fn wait(&mut self) {
        tokio::time::sleep(self.0).await;
        self.0 = (self.0 * 2).min(Duration::from_secs(5));
    }
}
