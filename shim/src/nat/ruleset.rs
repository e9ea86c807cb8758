//! The fixed part of the table `inet weft`: its sets, chains and rules. Only elements change while pods come and go.
//!
//! ```text
//! chain guard       { filter, prerouting, raw      # localhost is reachable from a pod's link: only for answers
//!   iifname "weft*" ip daddr 127.0.0.0/8 drop
//!   iifname "weft*" ip6 saddr fe80::/10 accept     # is not routed
//!   iifname "weft*" fib saddr . iif oif 0 drop }   # a pod sends from its own addresses, without the programs too
//! chain prerouting  { nat, prerouting, dstnat      jump ports }
//! chain output      { nat, output, dstnat          jump ports }
//! chain ports {
//!   fib daddr type local  ip daddr . meta l4proto . th dport != @withdrawn4_at
//!                         dnat ip to ip daddr . meta l4proto . th dport map @ports4_at
//!   fib daddr type local  meta l4proto . th dport != @withdrawn4
//!                         dnat ip to meta l4proto . th dport map @ports4          # and both for IPv6
//! }
//! chain masquerade_…  { nat, postrouting, srcnat   # one for each list of exceptions that a network has
//!   oifname "weft*" return                         # a pod's address is never hidden from a pod
//!   ip daddr 10.88.0.0/16 return                   # each
//!   ip saddr @hidden4_… masquerade fully-random    # and for IPv6
//! }
//! chain postrouting   { nat, postrouting, srcnat   oifname "weft*" jump to_pod }
//! chain to_pod {                                   # answers must come back through the node
//!   ct status dnat ip saddr 127.0.0.0/8           snat ip to 169.254.1.1
//!   ct status dnat ip saddr . ip daddr @hairpin4  snat ip to 169.254.1.1           # and for IPv6
//! }
//! ```

use ipnet::IpNet;
use weft_netns::nft::{Base, Batch, Direction, Expr, Family, Field, Hook, Kind, Set, Slot, Type};

use super::element::octets;
use crate::record::HOST_LINK_PREFIX;
use crate::routes::{GATEWAY_V4, GATEWAY_V6};

/// The table's name, in family `inet`.
pub(crate) const TABLE: &str = "weft";

/// Where host ports lead.
#[derive(Debug, Clone, Copy)]
pub(super) struct Ports {
    /// From a host port to the address and port of a pod.
    pub(super) map: &'static str,
    /// The host ports whose elements in the map are about to expire.
    pub(super) withdrawn: &'static str,
    /// What a host port is.
    key: &'static [Type],
}

/// The sets and maps for one address family.
#[derive(Debug, Clone, Copy)]
pub(super) struct Sets {
    /// Protocol and port at any address of the host.
    pub(super) ports: Ports,
    /// Those at one address.
    pub(super) ports_at: Ports,
    /// A pod's address, twice: a pod that reaches itself.
    pub(super) hairpin: &'static str,
    /// What the names of the sets of addresses begin with that are hidden, one set for each list of exceptions. One map of all addresses,
    /// with the chain to go on with, cost an attach among 1,000 pods 0.26 ms more: the kernel goes through all verdicts of a map
    /// whenever one is added (`nft_lookup_validate` in net/netfilter/nft_lookup.c).
    pub(super) hidden: &'static str,
}

const PORT: &[Type] = &[Type::Protocol, Type::Port];

pub(super) const IPV4: Sets = Sets {
    ports: Ports { map: "ports4", withdrawn: "withdrawn4", key: PORT },
    ports_at: Ports {
        map: "ports4_at",
        withdrawn: "withdrawn4_at",
        key: &[Type::Ipv4, Type::Protocol, Type::Port],
    },
    hairpin: "hairpin4",
    hidden: "hidden4_",
};

pub(super) const IPV6: Sets = Sets {
    ports: Ports { map: "ports6", withdrawn: "withdrawn6", key: PORT },
    ports_at: Ports {
        map: "ports6_at",
        withdrawn: "withdrawn6_at",
        key: &[Type::Ipv6, Type::Protocol, Type::Port],
    },
    hairpin: "hairpin6",
    hidden: "hidden6_",
};

impl Sets {
    /// The set of a list.
    pub(super) fn hidden_by(self, list: &str) -> String {
        format!("{}{list}", self.hidden)
    }
}

const fn map(ports: Ports, pod: &'static [Type]) -> Set<'static> {
    Set { name: ports.map, key: ports.key, value: pod }
}

const fn set(name: &'static str, key: &'static [Type]) -> Set<'static> {
    Set { name, key, value: &[] }
}

