//! Connections that the kernel remembers, and forgetting those that would lead packets to where nobody is any more.

use std::io;
use std::net::IpAddr;

use netlink_packet_core::{DefaultNla, Emitable, NLA_F_NESTED, NLM_F_ACK, NLM_F_DUMP, Nla};
use netlink_packet_netfilter::conntrack::{ConntrackMessageType, IPTuple, ProtoTuple, Protocol, Tuple};
use netlink_packet_netfilter::{
    NetfilterHeader, NetfilterMessage, NetfilterMessageInner, NetfilterProtoFamily, NetfilterSubsystem,
};
use nix::libc;

use crate::netlink::errno;
use crate::nft::Family;
use crate::raw::{Raw, attribute, attributes};
use crate::{Error, Netfilter};

/// Some of the remembered connections.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Flows {
    /// UDP to this port, whatever the address was, as the first packet had it.
    ToUdpPort(Family, u16),
    /// Those that this address answers, translated or not.
    AnsweredBy(IpAddr),
    /// Those that one of these addresses answers because their destination was translated.
    TranslatedTo([Option<IpAddr>; 2]),
    /// Those that this address began.
    BegunBy(IpAddr),
}

/// Attributes of include/uapi/linux/netfilter/nfnetlink_conntrack.h that the library does not know.
mod number {
    /// `NFNL_SUBSYS_CTNETLINK` and `IPCTNL_MSG_CT_NEW`.
    pub(super) const CONNECTION: [u8; 2] = [1, 0];
    /// `CTA_TUPLE_IP`, and in it `CTA_IP_V4_SRC` and `CTA_IP_V6_SRC`, `CTA_IP_V4_DST` and `CTA_IP_V6_DST`.
    pub(super) const ADDRESSES: u16 = 1;
    pub(super) const FROM: [u16; 2] = [1, 3];
    pub(super) const TO: [u16; 2] = [2, 4];
    /// `CTA_TUPLE_PROTO`, and in it `CTA_PROTO_NUM` and `CTA_PROTO_DST_PORT`.
    pub(super) const PROTO: u16 = 2;
    pub(super) const PROTOCOL: u16 = 1;
    pub(super) const TO_PORT: u16 = 3;
    /// `CTA_TUPLE_ORIG`, `CTA_TUPLE_REPLY`.
    pub(super) const ORIGINAL: u16 = 1;
    pub(super) const REPLY: u16 = 2;
    /// `CTA_STATUS`, `CTA_STATUS_MASK`, and of its bits `IPS_DST_NAT`.
    pub(super) const STATUS: [u16; 2] = [3, 26];
    pub(super) const TRANSLATED: u32 = 1 << 5;
    /// `IPCTNL_MSG_CT_GET_STATS`, and of its answer `CTA_STATS_GLOBAL_ENTRIES`.
    pub(super) const STATISTICS: u8 = 5;
    pub(super) const ENTRIES: u16 = 1;
    /// `CTA_ID`.
    pub(super) const ID: u16 = 12;
    /// `CTA_ZONE`.
    pub(super) const ZONE: u16 = 18;
    /// `CTA_FILTER`.
    pub(super) const FILTER: u16 = 25;
    /// `CTA_FILTER_ORIG_FLAGS`, `CTA_FILTER_REPLY_FLAGS`: which fields of the two tuples count.
    pub(super) const FLAGS: [u16; 2] = [1, 2];
    /// `CTA_FILTER_F_CTA_IP_SRC`, `..._PROTO_NUM`, `..._PROTO_DST_PORT` (net/netfilter/nf_internals.h).
    pub(super) const BY_SOURCE: u32 = 1 << 0;
    pub(super) const BY_PROTOCOL: u32 = 1 << 3;
    pub(super) const BY_DESTINATION_PORT: u32 = 1 << 5;
}

/// `IPPROTO_UDP`.
const UDP: u8 = 17;

impl Flows {
    fn family(self) -> NetfilterProtoFamily {
        let ipv4 = match self {
            Flows::ToUdpPort(family, _) => family == Family::Ipv4,
            Flows::AnsweredBy(address) | Flows::BegunBy(address) => address.is_ipv4(),
            Flows::TranslatedTo(_) => return NetfilterProtoFamily::Unspec,
        };
        if ipv4 { NetfilterProtoFamily::IPv4 } else { NetfilterProtoFamily::IPv6 }
    }

