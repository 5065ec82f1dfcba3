//! How an image wants to be run.

use std::collections::BTreeMap;

use cloister_layer::digest::Digest;
use oci_spec::image::ImageConfiguration;
use serde::Serialize;

use crate::error::{Error, Result};
use crate::platform::Platform;

/// The parts of an image's configuration that a runtime uses (image-spec `config.md`).
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize)]
pub struct ImageConfig {
    /// Program and first arguments; comes before `cmd`.
    pub entrypoint: Vec<String>,
    /// Default arguments, or the program when there is no entrypoint.
    pub cmd: Vec<String>,
    /// `NAME=VALUE` each.
    pub env: Vec<String>,
    /// `user`, `uid`, `user:group`, …; empty means root.
    pub user: String,
    /// Absolute path; empty means `/`.
    pub working_dir: String,
    /// Such as `SIGTERM` or `15`.
    pub stop_signal: Option<String>,
    /// Labels, sorted.
    pub labels: BTreeMap<String, String>,
    /// Such as `80/tcp`, sorted.
    pub exposed_ports: Vec<String>,
    /// Paths the image wants on a volume, sorted.
    pub volumes: Vec<String>,
}

/// A config blob, read and checked.
#[derive(Debug, Clone)]
pub(crate) struct ParsedConfig {
    pub(crate) run: ImageConfig,
    pub(crate) platform: Platform,
    pub(crate) created: Option<jiff::Timestamp>,
    pub(crate) diff_ids: Vec<Digest>,
}

impl ImageConfig {
    /// Reads a config blob that is already in the store.
    pub(crate) fn parse(json: &[u8], digest: &Digest) -> Result<Self> {
        Ok(ParsedConfig::parse(json, digest)?.run)
    }
}

impl ParsedConfig {
    pub(crate) fn parse(json: &[u8], digest: &Digest) -> Result<Self> {
        let subject = || format!("image config {digest}");
        let config: ImageConfiguration = serde_json::from_slice(json)
            .map_err(|error| Error::invalid(subject(), format!("not an image configuration: {error}")))?;
        if config.rootfs().typ() != "layers" {
            return Err(Error::invalid(subject(), "rootfs.type is not `layers`"));
        }
        let diff_ids = config
            .rootfs()
            .diff_ids()
            .iter()
            .map(|text| {
                text.parse::<Digest>().map_err(|error| Error::invalid(subject(), format!("diff ID: {error}")))
            })
            .collect::<Result<_>>()?;
        let platform = Platform::new(
            &config.os().to_string(),
            &config.architecture().to_string(),
            config.variant().as_deref().unwrap_or_default(),
        );
        // A date we cannot read is worth less than an image that runs.
        let created = config.created().as_deref().and_then(|text| text.parse().ok());
        let run = config.config().as_ref().map(|c| ImageConfig {
            entrypoint: c.entrypoint().clone().unwrap_or_default(),
            cmd: c.cmd().clone().unwrap_or_default(),
            env: c.env().clone().unwrap_or_default(),
            user: c.user().clone().unwrap_or_default(),
            working_dir: c.working_dir().clone().unwrap_or_default(),
            stop_signal: c.stop_signal().clone().filter(|signal| !signal.is_empty()),
            labels: c.labels().clone().unwrap_or_default().into_iter().collect(),
            exposed_ports: sorted(c.exposed_ports().clone()),
            volumes: sorted(c.volumes().clone()),
        });
        Ok(Self { run: run.unwrap_or_default(), platform, created, diff_ids })
    }
}

fn sorted(list: Option<Vec<String>>) -> Vec<String> {
    let mut list = list.unwrap_or_default();
    list.sort();
    list
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn docker_configs_with_nulls_are_read() {
        let json = br#"{"architecture":"amd64","os":"linux","created":"2024-01-02T03:04:05.678901234Z","docker_version":"24",
            "config":{"Hostname":"","Env":["PATH=/bin"],"Cmd":null,"Entrypoint":["/init"],"Volumes":{"/b":{},"/a":{}},"Labels":null,
            "OnBuild":null,"ExposedPorts":null,"WorkingDir":"/w","User":"7:8","StopSignal":"SIGINT"},"container_config":{},
            "history":[{"created":"2024-01-02T03:04:05Z","created_by":"x","empty_layer":true}],
            "rootfs":{"type":"layers","diff_ids":["sha256:6c3c624b58dbbcd3c0dd82b4c53f04194d1247c6eebdaab7c610cf7d66709b3b"]}}"#;
        let parsed = ParsedConfig::parse(json, &Digest::of(json)).unwrap();
        assert_eq!(parsed.run.entrypoint, ["/init"]);
        assert!(parsed.run.cmd.is_empty());
        assert_eq!(parsed.run.volumes, ["/a", "/b"]);
        assert_eq!(parsed.run.stop_signal.as_deref(), Some("SIGINT"));
        assert_eq!(parsed.platform.to_string(), "linux/amd64");
        assert_eq!(parsed.diff_ids.len(), 1);
        assert!(parsed.created.is_some());
    }

    #[test]
    fn configs_that_are_none_are_refused_in_one_line() {
        for json in [
            &b""[..],
            b"{}",
            b"[]",
            br#"{"architecture":"amd64","os":"linux","rootfs":{"type":"x","diff_ids":[]}}"#,
            br#"{"architecture":"amd64","os":"linux","rootfs":{"type":"layers","diff_ids":["sha256:../../x"]}}"#,
        ] {
            let error = ParsedConfig::parse(json, &Digest::of(json)).unwrap_err().to_string();
            assert!(!error.contains('\n'), "{error}");
        }
    }
}
