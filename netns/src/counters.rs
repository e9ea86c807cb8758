//! What went over a link, as the kernel counts it.

use netlink_packet_route::RouteNetlinkMessage;
use netlink_packet_route::link::{LinkAttribute, LinkMessage};
use nix::libc;

use crate::netlink::errno;
use crate::raw::{Raw, attribute};
use crate::{Error, LinkName, Netlink};

/// Packets and bytes of one link since it was made, in both directions as the link sees them.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub struct LinkCounters {
    /// What came in.
    pub received: Traffic,
    /// What went out.
    pub sent: Traffic,
}

/// One direction.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub struct Traffic {
    /// Packets; a segment that its sender left to be cut later counts as one.
    pub packets: u64,
    /// Bytes with the Ethernet header.
    pub bytes: u64,
    /// Packets that the link let fall.
    pub dropped: u64,
    /// Packets that were broken, or could not be sent.
    pub errors: u64,
}

impl Netlink {
    /// What went over the link of that name, if there is one (`IFLA_STATS64`, rtnetlink(7)).
    ///
    /// # Errors
    /// [`Error::Netlink`].
    pub fn link_counters(&self, name: &LinkName) -> Result<Option<LinkCounters>, Error> {
        let mut message = LinkMessage::default();
        message.attributes.push(LinkAttribute::IfName(name.as_str().to_owned()));
        let answer = match self.query(RouteNetlinkMessage::GetLink(message)) {
            Ok(answer) => answer,
            Err(err) if errno(&err) == Some(libc::ENODEV) => return Ok(None),
            Err(source) => {
                return Err(Error::Netlink { op: "read counters of link", object: name.to_string(), source });
            }
        };
        Ok(counters_of(&answer))
    }
}

pub(crate) fn counters_of(link: &Raw) -> Option<LinkCounters> {
    let (_, rest) = link.parts::<16>(libc::RTM_NEWLINK)?;
    // struct rtnl_link_stats64 (linux/if_link.h): 64 bits each of packets received and sent, bytes, errors, and those dropped.
    let stats = attribute(rest, libc::IFLA_STATS64)?;
    let number = |at: usize| Some(u64::from_ne_bytes(*stats.get(8 * at..)?.first_chunk()?));
    let of = |at| {
        Some(Traffic {
            packets: number(at)?,
            bytes: number(at + 2)?,
            errors: number(at + 4)?,
            dropped: number(at + 6)?,
        })
    };
    Some(LinkCounters { received: of(0)?, sent: of(1)? })
}