    /// What the kernel goes by, so that it lists few others (since Linux 5.8). By an IPv6 address it lists all but those that are
    /// meant: `ctnetlink_filter_match_tuple` of net/netfilter/nf_conntrack_netlink.c takes the 0 of `ipv6_addr_cmp` for "differs",
    /// up to Linux 6.18 at least. So it is not asked, and [`Flows::has`] has the last word.
    fn filter(self) -> Vec<DefaultNla> {
        let source = |address| [Tuple::Ip(vec![IPTuple::SourceAddress(address)])];
        let (tuple, original, reply) = match self {
            // Kernels that do not know this filter list all.
            Flows::TranslatedTo(_) => {
                let bit = number::TRANSLATED.to_be_bytes();
                return number::STATUS.map(|kind| DefaultNla::new(kind, bit.to_vec())).into();
            }
            Flows::AnsweredBy(IpAddr::V6(_)) | Flows::BegunBy(IpAddr::V6(_)) => return Vec::new(),
            Flows::ToUdpPort(_, port) => {
                let proto = vec![ProtoTuple::Protocol(Protocol::Udp), ProtoTuple::DestinationPort(port)];
                let flags = number::BY_PROTOCOL | number::BY_DESTINATION_PORT;
                (nest(number::ORIGINAL, &[Tuple::Proto(proto)]), flags, 0)
            }
            Flows::AnsweredBy(address) => (nest(number::REPLY, &source(address)), 0, number::BY_SOURCE),
            Flows::BegunBy(address) => (nest(number::ORIGINAL, &source(address)), number::BY_SOURCE, 0),
        };
        let [of_original, of_reply] = number::FLAGS;
        let flags = [(of_original, original), (of_reply, reply)]
            .map(|(kind, flags)| DefaultNla::new(kind, flags.to_ne_bytes().to_vec()));
        vec![tuple, nest(number::FILTER, &flags)]
    }

    /// Whether the bytes of a connection may be those of one that is meant: taking a connection apart costs more.
    fn may_have(self, bytes: &[u8]) -> bool {
        let has = |address: &[u8]| bytes.windows(address.len()).any(|window| window == address);
        let has_address = |address: IpAddr| match address {
            IpAddr::V4(address) => has(&address.octets()),
            IpAddr::V6(address) => has(&address.octets()),
        };
        match self {
            Flows::ToUdpPort(..) => true,
            Flows::AnsweredBy(address) | Flows::BegunBy(address) => has_address(address),
            Flows::TranslatedTo(addresses) => addresses.into_iter().flatten().any(has_address),
        }
    }

    /// Whether a connection is one of those that are meant; its first packet and the answers to it.
    fn has(self, original: &[u8], reply: &[u8]) -> bool {
        match self {
            Flows::ToUdpPort(_, port) => attribute(original, number::PROTO).is_some_and(|proto| {
                attribute(proto, number::PROTOCOL) == Some([UDP].as_slice())
                    && attribute(proto, number::TO_PORT) == Some(port.to_be_bytes().as_slice())
            }),
            Flows::AnsweredBy(from) => address(reply, number::FROM) == Some(from),
            Flows::TranslatedTo(addresses) => {
                let from = address(reply, number::FROM);
                from.is_some() && addresses.contains(&from) && address(original, number::TO) != from
            }
            Flows::BegunBy(from) => address(original, number::FROM) == Some(from),
        }
    }
}

/// The library's own type for these attributes forgets the flag of a nested one that it does not know.
fn nest<T: Nla>(kind: u16, attributes: &[T]) -> DefaultNla {
    let mut bytes = vec![0; attributes.buffer_len()];
    attributes.emit(&mut bytes);
    DefaultNla::new(kind | NLA_F_NESTED, bytes)
}

/// A remembered connection.
#[derive(Debug, Clone)]
pub struct Connection {
    /// Where its first packet was sent to, before any translation.
    pub to: IpAddr,
    identity: Vec<DefaultNla>,
}

