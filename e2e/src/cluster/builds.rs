//! ImageBuild in a cluster: its definition, the operator, and on each node the build driver and the images' server.

use std::time::Duration;

use anyhow::{Context, Result};

use super::{Cluster, Daemon, Node};
use crate::cell::wait_for;
use crate::lab::{builder_image, target_dir};
use crate::node;
use crate::prometheus::Target;

/// The builder's image on every node.
pub const BUILDER: &str = "lab.test/builder:1";
/// Where a node gives images to others.
const IMAGES_PORT: u16 = 9443;
/// Where the programs serve their metrics, as in the chart: a node's daemon and its builds at the node's address, the operator at
/// the loopback one of the cluster's cell.
const METRICS: [u16; 3] = [9187, 9188, 8080];
/// How long a program may take to start.
const DAEMON: Duration = Duration::from_secs(30);

/// The programs that make builds happen.
pub struct Builds {
    /// The controller.
    pub operator: Daemon,
    /// The build driver of each node, in the nodes' order.
    pub drivers: Vec<Daemon>,
}

impl Builds {
    /// Starts everything; `more` are further flags of the operator.
    pub fn start(cluster: &Cluster, nodes: &[Node], more: &[&str]) -> Result<Builds> {
        cluster.install_definition()?;
        cluster.grant_rights()?;
        let archive = builder_image()?;
        let mut operator = Daemon::new("operator", &target_dir().join("cloister-operator"), cluster.root())
            .env("KUBECONFIG", &cluster.kubeconfig_of("operator", &[])?)
            .option("--builder-image", BUILDER)
            .option("--metrics-address", &format!("127.0.0.1:{}", METRICS[2]))
            .option("--default-memory", "384Mi")
            .option("--default-cache-size", "1Gi")
            .option("--log-level", "info");
        for flag in more {
            operator = operator.flag(flag);
        }
        let mut drivers = Vec::new();
        for node in nodes {
            let images = format!("{}:{IMAGES_PORT}", node.address());
            node.give_images(cluster, &images, &format!("{}:{}", node.address(), METRICS[0]))?;
            let import = ["images", "import", "--snapshotter", "cloister", "--index-name", BUILDER];
            node.lab.ctr(&[&import[..], &[&archive.to_string_lossy()]].concat())?;
            let user = format!("cloister-node:{}", node.name());
            let kubeconfig = cluster.kubeconfig_for_nodes(&user, &["cloister-nodes"])?;
            let daemon = node::command(node.lab.root())?;
            let mut driver = Daemon::new("builds", &node::binary(), node.lab.root());
            for argument in daemon.get_args() {
                driver = driver.flag(&argument.to_string_lossy());
            }
            drivers.push(
                driver
                    .flag("builds")
                    .path("--kubeconfig", &kubeconfig)
                    .option("--node-name", node.name())
                    .option("--builds-metrics-address", &format!("{}:{}", node.address(), METRICS[1])),
            );
        }
        let builds = Builds { operator, drivers };
        builds.operator.start(cluster.cell())?;
        for (driver, node) in builds.drivers.iter().zip(nodes) {
            driver.start(&node.lab.cell)?;
        }
        std::thread::sleep(Duration::from_millis(300));
        builds.check()?;
        Ok(builds)
    }

    /// Where each program serves its metrics, with the labels that the chart's PodMonitor would give it.
    pub fn targets(&self, nodes: &[Node]) -> Vec<Target> {
        let target = |address: String, node: &str, container: &'static str, pod: String| Target {
            address,
            labels: [("namespace", "cloister-system"), ("container", container), ("node", node)]
                .map(|(label, value)| (label, value.to_owned()))
                .into_iter()
                .chain([("pod", pod)])
                .collect(),
        };
        let operator = format!("127.0.0.1:{}", METRICS[2]);
        let mut all = vec![target(operator, "control", "operator", "cloister-operator-x".to_owned())];
        for node in nodes {
            for (container, port) in [("node", METRICS[0]), ("builds", METRICS[1])] {
                let address = format!("{}:{port}", node.address());
                all.push(target(address, node.name(), container, format!("cloister-node-{}", node.name())));
            }
        }
        all
    }

    /// Fails when one of them has ended.
    pub fn check(&self) -> Result<()> {
        std::iter::once(&self.operator).chain(&self.drivers).try_for_each(Daemon::check)
    }

    /// Prints the ends of their logs, for a test that has failed.
    pub fn print_logs(&self) {
        for daemon in std::iter::once(&self.operator).chain(&self.drivers) {
            eprintln!("--- the end of {}.log\n{}", daemon.name(), daemon.log_tail(60));
        }
    }
}

impl Drop for Builds {
    fn drop(&mut self) {
        for daemon in std::iter::once(&self.operator).chain(&self.drivers) {
            if let Err(error) = daemon.stop(true) {
                eprintln!("{}: {error:#}", daemon.name());
            }
        }
    }
}

impl Node {
    /// Restarts the node's daemon so that other nodes get images from it, and a Prometheus its metrics.
    fn give_images(&self, cluster: &Cluster, address: &str, metrics: &str) -> Result<()> {
        let root = self.lab.root();
        let tls = root.join("tls");
        std::fs::create_dir(&tls)?;
        // All nodes go by one name: whoever has a certificate of this authority is a node.
        let identity = cluster.pki.server("cloister-node", &[], "DNS:cloister-node")?;
        for (from, to) in [
            (identity.certificate.as_path(), "tls.crt"),
            (&identity.key, "tls.key"),
            (cluster.pki.authority(), "ca.crt"),
        ] {
            std::fs::copy(from, tls.join(to)).with_context(|| format!("cannot copy {}", from.display()))?;
        }
        let settings =
            format!("images_address = {address:?}\ntls = {tls:?}\nmetrics_address = {metrics:?}\n");
        std::fs::write(node::settings(root), settings)?;
        self.lab.stop_node(false)?;
        self.lab.start_node()?;
        wait_for(&format!("images of {}", self.name()), DAEMON, || {
            Ok(self.lab.cell.inside(|| std::net::TcpStream::connect(address))?.ok().map(drop))
        })
    }
}
