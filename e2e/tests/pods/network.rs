//! The pod's network is what CNI made, seen from inside the guest.

use std::io::{Read, Write};
use std::net::TcpStream;
use std::time::Duration;

use anyhow::{Context, Result};
use cloister_e2e::Rig;
use cloister_e2e::containerd::Handler;
use cloister_e2e::containerd::config::{GATEWAYS, MTU};
use cloister_e2e::cri::api;
use cloister_e2e::cri::spec::{ContainerConfigExt, PodConfigExt, host_port};

cases!(
    addresses_and_routes_are_those_of_cni,
    the_packet_size_is_the_networks,
    pods_reach_each_other_over_both_families,
    a_pod_reaches_the_host_and_the_host_the_pod,
    large_transfers_arrive_whole,
    containers_of_a_pod_meet_on_loopback,
    host_ports_lead_into_the_pod,
    name_servers_hosts_and_hostname_are_the_pods,
    port_forward_reaches_servers_on_loopback,
    port_forward_to_a_closed_port_fails,
    pods_in_the_hosts_network_are_refused_by_microvms,
    a_bandwidth_limit_is_kept,
);

/// A web server in the pod; `/` says `word`.
fn server(listen: &str, word: &str) -> String {
    format!("mkdir -p /www; echo {word} >/www/index.html; httpd -p '{listen}' -h /www && echo up; sleep 1000")
}

/// What a GET of `/` from the host's side of the cell answers.
fn get(rig: &Rig, address: &str) -> Result<String> {
    let mut socket = rig.lab.cell.inside(|| {
        let address = address.parse().map_err(std::io::Error::other)?;
        TcpStream::connect_timeout(&address, Duration::from_secs(10))
    })??;
    socket.set_read_timeout(Some(Duration::from_secs(20)))?;
    socket.write_all(b"GET / HTTP/1.0\r\n\r\n")?;
    let mut answer = String::new();
    socket.read_to_string(&mut answer)?;
    Ok(answer)
}

pub fn addresses_and_routes_are_those_of_cni(rig: &Rig) -> Result<()> {
    let pod = rig.pod()?;
    let container = pod.idle()?;
    let addresses = pod.addresses()?;
    assert_eq!(addresses.len(), 2, "{addresses:?}");
    assert!(addresses[0].starts_with("10.88.0.") && addresses[1].starts_with("fd88::"), "{addresses:?}");
    let seen = container.sh("ip addr show dev eth0")?;
    assert!(seen.contains(&format!("inet {}/24", addresses[0])), "{seen}");
    assert!(seen.contains(&format!("inet6 {}/64", addresses[1])), "{seen}");
    assert!(container.sh("ip route")?.contains(&format!("default via {} dev eth0", GATEWAYS[0])));
    assert!(container.sh("ip -6 route")?.contains(&format!("default via {} dev eth0", GATEWAYS[1])));
    assert!(container.sh("ip addr show dev lo")?.contains("inet 127.0.0.1/8"));
    Ok(())
}

pub fn the_packet_size_is_the_networks(rig: &Rig) -> Result<()> {
    let pod = rig.pod()?;
    let container = pod.idle()?;
    assert_eq!(container.sh("cat /sys/class/net/eth0/mtu")?, MTU.to_string());
    Ok(())
}

pub fn pods_reach_each_other_over_both_families(rig: &Rig) -> Result<()> {
    let (first, second) = (rig.pod()?, rig.pod()?);
    let _server = first.start_shell(&server("80", "hello"), "up\n")?;
    let _server6 = first.start_shell(&server("[::]:81", "hello6"), "up\n")?;
    let client = second.idle()?;
    let [v4, v6] = &first.addresses()?[..] else { anyhow::bail!("not two addresses") };
    assert_eq!(client.sh(&format!("timeout 20 wget -q -O - http://{v4}:80/"))?, "hello");
    assert_eq!(client.sh(&format!("timeout 20 wget -q -O - 'http://[{v6}]:81/'"))?, "hello6");
    client.sh(&format!("ping -c 1 -W 10 {v4} && ping -c 1 -W 10 {v6}"))?;
    Ok(())
}

pub fn a_pod_reaches_the_host_and_the_host_the_pod(rig: &Rig) -> Result<()> {
    let pod = rig.pod()?;
    let container = pod.start_shell(&server("80", "hello"), "up\n")?;
    let address = pod.addresses()?[0].clone();
    assert!(get(rig, &format!("{address}:80"))?.ends_with("hello\n"));
    for gateway in GATEWAYS {
        container.sh(&format!("ping -c 1 -W 10 {gateway}"))?;
    }
    Ok(())
}

pub fn large_transfers_arrive_whole(rig: &Rig) -> Result<()> {
    const BYTES: usize = 20_000_000;
    let (first, second) = (rig.pod()?, rig.pod()?);
    let script = format!(
        "mkdir /www; yes cloister | head -c {BYTES} >/www/big; httpd -p 80 -h /www; echo up; sleep 1000"
    );
    let _server = first.start_shell(&script, "up\n")?;
    let client = second.idle()?;
    let address = &first.addresses()?[0];
    let fetched = client.sh(&format!("timeout 60 wget -q -O - http://{address}:80/big | sha256sum"))?;
    assert_eq!(fetched, client.sh(&format!("yes cloister | head -c {BYTES} | sha256sum"))?);
    Ok(())
}

pub fn containers_of_a_pod_meet_on_loopback(rig: &Rig) -> Result<()> {
    let pod = rig.pod()?;
    let _server = pod.start_shell(&server("127.0.0.1:8080", "inside"), "up\n")?;
    let client = pod.idle()?;
    assert_eq!(client.sh("wget -q -O - http://127.0.0.1:8080/")?, "inside");
    Ok(())
}

