//! Connections that the kernel remembers, and forgetting those that would lead packets to where nobody is any more.

use std::net::IpAddr;

use netlink_packet_core::{DefaultNla, Emitable, NLA_F_NESTED, NLM_F_ACK, NLM_F_DUMP, Nla};
use netlink_packet_netfilter::conntrack::{
    ConntrackAttribute, ConntrackMessage, ConntrackMessageType, IPTuple, ProtoTuple, Protocol, Tuple,
};
use netlink_packet_netfilter::{
    NetfilterHeader, NetfilterMessage, NetfilterMessageInner, NetfilterProtoFamily, NetfilterSubsystem,
};
use nix::libc;

use crate::netfilter::Raw;
use crate::netlink::errno;
use crate::nft::Family;
use crate::{Error, Netfilter};

/// Some of the remembered connections.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Flows {
    /// UDP to this port, whatever the address was, as the first packet had it.
    ToUdpPort(Family, u16),
    /// Those that this address answers, translated or not.
    AnsweredBy(IpAddr),
    /// Those that this address began.
    BegunBy(IpAddr),
}

/// Attributes of include/uapi/linux/netfilter/nfnetlink_conntrack.h that the library does not know.
mod number {
    /// `CTA_TUPLE_ORIG`, `CTA_TUPLE_REPLY`.
    pub(super) const ORIGINAL: u16 = 1;
    pub(super) const REPLY: u16 = 2;
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

impl Flows {
    fn family(self) -> NetfilterProtoFamily {
        let ipv4 = match self {
            Flows::ToUdpPort(family, _) => family == Family::Ipv4,
            Flows::AnsweredBy(address) | Flows::BegunBy(address) => address.is_ipv4(),
        };
        if ipv4 { NetfilterProtoFamily::IPv4 } else { NetfilterProtoFamily::IPv6 }
    }

    /// What the kernel goes by, so that it lists few others (since Linux 5.8). By an IPv6 address it lists all but those that are
    /// meant: `ctnetlink_filter_match_tuple` of net/netfilter/nf_conntrack_netlink.c takes the 0 of `ipv6_addr_cmp` for "differs",
    /// up to Linux 6.18 at least. So it is not asked, and [`Flows::has`] has the last word.
    fn filter(self) -> Vec<DefaultNla> {
        let source = |address| [Tuple::Ip(vec![IPTuple::SourceAddress(address)])];
        let (tuple, original, reply) = match self {
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
        match self {
            Flows::ToUdpPort(..) => true,
            Flows::AnsweredBy(IpAddr::V4(address)) | Flows::BegunBy(IpAddr::V4(address)) => {
                has(&address.octets())
            }
            Flows::AnsweredBy(IpAddr::V6(address)) | Flows::BegunBy(IpAddr::V6(address)) => {
                has(&address.octets())
            }
        }
    }

    /// Whether a connection is one of those that are meant.
    fn has(self, attributes: &[ConntrackAttribute]) -> bool {
        let [original, reply] = [tuples(attributes, false), tuples(attributes, true)];
        match self {
            Flows::ToUdpPort(_, port) => {
                let parts = || original.iter().filter_map(|tuple| proto(tuple)).flatten();
                parts().any(|part| *part == ProtoTuple::Protocol(Protocol::Udp))
                    && parts().any(|part| *part == ProtoTuple::DestinationPort(port))
            }
            Flows::AnsweredBy(address) => ends(reply).any(|end| *end == IPTuple::SourceAddress(address)),
            Flows::BegunBy(address) => ends(original).any(|end| *end == IPTuple::SourceAddress(address)),
        }
    }
}

/// One direction of a connection: that of its first packet, or that of the answers.
fn tuples(attributes: &[ConntrackAttribute], reply: bool) -> &[Tuple] {
    let found = attributes.iter().find_map(|attribute| match attribute {
        ConntrackAttribute::CtaTupleOrig(tuples) if !reply => Some(tuples),
        ConntrackAttribute::CtaTupleReply(tuples) if reply => Some(tuples),
        _ => None,
    });
    found.map(Vec::as_slice).unwrap_or_default()
}

fn ends(tuples: &[Tuple]) -> impl Iterator<Item = &IPTuple> {
    let ends = tuples.iter().filter_map(|tuple| match tuple {
        Tuple::Ip(ends) => Some(ends),
        _ => None,
    });
    ends.flatten()
}

fn proto(tuple: &Tuple) -> Option<&Vec<ProtoTuple>> {
    match tuple {
        Tuple::Proto(parts) => Some(parts),
        _ => None,
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
    identity: Vec<ConntrackAttribute>,
}

fn message(family: NetfilterProtoFamily, inner: impl Into<NetfilterMessageInner>) -> NetfilterMessage {
    NetfilterMessage::new(NetfilterHeader::new(family, 0, 0), inner)
}

impl Netfilter {
    /// Those connections.
    ///
    /// # Errors
    /// [`Error::Netfilter`].
    pub fn connections(&self, flows: Flows) -> Result<Vec<Connection>, Error> {
        let get = NetfilterMessageInner::Other {
            subsys: NetfilterSubsystem::Conntrack,
            message_type: ConntrackMessageType::Get.into(),
            attributes: flows.filter(),
        };
        let request = message(flows.family(), get);
        let found = self
            .ask(request, NLM_F_DUMP)
            .map_err(|source| Error::Netfilter { op: format!("list connections {flows:?}"), source })?;
        let meant = found.iter().filter(|answer| flows.may_have(answer.attributes()));
        Ok(meant.filter_map(|answer| connection(answer, flows)).collect())
    }

    /// Makes the kernel forget a connection: its next packet is judged anew. One that has ended is forgotten.
    ///
    /// # Errors
    /// [`Error::Netfilter`].
    pub fn forget(&self, connection: Connection) -> Result<(), Error> {
        let Connection { to, identity } = connection;
        let family = if to.is_ipv4() { NetfilterProtoFamily::IPv4 } else { NetfilterProtoFamily::IPv6 };
        match self.ask(message(family, ConntrackMessage::Delete(identity)), NLM_F_ACK) {
            Err(err) if errno(&err) == Some(libc::ENOENT) => Ok(()),
            Err(source) => Err(Error::Netfilter { op: format!("forget a connection to {to}"), source }),
            Ok(_) => Ok(()),
        }
    }
}

fn connection(answer: &Raw, flows: Flows) -> Option<Connection> {
    let Some(NetfilterMessageInner::Conntrack(ConntrackMessage::New(attributes))) = answer.parse() else {
        return None;
    };
    let to = ends(tuples(&attributes, false)).find_map(|end| match end {
        IPTuple::DestinationAddress(to) => Some(*to),
        _ => None,
    });
    let to = to.filter(|_| flows.has(&attributes))?;
    Some(Connection { to, identity: attributes.into_iter().filter(is_identity).collect() })
}

/// What names one connection: its first packet's addresses, its number, its zone.
fn is_identity(attribute: &ConntrackAttribute) -> bool {
    let kind = attribute.kind() & !NLA_F_NESTED;
    matches!(attribute, ConntrackAttribute::CtaTupleOrig(_)) || kind == number::ID || kind == number::ZONE
}
