//! The network of a build's steps: none, or what this machine reaches, apart from itself.

use std::fs;
use std::net::IpAddr;

use anyhow::{Context, Result, bail};
use cloister_builder::Names;
use cloister_vmm::{Egress, egress};

use crate::args::build::{BuildArgs, Network};
use crate::host;

/// Where this machine's name servers are written; the second one by systemd-resolved, whose own server is on the loopback.
const RESOLV: [&str; 2] = ["/etc/resolv.conf", "/run/systemd/resolve/resolv.conf"];
/// Servers that a C library asks.
const SERVERS: usize = 3;

/// What the command line asks for, if this machine has it.
pub async fn find(args: &BuildArgs) -> Result<(Option<Egress>, Names)> {
    if args.network == Network::None {
        if !args.dns.is_empty() {
            bail!("--dns: steps ask nobody for names without --network egress");
        }
        return Ok((None, Names::None));
    }
    let Some(passt) = host::passt() else {
        bail!("passt, which --network egress needs, is not installed; `cloister doctor` says how to get it")
    };
    egress::check(&passt).await.context("--network egress")?;
    let egress = Egress::find().context("--network egress")?;
    let known: Vec<String> = RESOLV.iter().filter_map(|path| fs::read_to_string(path).ok()).collect();
    let servers = servers(&args.dns, &known, &egress)?;
    Ok((Some(egress), Names::Servers(servers)))
}

/// The servers that were asked for, or else the first of these files that names any which a guest reaches.
fn servers(asked: &[IpAddr], files: &[String], egress: &Egress) -> Result<Vec<IpAddr>> {
    let reached = |server: &IpAddr| {
        let near = server.is_loopback() || server.is_unspecified();
        server.is_ipv4() && !near && *server != IpAddr::V4(egress.address())
    };
    if let Some(server) = asked.iter().find(|server| !reached(server)) {
        bail!("--dns {server}: steps reach neither this machine nor IPv6 addresses");
    }
    if !asked.is_empty() {
        return Ok(asked.to_vec());
    }
    let named = |text: &String| -> Vec<IpAddr> {
        let words = text.lines().filter_map(|line| line.trim().strip_prefix("nameserver"));
        words.filter_map(|word| word.trim().parse().ok()).filter(reached).take(SERVERS).collect()
    };
    match files.iter().map(named).find(|servers| !servers.is_empty()) {
        Some(servers) => Ok(servers),
        None => bail!(
            "--network egress: this machine's name servers are on itself or have IPv6 addresses, where steps do not reach them; name others with --dns"
        ),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn chosen(asked: &[&str], files: &[&str]) -> Result<Vec<String>> {
        let asked: Vec<IpAddr> = asked.iter().map(|server| server.parse().unwrap()).collect();
        let files: Vec<String> = files.iter().map(|&text| text.to_owned()).collect();
        let egress = Egress::at("eth0", "192.0.2.2".parse().unwrap());
        Ok(servers(&asked, &files, &egress)?.iter().map(IpAddr::to_string).collect())
    }

    #[test]
    fn name_servers_are_this_machines_as_far_as_steps_reach_them() {
        let plain = "# made by hand\nsearch example.org\nnameserver 192.0.2.53\nnameserver\t198.51.100.53 \n";
        assert_eq!(chosen(&[], &[plain]).unwrap(), ["192.0.2.53", "198.51.100.53"]);
        let stub = "nameserver 127.0.0.53\noptions edns0\n";
        assert_eq!(chosen(&[], &[stub, plain]).unwrap(), ["192.0.2.53", "198.51.100.53"]);
        assert_eq!(chosen(&["203.0.113.9"], &[plain]).unwrap(), ["203.0.113.9"]);
        let near = "nameserver 127.0.0.1\nnameserver 192.0.2.2\nnameserver fe80::1%eth0\nnameserver ::1\nnameserver 2001:db8::53\n";
        assert!(chosen(&[], &[near]).unwrap_err().to_string().ends_with("name others with --dns"));
        for server in ["127.0.0.1", "192.0.2.2", "::1", "0.0.0.0"] {
            assert!(chosen(&[server], &[plain]).is_err(), "{server}");
        }
    }
}
