//! The expressions of rules: each takes from the packet into registers, compares, looks up, or decides
//! (include/uapi/linux/netfilter/nf_tables.h).
//!
//! A rule ends at the first comparison or lookup that fails, and the next one begins.

use std::borrow::Cow;

use netlink_packet_core::DefaultNla;
use netlink_packet_netfilter::nftables::{
    Bitwise, Cmp, DataAttribute, ExpressionAttribute, Expressions, Immediate, ListAttribute, Lookup, Meta,
    MetaKey, Operator, Payload, Register, Verdict, VerdictAttribute,
};
use nix::libc;

/// The first of four bytes of register space; there are 16 (`NFT_REG32_00` on). A longer value takes the ones behind it too.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Slot(pub u8);

impl From<Slot> for Register {
    fn from(slot: Slot) -> Register {
        Register::from(8 + u32::from(slot.0))
    }
}

/// The address family of a packet or a translation.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Family {
    /// IPv4.
    Ipv4,
    /// IPv6.
    Ipv6,
}

impl Family {
    /// `NFPROTO_IPV4`, `NFPROTO_IPV6`.
    fn number(self) -> u8 {
        match self {
            Family::Ipv4 => 2,
            Family::Ipv6 => 10,
        }
    }
}

/// A field of a packet.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Field {
    /// The source address.
    Source(Family),
    /// The destination address.
    Destination(Family),
    /// The destination port of TCP, UDP and SCTP.
    DestinationPort,
}

/// Whose address or port a translation writes.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Direction {
    /// The sender's.
    Source,
    /// The receiver's.
    Destination,
}

