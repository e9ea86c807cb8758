//! What went over a link, as the kernel counts it.

use netlink_packet_route::RouteNetlinkMessage;
use netlink_packet_route::link::{LinkAttribute, LinkMessage};

use crate::netlink::errno;
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
            Ok(RouteNetlinkMessage::NewLink(answer)) => answer,
            Ok(_) => return Ok(None),
            Err(err) if errno(&err) == Some(nix::libc::ENODEV) => return Ok(None),
            Err(source) => {
                return Err(Error::Netlink { op: "read counters of link", object: name.to_string(), source });
            }
        };
        Ok(counters_of(&answer))
    }
}

pub(crate) fn counters_of(link: &LinkMessage) -> Option<LinkCounters> {
    link.attributes.iter().find_map(|attribute| match attribute {
        LinkAttribute::Stats64(stats) => Some(LinkCounters {
            received: Traffic {
                packets: stats.rx_packets,
                bytes: stats.rx_bytes,
                dropped: stats.rx_dropped,
                errors: stats.rx_errors,
            },
            sent: Traffic {
                packets: stats.tx_packets,
                bytes: stats.tx_bytes,
                dropped: stats.tx_dropped,
                errors: stats.tx_errors,
            },
        }),
        _ => None,
    })
}