const POD4: &[Type] = &[Type::Ipv4, Type::Port];
const POD6: &[Type] = &[Type::Ipv6, Type::Port];

/// Those that hold what records say, but those of the lists.
pub(super) const SETS: [Set<'_>; 6] = [
    map(IPV4.ports, POD4),
    map(IPV6.ports, POD6),
    map(IPV4.ports_at, POD4),
    map(IPV6.ports_at, POD6),
    set(IPV4.hairpin, &[Type::Ipv4, Type::Ipv4]),
    set(IPV6.hairpin, &[Type::Ipv6, Type::Ipv6]),
];

const PORTS: [Ports; 4] = [IPV4.ports, IPV6.ports, IPV4.ports_at, IPV6.ports_at];

/// The set of withdrawn ports that belongs to a map.
pub(super) fn withdrawn(map: &str) -> Option<&'static str> {
    PORTS.iter().find(|ports| ports.map == map).map(|ports| ports.withdrawn)
}

/// `NF_IP_PRI_RAW`, `NF_IP_PRI_NAT_DST`, `NF_IP_PRI_NAT_SRC` (include/uapi/linux/netfilter_ipv4.h).
const RAW: i32 = -300;
const DSTNAT: i32 = -100;
const SRCNAT: i32 = 100;

/// Adds the sets, chains and rules to a table that has just been made.
pub(super) fn build(batch: &mut Batch) {
    SETS.iter().for_each(|set| batch.add_set(set));
    PORTS.iter().for_each(|ports| batch.add_set(&set(ports.withdrawn, ports.key)));
    for (chain, base) in [
        ("ports", None),
        ("to_pod", None),
        ("guard", base(Kind::Filter, Hook::Prerouting, RAW)),
        ("prerouting", base(Kind::Nat, Hook::Prerouting, DSTNAT)),
        ("output", base(Kind::Nat, Hook::Output, DSTNAT)),
        ("postrouting", base(Kind::Nat, Hook::Postrouting, SRCNAT)),
    ] {
        batch.add_chain(chain, base);
    }
    rules().into_iter().for_each(|(chain, rule)| batch.add_rule(chain, rule));
}

const fn base(kind: Kind, hook: Hook, priority: i32) -> Option<Base> {
    Some(Base { kind, hook, priority })
}

/// Adds the sets and the chain of a list of exceptions.
pub(super) fn build_list(batch: &mut Batch, list: &str, except: &[IpNet]) {
    let keys: [(Sets, &[Type]); 2] = [(IPV4, &[Type::Ipv4]), (IPV6, &[Type::Ipv6])];
    for (sets, key) in keys {
        batch.add_set(&Set { name: &sets.hidden_by(list), key, value: &[] });
    }
    let chain = chain_of(list);
    batch.add_chain(&chain, base(Kind::Nat, Hook::Postrouting, SRCNAT));
    hide(list, except).into_iter().for_each(|rule| batch.add_rule(&chain, rule));
}

/// All rules, each with its chain.
pub(super) fn rules() -> Vec<(&'static str, Vec<Expr>)> {
    let from_localhost =
        vec![Expr::Take(Field::Source(Family::Ipv4), Slot(0)), Expr::Begins(Slot(0), LOCALHOST.into())];
    let guard = vec![
        Expr::CameBy(HOST_LINK_PREFIX),
        Expr::Is(Family::Ipv4),
        Expr::Take(Field::Destination(Family::Ipv4), Slot(0)),
        Expr::Begins(Slot(0), LOCALHOST.into()),
        Expr::Drop,
    ];
    let link_local = vec![
        Expr::CameBy(HOST_LINK_PREFIX),
        Expr::Is(Family::Ipv6),
        Expr::Take(Field::Source(Family::Ipv6), Slot(0)),
        Expr::Within(Slot(0), [vec![0xfe, 0x80], vec![0; 14]].concat(), 10),
        Expr::Accept,
    ];
    vec![
        ("guard", guard),
        ("guard", link_local),
        ("guard", vec![Expr::CameBy(HOST_LINK_PREFIX), Expr::IsAstray, Expr::Drop]),
        ("prerouting", vec![Expr::Jump("ports")]),
        ("output", vec![Expr::Jump("ports")]),
        ("ports", port_at_one_address(Family::Ipv4, IPV4)),
        ("ports", port_at_one_address(Family::Ipv6, IPV6)),
        ("ports", port(Family::Ipv4, IPV4)),
        ("ports", port(Family::Ipv6, IPV6)),
        ("postrouting", vec![Expr::LeavesBy(HOST_LINK_PREFIX), Expr::Jump("to_pod")]),
        ("to_pod", answer_to_gateway(Family::Ipv4, from_localhost)),
        ("to_pod", answer_to_gateway(Family::Ipv4, to_itself(Family::Ipv4, IPV4))),
        ("to_pod", answer_to_gateway(Family::Ipv6, to_itself(Family::Ipv6, IPV6))),
    ]
}

