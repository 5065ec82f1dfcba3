//! Which addresses a name may stand for: who names a server is not always who owns the machine that asks it.

use std::io;
use std::net::{IpAddr, Ipv6Addr, SocketAddr, ToSocketAddrs};

use ureq::config::Config;
use ureq::http::Uri;
use ureq::unversioned::resolver::{DefaultResolver, ResolvedSocketAddrs, Resolver};
use ureq::unversioned::transport::NextTimeout;

/// RFC 6052: IPv4 addresses within IPv6, for networks that translate them.
const NAT64: [u16; 6] = [0x64, 0xff9b, 0, 0, 0, 0];

/// Which servers may be asked.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub enum Reach {
    /// All that the machine reaches.
    #[default]
    Anywhere,
    /// Not this machine's own loopback, nor what only its own link has, such as a cloud's metadata.
    BeyondHost,
}

/// No address is left.
#[derive(Debug, thiserror::Error)]
#[error("{0} is this machine's own or link-local, which is not asked for others")]
struct Denied(String);

impl Reach {
    /// Whether a connection to `address` is one that may be made.
    pub fn allows(self, address: IpAddr) -> bool {
        if self == Self::Anywhere {
            return true;
        }
        match address.to_canonical() {
            // 0.0.0.0/8 is "this host" (RFC 1122), which Linux connects to loopback.
            IpAddr::V4(v4) => {
                let own = v4.octets()[0] == 0 || v4.is_loopback() || v4.is_link_local();
                !(own || v4.is_broadcast() || v4.is_multicast())
            }
            IpAddr::V6(v6) => match embedded(&v6) {
                Some(v4) => self.allows(v4),
                None => {
                    let own = v6.is_unspecified() || v6.is_loopback() || v6.is_unicast_link_local();
                    !(own || v6.is_multicast())
                }
            },
        }
    }

    /// The addresses of `host` that may be asked.
    ///
    /// # Errors
    /// There are none.
    pub fn resolve(self, host: &str, port: u16) -> io::Result<Vec<SocketAddr>> {
        let all = (host.trim_matches(['[', ']']), port).to_socket_addrs()?;
        let allowed: Vec<_> = all.filter(|address| self.allows(address.ip())).collect();
        if allowed.is_empty() { Err(io::Error::other(Denied(host.to_owned()))) } else { Ok(allowed) }
    }
}

fn embedded(address: &Ipv6Addr) -> Option<IpAddr> {
    let segments = address.segments();
    let [.., a, b, c, d] = address.octets();
    segments.starts_with(&NAT64).then(|| IpAddr::from([a, b, c, d]))
}

/// Looks names up for every request, those that redirects lead to included.
#[derive(Debug, Default)]
pub(super) struct Lookup {
    pub(super) reach: Reach,
    names: DefaultResolver,
}

impl Lookup {
    pub(super) fn new(reach: Reach) -> Self {
        Self { reach, names: DefaultResolver::default() }
    }
}

impl Resolver for Lookup {
    fn resolve(
        &self,
        uri: &Uri,
        config: &Config,
        timeout: NextTimeout,
    ) -> Result<ResolvedSocketAddrs, ureq::Error> {
        let all = self.names.resolve(uri, config, timeout)?;
        let mut allowed = self.empty();
        for address in all.iter().filter(|address| self.reach.allows(address.ip())) {
            allowed.push(*address);
        }
        if allowed.is_empty() {
            let host = uri.host().unwrap_or_default().to_owned();
            return Err(ureq::Error::Other(Box::new(Denied(host))));
        }
        Ok(allowed)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn addresses_of_the_host_and_its_link_are_told_however_they_are_written() {
        for own in [
            "127.0.0.1",
            "127.9.9.9",
            "0.0.0.0",
            "0.1.2.3",
            "169.254.169.254",
            "255.255.255.255",
            "224.0.0.1",
            "::1",
            "::",
            "fe80::1",
            "ff02::1",
            "::ffff:127.0.0.1",
            "::ffff:169.254.169.254",
            "64:ff9b::7f00:1",
        ] {
            let own: IpAddr = own.parse().unwrap();
            assert!(!Reach::BeyondHost.allows(own) && Reach::Anywhere.allows(own), "{own}");
        }
        for other in ["10.0.0.1", "192.0.2.1", "100.64.0.1", "2001:db8::1", "fd00::1", "64:ff9b::c000:201"] {
            assert!(Reach::BeyondHost.allows(other.parse().unwrap()), "{other}");
        }
    }

    #[test]
    fn names_are_judged_by_what_they_stand_for() {
        for own in ["localhost", "127.1", "0x7f000001", "2130706433", "[::1]", "[::ffff:127.0.0.1]"] {
            assert!(Reach::BeyondHost.resolve(own, 443).is_err(), "{own}");
        }
        assert_eq!(Reach::BeyondHost.resolve("192.0.2.1", 443).unwrap(), [([192, 0, 2, 1], 443).into()]);
        assert!(Reach::Anywhere.resolve("localhost", 443).unwrap()[0].ip().is_loopback());
    }
}
