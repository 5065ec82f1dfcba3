//! Real CNI plugins: what they do to the host's side of an interface holds for the guest behind it.

use std::io::Write;
use std::path::Path;
use std::process::{Command, Stdio};
use std::time::Duration;

use serde_json::{Value, json};

use super::{Space, guest_of, settle, transfer};

/// Where Debian's containernetworking-plugins puts them.
const PLUGINS: &str = "/usr/lib/cni";

/// A chain of plugins, run for a pod by a host that is a namespace itself.
struct Chain<'a> {
    host: &'a Space,
    pod: &'a Space,
    plugins: Vec<Value>,
    result: Value,
}

impl<'a> Chain<'a> {
    fn add(host: &'a Space, pod: &'a Space, plugins: Vec<Value>) -> Self {
        let mut chain = Self { host, pod, plugins, result: Value::Null };
        for plugin in chain.plugins.clone() {
            let output = chain.execute("ADD", plugin);
            chain.result = serde_json::from_slice(&output).unwrap();
        }
        chain
    }

    fn execute(&self, command: &str, mut config: Value) -> Vec<u8> {
        let object = config.as_object_mut().unwrap();
        object.insert("cniVersion".into(), "1.0.0".into());
        object.insert("name".into(), "test".into());
        if !self.result.is_null() {
            object.insert("prevResult".into(), self.result.clone());
        }
        let plugin = format!("{PLUGINS}/{}", config["type"].as_str().unwrap());
        let mut child = Command::new("ip")
            .args(["netns", "exec", self.host.name(), &plugin])
            .env("CNI_COMMAND", command)
            .env("CNI_CONTAINERID", self.pod.name())
            .env("CNI_NETNS", self.pod.path())
            .env("CNI_IFNAME", "eth0")
            .env("CNI_PATH", PLUGINS)
            .stdin(Stdio::piped())
            .stdout(Stdio::piped())
            .spawn()
            .unwrap();
        child.stdin.take().unwrap().write_all(config.to_string().as_bytes()).unwrap();
        let output = child.wait_with_output().unwrap();
        assert!(output.status.success(), "{plugin}: {}", String::from_utf8_lossy(&output.stdout));
        output.stdout
    }

    fn address(&self, n: usize) -> String {
        let address = self.result["ips"][n]["address"].as_str().unwrap();
        address.split('/').next().unwrap().to_owned()
    }
}

impl Drop for Chain<'_> {
    fn drop(&mut self) {
        for plugin in self.plugins.iter().rev() {
            self.execute("DEL", plugin.clone());
        }
    }
}

fn addresses(folder: &Path) -> Value {
    json!({
        "type": "host-local", "dataDir": folder,
        "ranges": [[{ "subnet": "10.77.0.0/24" }], [{ "subnet": "fd77::/64" }]],
        "routes": [{ "dst": "0.0.0.0/0" }, { "dst": "::/0" }],
    })
}

#[tokio::test]
async fn bridge_with_host_ports_and_bandwidth_limits() {
    let (host, pod) = (Space::new(), Space::new());
    let folder = tempfile::tempdir().unwrap();
    let bits = 16_000_000;
    let chain = Chain::add(
        &host,
        &pod,
        vec![
            json!({ "type": "bridge", "bridge": "cni0", "isGateway": true, "ipMasq": true, "hairpinMode": true,
                "ipam": addresses(folder.path()) }),
            json!({ "type": "portmap", "capabilities": { "portMappings": true }, "snat": true,
                "runtimeConfig": { "portMappings": [{ "hostPort": 18080, "containerPort": 80, "protocol": "tcp" }] } }),
            json!({ "type": "bandwidth", "capabilities": { "bandwidth": true }, "runtimeConfig": { "bandwidth": {
                "ingressRate": bits, "ingressBurst": 400_000, "egressRate": bits, "egressBurst": 400_000 } } }),
        ],
    );
    let (_, guest) = guest_of(&pod).await;
    settle(&host);
    let gateway = "10.77.0.1";
    let to_guest = format!("{}:80", chain.address(0));
    let to_guest6 = format!("[{}]:80", chain.address(1));
    transfer(&host, &guest.space, "0.0.0.0:80", &to_guest, 100_000);
    transfer(&host, &guest.space, "[::]:80", &to_guest6, 100_000);
    // A port of the host leads into the guest.
    transfer(&host, &guest.space, "0.0.0.0:80", &format!("{gateway}:18080"), 100_000);
    // Both directions are limited: 4 MB take two seconds, less what a burst lets through.
    let least = Duration::from_millis(1500);
    let into = transfer(&host, &guest.space, "0.0.0.0:80", &to_guest, 4_000_000);
    assert!(into > least, "{into:?}");
    let out = transfer(&guest.space, &host, "0.0.0.0:81", &format!("{gateway}:81"), 4_000_000);
    assert!(out > least, "{out:?}");
}

#[tokio::test]
async fn point_to_point_without_a_connected_route() {
    let (host, pod) = (Space::new(), Space::new());
    let folder = tempfile::tempdir().unwrap();
    let chain = Chain::add(
        &host,
        &pod,
        vec![json!({ "type": "ptp", "ipMasq": true, "mtu": 1420, "ipam": addresses(folder.path()) })],
    );
    let (interfaces, guest) = guest_of(&pod).await;
    assert_eq!(interfaces[0].mtu, 1420);
    settle(&host);
    transfer(&host, &guest.space, "0.0.0.0:80", &format!("{}:80", chain.address(0)), 1 << 20);
    transfer(&host, &guest.space, "[::]:80", &format!("[{}]:80", chain.address(1)), 1 << 20);
    transfer(&guest.space, &host, "0.0.0.0:81", "10.77.0.1:81", 1 << 20);
}

#[tokio::test]
async fn macvlan_keeps_its_hardware_address() {
    let (host, pod) = (Space::new(), Space::new());
    let other = Space::new();
    let folder = tempfile::tempdir().unwrap();
    super::veth(&host, "up0", &other, "wire");
    other.ip("addr add 10.77.0.200/24 dev wire");
    let chain = Chain::add(
        &host,
        &pod,
        vec![
            json!({ "type": "macvlan", "master": "up0", "mode": "bridge", "ipam": addresses(folder.path()) }),
        ],
    );
    let (_, guest) = guest_of(&pod).await;
    transfer(&other, &guest.space, "0.0.0.0:80", &format!("{}:80", chain.address(0)), 1 << 20);
    transfer(&guest.space, &other, "0.0.0.0:81", "10.77.0.200:81", 1 << 20);
}