/// One expression.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Expr {
    /// The packet is of this family, or the rule ends.
    Is(Family),
    /// The name of the link that it came by begins so, or the rule ends.
    CameBy(&'static str),
    /// The name of the link that it leaves by begins so, or the rule ends.
    LeavesBy(&'static str),
    /// Takes a field.
    Take(Field, Slot),
    /// Takes the protocol number.
    TakeProtocol(Slot),
    /// The address there has this prefix of whole bytes, or the rule ends.
    Begins(Slot, Vec<u8>),
    /// The destination is an address of the host's own, or the rule ends.
    IsForHost,
    /// No route leads to the sender over the link that it came by, or the rule ends.
    IsAstray,
    /// The destination of the connection is translated, or the rule ends.
    IsTranslated,
    /// The key from there on is in the set, or the rule ends.
    Find(Cow<'static, str>, Slot),
    /// The key from there on is not in the set, or the rule ends.
    Miss(&'static str, Slot),
    /// Takes the value of the key from the first slot on into the second on, or the rule ends.
    Map(&'static str, Slot, Slot),
    /// The address there is in the range, or the rule ends: its first so many bits are those of the address.
    Within(Slot, Vec<u8>, u8),
    /// Puts bytes there.
    Put(Slot, Vec<u8>),
    /// Writes the address there, and where one is given the port, into the connection.
    Translate(Direction, Family, Slot, Option<Slot>),
    /// Writes an address of the link that the packet leaves by as the sender's, with a random port.
    Masquerade,
    /// Goes on with a chain, and then behind this rule.
    Jump(&'static str),
    /// Goes back to where the chain was jumped to from.
    Return,
    /// Lets the packet pass this base chain.
    Accept,
    /// Lets it pass nowhere.
    Drop,
}

/// `NFTA_*` numbers of the expressions that the library does not know, and their values.
mod number {
    /// `NFTA_NAT_*`.
    pub(super) const NAT: [u16; 6] = [1, 2, 3, 4, 5, 6];
    /// `NFTA_MASQ_FLAGS`.
    pub(super) const MASQ_FLAGS: u16 = 1;
    /// `NF_NAT_RANGE_PROTO_RANDOM_FULLY`.
    pub(super) const RANDOM_FULLY: u32 = 1 << 4;
    /// `NFT_LOOKUP_F_INV`.
    pub(super) const LOOKUP_INVERTED: u32 = 1;
    /// `NFTA_FIB_DREG`, `NFTA_FIB_RESULT`, `NFTA_FIB_FLAGS`.
    pub(super) const FIB: [u16; 3] = [1, 2, 3];
    /// `NFT_FIB_RESULT_OIF`.
    pub(super) const OIF: u32 = 1;
    /// `NFT_FIB_RESULT_ADDRTYPE`.
    pub(super) const ADDRTYPE: u32 = 3;
    /// `NFTA_FIB_F_SADDR | NFTA_FIB_F_IIF`.
    pub(super) const SADDR_IIF: u32 = 1 | 1 << 3;
    /// `NFTA_FIB_F_DADDR`.
    pub(super) const DADDR: u32 = 1 << 1;
    /// `NFTA_CT_DREG`, `NFTA_CT_KEY`.
    pub(super) const CT: [u16; 2] = [1, 2];
    /// `NFT_CT_STATUS`.
    pub(super) const STATUS: u32 = 2;
    /// `IPS_DST_NAT`.
    pub(super) const DST_NAT: u32 = 1 << 5;
    /// `NFT_PAYLOAD_NETWORK_HEADER`, `NFT_PAYLOAD_TRANSPORT_HEADER`.
    pub(super) const HEADERS: [u32; 2] = [1, 2];
}

/// For what is compared at once.
const SCRATCH: Slot = Slot(15);

impl Expr {
    /// The kernel's expressions: a question is a taking and a comparing.
    pub(super) fn into_attributes(self) -> Vec<ListAttribute<ExpressionAttribute>> {
        let expressions = match self {
            Expr::Is(family) => vec![meta(MetaKey::Nfproto, SCRATCH), equal(SCRATCH, vec![family.number()])],
            Expr::CameBy(prefix) => named(MetaKey::Iifname, prefix),
            Expr::LeavesBy(prefix) => named(MetaKey::Oifname, prefix),
            Expr::Take(field, to) => vec![payload(field, to)],
            Expr::TakeProtocol(to) => vec![meta(MetaKey::L4Proto, to)],
            Expr::Begins(at, prefix) => vec![equal(at, prefix)],
            Expr::IsForHost => routed(number::ADDRTYPE, number::DADDR, libc::RTN_LOCAL.into()),
            Expr::IsAstray => routed(number::OIF, number::SADDR_IIF, 0),
            Expr::IsTranslated => translated(),
            Expr::Find(set, key) => vec![lookup(&set, key, None)],
            Expr::Miss(set, key) => vec![lookup(set, key, Some(Lookup::Flags(number::LOOKUP_INVERTED)))],
            Expr::Map(set, key, to) => vec![lookup(set, key, Some(Lookup::DestinationRegister(to.into())))],
            Expr::Within(at, network, prefix) => within(at, network, prefix),
            Expr::Put(to, bytes) => vec![Expressions::Immediate(vec![
                Immediate::DestinationRegister(to.into()),
                Immediate::Data(DataAttribute::Value(bytes)),
            ])],
            Expr::Translate(direction, family, address, port) => {
                vec![translate(direction, family, address, port)]
            }
            Expr::Masquerade => vec![other("masq", &[(number::MASQ_FLAGS, number::RANDOM_FULLY)])],
            Expr::Jump(chain) => vec![verdict(Verdict::Jump, Some(chain))],
            Expr::Return => vec![verdict(Verdict::Return, None)],
            Expr::Accept => vec![verdict(Verdict::Other(libc::NF_ACCEPT.cast_unsigned()), None)],
            Expr::Drop => vec![verdict(Verdict::Other(libc::NF_DROP.cast_unsigned()), None)],
        };
        expressions.into_iter().map(ListAttribute::from).collect()
    }
}

fn meta(key: MetaKey, to: Slot) -> Expressions {
    Expressions::Meta(vec![Meta::Key(key), Meta::DestinationRegister(to.into())])
}

fn equal(at: Slot, value: Vec<u8>) -> Expressions {
    compare(at, Operator::Equal, value)
}

fn compare(at: Slot, operator: Operator, value: Vec<u8>) -> Expressions {
    Expressions::Cmp(vec![
        Cmp::SourceRegister(at.into()),
        Cmp::Op(operator),
        Cmp::Data(DataAttribute::Value(value)),
    ])
}

/// A name takes 16 bytes, and comparing fewer of them is how `nft` writes `weft*`.
fn named(key: MetaKey, prefix: &str) -> Vec<Expressions> {
    const NAME: Slot = Slot(12);
    vec![meta(key, NAME), equal(NAME, prefix.as_bytes().to_vec())]
}

/// Offsets: RFC 791, RFC 8200; both ports are where TCP, UDP and SCTP agree.
fn payload(field: Field, to: Slot) -> Expressions {
    let [network, transport] = number::HEADERS;
    let (base, offset, len) = match field {
        Field::Source(Family::Ipv4) => (network, 12, 4),
        Field::Destination(Family::Ipv4) => (network, 16, 4),
        Field::Source(Family::Ipv6) => (network, 8, 16),
        Field::Destination(Family::Ipv6) => (network, 24, 16),
        Field::DestinationPort => (transport, 2, 2),
    };
    Expressions::Payload(vec![
        Payload::DestinationRegister(to.into()),
        Payload::Base(base),
        Payload::Offset(offset),
        Payload::Len(len),
    ])
}

fn lookup(set: &str, key: Slot, how: Option<Lookup>) -> Expressions {
    let mut attributes = vec![Lookup::Set(set.to_owned()), Lookup::SourceRegister(key.into())];
    attributes.extend(how);
    Expressions::Lookup(attributes)
}

fn within(at: Slot, network: Vec<u8>, prefix: u8) -> Vec<Expressions> {
    let bits = |byte: usize| usize::from(prefix).saturating_sub(byte * 8).min(8);
    let mask = (0..network.len()).map(|byte| !(0xff_u16 >> bits(byte)).to_be_bytes()[1]);
    vec![masked(at, mask.collect()), equal(at, network)]
}

/// In place.
fn masked(at: Slot, mask: Vec<u8>) -> Expressions {
    Expressions::Bitwise(vec![
        Bitwise::SourceRegister(at.into()),
        Bitwise::DestinationRegister(at.into()),
        Bitwise::Length(u32::try_from(mask.len()).unwrap_or_default()),
        Bitwise::Xor(DataAttribute::Value(vec![0; mask.len()])),
        Bitwise::Mask(DataAttribute::Value(mask)),
    ])
}

/// What the routing table says of an address is this.
fn routed(result: u32, flags: u32, wanted: u32) -> Vec<Expressions> {
    let [to, of, how] = number::FIB;
    let look = other("fib", &[(to, u32::from(Register::from(SCRATCH))), (of, result), (how, flags)]);
    vec![look, equal(SCRATCH, wanted.to_ne_bytes().to_vec())]
}

fn translated() -> Vec<Expressions> {
    let status =
        other("ct", &[(number::CT[0], u32::from(Register::from(SCRATCH))), (number::CT[1], number::STATUS)]);
    let mask = masked(SCRATCH, number::DST_NAT.to_ne_bytes().to_vec());
    vec![status, mask, compare(SCRATCH, Operator::NotEqual, vec![0; 4])]
}

fn translate(direction: Direction, family: Family, address: Slot, port: Option<Slot>) -> Expressions {
    let [kind, of, address_min, address_max, port_min, port_max] = number::NAT;
    let direction = u32::from(direction == Direction::Destination);
    let register = |slot: Slot| u32::from(Register::from(slot));
    let mut attributes = vec![
        (kind, direction),
        (of, family.number().into()),
        (address_min, register(address)),
        (address_max, register(address)),
    ];
    if let Some(port) = port {
        attributes.extend([(port_min, register(port)), (port_max, register(port))]);
    }
    other("nat", &attributes)
}

fn verdict(verdict: Verdict, chain: Option<&str>) -> Expressions {
    let mut attributes = vec![VerdictAttribute::Code(verdict)];
    attributes.extend(chain.map(|chain| VerdictAttribute::Chain(chain.to_owned())));
    Expressions::Immediate(vec![
        Immediate::DestinationRegister(Register::Verdict),
        Immediate::Data(DataAttribute::Verdict(attributes)),
    ])
}

/// An expression of numbers only, each big-endian.
fn other(name: &str, attributes: &[(u16, u32)]) -> Expressions {
    let attributes =
        attributes.iter().map(|(kind, value)| DefaultNla::new(*kind, value.to_be_bytes().to_vec()));
    Expressions::Other { expression_type: name.to_owned(), attributes: attributes.collect() }
}
