//! The wires between a cluster's cells: a bridge in the control plane's, to which each node's cell has a veth. Pods have
//! a subnet for each node, and the control plane's cell routes between them.

use std::process::Command;

use anyhow::{Context, Result, bail};

use crate::cell::Cell;
use crate::containerd::config::{Subnets, VETH};

/// The bridge's name.
const BRIDGE: &str = "nodes0";
/// The control plane's address for nodes.
pub const GATEWAY: &str = "10.99.0.1";

/// The address of the API server's service, the first of all services'.
pub const API: &str = "10.96.0.1";

/// A node's own address.
pub fn address(node: u8) -> String {
    format!("10.99.0.{}", node + 1)
}

/// Makes the bridge of the nodes in the control plane's cell.
pub fn bridge(control: &Cell) -> Result<()> {
    control.run("ip", &["link", "add", BRIDGE, "type", "bridge"])?;
    control.run("ip", &["addr", "add", &format!("{GATEWAY}/24"), "dev", BRIDGE])?;
    control.run("ip", &["link", "set", BRIDGE, "up"])?;
    Ok(())
}

/// Connects the cell of a node, counted from 1, and adds the routes to its pods.
pub fn connect(control: &Cell, cell: &Cell, node: u8) -> Result<()> {
    let port = format!("node{node}");
    // The process numbers are the machine's, so this runs in the cell's network alone.
    let output = Command::new("nsenter")
        .arg(format!("--net=/proc/{}/ns/net", control.init()))
        .args(["ip", "link", "add", &port, "type", "veth", "peer", "name", VETH])
        .args(["netns", &cell.init().to_string()])
        .output()
        .context("cannot start nsenter (package util-linux)")?;
    if !output.status.success() {
        bail!("ip link add {port}: {}", String::from_utf8_lossy(&output.stderr));
    }
    let address = address(node);
    control.run("ip", &["link", "set", &port, "master", BRIDGE, "up"])?;
    cell.run("ip", &["addr", "add", &format!("{address}/24"), "dev", VETH])?;
    cell.run("ip", &["link", "set", VETH, "up"])?;
    cell.run("ip", &["route", "add", "default", "via", GATEWAY])?;
    let [pods, _] = Subnets(node).ranges();
    control.run("ip", &["route", "add", &pods, "via", &address])?;
    Ok(())
}

/// Leads what is sent to the API server's service from a node and its pods to the API server, as a kube-proxy would.
pub fn serve_api(cell: &Cell, port: u16) -> Result<()> {
    let to = format!("{GATEWAY}:{port}");
    for chain in ["PREROUTING", "OUTPUT"] {
        let rule = ["-t", "nat", "-A", chain, "-d", API, "-p", "tcp", "--dport", "443", "-j", "DNAT"];
        cell.run("iptables", &[&rule[..], &["--to-destination", &to]].concat())?;
    }
    Ok(())
}
