//! A registry in the cluster that wants TLS and a password, for what builds push.

use std::fs;

use anyhow::{Result, ensure};
use serde_json::json;

use super::{Cluster, DAEMON, Daemon, network};
use crate::cell::wait_for;

/// Who may push, and htpasswd's line for it.
const USER: (&str, &str) = ("user", "secret");
const HTPASSWD: &str = "user:$2b$05$RBN4YnW7U7QXl0FLHXNyJeLcbi/rp8QaS603WoQg6mWQnHi65.g2a\n";
const PORT: u16 = 5443;

/// Debian's `docker-registry`, serving as long as this value lives.
pub struct Registry<'a> {
    cluster: &'a Cluster,
    /// The server.
    pub daemon: Daemon,
}

impl Drop for Registry<'_> {
    fn drop(&mut self) {
        if let Err(error) = self.daemon.stop(true) {
            eprintln!("registry: {error:#}");
        }
    }
}

impl<'a> Registry<'a> {
    /// Starts an empty registry, which nodes and the control plane reach. There is a ConfigMap `lab` whose key `ca.crt` is its
    /// authority, and a Secret `pusher` with credentials.
    pub fn start(cluster: &'a Cluster) -> Result<Registry<'a>> {
        let folder = cluster.root().join("registry");
        fs::create_dir(&folder)?;
        let names = format!("IP:{}", network::GATEWAY);
        let identity = cluster.pki.server("registry", &[], &names)?;
        fs::write(folder.join("htpasswd"), HTPASSWD)?;
        let config = json!({
            "version": "0.1", "log": {"level": "error"},
            "storage": {"filesystem": {"rootdirectory": folder.join("data")}},
            "http": {"addr": Self::ADDRESS, "tls": {"certificate": identity.certificate, "key": identity.key}},
            "auth": {"htpasswd": {"realm": "lab", "path": folder.join("htpasswd")}},
        });
        // JSON is YAML.
        let file = folder.join("config.yml");
        fs::write(&file, config.to_string())?;
        let daemon = Daemon::new("registry", "docker-registry".as_ref(), cluster.root());
        let registry = Registry { cluster, daemon: daemon.flag("serve").flag(&file.to_string_lossy()) };
        registry.serve()?;
        let authority = format!("--from-file=ca.crt={}", cluster.pki.authority().display());
        cluster.kubectl(&["create", "configmap", "lab", &authority])?;
        registry.secret("pusher", USER.1)?;
        Ok(registry)
    }

    /// `HOST:PORT`.
    pub const ADDRESS: &'static str = "10.99.0.1:5443";

    /// Starts it again after it was stopped.
    pub fn serve(&self) -> Result<()> {
        self.daemon.start(self.cluster.cell())?;
        wait_for("the registry", DAEMON, || {
            self.daemon.check()?;
            let address = (network::GATEWAY, PORT);
            Ok(self.cluster.cell().inside(|| std::net::TcpStream::connect(address))?.ok().map(drop))
        })
    }

    /// Makes a Secret of the user's with this password.
    pub fn secret(&self, name: &str, password: &str) -> Result<()> {
        let options = [("server", Self::ADDRESS), ("username", USER.0), ("password", password)]
            .map(|(key, value)| format!("--docker-{key}={value}"));
        let create = ["create", "secret", "docker-registry", name];
        let options: Vec<&str> = options.iter().map(String::as_str).collect();
        self.cluster.kubectl(&[&create[..], &options].concat()).map(drop)
    }

    /// The digest that a name has there.
    pub fn digest(&self, name: &str) -> Result<String> {
        self.inspect(name, &["--format", "{{.Digest}}"]).map(|text| text.trim().to_owned())
    }

    /// The manifest or index of a name.
    pub fn manifest(&self, name: &str) -> Result<serde_json::Value> {
        Ok(serde_json::from_str(&self.inspect(name, &["--raw"])?)?)
    }

    fn inspect(&self, name: &str, more: &[&str]) -> Result<String> {
        let image = format!("docker://{}/{name}", Self::ADDRESS);
        let user = format!("{}:{}", USER.0, USER.1);
        let mut command = std::process::Command::new("skopeo");
        command.args(["inspect", "--creds", &user, "--tls-verify=false"]).args(more).arg(&image);
        command.stdout(std::process::Stdio::piped()).stderr(std::process::Stdio::piped());
        let output = self.cluster.cell().spawn(&mut command)?.wait_with_output()?;
        ensure!(output.status.success(), "{image}: {}", String::from_utf8_lossy(&output.stderr));
        Ok(String::from_utf8(output.stdout)?)
    }
}