/// The first byte of 127.0.0.0/8.
const LOCALHOST: [u8; 1] = [127];
/// Where a map puts a pod's address; its port is behind it.
const POD: Slot = Slot(6);

/// 4-byte slots of an address.
fn width(family: Family) -> u8 {
    if family == Family::Ipv4 { 1 } else { 4 }
}

/// What is withdrawn is looked for first: it expires with the element, or later.
fn to_the_pod(family: Family, ports: Ports) -> [Expr; 3] {
    let port = Slot(POD.0 + width(family));
    [
        Expr::Miss(ports.withdrawn, Slot(0)),
        Expr::Map(ports.map, Slot(0), POD),
        Expr::Translate(Direction::Destination, family, POD, Some(port)),
    ]
}

/// Only while the address is the host's: a pod's manifest may name any, and must not draw what passes through the host to others.
fn port_at_one_address(family: Family, sets: Sets) -> Vec<Expr> {
    let protocol = width(family);
    let mut rule = vec![
        Expr::IsForHost,
        Expr::Is(family),
        Expr::Take(Field::Destination(family), Slot(0)),
        Expr::TakeProtocol(Slot(protocol)),
        Expr::Take(Field::DestinationPort, Slot(protocol + 1)),
    ];
    rule.extend(to_the_pod(family, sets.ports_at));
    rule
}

fn port(family: Family, sets: Sets) -> Vec<Expr> {
    let mut rule = vec![
        Expr::IsForHost,
        Expr::Is(family),
        Expr::TakeProtocol(Slot(0)),
        Expr::Take(Field::DestinationPort, Slot(1)),
    ];
    rule.extend(to_the_pod(family, sets.ports));
    rule
}

fn masquerade(family: Family, sets: Sets, list: &str) -> Vec<Expr> {
    vec![
        Expr::Is(family),
        Expr::Take(Field::Source(family), Slot(0)),
        Expr::Find(sets.hidden_by(list).into(), Slot(0)),
        Expr::Masquerade,
    ]
}

/// What the names of the chains that hide pods begin with.
pub(super) const HIDING: &str = "masquerade_";

/// The chain of a list.
pub(super) fn chain_of(list: &str) -> String {
    format!("{HIDING}{list}")
}

/// The rules of that chain: it hides the senders in its sets from all but these destinations, and pods.
pub(super) fn hide(list: &str, except: &[IpNet]) -> Vec<Vec<Expr>> {
    let seen = |net: &IpNet| {
        let family = if net.addr().is_ipv4() { Family::Ipv4 } else { Family::Ipv6 };
        vec![
            Expr::Is(family),
            Expr::Take(Field::Destination(family), Slot(0)),
            Expr::Within(Slot(0), octets(net.network()), net.prefix_len()),
            Expr::Return,
        ]
    };
    let to_pod = vec![Expr::LeavesBy(HOST_LINK_PREFIX), Expr::Return];
    let hidden =
        [(Family::Ipv4, IPV4), (Family::Ipv6, IPV6)].map(|(family, sets)| masquerade(family, sets, list));
    [to_pod].into_iter().chain(except.iter().map(seen)).chain(hidden).collect()
}

fn to_itself(family: Family, sets: Sets) -> Vec<Expr> {
    vec![
        Expr::Take(Field::Source(family), Slot(0)),
        Expr::Take(Field::Destination(family), Slot(width(family))),
        Expr::Find(sets.hairpin.into(), Slot(0)),
    ]
}

/// What the pod would answer itself, or to a host of that name in its own namespace, it answers to its gateway.
fn answer_to_gateway(family: Family, which: Vec<Expr>) -> Vec<Expr> {
    let gateway = match family {
        Family::Ipv4 => GATEWAY_V4.octets().to_vec(),
        Family::Ipv6 => GATEWAY_V6.octets().to_vec(),
    };
    let mut rule = vec![Expr::IsTranslated, Expr::Is(family)];
    rule.extend(which);
    rule.extend([Expr::Put(POD, gateway), Expr::Translate(Direction::Source, family, POD, None)]);
    rule
}
