//! A small real Kubernetes: etcd and an API server in a [`Cell`] of their own, its controllers on demand, and nodes.
//!
//! The API server has one port number on two loopback interfaces: it listens inside the cell, and a relay carries
//! what arrives outside. So one kubeconfig serves a client in the test as well as a program that runs in the cell.

mod builds;
mod daemon;
mod kubectl;
mod kubelet;
mod network;
mod node;
mod ordinary;
mod pki;
mod registry;
mod relay;
mod rights;

use std::collections::BTreeMap;
use std::fs;
use std::net::TcpStream;
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};
use std::sync::atomic::AtomicU8;
use std::time::Duration;

use anyhow::{Context, Result};

use crate::cell::{Cell, wait_for};
use crate::lab::{cache, made_by};
use crate::sweep;

pub use builds::{BUILDER, Builds};
pub use daemon::Daemon;
pub use node::Node;
pub use ordinary::OrdinaryNode;
use pki::Pki;
pub use registry::Registry;
use relay::Relay;

/// How long the API server may take to be ready.
const API: Duration = Duration::from_secs(90);
/// How long any other program may take to start.
const DAEMON: Duration = Duration::from_secs(30);
/// The cluster's services; nothing leads there, but an API server wants to know.
const SERVICES: &str = "10.96.0.0/16";
/// What pods in microVMs ask for. Without the overhead the kubelet would limit a pod's cgroup, where the virtual machine
/// monitor is, to what its containers may use.
const RUNTIME_CLASS: &str = "apiVersion: node.k8s.io/v1
kind: RuntimeClass
metadata: {name: cloister}
handler: cloister
overhead: {podFixed: {memory: 192Mi}}
";

/// A running cluster; dropping it ends and removes everything but its nodes, which own themselves.
pub struct Cluster {
    /// etcd, the API server and the controllers.
    daemons: BTreeMap<&'static str, Daemon>,
    /// Ends before the cell does.
    relay: Relay,
    cell: Cell,
    pki: Pki,
    admin: PathBuf,
    /// How many nodes were made.
    nodes: AtomicU8,
    root: tempfile::TempDir,
}

impl Cluster {
    /// Starts etcd and an API server with no nodes and nothing that acts on objects: what an operator needs that makes
    /// no pods. About 12 s on two cores.
    pub fn control_plane() -> Result<Cluster> {
        sweep::dead_labs()?;
        let root = tempfile::Builder::new().prefix(sweep::PREFIX).tempdir()?;
        sweep::claim(root.path())?;
        let cell = Cell::new()?;
        network::bridge(&cell)?;
        let relay = Relay::new(&cell)?;
        let pki = Pki::new(&root.path().join("pki"))?;
        let admin = pki.identity("admin", &["system:masters"])?;
        let admin = pki.kubeconfig(&admin, &format!("https://127.0.0.1:{}", relay.port()))?;
        let mut cluster =
            Cluster { daemons: BTreeMap::new(), relay, cell, pki, admin, nodes: AtomicU8::new(0), root };
        let etcd = cluster.etcd()?;
        let api = cluster.api_server()?;
        let controllers = cluster.controller_manager()?;
        let scheduler = cluster.scheduler()?;
        cluster.daemons = [etcd, api, controllers, scheduler].into_iter().map(|d| (d.name(), d)).collect();
        cluster.start("etcd")?;
        cluster.start("kube-apiserver")?;
        Ok(cluster)
    }

    /// Starts what acts on objects: the controller manager (service accounts, owners, namespaces) and the scheduler.
    /// The runtime class `cloister` is there, too.
    pub fn start_controllers(&self) -> Result<()> {
        self.apply(RUNTIME_CLASS)?;
        self.start("kube-controller-manager")?;
        self.start("kube-scheduler")?;
        wait_for("the default service account", DAEMON, || {
            self.daemon("kube-controller-manager")?.check()?;
            self.daemon("kube-scheduler")?.check()?;
            Ok(self.try_kubectl(&["get", "serviceaccount", "default"])?.status.success().then_some(()))
        })
    }

