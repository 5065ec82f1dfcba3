//! What plugins made is read, mirrored, and taken apart.

use std::sync::atomic::Ordering;

use super::{Guest, Space, guest_of, pair, transfer, veth};
use crate::{counters, inspect, mirror, remove};

#[tokio::test]
async fn the_guest_stands_where_the_pod_stood() {
    let (host, pod) = pair();
    let (_, guest) = guest_of(&pod).await;
    // IPv4 with its ARP, IPv6 with its neighbour discovery, in both directions; nothing is answered by the pod's own stack.
    for (listen, to_guest, to_host) in
        [("0.0.0.0:80", "10.9.0.2:80", "10.9.0.1:80"), ("[::]:80", "[fd09::2]:80", "[fd09::1]:80")]
    {
        guest.longest.store(0, Ordering::Relaxed);
        transfer(&host, &guest.space, listen, to_guest, 4 << 20);
        transfer(&guest.space, &host, listen, to_host, 4 << 20);
        // Segments are cut by the last who can, not on the way.
        let longest = guest.longest.load(Ordering::Relaxed);
        assert!(longest > 16 << 10, "{longest}");
    }
}

#[tokio::test]
async fn the_host_learns_the_guest_by_arp() {
    let (host, pod) = pair();
    let (_, guest) = guest_of(&pod).await;
    host.ip("neigh flush dev out");
    transfer(&guest.space, &host, "0.0.0.0:9", "10.9.0.1:9", 10);
    let seen = host.ip("neigh show dev out");
    let mac = guest.space.ip("-o link show eth0");
    let mac = mac.split("link/ether ").nth(1).unwrap().split(' ').next().unwrap();
    assert!(seen.contains(mac), "{seen}");
}

#[tokio::test]
async fn everything_a_plugin_set_is_read() {
    let (host, pod) = pair();
    veth(&host, "two", &pod, "net1");
    pod.ip("link set net1 mtu 1400 address 02:00:00:00:00:aa");
    pod.ip("addr add 10.20.0.7/32 dev net1");
    pod.ip("route add 169.254.1.1/32 dev net1 scope link");
    pod.ip("route add 10.30.0.0/16 via 169.254.1.1 dev net1 onlink metric 77 src 10.20.0.7");
    pod.ip("route add 10.31.0.0/16 via inet6 fe80::1 dev net1");
    pod.ip(
        "route add 10.32.0.0/16 nexthop via 10.9.0.1 dev eth0 weight 3 nexthop via inet6 fe80::1 dev net1",
    );
    pod.ip("route add fd32::/64 nexthop via fd09::1 dev eth0 nexthop via fd09::3 dev eth0");
    pod.ip("route add 10.40.0.0/16 dev net1 table 100");
    pod.ip("route add blackhole 10.50.0.0/16");
    pod.ip("neigh add 169.254.1.1 lladdr 02:00:00:00:00:bb dev net1 nud permanent");
    pod.ip("neigh add 169.254.1.2 lladdr 02:00:00:00:00:cc dev net1 nud stale");
    pod.ip("link add off type veth peer name off2");
    let interfaces = inspect(&pod.netns()).await.unwrap();
    let names: Vec<&str> = interfaces.iter().map(|i| i.name.as_str()).collect();
    let mut sorted = names.clone();
    sorted.sort_unstable();
    assert_eq!(sorted, ["eth0", "net1"]);
    let find = |name: &str| interfaces.iter().find(|i| i.name == name).unwrap();
    let eth0 = find("eth0");
    let text = |value: &dyn std::fmt::Debug| format!("{value:?}");
    assert_eq!(
        eth0.addresses.iter().map(|p| format!("{}/{}", p.address, p.length)).collect::<Vec<_>>(),
        ["10.9.0.2/24", "fd09::2/64"]
    );
    let destinations: Vec<String> =
        eth0.routes.iter().map(|r| format!("{}/{}", r.destination.address, r.destination.length)).collect();
    let wanted = ["10.9.0.0/24", "fd09::/64", "0.0.0.0/0", "10.32.0.0/16", "fd32::/64", "::/0"];
    assert_eq!(destinations, wanted, "{}", text(&eth0.routes));
    // All ways of a route, also by another interface.
    let ways = |route: &crate::Route| -> Vec<String> {
        let way = |hop: &crate::NextHop| format!("{} {} {}", hop.interface, hop.gateway.unwrap(), hop.weight);
        route.hops.iter().map(way).collect()
    };
    assert_eq!(ways(&eth0.routes[3]), ["eth0 10.9.0.1 3", "net1 fe80::1 1"]);
    assert_eq!(ways(&eth0.routes[4]), ["eth0 fd09::1 1", "eth0 fd09::3 1"]);
    let net1 = find("net1");
    assert_eq!((net1.mtu, net1.mac), (1400, [2, 0, 0, 0, 0, 0xaa]));
    assert_eq!(net1.tap, format!("cltap{}", net1.index));
    let near = &net1.routes[0];
    assert!(!near.hops[0].on_link && near.hops[0].gateway.is_none() && near.scope == 253, "{}", text(near));
    let far = net1.routes.iter().find(|r| r.metric == 77).unwrap();
    assert!(far.hops[0].on_link && far.source.unwrap().to_string() == "10.20.0.7", "{}", text(far));
    assert!(net1.routes.iter().any(|r| r.hops[0].gateway.is_some() && ways(r) == ["net1 fe80::1 1"]));
    assert_eq!(net1.routes.len(), 3, "{}", text(&net1.routes));
    assert_eq!(net1.neighbours.len(), 1);
    assert_eq!(net1.neighbours[0].mac, [2, 0, 0, 0, 0, 0xbb]);
    // What the shim keeps on disk.
    let kept: Vec<crate::Interface> =
        serde_json::from_str(&serde_json::to_string(&interfaces).unwrap()).unwrap();
    assert_eq!(kept, interfaces);
}

