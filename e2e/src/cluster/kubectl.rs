//! kubectl as the cluster's administrator, in the cluster's cell.

use std::io::Write;
use std::process::{Command, Output, Stdio};
use std::time::Duration;

use anyhow::{Context, Result, bail};
use serde_json::Value;

use super::Cluster;
use crate::cell::wait_for;
use crate::lab::{cache, checkout};

/// How long one command may take, in seconds: more than the longest `kubectl wait` of a test.
const PATIENCE: &str = "240";

/// How long an API server may take to describe a new kind.
const DESCRIBED: Duration = Duration::from_secs(30);

impl Cluster {
    /// Runs kubectl, which must succeed; gives its standard output.
    pub fn kubectl(&self, args: &[&str]) -> Result<String> {
        ok(args, self.try_kubectl(args)?)
    }

    /// Runs kubectl to its end, whatever it says.
    pub fn try_kubectl(&self, args: &[&str]) -> Result<Output> {
        self.kubectl_with(args, "")
    }

    /// Runs kubectl with something on its standard input.
    pub fn kubectl_with(&self, args: &[&str], input: &str) -> Result<Output> {
        let mut command = self.kubectl_command()?;
        command.args(args).stdin(Stdio::piped()).stdout(Stdio::piped()).stderr(Stdio::piped());
        let mut child = self.cell().spawn(&mut command)?;
        let mut stdin = child.stdin.take().context("no pipe")?;
        std::thread::scope(|scope| {
            // One that refuses its arguments reads nothing.
            scope.spawn(move || drop(stdin.write_all(input.as_bytes())));
            child.wait_with_output().context("kubectl")
        })
    }

    /// kubectl with the administrator's rights, ready for arguments and [`crate::cell::Cell::spawn`].
    pub fn kubectl_command(&self) -> Result<Command> {
        let program = cache()?.join("tools/kubectl/usr/bin/kubectl");
        anyhow::ensure!(program.exists(), "{} is missing: run make setup", program.display());
        let mut command = Command::new("timeout");
        command
            .args(["--signal=KILL", PATIENCE])
            .arg(program)
            .arg("--kubeconfig")
            .arg(self.kubeconfig())
            .env("HOME", self.root())
            // An API server of 1.20 knows SPDY only.
            .env("KUBECTL_REMOTE_COMMAND_WEBSOCKETS", "false")
            .env("KUBECTL_PORT_FORWARD_WEBSOCKETS", "false");
        Ok(command)
    }

    /// Creates or changes the objects of a manifest.
    pub fn apply(&self, manifest: &str) -> Result<String> {
        let args = ["apply", "-f", "-"];
        ok(&args, self.kubectl_with(&args, manifest)?)
    }

    /// Installs ImageBuild's definition and waits until the API server serves it.
    pub fn install_definition(&self) -> Result<()> {
        let file = checkout().join("charts/cloister-crds/files/cloister.dev_imagebuilds.yaml");
        // Rules in CEL came with 1.25: this API server drops them, and kubectl would rather refuse.
        self.kubectl(&["apply", "--validate=false", "-f", &file.to_string_lossy()])?;
        let definition = "crd/imagebuilds.cloister.dev";
        // It waits for the condition, but not for there to be any.
        wait_for("the definition's conditions", DESCRIBED, || {
            let path = "jsonpath={.status.conditions}";
            Ok((!self.kubectl(&["get", definition, "-o", path])?.is_empty()).then_some(()))
        })?;
        self.kubectl(&["wait", "--for=condition=Established", "--timeout=30s", definition])?;
        // Its description, by which kubectl checks what it sends, comes a moment later.
        wait_for("the description of ImageBuild", DESCRIBED, || {
            Ok(self.try_kubectl(&["explain", "imgb.spec"])?.status.success().then_some(()))
        })
    }

    /// Merges into the status of an object of `cloister.dev`, as its controller does.
    pub fn patch_status(&self, plural: &str, name: &str, patch: &str) -> Result<String> {
        let kind = format!("{plural}.cloister.dev");
        self.kubectl(&["patch", &kind, name, "--subresource=status", "--type=merge", "-p", patch])
    }

    /// Tries to apply a manifest that the cluster must refuse; gives the reason.
    pub fn refusal(&self, manifest: &str) -> Result<String> {
        let output = self.kubectl_with(&["apply", "-f", "-"], manifest)?;
        if output.status.success() {
            bail!("accepted: {manifest}");
        }
        Ok(String::from_utf8_lossy(&output.stderr).into_owned())
    }

    /// One object or a list, as JSON; `args` are what comes after `kubectl get`.
    pub fn get(&self, args: &[&str]) -> Result<Value> {
        let text = self.kubectl(&[&["get", "-o", "json"], args].concat())?;
        serde_json::from_str(&text).with_context(|| format!("kubectl get {args:?}"))
    }
}

fn ok(args: &[&str], output: Output) -> Result<String> {
    if !output.status.success() {
        bail!("kubectl {args:?}: {}: {}", output.status, String::from_utf8_lossy(&output.stderr).trim());
    }
    Ok(String::from_utf8_lossy(&output.stdout).into_owned())
}