fn message(family: NetfilterProtoFamily, inner: impl Into<NetfilterMessageInner>) -> NetfilterMessage {
    NetfilterMessage::new(NetfilterHeader::new(family, 0, 0), inner)
}

fn request(message_type: u8, attributes: Vec<DefaultNla>) -> NetfilterMessageInner {
    NetfilterMessageInner::Other { subsys: NetfilterSubsystem::Conntrack, message_type, attributes }
}

impl Netfilter {
    /// Those connections. The kernel walks through the whole table of the node for it, some 10 ms for 262,144 buckets, in which
    /// connections of all namespaces are; that is spared where this one has none.
    ///
    /// # Errors
    /// [`Error::Netfilter`].
    pub fn connections(&self, flows: Flows) -> Result<Vec<Connection>, Error> {
        let failed = |source| Error::Netfilter { op: format!("list connections {flows:?}"), source };
        if self.remembered().map_err(failed)? == Some(0) {
            return Ok(Vec::new());
        }
        let get = request(ConntrackMessageType::Get.into(), flows.filter());
        let found = self.ask(message(flows.family(), get), NLM_F_DUMP).map_err(failed)?;
        let meant = found.iter().filter(|answer| flows.may_have(answer.attributes()));
        Ok(meant.filter_map(|answer| connection(answer, flows)).collect())
    }

    /// How many connections of this namespace the kernel remembers, if it says so.
    fn remembered(&self) -> io::Result<Option<u32>> {
        let answers =
            self.ask(message(NetfilterProtoFamily::Unspec, request(number::STATISTICS, Vec::new())), 0)?;
        let entries = answers.first().and_then(|answer| answer.attribute(number::ENTRIES));
        Ok(entries.and_then(|bytes| <[u8; 4]>::try_from(bytes).ok()).map(u32::from_be_bytes))
    }

    /// Makes the kernel forget a connection: its next packet is judged anew. One that has ended is forgotten.
    ///
    /// # Errors
    /// [`Error::Netfilter`].
    pub fn forget(&self, connection: Connection) -> Result<(), Error> {
        let Connection { to, identity } = connection;
        let family = if to.is_ipv4() { NetfilterProtoFamily::IPv4 } else { NetfilterProtoFamily::IPv6 };
        let delete = request(ConntrackMessageType::Delete.into(), identity);
        match self.ask(message(family, delete), NLM_F_ACK) {
            Err(err) if errno(&err) == Some(libc::ENOENT) => Ok(()),
            Err(source) => Err(Error::Netfilter { op: format!("forget a connection to {to}"), source }),
            Ok(_) => Ok(()),
        }
    }
}

/// Its identity: its first packet's addresses, its number, its zone. `None` if it is not meant.
pub(crate) fn connection(answer: &Raw, flows: Flows) -> Option<Connection> {
    if answer.numbers() != number::CONNECTION {
        return None;
    }
    let original = answer.attribute(number::ORIGINAL)?;
    let reply = answer.attribute(number::REPLY).unwrap_or_default();
    let to = address(original, number::TO).filter(|_| flows.has(original, reply))?;
    let plain = [number::ID, number::ZONE].into_iter().filter_map(|kind| {
        let value = answer.attribute(kind)?;
        Some(DefaultNla::new(kind, value.to_vec()))
    });
    let original = DefaultNla::new(number::ORIGINAL | NLA_F_NESTED, original.to_vec());
    Some(Connection { to, identity: [original].into_iter().chain(plain).collect() })
}

/// An end of one direction of a connection: the numbers of an IPv4 and of an IPv6 address there.
fn address(tuple: &[u8], [ipv4, ipv6]: [u16; 2]) -> Option<IpAddr> {
    let addresses = attribute(tuple, number::ADDRESSES)?;
    attributes(addresses).find_map(|(kind, value)| match kind {
        kind if kind == ipv4 => <[u8; 4]>::try_from(value).ok().map(IpAddr::from),
        kind if kind == ipv6 => <[u8; 16]>::try_from(value).ok().map(IpAddr::from),
        _ => None,
    })
}