#[tokio::test]
async fn several_interfaces_are_mirrored_each_to_its_own() {
    let (host, pod) = pair();
    veth(&host, "two", &pod, "net1");
    host.ip("addr add 10.20.0.1/24 dev two");
    pod.ip("addr add 10.20.0.2/24 dev net1");
    pod.ip("link set net1 mtu 1400");
    let (interfaces, guest) = guest_of(&pod).await;
    assert_eq!(interfaces.len(), 2);
    transfer(&host, &guest.space, "10.9.0.2:80", "10.9.0.2:80", 1 << 20);
    transfer(&host, &guest.space, "10.20.0.2:80", "10.20.0.2:80", 1 << 20);
}

#[tokio::test]
async fn all_is_removed_again_and_again() {
    let (_host, pod) = pair();
    let netns = pod.netns();
    let before = (pod.ip("-o link"), pod.tc("qdisc show dev eth0"));
    let interfaces = inspect(&netns).await.unwrap();
    remove(&netns, &interfaces).await.unwrap();
    let taps = mirror(&netns, &interfaces).await.unwrap();
    assert!(pod.ip("-o link").contains(&interfaces[0].tap));
    // A tap is silent: it has no address of its own, also none of the link.
    assert_eq!(pod.ip(&format!("-o addr show dev {}", interfaces[0].tap)), "");
    // The taps are not taken for a plugin's.
    assert_eq!(inspect(&netns).await.unwrap(), interfaces);
    remove(&netns, &interfaces).await.unwrap();
    remove(&netns, &interfaces).await.unwrap();
    drop(taps);
    assert_eq!((pod.ip("-o link"), pod.tc("qdisc show dev eth0")), before);

    // After a crash between the two the taps are gone with their descriptors, the disciplines are not.
    drop(mirror(&netns, &interfaces).await.unwrap());
    assert!(!pod.ip("-o link").contains(&interfaces[0].tap));
    assert!(pod.tc("qdisc show dev eth0").contains("ingress"));
    let (_, guest) = guest_of(&pod).await;
    drop(guest);
    remove(&netns, &interfaces).await.unwrap();
    assert_eq!((pod.ip("-o link"), pod.tc("qdisc show dev eth0")), before);
}

#[tokio::test]
async fn a_failure_undoes_what_was_done() {
    let (_host, pod) = pair();
    let netns = pod.netns();
    let before = (pod.ip("-o link"), pod.tc("qdisc show dev eth0"));
    let mut interfaces = inspect(&netns).await.unwrap();
    let mut gone = interfaces[0].clone();
    (gone.index, gone.name, gone.tap) = (4242, "gone".into(), "cltap4242".into());
    interfaces.push(gone);
    let error = mirror(&netns, &interfaces).await.unwrap_err().to_string();
    assert_eq!(error, "cannot add a queueing discipline to gone: No such device (os error 19)");
    assert_eq!((pod.ip("-o link"), pod.tc("qdisc show dev eth0")), before);
}

#[tokio::test]
async fn an_interface_without_ethernet_is_refused_by_name() {
    let pod = Space::new();
    pod.ip("tuntap add dev tunnel0 mode tun");
    assert_eq!(inspect(&pod.netns()).await.unwrap(), []);
    pod.ip("link set tunnel0 up");
    let error = inspect(&pod.netns()).await.unwrap_err().to_string();
    assert!(error.starts_with("interface tunnel0 is tun: only Ethernet"), "{error}");
}

#[tokio::test]
async fn a_filter_fits_beside_somebody_elses() {
    let (host, pod) = pair();
    pod.tc("qdisc add dev eth0 clsact");
    let (interfaces, guest) = guest_of(&pod).await;
    transfer(&host, &guest.space, "10.9.0.2:80", "10.9.0.2:80", 1 << 20);
    remove(&pod.netns(), &interfaces).await.unwrap();
    assert!(pod.tc("qdisc show dev eth0").contains("clsact"));
    assert_eq!(pod.tc("filter show dev eth0 ingress"), "");
    drop::<Guest>(guest);
}

#[tokio::test]
async fn what_the_guest_sends_and_receives_is_counted() {
    let (host, pod) = pair();
    let (interfaces, guest) = guest_of(&pod).await;
    let before = counters(&pod.netns(), &interfaces).await.unwrap();
    transfer(&host, &guest.space, "10.9.0.2:80", "10.9.0.2:80", 3 << 20);
    transfer(&guest.space, &host, "10.9.0.1:80", "10.9.0.1:80", 1 << 20);
    let after = counters(&pod.netns(), &interfaces).await.unwrap();
    let (rx, tx) = (after[0].rx_bytes - before[0].rx_bytes, after[0].tx_bytes - before[0].tx_bytes);
    assert_eq!(after[0].name, "eth0");
    assert!((3 << 20..4 << 20).contains(&rx) && (1 << 20..2 << 20).contains(&tx), "{rx} {tx}");
    assert!(after[0].rx_packets > before[0].rx_packets && after[0].tx_packets > before[0].tx_packets);
}
