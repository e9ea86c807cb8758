//! Arithmetic on subnets: what of a subnet may be leased.
//!
//! A range is checked once, here; whoever holds a [`Range`] holds one that has something to lease. Addresses are
//! counted, never listed, so a /8 and a /64 cost what a /30 costs.

use std::fmt;
use std::net::{IpAddr, Ipv4Addr, Ipv6Addr};

use ipnet::IpNet;

/// An address family.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub enum Family {
    /// IPv4.
    V4 = 4,
    /// IPv6.
    V6 = 6,
}

impl Family {
    pub(crate) const ALL: [Family; 2] = [Family::V4, Family::V6];

    pub(crate) fn of(address: IpAddr) -> Family {
        if address.is_ipv4() { Family::V4 } else { Family::V6 }
    }
}

impl fmt::Display for Family {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Family::V4 => "IPv4",
            Family::V6 => "IPv6",
        })
    }
}

/// An address as a number: what arithmetic and keys are made of.
pub(crate) fn bits(address: IpAddr) -> u128 {
    match address {
        IpAddr::V4(v4) => u32::from(v4).into(),
        IpAddr::V6(v6) => v6.into(),
    }
}

/// The reverse of [`bits`]; `None` for a number that is no address of the family.
pub(crate) fn address(family: Family, bits: u128) -> Option<IpAddr> {
    match family {
        Family::V4 => u32::try_from(bits).ok().map(|bits| Ipv4Addr::from(bits).into()),
        Family::V6 => Some(Ipv6Addr::from(bits).into()),
    }
}

/// What an administrator writes down.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct RangeSpec {
    /// The subnet, without host bits.
    pub subnet: IpNet,
    /// First address to lease; by default the subnet's first host.
    pub start: Option<IpAddr>,
    /// Last address to lease; by default the subnet's last host.
    pub end: Option<IpAddr>,
    /// Never leased; by default the subnet's first host.
    pub gateway: Option<IpAddr>,
    /// Never leased either.
    pub exclude: Vec<IpNet>,
}

/// Why a [`RangeSpec`] is not a range.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum RangeError {
    /// The block is not written as its network address.
    #[error("{block} has host bits set, want {network}")]
    HostBits {
        /// As given.
        block: IpNet,
        /// What it is part of.
        network: IpNet,
    },
    /// A /31, /32, /127 or /128: nothing is left beside network address and gateway.
    #[error("subnet {subnet} is too small, want /{want} or larger")]
    TooSmall {
        /// As given.
        subnet: IpNet,
        /// The longest prefix that can be leased from.
        want: u8,
    },
    /// An address is outside the subnet, or of the other family.
    #[error("{what} {address} is not in subnet {subnet}")]
    Outside {
        /// `start`, `end` or `gateway`.
        what: &'static str,
        /// As given.
        address: IpAddr,
        /// As given.
        subnet: IpNet,
    },
    /// An excluded block is not part of the subnet.
    #[error("excluded block {block} is not in subnet {subnet}")]
    ExcludeOutside {
        /// As given.
        block: IpNet,
        /// As given.
        subnet: IpNet,
    },
    /// The start lies behind the end.
    #[error("start {start} lies behind end {end}")]
    Reversed {
        /// As given.
        start: IpAddr,
        /// As given.
        end: IpAddr,
    },
    /// Gateway and exclusions leave no address.
    #[error("nothing is left to lease in subnet {subnet}")]
    NothingLeft {
        /// As given.
        subnet: IpNet,
    },
}

/// Addresses of one subnet that may be leased; at least one.
///
/// Never among them: the network address, the IPv4 broadcast address, the IPv6 subnet-router anycast address (RFC
/// 4291, section 2.6.1), the gateway and the excluded blocks.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Range {
    subnet: IpNet,
    gateway: IpAddr,
    exclude: Vec<IpNet>,
    span: Span,
    set: u8,
}