    /// Starts a program of the control plane that is not running, and waits until it is ready.
    pub fn start(&self, name: &str) -> Result<()> {
        let daemon = self.daemon(name)?;
        daemon.start(&self.cell)?;
        match name {
            "etcd" => wait_for("etcd", DAEMON, || {
                daemon.check()?;
                Ok(self.cell.inside(|| TcpStream::connect(("127.0.0.1", ETCD_PORT)))?.ok().map(drop))
            }),
            "kube-apiserver" => wait_for("the API server", API, || {
                daemon.check()?;
                // Its namespaces come a moment after it calls itself ready.
                let ready = self.try_kubectl(&["get", "--raw", "/readyz"])?.status.success()
                    && self.try_kubectl(&["get", "namespace", "default"])?.status.success();
                Ok(ready.then_some(()))
            })
            .with_context(|| daemon.log_tail(20)),
            _ => Ok(()),
        }
    }

    /// Ends a program of the control plane, kindly or with `kill -9`.
    pub fn stop(&self, name: &str, kill: bool) -> Result<()> {
        self.daemon(name)?.stop(kill)
    }

    /// A program of the control plane: `etcd`, `kube-apiserver`, `kube-controller-manager`, `kube-scheduler`.
    pub fn daemon(&self, name: &str) -> Result<&Daemon> {
        self.daemons.get(name).with_context(|| format!("no daemon {name}"))
    }

    /// The resident memory of each running program of the control plane, in bytes.
    pub fn memory(&self) -> BTreeMap<&'static str, u64> {
        self.daemons.iter().filter_map(|(&name, daemon)| Some((name, daemon.memory()?))).collect()
    }

    /// The cluster's folder on disk: certificates, logs.
    pub fn root(&self) -> &Path {
        self.root.path()
    }

    /// The cell of the control plane.
    pub fn cell(&self) -> &Cell {
        &self.cell
    }

    /// The administrator's kubeconfig, for clients in the test and for programs in the cluster's cell.
    pub fn kubeconfig(&self) -> &Path {
        &self.admin
    }

    /// The kubeconfig of a user with just these groups, who may do what RBAC gives them.
    pub fn kubeconfig_of(&self, user: &str, groups: &[&str]) -> Result<PathBuf> {
        let identity = self.pki.identity(user, groups)?;
        self.pki.kubeconfig(&identity, &format!("https://127.0.0.1:{}", self.relay.port()))
    }

    /// The same for a program in a node's cell.
    pub fn kubeconfig_for_nodes(&self, user: &str, groups: &[&str]) -> Result<PathBuf> {
        let identity = self.pki.identity(user, groups)?;
        self.pki.kubeconfig(&identity, &self.address_for_nodes())
    }

    fn address_for_nodes(&self) -> String {
        format!("https://{}:{}", network::GATEWAY, self.relay.port())
    }

    /// Starts a program in the cluster's cell with its output in `LOG` of the cluster's folder.
    pub fn spawn(&self, command: &mut Command, log: &str) -> Result<Child> {
        daemon::logged(command, &self.root().join(log))?;
        self.cell.spawn(command.stdin(Stdio::null()))
    }

    /// What the log of a program says last.
    pub fn log_tail(&self, log: &str, lines: usize) -> String {
        daemon::tail(&self.root().join(log), lines)
    }

    /// Prints the ends of all logs, for a test that has failed.
    pub fn print_logs(&self) {
        for daemon in self.daemons.values() {
            eprintln!("--- the end of {}.log\n{}", daemon.name(), daemon.log_tail(40));
        }
    }
}

/// Where etcd listens, in the cell.
const ETCD_PORT: u16 = 2379;