pub fn host_ports_lead_into_the_pod(rig: &Rig) -> Result<()> {
    let mut config = rig.config();
    config.port_mappings.push(host_port(18080, 80));
    let pod = rig.run(config)?;
    let _server = pod.start_shell(&server("80", "mapped"), "up\n")?;
    assert!(get(rig, &format!("{}:18080", GATEWAYS[0]))?.ends_with("mapped\n"));
    assert!(get(rig, "127.0.0.1:18080")?.ends_with("mapped\n"));
    Ok(())
}

pub fn name_servers_hosts_and_hostname_are_the_pods(rig: &Rig) -> Result<()> {
    let mut config = rig.config();
    config.dns_config = Some(api::DnsConfig {
        servers: vec!["10.88.0.53".to_owned(), "fd88::53".to_owned()],
        searches: vec!["lab.svc.cluster.local".to_owned(), "cluster.local".to_owned()],
        options: vec!["ndots:5".to_owned()],
    });
    let hosts = rig.lab.root().join("hosts");
    std::fs::write(&hosts, "127.0.0.1 localhost\n10.88.0.99 friend.lab friend\n")?;
    let pod = rig.run(config)?;
    let container =
        pod.start(pod.shell("echo up; sleep 1000").mounted(&hosts.to_string_lossy(), "/etc/hosts", false))?;
    container.wait_for_output("up\n")?;
    let resolver = container.sh("cat /etc/resolv.conf")?;
    for line in [
        "search lab.svc.cluster.local cluster.local",
        "nameserver 10.88.0.53",
        "nameserver fd88::53",
        "options ndots:5",
    ] {
        assert!(resolver.lines().any(|found| found == line), "{line} is missing in {resolver}");
    }
    assert!(container.sh("cat /etc/hosts")?.contains("10.88.0.99 friend.lab friend"));
    assert_eq!(container.sh("cat /etc/hostname")?, pod.config.hostname);
    Ok(())
}

pub fn port_forward_reaches_servers_on_loopback(rig: &Rig) -> Result<()> {
    let pod = rig.pod()?;
    let _v4 = pod.start_shell(&server("127.0.0.1:8080", "on127"), "up\n")?;
    let _v6 = pod.start_shell(&server("[::1]:8081", "on1"), "up\n")?;
    for (port, word) in [(8080, "on127\n"), (8081, "on1\n"), (8080, "on127\n")] {
        let answer = String::from_utf8(pod.forward(port, b"GET / HTTP/1.0\r\n\r\n")?)?;
        assert!(answer.starts_with("HTTP/1.") && answer.ends_with(word), "{answer}");
    }
    Ok(())
}

pub fn port_forward_to_a_closed_port_fails(rig: &Rig) -> Result<()> {
    let pod = rig.pod()?;
    let answer = pod.forward(9, b"hello?");
    assert!(answer.as_ref().map_or(true, Vec::is_empty), "{answer:?}");
    Ok(())
}

pub fn pods_in_the_hosts_network_are_refused_by_microvms(rig: &Rig) -> Result<()> {
    let mut config = rig.config();
    let options = config.linux().security_context.as_mut().unwrap().namespace_options.as_mut().unwrap();
    options.network = api::NamespaceMode::Node.into();
    config.hostname.clear();
    if !rig.handler.is_microvm() {
        let pod = rig.run(config)?;
        let mut container = pod.shell("readlink /proc/self/ns/net");
        container.security().namespace_options.as_mut().unwrap().network = api::NamespaceMode::Node.into();
        assert_eq!(pod.once_in(container)?.1, rig.lab.cell.run("readlink", &["/proc/self/ns/net"])?);
        return Ok(());
    }
    let error = rig.run(config).map(drop).unwrap_err();
    if rig.handler == Handler::CloisterSandbox {
        // containerd 2.1.9 itself falls over such a pod before it asks the shim; nothing of it may stay.
        rig.lab.stop_daemon(true)?;
        return rig.lab.start_daemon();
    }
    assert!(format!("{error:#}").to_lowercase().contains("hostnetwork"), "{error:#}");
    Ok(())
}

pub fn a_bandwidth_limit_is_kept(rig: &Rig) -> Result<()> {
    let mut config = rig.config();
    config.annotations.insert("kubernetes.io/egress-bandwidth".to_owned(), "8M".to_owned());
    config.annotations.insert("kubernetes.io/ingress-bandwidth".to_owned(), "8M".to_owned());
    let pod = rig.run(config)?;
    let script =
        "mkdir /www; head -c 6000000 /dev/zero >/www/index.html; httpd -p 80 -h /www; echo up; sleep 1000";
    let _server = pod.start_shell(script, "up\n")?;
    let address = pod.addresses()?.first().cloned().context("no address")?;
    assert!(get(rig, &format!("{address}:80"))?.len() > 6_000_000);
    // containerd asks for a bucket of 512 MiB, too large to see the limit in time: so it is seen in the queue itself.
    let queues = rig.lab.cell.run("tc", &["-s", "qdisc", "show"])?;
    let (_, shaped) = queues.split_once("qdisc tbf").with_context(|| queues.clone())?;
    assert!(shaped.contains("rate 8Mbit"), "{queues}");
    let sent = queues
        .lines()
        .skip_while(|line| !line.contains("tbf"))
        .filter_map(|line| line.trim().strip_prefix("Sent "));
    let sent: Vec<u64> = sent.filter_map(|rest| rest.split(' ').next()?.parse().ok()).collect();
    assert!(sent.iter().any(|&bytes| bytes > 6_000_000), "the pod's traffic passes no limit: {queues}");
    Ok(())
}
