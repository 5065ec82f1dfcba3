//! What the CRI says of containerd itself.

use std::collections::BTreeMap;
use std::path::PathBuf;

use serde::Deserialize;
use tonic::Code;

use super::failed;
use super::scope::Scope;
use crate::api::cri as api;
use crate::error::{Error, Result};

/// A version, as far as it decides anything: `(major, minor)`.
pub type Version = (u32, u32);

/// containerd's CRI configuration, spelt alike by 1.7 and 2.x as far as it is read.
#[derive(Debug, Deserialize)]
struct Config {
    containerd: Runtimes,
}

#[derive(Debug, Deserialize)]
struct Runtimes {
    #[serde(default)]
    runtimes: BTreeMap<String, Handler>,
}

/// A runtime handler as containerd knows it.
#[derive(Debug, Clone, Default, PartialEq, Eq, Deserialize)]
#[serde(default)]
pub struct Handler {
    /// Such as `io.containerd.runc.v2`.
    #[serde(rename = "runtimeType")]
    pub kind: String,
    /// The shim's program, when it is not found by the type.
    #[serde(rename = "runtimePath")]
    pub path: PathBuf,
    /// Whose snapshots its images get; the default one's when empty.
    pub snapshotter: String,
}

impl Scope {
    /// Which containerd answers.
    pub async fn cri_version(&self) -> Result<Version> {
        let mut client = api::runtime_service_client::RuntimeServiceClient::new(self.channel());
        let reply = client.version(self.request(api::VersionRequest::default())?).await;
        let reply = reply.map_err(|status| failed("ask for the CRI's version", &status))?.into_inner();
        parse(&reply.runtime_version).ok_or_else(|| {
            let found = reply.runtime_version.chars().take(64).collect::<String>();
            Error::Containerd(format!("{found:?} is no version of containerd"))
        })
    }

    /// The runtime handlers that pods can ask for.
    ///
    /// # Errors
    /// [`Error::Precondition`] when containerd serves no CRI: its plugins are loaded before it answers anybody.
    pub async fn cri_handlers(&self) -> Result<BTreeMap<String, Handler>> {
        let mut client = api::runtime_service_client::RuntimeServiceClient::new(self.channel());
        let reply = client.status(self.request(api::StatusRequest { verbose: true })?).await;
        let reply = reply.map_err(|status| match status.code() {
            Code::Unimplemented => Error::Precondition("containerd runs and serves no CRI".to_owned()),
            _ => failed("ask for the CRI's status", &status),
        })?;
        let reply = reply.into_inner();
        let config = reply.info.get("config").map_or("", String::as_str);
        let config: Config = serde_json::from_str(config).map_err(|error| {
            Error::Containerd(format!("the CRI's configuration is not understood: {error}"))
        })?;
        Ok(config.containerd.runtimes)
    }
}

/// `1.7.24~ds1`, `v2.1.9`.
fn parse(text: &str) -> Option<Version> {
    let mut parts = text.trim_start_matches('v').split('.');
    let major = parts.next()?.parse().ok()?;
    let minor = parts.next()?;
    let digits = minor.find(|c: char| !c.is_ascii_digit()).unwrap_or(minor.len());
    Some((major, minor[..digits].parse().ok()?))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn versions_of_packages_are_understood() {
        assert_eq!(parse("1.7.24~ds1"), Some((1, 7)));
        assert_eq!(parse("v2.1.9"), Some((2, 1)));
        assert_eq!(parse("2.2-rc"), Some((2, 2)));
        assert_eq!(parse("nightly"), None);
    }
}