/// The programs' command lines.
impl Cluster {
    fn etcd(&self) -> Result<Daemon> {
        let program = cache()?.join("tools/etcd/usr/bin/etcd");
        anyhow::ensure!(program.exists(), "{} is missing: run make setup", program.display());
        let client = format!("http://127.0.0.1:{ETCD_PORT}");
        let peer = "http://127.0.0.1:2380";
        let daemon = Daemon::new("etcd", &program, self.root());
        Ok(daemon
            .path("--data-dir", &self.root().join("etcd"))
            .option("--listen-client-urls", &client)
            .option("--advertise-client-urls", &client)
            .option("--listen-peer-urls", peer)
            .option("--initial-advertise-peer-urls", peer)
            .option("--initial-cluster", &format!("default={peer}"))
            .flag("--unsafe-no-fsync"))
    }

    fn api_server(&self) -> Result<Daemon> {
        let authority = self.pki.authority();
        let names = format!(
            "DNS:localhost,DNS:kubernetes,DNS:kubernetes.default.svc,IP:127.0.0.1,IP:{},IP:{}",
            network::GATEWAY,
            network::API
        );
        let server = self.pki.server("kube-apiserver", &[], &names)?;
        let accounts = self.pki.identity("service-accounts", &[])?;
        let to_kubelets = self.pki.identity("apiserver-kubelet-client", &["system:masters"])?;
        Ok(self
            .kubernetes("kube-apiserver")?
            .option("--etcd-servers", &format!("http://127.0.0.1:{ETCD_PORT}"))
            .option("--bind-address", "0.0.0.0")
            .option("--advertise-address", network::GATEWAY)
            .option("--secure-port", &self.relay.port().to_string())
            .option("--service-cluster-ip-range", SERVICES)
            .option("--authorization-mode", "Node,RBAC")
            .option("--enable-admission-plugins", "NodeRestriction")
            .option("--allow-privileged", "true")
            .option("--endpoint-reconciler-type", "none")
            .option("--profiling", "false")
            .path("--client-ca-file", authority)
            .path("--tls-cert-file", &server.certificate)
            .path("--tls-private-key-file", &server.key)
            .option("--service-account-issuer", "https://kubernetes.default.svc")
            .path("--service-account-key-file", &accounts.certificate)
            .path("--service-account-signing-key-file", &accounts.key)
            .path("--kubelet-certificate-authority", authority)
            .path("--kubelet-client-certificate", &to_kubelets.certificate)
            .path("--kubelet-client-key", &to_kubelets.key)
            .option("--kubelet-preferred-address-types", "InternalIP"))
    }

    fn controller_manager(&self) -> Result<Daemon> {
        let accounts = self.pki.identity("service-accounts", &[])?;
        Ok(self
            .controller("kube-controller-manager")?
            .option("--controllers", "*,-nodeipam,-cloud-node-lifecycle,-route,-service")
            .option("--use-service-account-credentials", "true")
            .path("--service-account-private-key-file", &accounts.key)
            .path("--root-ca-file", self.pki.authority()))
    }

    fn scheduler(&self) -> Result<Daemon> {
        self.controller("kube-scheduler")
    }

    /// One that follows the API server and that nobody asks anything.
    fn controller(&self, name: &'static str) -> Result<Daemon> {
        let config = self.kubeconfig_of(&format!("system:{name}"), &[])?;
        Ok(self
            .kubernetes(name)?
            .path("--kubeconfig", &config)
            .option("--leader-elect", "false")
            .option("--port", "0")
            .option("--secure-port", "0"))
    }

    /// A program that `scripts/kubernetes.sh` built.
    fn kubernetes(&self, name: &'static str) -> Result<Daemon> {
        Ok(Daemon::new(name, &programs()?.join(name), self.root()))
    }
}

/// The folder of Kubernetes' programs.
fn programs() -> Result<PathBuf> {
    made_by("kubernetes.sh", &[])
}

impl Drop for Cluster {
    fn drop(&mut self) {
        for daemon in self.daemons.values() {
            if let Err(error) = daemon.stop(true) {
                eprintln!("{}: {error:#}", daemon.name());
            }
        }
        self.cell.end();
        let _ = fs::remove_dir_all(self.root().join("etcd"));
    }
}
