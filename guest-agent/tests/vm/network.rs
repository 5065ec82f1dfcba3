//! A pod's network from the host's side to a server in the guest: CNI's place is taken by `ip`.

use std::io::{self, Read, Write};
use std::net::{SocketAddr, TcpStream};
use std::os::fd::AsFd;
use std::path::PathBuf;
use std::time::Duration;

use cloister_network::{Forwarder, Interface, Netns, inspect, mirror};
use cloister_protocol::{ports, v1};
use cloister_vmm::Tap;

use crate::lab::{Lab, wishes};

const LIMIT: Duration = Duration::from_secs(20);

/// Answers each connection with what it got, on a port of all addresses and one of each loopback.
const SERVER: &str = r#"
use IO::Socket::IP;
for (["::", 80], ["127.0.0.1", 8080], ["::1", 8081]) {
    my $server = IO::Socket::IP->new(LocalHost => $_->[0], LocalPort => $_->[1], Listen => 8, V6Only => 0) or die $@;
    next if fork;
    while (my $client = $server->accept) {
        my $all = ""; while (sysread($client, my $part, 65536)) { $all .= $part }
        print $client $all; close $client;
    }
}
$| = 1; print "ready\n"; sleep 1000;
"#;

/// A named network namespace.
struct Space(String);

impl Space {
    fn new(name: &str) -> Self {
        let name = format!("clagent-{}-{name}", std::process::id());
        ip(&["netns", "add", &name]);
        ip(&["-n", &name, "link", "set", "lo", "up"]);
        Self(name)
    }

    fn path(&self) -> PathBuf {
        format!("/run/netns/{}", self.0).into()
    }

    fn ip(&self, arguments: &str) {
        ip(&[&["-n", &self.0], arguments.split(' ').collect::<Vec<_>>().as_slice()].concat());
    }

    /// Sends bytes to a server and returns its answer.
    fn ask(&self, address: &str, question: &[u8]) -> io::Result<Vec<u8>> {
        let address: SocketAddr = address.parse().unwrap();
        let netns = Netns::open(&self.path()).unwrap();
        let connect = move || {
            let kind = Some(rustix::thread::LinkNameSpaceType::Network);
            rustix::thread::move_into_link_name_space(netns.as_fd(), kind)?;
            TcpStream::connect_timeout(&address, LIMIT)
        };
        let mut stream = std::thread::spawn(connect).join().unwrap()?;
        stream.set_read_timeout(Some(LIMIT))?;
        stream.write_all(question)?;
        stream.shutdown(std::net::Shutdown::Write)?;
        let mut answer = Vec::new();
        stream.read_to_end(&mut answer)?;
        Ok(answer)
    }
}

impl Drop for Space {
    fn drop(&mut self) {
        let _ = std::process::Command::new("ip").args(["netns", "del", &self.0]).status();
    }
}

fn ip(arguments: &[&str]) {
    assert!(std::process::Command::new("ip").args(arguments).status().unwrap().success(), "{arguments:?}");
}

fn octets(address: std::net::IpAddr) -> Vec<u8> {
    match address {
        std::net::IpAddr::V4(v4) => v4.octets().into(),
        std::net::IpAddr::V6(v6) => v6.octets().into(),
    }
}

fn request(interfaces: &[Interface]) -> v1::ConfigureNetworkRequest {
    let prefix =
        |p: &cloister_network::Prefix| v1::Prefix { address: octets(p.address), length: p.length.into() };
    let mut request = v1::ConfigureNetworkRequest::default();
    for interface in interfaces {
        request.interfaces.push(v1::Interface {
            name: interface.name.clone(),
            mac: interface.mac.into(),
            mtu: interface.mtu,
            addresses: interface.addresses.iter().map(prefix).collect(),
        });
        request.routes.extend(interface.routes.iter().map(|route| {
            v1::Route {
                destination: (route.destination.length > 0).then(|| prefix(&route.destination)),
                source: route.source.map(octets).unwrap_or_default(),
                family: if route.destination.address.is_ipv4() { 4 } else { 6 },
                metric: route.metric,
                scope: route.scope.into(),
                hops: route
                    .hops
                    .iter()
                    .map(|hop| v1::NextHop {
                        interface: hop.interface.clone(),
                        gateway: hop.gateway.map(octets).unwrap_or_default(),
                        on_link: hop.on_link,
                        weight: hop.weight.into(),
                    })
                    .collect(),
            }
        }));
    }
    request
}

