//! The API server, as this node knows it.

use std::path::{Path, PathBuf};

use anyhow::{Context, Result, ensure};
use clap::Args as Options;
use kube::config::{KubeConfigOptions, Kubeconfig};
use kube::{Client, Config};

/// Longest name of a node, in bytes.
const MAX_NAME: usize = 253;

/// Who this node is, and how the API server is reached.
#[derive(Debug, Options)]
pub struct Cluster {
    /// Name of this node's object [default: the host's name]
    #[arg(long, env = "NODE_NAME", value_name = "NAME")]
    node_name: Option<String>,
    /// Credentials for the API server [default: $KUBECONFIG, or those of the pod that this runs in]
    #[arg(long, value_name = "PATH")]
    kubeconfig: Option<PathBuf>,
}

impl Cluster {
    /// The node's name: in lower case, as the kubelet has it.
    pub fn node(&self) -> Result<String> {
        let host = || rustix::system::uname().nodename().to_string_lossy().to_lowercase();
        let name = self.node_name.clone().filter(|name| !name.is_empty()).unwrap_or_else(host);
        let fine = |byte: u8| byte.is_ascii_lowercase() || byte.is_ascii_digit() || b"-.".contains(&byte);
        ensure!(name.len() <= MAX_NAME && name.bytes().all(fine), "{name:?} is not the name of a node");
        Ok(name)
    }

    /// The same where there may be no cluster: `None` without credentials that were given to this process.
    pub async fn found(&self) -> Result<Option<Client>> {
        let given = ["KUBECONFIG", "KUBERNETES_SERVICE_HOST"].map(std::env::var_os);
        if self.kubeconfig.is_none() && given.iter().all(Option::is_none) {
            return Ok(None);
        }
        self.client().await.map(Some)
    }

    /// A client with this node's credentials.
    pub async fn client(&self) -> Result<Client> {
        let config = match &self.kubeconfig {
            Some(path) => from(path).await.with_context(|| format!("cannot use {}", path.display()))?,
            None => Config::infer().await.context("no cluster is configured")?,
        };
        Ok(Client::try_from(config)?)
    }
}

async fn from(path: &Path) -> Result<Config> {
    let file = Kubeconfig::read_from(path)?;
    Ok(Config::from_custom_kubeconfig(file, &KubeConfigOptions::default()).await?)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_node_has_the_name_it_was_given_or_the_hosts() {
        let named = |name: &str| Cluster { node_name: Some(name.to_owned()), kubeconfig: None }.node();
        assert_eq!(named("node-1.example.com").unwrap(), "node-1.example.com");
        assert!(!named("").unwrap().is_empty());
        for bad in ["a b", "A", "a/b", &"a".repeat(254)] {
            assert!(named(bad).is_err(), "{bad}");
        }
    }
}
