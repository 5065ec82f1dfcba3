//! Where other nodes are, and how an image comes from them.

use std::net::{IpAddr, SocketAddr};
use std::time::Duration;

use k8s_openapi::api::core::v1::Node;
use kube::Client;
use kube::api::Api;

use crate::error::Error;
use crate::import::{Importer, Ready, Request};

/// Nodes that are asked for one image before it is a failure.
const MAX_PEERS: usize = 4;
/// How long the API server may take to say where a node is.
const LOOKUP: Duration = Duration::from_secs(15);
/// How long one node may take to give an image.
const FETCH: Duration = Duration::from_secs(3600);

/// Fetches an image from the first node that gives it.
///
/// # Errors
/// One line: what each of them said.
pub async fn fetch(
    client: &Client,
    importer: &Importer,
    port: Option<u16>,
    peers: &[String],
    request: &Request,
) -> Result<Ready, String> {
    let port = port.ok_or("no way to other nodes: set `images_address` and `tls` in node.toml")?;
    let mut said = Vec::new();
    for peer in peers.iter().take(MAX_PEERS) {
        let address = match address(client, peer, port).await {
            Ok(address) => address,
            Err(why) => {
                said.push(why);
                continue;
            }
        };
        let fetched = tokio::time::timeout(FETCH, importer.fetch(request, &address.to_string())).await;
        match fetched {
            Ok(Ok(ready)) => return Ok(ready),
            // Of these another node can be free.
            Ok(Err(error @ (Error::Peer(_) | Error::NotFound(_)))) => said.push(format!("{peer}: {error}")),
            Ok(Err(error)) => return Err(error.to_string()),
            Err(_) => said.push(format!("{peer}: did not give the image within {} s", FETCH.as_secs())),
        }
    }
    match said.is_empty() {
        true => Err("no node that is left has the image: it has to be built again".into()),
        false => Err(said.join("; ")),
    }
}

/// Where a node gives images.
async fn address(client: &Client, name: &str, port: u16) -> Result<SocketAddr, String> {
    let nodes: Api<Node> = Api::all(client.clone());
    let found = tokio::time::timeout(LOOKUP, nodes.get_opt(name)).await;
    let found = found.map_err(|_| format!("{name}: the API server does not say where it is"))?;
    let node = found.map_err(|error| format!("{name}: {error}"))?;
    let node = node.ok_or_else(|| format!("{name}: no such node"))?;
    internal(&node).map(|ip| SocketAddr::new(ip, port)).ok_or_else(|| format!("{name}: has no InternalIP"))
}

/// A node's address inside the cluster.
fn internal(node: &Node) -> Option<IpAddr> {
    let addresses = node.status.iter().filter_map(|status| status.addresses.as_ref()).flatten();
    let mut internal = addresses.filter(|address| address.type_ == "InternalIP");
    internal.find_map(|address| address.address.parse().ok())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_nodes_internal_address_is_found() {
        let node: Node = serde_json::from_value(serde_json::json!({"status": {"addresses": [
            {"type": "Hostname", "address": "n1"}, {"type": "InternalIP", "address": "fd00::1"},
            {"type": "InternalIP", "address": "10.0.0.1"}]}}))
        .unwrap();
        let address = SocketAddr::new(internal(&node).unwrap(), 9443);
        assert_eq!(address.to_string(), "[fd00::1]:9443");
        assert_eq!(internal(&Node::default()), None);
    }
}
