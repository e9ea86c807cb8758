//! What the kernel says of one object, taken apart only where somebody looks.
//!
//! The libraries have types for all that it may say, and read all of it: of a link some 60 attributes, of which eight are wanted,
//! which was an eighth of an ADD's own instructions; and a list of nftables' elements in quadratic time. They panic where the length
//! of some nested attributes is wrong, too.

use std::convert::Infallible;

use netlink_packet_core::{NLA_F_NESTED, NLA_F_NET_BYTEORDER, NetlinkDeserializable, NetlinkHeader};

/// A message: behind netlink's header, a fixed structure and attributes.
#[derive(Debug)]
pub(crate) struct Raw {
    /// `nlmsg_type` (netlink(7)).
    pub(crate) kind: u16,
    pub(crate) bytes: Vec<u8>,
}

impl NetlinkDeserializable for Raw {
    type Error = Infallible;

    fn deserialize(header: &NetlinkHeader, payload: &[u8]) -> Result<Raw, Infallible> {
        Ok(Raw { kind: header.message_type, bytes: payload.to_vec() })
    }
}

impl Raw {
    /// The fixed structure of `N` bytes and the attributes behind it, if the message is of that kind.
    pub(crate) fn parts<const N: usize>(&self, kind: u16) -> Option<(&[u8; N], &[u8])> {
        self.bytes.split_first_chunk().filter(|_| self.kind == kind)
    }
}

/// Kinds and values of attributes, up to the first that is cut short (netlink(7)): each has two bytes of length, itself
/// included, two of kind, and is padded to four. The two highest bits of a kind are flags.
pub(crate) fn attributes(bytes: &[u8]) -> impl Iterator<Item = (u16, &[u8])> {
    let mut rest = bytes;
    std::iter::from_fn(move || {
        let (header, _) = rest.split_first_chunk::<4>()?;
        let [a, b, c, d] = *header;
        let (len, kind) = (usize::from(u16::from_ne_bytes([a, b])), u16::from_ne_bytes([c, d]));
        let value = rest.get(4..len)?;
        rest = rest.get(len.next_multiple_of(4)..).unwrap_or_default();
        Some((kind & !(NLA_F_NESTED | NLA_F_NET_BYTEORDER), value))
    })
}

/// The value of the first attribute of a kind.
pub(crate) fn attribute(bytes: &[u8], kind: u16) -> Option<&[u8]> {
    attributes(bytes).find(|(found, _)| *found == kind).map(|(_, value)| value)
}

/// The number of 32 bits at an offset, in the machine's byte order.
pub(crate) fn number_at(bytes: &[u8], at: usize) -> Option<u32> {
    bytes.get(at..)?.first_chunk().map(|number| u32::from_ne_bytes(*number))
}

/// Text up to the zero byte that ends it; `None` if it is not UTF-8.
pub(crate) fn text(value: &[u8]) -> Option<String> {
    std::str::from_utf8(value).ok().map(|text| text.trim_end_matches('\0').to_owned())
}