/// 10.8.0.0/16 by 10.9.0.3 and, half as often, by 10.9.0.4.
fn two_ways() -> v1::Route {
    let way = |last: u8, weight| v1::NextHop {
        interface: "eth0".into(),
        gateway: vec![10, 9, 0, last],
        on_link: true,
        weight,
    };
    v1::Route {
        destination: Some(v1::Prefix { address: vec![10, 8, 0, 0], length: 16 }),
        family: 4,
        hops: vec![way(3, 2), way(4, 1)],
        ..v1::Route::default()
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_pods_network_ends_in_its_guest() {
    let (host, pod) = (Space::new("host"), Space::new("pod"));
    host.ip(&format!("link add out type veth peer name eth0 netns {}", pod.0));
    host.ip("addr add 10.9.0.1/32 dev out");
    host.ip("addr add fd09::1/128 dev out nodad");
    host.ip("link set out up");
    host.ip("route add 10.9.0.2/32 dev out");
    host.ip("route add fd09::2/128 dev out");
    // As the ptp plugin does it: the network of the address goes by the gateway.
    pod.ip("link set eth0 mtu 1400");
    pod.ip("addr add 10.9.0.2/24 dev eth0 noprefixroute");
    pod.ip("addr add fd09::2/64 dev eth0 nodad noprefixroute");
    pod.ip("link set eth0 up");
    pod.ip("route add 10.9.0.1/32 dev eth0 scope link src 10.9.0.2");
    pod.ip("route add 10.9.0.0/24 via 10.9.0.1 dev eth0 src 10.9.0.2");
    pod.ip("route add default via 10.9.0.1 dev eth0");
    pod.ip("route add fd09::1/128 dev eth0");
    pod.ip("route add fd09::/64 via fd09::1 dev eth0");
    pod.ip("route add default via fd09::1 dev eth0");

    let mut lab = Lab::boot_with(|config| config.netns = Some(pod.path())).await;
    let netns = Netns::open(&pod.path()).unwrap();
    let interfaces = inspect(&netns).await.unwrap();
    for (interface, fd) in interfaces.iter().zip(mirror(&netns, &interfaces).await.unwrap()) {
        lab.sandbox.plug_tap(Tap { fd, mac: interface.mac }).await.unwrap();
    }
    let mut wanted = request(&interfaces);
    // Said here and not by `ip`: the host's kernel may not know routes by several ways.
    wanted.routes.push(two_ways());
    // Twice: it is a state, not a change.
    for _ in 0..2 {
        lab.sandbox.agent().configure_network(wanted.clone()).await.unwrap();
    }
    let (server, said, _) = lab.start("server", "", wishes(&["perl", "-e", SERVER]), None).await.unwrap();
    let began = std::time::Instant::now();
    while said.text() != "ready\n" {
        assert!(began.elapsed() < LIMIT);
        tokio::time::sleep(Duration::from_millis(20)).await;
    }
    let routes = lab.exec("server", "routes", "", &["cat", "/proc/net/route", "/proc/net/ipv6_route"]).await;
    let routes = routes.unwrap().stdout;
    // 10.9.0.0/24 has one route, by the gateway.
    let networks: Vec<&str> = routes.lines().filter(|line| line.starts_with("eth0\t0000090A")).collect();
    assert!(networks.len() == 1 && networks[0].contains("\t0100090A\t"), "{routes}");
    // The kernel's old list shows the first of several ways.
    assert!(routes.contains("eth0\t0000080A\t0300090A\t"), "{routes}");
    let mtu = lab.exec("server", "mtu", "", &["cat", "/sys/class/net/eth0/mtu"]).await.unwrap();
    assert_eq!(mtu.stdout, "1400\n");

    let question: Vec<u8> = (0..300_000u32).map(|n| (n % 251) as u8).collect();
    for address in ["10.9.0.2:80", "[fd09::2]:80"] {
        assert!(host.ask(address, &question).unwrap() == question, "{address}");
    }
    assert_eq!(host.ask("10.9.0.2:81", b"").unwrap_err().kind(), io::ErrorKind::ConnectionRefused);

    let dialer = lab.sandbox.dialer();
    let dial = move || {
        let dialer = dialer.clone();
        async move { dialer.connect(ports::FORWARD).await }
    };
    let forwarder = Forwarder::start(&netns, dial).await.unwrap();
    for address in ["127.0.0.1:80", "127.0.0.1:8080", "127.0.0.1:8081", "[::1]:8081", "[::1]:8080"] {
        assert!(pod.ask(address, &question).unwrap() == question, "{address}");
    }
    assert_eq!(pod.ask("127.0.0.1:9", b"").unwrap_err().kind(), io::ErrorKind::ConnectionReset);
    drop(forwarder);
    drop(server);
    lab.sandbox.kill().await;
}