impl Range {
    /// Checks what was written down.
    ///
    /// # Errors
    /// One variant for each mistake.
    pub fn new(spec: RangeSpec) -> Result<Range, RangeError> {
        let subnet = spec.subnet;
        check_block(subnet)?;
        let want = subnet.max_prefix_len() - 2;
        if subnet.prefix_len() > want {
            return Err(RangeError::TooSmall { subnet, want });
        }
        let (first_host, last_host) = hosts(subnet);
        let within = |what, address: Option<IpAddr>| match address {
            Some(address) if !subnet.contains(&address) => Err(RangeError::Outside { what, address, subnet }),
            given => Ok(given.map(bits)),
        };
        // A start or end on the network or broadcast address means the whole subnet.
        let first = within("start", spec.start)?.unwrap_or(first_host).max(first_host);
        let last = within("end", spec.end)?.unwrap_or(last_host).min(last_host);
        let gateway_bits = within("gateway", spec.gateway)?.unwrap_or(first_host);
        if let (Some(start), Some(end)) = (spec.start, spec.end)
            && start > end
        {
            return Err(RangeError::Reversed { start, end });
        }
        let mut holes = vec![(gateway_bits, gateway_bits)];
        for &block in &spec.exclude {
            check_block(block)?;
            if !subnet.contains(&block) {
                return Err(RangeError::ExcludeOutside { block, subnet });
            }
            holes.push((bits(block.network()), bits(block.broadcast())));
        }
        let family = Family::of(subnet.addr());
        let nothing_left = RangeError::NothingLeft { subnet };
        let gateway = address(family, gateway_bits).ok_or_else(|| nothing_left.clone())?;
        let span = Span::new(family, first, last, holes).ok_or(nothing_left)?;
        Ok(Range { subnet, gateway, exclude: spec.exclude, span, set: 0 })
    }

    /// The same as part of another set than 0. Ranges of one family and set serve one address, the first that has one free.
    #[must_use]
    pub fn in_set(self, set: u8) -> Range {
        Range { set, ..self }
    }

    /// The set that it is part of.
    #[must_use]
    pub fn set(&self) -> u8 {
        self.set
    }

    /// The subnet that the range is part of.
    #[must_use]
    pub fn subnet(&self) -> IpNet {
        self.subnet
    }

    /// The address that is kept for the gateway.
    #[must_use]
    pub fn gateway(&self) -> IpAddr {
        self.gateway
    }

    /// The family of all its addresses.
    #[must_use]
    pub fn family(&self) -> Family {
        self.span.family
    }

    /// Whether the address may be leased.
    #[must_use]
    pub fn contains(&self, address: IpAddr) -> bool {
        self.family() == Family::of(address) && self.span.contains(bits(address))
    }

    /// What an address of the subnet is kept for that may not be leased.
    pub(crate) fn refusal(&self, address: IpAddr) -> &'static str {
        if address == self.gateway {
            "the gateway"
        } else if self.exclude.iter().any(|block| block.contains(&address)) {
            "excluded"
        } else {
            "outside of the first and the last address to lease"
        }
    }

    /// How many addresses may be leased.
    #[must_use]
    pub fn capacity(&self) -> u128 {
        self.span.len()
    }

    /// The first and the last address that may be leased.
    #[must_use]
    pub fn ends(&self) -> (IpAddr, IpAddr) {
        let at = |bits| address(self.span.family, bits).unwrap_or(self.gateway);
        (at(self.span.first), at(self.span.last))
    }

    pub(crate) fn span(&self) -> &Span {
        &self.span
    }
}

fn check_block(block: IpNet) -> Result<(), RangeError> {
    let network = block.trunc();
    if block == network { Ok(()) } else { Err(RangeError::HostBits { block, network }) }
}

/// First and last host of a subnet of at least four addresses.
fn hosts(subnet: IpNet) -> (u128, u128) {
    let (network, end) = (bits(subnet.network()), bits(subnet.broadcast()));
    match subnet {
        IpNet::V4(_) => (network + 1, end - 1),
        // IPv6 has no broadcast.
        IpNet::V6(_) => (network + 1, end),
    }
}

/// A set of addresses: an interval with holes. The first and the last address are always part of it, the holes
/// are sorted and do not touch, so equal sets are equal values however they were written down.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct Span {
    pub(crate) family: Family,
    pub(crate) first: u128,
    pub(crate) last: u128,
    pub(crate) holes: Vec<(u128, u128)>,
}

impl Span {
    /// `None` if the holes leave nothing.
    fn new(family: Family, mut first: u128, mut last: u128, mut holes: Vec<(u128, u128)>) -> Option<Span> {
        holes.retain(|&(from, to)| from <= last && to >= first);
        let mut holes = merge(holes);
        if let Some(&(from, to)) = holes.first()
            && from <= first
        {
            first = to.checked_add(1)?;
            holes.remove(0);
        }
        if let Some(&(from, to)) = holes.last()
            && to >= last
        {
            last = from.checked_sub(1)?;
            holes.pop();
        }
        (first <= last).then_some(Span { family, first, last, holes })
    }

    /// Whether it is as [`Span::new`] makes it, whoever wrote it.
    pub(crate) fn is_sound(&self) -> bool {
        let mut free_from = self.first;
        let in_order = self.holes.iter().all(|&(from, to)| {
            let apart = free_from < from && from <= to && to < self.last;
            // The number after the hole, which is an address: holes do not touch.
            free_from = to.saturating_add(1);
            apart
        });
        in_order && 0 < self.first && self.first <= self.last && address(self.family, self.last).is_some()
    }

