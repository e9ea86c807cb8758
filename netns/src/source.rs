//! Routing by source: what is sent from an address leaves by the link that has it, whatever the main table says.
//!
//! A rule (`ip-rule(8)`) sends the packets of the address to a table of the link's, which has a default route and nothing
//! else. The route goes with its link; a rule whose table is empty by then changes nothing.

use std::net::IpAddr;

use netlink_packet_route::RouteNetlinkMessage;
use netlink_packet_route::route::{RouteAttribute, RouteHeader, RouteProtocol};
use netlink_packet_route::rule::{RuleAction, RuleAttribute, RuleMessage};

use crate::netlink::errno;
use crate::route::{ROUTE_PROTOCOL, Route, any, family};
use crate::{Error, Netlink};

/// Tables of links have this and the link's index. The tables that have names are below 256.
const TABLE: u32 = 0x7700_0000;
/// Before the main table (32766), behind what an administrator puts first.
const PRIORITY: u32 = 32_000;

impl Netlink {
    /// Sends what comes from `source`, an address of this namespace, over a link, to the next hop `via` if there is one.
    /// What is there already stays.
    ///
    /// # Errors
    /// [`Error::Netlink`].
    pub fn route_source(&self, source: IpAddr, via: Option<IpAddr>, index: u32) -> Result<(), Error> {
        let failed = |err| Error::Netlink {
            op: "route what comes from",
            object: format!("{source} over link {index}"),
            source: err,
        };
        let default = Route { destination: any(source), prefix: 0, via, index };
        let mut route = default.message();
        // The header has no room for such a number (include/uapi/linux/rtnetlink.h).
        route.header.table = RouteHeader::RT_TABLE_UNSPEC;
        route.attributes.push(RouteAttribute::Table(TABLE | index));
        self.replace(RouteNetlinkMessage::NewRoute(route)).map_err(failed)?;
        match self.create(RouteNetlinkMessage::NewRule(rule(source, index))) {
            Err(err) if errno(&err) != Some(nix::libc::EEXIST) => Err(failed(err)),
            _ => Ok(()),
        }
    }

    /// Whether packets from `source`, an address of this namespace, leave over the link, wherever they go.
    ///
    /// # Errors
    /// [`Error::Netlink`].
    pub fn routes_source(&self, source: IpAddr, index: u32) -> Result<bool, Error> {
        Ok(self.way_from(source)? == Some(index))
    }
}

fn rule(source: IpAddr, index: u32) -> RuleMessage {
    let mut message = RuleMessage::default();
    message.header.family = family(source);
    message.header.src_len = if source.is_ipv4() { 32 } else { 128 };
    message.header.action = RuleAction::ToTable;
    message.attributes = vec![
        RuleAttribute::Source(source),
        RuleAttribute::Priority(PRIORITY),
        RuleAttribute::Table(TABLE | index),
        RuleAttribute::Protocol(RouteProtocol::Other(ROUTE_PROTOCOL)),
    ];
    message
}
