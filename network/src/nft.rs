//! The nftables rules that bring connections to the namespace's loopback to a listener of ours (linux/netfilter/nf_tables.h).
//!
//! The table is *owned* by the netlink socket that made it (Linux 5.12): it vanishes when the socket is closed, and
//! nobody else can change it.

use std::io;
use std::net::{Ipv4Addr, Ipv6Addr};

use cloister_netlink::{Netlink, Request};

const TABLE: &str = "cloister";
const CHAIN: &str = "output";
/// `NFPROTO_INET`, `NFPROTO_IPV4`, `NFPROTO_IPV6`.
const INET: u8 = 1;
const IPV4: u8 = 2;
const IPV6: u8 = 10;
/// `NFT_TABLE_F_OWNER`.
const OWNER: u32 = 2;
/// `NF_INET_LOCAL_OUT`, and the priority of destination NAT.
const LOCAL_OUT: u32 = 3;
const DESTINATION_NAT: i32 = -100;

/// The rules, as long as this is kept.
#[derive(Debug)]
pub(crate) struct Rules {
    _owner: Netlink,
}

/// A destination and where it begins in the network header.
struct Destination<'a> {
    family: u8,
    offset: u32,
    mask: &'a [u8],
    network: &'a [u8],
}

impl Rules {
    /// Redirects TCP to 127.0.0.0/8 and to ::1 to these ports of the same loopback.
    pub fn install(v4: u16, v6: Option<u16>) -> io::Result<Self> {
        let mut netlink = Netlink::netfilter()?;
        let mut batch = vec![
            Request::new(libc::NFNL_MSG_BATCH_BEGIN as u16, 0, &batch_header()),
            request(libc::NFT_MSG_NEWTABLE, libc::NLM_F_CREATE | libc::NLM_F_EXCL)
                .with_name(1, TABLE)
                .with(2, &OWNER.to_be_bytes()),
            request(libc::NFT_MSG_NEWCHAIN, libc::NLM_F_CREATE)
                .with_name(1, TABLE)
                .with_name(3, CHAIN)
                .nest(4, |m| m.with(1, &LOCAL_OUT.to_be_bytes()).with(2, &DESTINATION_NAT.to_be_bytes()))
                .with_name(7, "nat"),
        ];
        let v4_loopback = Destination {
            family: IPV4,
            offset: 16,
            mask: &[255, 0, 0, 0],
            network: &[Ipv4Addr::LOCALHOST.octets()[0], 0, 0, 0],
        };
        batch.push(rule(&v4_loopback, v4));
        if let Some(port) = v6 {
            let network = Ipv6Addr::LOCALHOST.octets();
            batch.push(rule(
                &Destination { family: IPV6, offset: 24, mask: &[255; 16], network: &network },
                port,
            ));
        }
        batch.push(Request::new(libc::NFNL_MSG_BATCH_END as u16, 0, &batch_header()));
        netlink.batch(batch)?;
        Ok(Self { _owner: netlink })
    }
}

/// `nfgenmsg` of a batch's marks, which name the subsystem.
fn batch_header() -> [u8; 4] {
    [0, 0, 0, libc::NFNL_SUBSYS_NFTABLES as u8]
}

fn request(kind: libc::c_int, flags: libc::c_int) -> Request {
    Request::new(((libc::NFNL_SUBSYS_NFTABLES << 8) | kind) as u16, flags, &[INET, 0, 0, 0]).acknowledged()
}

/// `meta nfproto F meta l4proto tcp DESTINATION redirect to :PORT`
fn rule(destination: &Destination<'_>, port: u16) -> Request {
    let length = (destination.mask.len() as u32).to_be_bytes();
    request(libc::NFT_MSG_NEWRULE, libc::NLM_F_CREATE | libc::NLM_F_APPEND)
        .with_name(1, TABLE)
        .with_name(2, CHAIN)
        .nest(4, |m| {
            let m = meta_is(m, libc::NFT_META_NFPROTO, destination.family);
            let m = meta_is(m, libc::NFT_META_L4PROTO, libc::IPPROTO_TCP as u8);
            let m = expression(m, "payload", |m| {
                m.with(1, &REGISTER)
                    .with(2, &(libc::NFT_PAYLOAD_NETWORK_HEADER as u32).to_be_bytes())
                    .with(3, &destination.offset.to_be_bytes())
                    .with(4, &length)
            });
            let m = expression(m, "bitwise", |m| {
                m.with(1, &REGISTER)
                    .with(2, &REGISTER)
                    .with(3, &length)
                    .nest(4, |m| m.with(1, destination.mask))
                    .nest(5, |m| m.with(1, &vec![0; destination.mask.len()]))
            });
            let m = equals(m, destination.network);
            let m = expression(m, "immediate", |m| {
                m.with(1, &REGISTER).nest(2, |m| m.with(1, &port.to_be_bytes()))
            });
            expression(m, "redir", |m| m.with(1, &REGISTER))
        })
}

/// `NFT_REG_1`, the one register used.
const REGISTER: [u8; 4] = (libc::NFT_REG_1 as u32).to_be_bytes();

fn meta_is(m: Request, key: libc::c_int, value: u8) -> Request {
    let m = expression(m, "meta", |m| m.with(1, &REGISTER).with(2, &key.cast_unsigned().to_be_bytes()));
    equals(m, &[value])
}

/// `cmp`, operation `NFT_CMP_EQ`.
fn equals(m: Request, value: &[u8]) -> Request {
    expression(m, "cmp", |m| m.with(1, &REGISTER).with(2, &[0; 4]).nest(3, |m| m.with(1, value)))
}

/// `NFTA_LIST_ELEM` with `NFTA_EXPR_NAME` and `NFTA_EXPR_DATA`.
fn expression(m: Request, name: &str, data: impl FnOnce(Request) -> Request) -> Request {
    m.nest(1, |m| m.with_name(1, name).nest(2, data))
}