    /// How many addresses it has. Cannot overflow: the address 0 is the network address of every subnet it is in.
    pub(crate) fn len(&self) -> u128 {
        let holes: u128 = self.holes.iter().map(|(from, to)| to - from + 1).sum();
        self.last - self.first + 1 - holes
    }

    pub(crate) fn contains(&self, bits: u128) -> bool {
        self.next_from(bits) == Some(bits)
    }

    /// The first of its addresses that is not below `bits`.
    pub(crate) fn next_from(&self, bits: u128) -> Option<u128> {
        let bits = bits.max(self.first);
        let hole = self.holes.partition_point(|&(_, to)| to < bits);
        let next = match self.holes.get(hole) {
            Some(&(from, to)) if from <= bits => to + 1,
            _ => bits,
        };
        (next <= self.last).then_some(next)
    }

    /// Whether the two have an address in common; a block that one excludes and the other consists of is none.
    pub(crate) fn overlaps(&self, other: &Span) -> bool {
        let mut bits = Some(self.first);
        while self.family == other.family
            && let Some(theirs) = bits.and_then(|bits| other.next_from(bits))
        {
            bits = self.next_from(theirs);
            if bits == Some(theirs) {
                return true;
            }
        }
        false
    }
}

fn merge(mut holes: Vec<(u128, u128)>) -> Vec<(u128, u128)> {
    holes.sort_unstable();
    let mut merged: Vec<(u128, u128)> = Vec::with_capacity(holes.len());
    for (from, to) in holes {
        match merged.last_mut() {
            Some((_, end)) if from <= end.saturating_add(1) => *end = to.max(*end),
            _ => merged.push((from, to)),
        }
    }
    merged
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    fn spec(subnet: &str) -> RangeSpec {
        RangeSpec {
            subnet: subnet.parse().unwrap(),
            start: None,
            end: None,
            gateway: None,
            exclude: Vec::new(),
        }
    }

    fn ip(text: &str) -> IpAddr {
        text.parse().unwrap()
    }

    fn range(subnet: &str) -> Range {
        Range::new(spec(subnet)).unwrap()
    }

    #[test]
    fn every_size_has_its_capacity() {
        for (subnet, gateway, capacity) in [
            ("10.0.0.0/30", "10.0.0.1", 1),
            ("10.0.0.0/24", "10.0.0.1", 253),
            ("10.0.0.0/16", "10.0.0.1", 65_533),
            ("10.0.0.0/8", "10.0.0.1", (1 << 24) - 3),
            ("0.0.0.0/0", "0.0.0.1", (1 << 32) - 3),
            ("fd00::/126", "fd00::1", 2),
            ("fd00::/64", "fd00::1", (1 << 64) - 2),
            ("fd00::/8", "fd00::1", (1 << 120) - 2),
            ("::/0", "::1", u128::MAX - 1),
        ] {
            let range = range(subnet);
            assert_eq!(range.gateway(), ip(gateway), "{subnet}");
            assert_eq!(range.capacity(), capacity, "{subnet}");
        }
    }

    #[test]
    fn network_broadcast_anycast_and_gateway_are_never_leased() {
        let v4 = range("10.0.0.0/29");
        for out in ["10.0.0.0", "10.0.0.1", "10.0.0.7", "10.0.0.8", "fd00::2"] {
            assert!(!v4.contains(ip(out)), "{out}");
        }
        assert!(v4.contains(ip("10.0.0.2")) && v4.contains(ip("10.0.0.6")));
        let v6 = range("fd00::/125");
        assert!(!v6.contains(ip("fd00::")) && !v6.contains(ip("fd00::1")));
        assert!(v6.contains(ip("fd00::7")), "IPv6 has no broadcast");
    }

    #[test]
    fn every_mistake_has_its_error() {
        let subnet: IpNet = "10.0.0.0/24".parse().unwrap();
        let base = || spec("10.0.0.0/24");
        let table: Vec<(RangeSpec, &str)> = vec![
            (spec("10.0.0.1/24"), "10.0.0.1/24 has host bits set, want 10.0.0.0/24"),
            (spec("10.0.0.0/31"), "subnet 10.0.0.0/31 is too small, want /30 or larger"),
            (spec("10.0.0.0/32"), "subnet 10.0.0.0/32 is too small, want /30 or larger"),
            (spec("fd00::/127"), "subnet fd00::/127 is too small, want /126 or larger"),
            (spec("fd00::/128"), "subnet fd00::/128 is too small, want /126 or larger"),
            (
                RangeSpec { start: Some(ip("10.0.1.0")), ..base() },
                "start 10.0.1.0 is not in subnet 10.0.0.0/24",
            ),
            (RangeSpec { end: Some(ip("10.0.1.0")), ..base() }, "end 10.0.1.0 is not in subnet 10.0.0.0/24"),
            (
                RangeSpec { gateway: Some(ip("fd00::1")), ..base() },
                "gateway fd00::1 is not in subnet 10.0.0.0/24",
            ),
            (
                RangeSpec { exclude: vec!["10.0.0.0/23".parse().unwrap()], ..base() },
                "excluded block 10.0.0.0/23 is not in subnet 10.0.0.0/24",
            ),
            (
                RangeSpec { exclude: vec!["fd00::/64".parse().unwrap()], ..base() },
                "excluded block fd00::/64 is not in subnet 10.0.0.0/24",
            ),
            (
                RangeSpec { exclude: vec!["10.0.0.9/30".parse().unwrap()], ..base() },
                "10.0.0.9/30 has host bits set, want 10.0.0.8/30",
            ),
            (
                RangeSpec { start: Some(ip("10.0.0.9")), end: Some(ip("10.0.0.8")), ..base() },
                "start 10.0.0.9 lies behind end 10.0.0.8",
            ),
            (RangeSpec { exclude: vec![subnet], ..base() }, "nothing is left to lease in subnet 10.0.0.0/24"),
            (
                RangeSpec { start: Some(ip("10.0.0.1")), end: Some(ip("10.0.0.1")), ..base() },
                "nothing is left to lease in subnet 10.0.0.0/24",
            ),
        ];
        for (spec, message) in table {
            assert_eq!(Range::new(spec).unwrap_err().to_string(), message);
        }
    }

    #[test]
    fn a_start_on_the_network_address_means_the_first_host() {
        let whole =
            RangeSpec { start: Some(ip("10.0.0.0")), end: Some(ip("10.0.0.255")), ..spec("10.0.0.0/24") };
        assert_eq!(Range::new(whole).unwrap(), range("10.0.0.0/24"));
    }

    #[test]
    fn a_carved_out_block_does_not_overlap_what_it_was_carved_from() {
        let block: IpNet = "10.0.5.0/24".parse().unwrap();
        let rest = Range::new(RangeSpec { exclude: vec![block], ..spec("10.0.0.0/16") }).unwrap();
        let block = range("10.0.5.0/24");
        assert!(!rest.span().overlaps(block.span()) && !block.span().overlaps(rest.span()));
        assert!(range("10.0.0.0/16").span().overlaps(block.span()));
        assert!(!range("fd00::/64").span().overlaps(block.span()));
    }

    fn small() -> impl Strategy<Value = RangeSpec> {
        let host = || proptest::option::of(0..64_u32);
        let blocks = proptest::collection::vec((26..33_u8, 0..64_u32), 0..4);
        (host(), host(), host(), blocks).prop_map(|(start, end, gateway, blocks)| {
            let at = |host: u32| IpAddr::from(Ipv4Addr::from(0x0a00_0000 + host));
            let exclude =
                blocks.into_iter().map(|(prefix, host)| IpNet::new(at(host), prefix).unwrap().trunc());
            RangeSpec {
                start: start.map(at),
                end: end.map(at),
                gateway: gateway.map(at),
                exclude: exclude.collect(),
                ..spec("10.0.0.0/26")
            }
        })
    }

    /// The plain reading of a specification, address by address.
    fn members(spec: &RangeSpec) -> Vec<u128> {
        let gateway = spec.gateway.unwrap_or_else(|| ip("10.0.0.1"));
        let leasable = |address: &IpAddr| {
            spec.start.is_none_or(|start| *address >= start)
                && spec.end.is_none_or(|end| *address <= end)
                && *address != gateway
                && !spec.exclude.iter().any(|block| block.contains(address))
        };
        spec.subnet.hosts().filter(leasable).map(bits).collect()
    }

    proptest! {
        #[test]
        fn a_range_is_the_set_that_its_specification_says(a in small(), b in small()) {
            let (in_a, in_b) = (members(&a), members(&b));
            let (Ok(a), Ok(b)) = (Range::new(a), Range::new(b)) else {
                return Ok(());
            };
            let walk: Vec<u128> =
                std::iter::successors(a.span.next_from(0), |bits| a.span.next_from(bits + 1)).collect();
            prop_assert_eq!(&walk, &in_a);
            prop_assert_eq!(a.capacity(), in_a.len() as u128);
            prop_assert_eq!(a.span.overlaps(&b.span), in_a.iter().any(|bits| in_b.contains(bits)));
        }

        #[test]
        fn a_specification_with_members_is_a_range(a in small()) {
            let reversed = a.start.zip(a.end).is_some_and(|(start, end)| start > end);
            prop_assert_eq!(Range::new(a.clone()).is_ok(), !members(&a).is_empty() && !reversed);
        }
    }
}
