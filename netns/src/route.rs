//! Addresses, routes and permanent neighbours.

use std::net::{IpAddr, Ipv4Addr, Ipv6Addr};

use netlink_packet_route::address::{AddressAttribute, AddressFlags, AddressMessage};
use netlink_packet_route::neighbour::{
    NeighbourAddress, NeighbourAttribute, NeighbourMessage, NeighbourState,
};
use netlink_packet_route::route::{
    RouteAttribute, RouteFlags, RouteHeader, RouteMessage, RouteProtocol, RouteScope, RouteType,
};
use netlink_packet_route::{AddressFamily, RouteNetlinkMessage};
use nix::libc;

use crate::netlink::errno;
use crate::raw::{Raw, attribute, number_at};
use crate::{Error, Link, Mac, Netlink};

/// Who made a route (`rtm_protocol`): a number that /etc/iproute2/rt_protos gives to nobody, so that weft's are told apart.
pub const ROUTE_PROTOCOL: u8 = 0x77;

/// An address of documentation (RFC 5737), for the question which way the default route goes. Nobody's broadcast address.
const ELSEWHERE: Ipv4Addr = Ipv4Addr::new(198, 51, 100, 77);
/// The same of IPv6 (RFC 3849).
const ELSEWHERE_V6: Ipv6Addr = Ipv6Addr::new(0x2001, 0xdb8, 0xffff, 0, 0, 0, 0, 1);

/// What a lookup fails with where no route leads on: none at all, or one of the kinds unreachable, prohibit and blackhole
/// (`fib_props` in net/ipv4/fib_semantics.c).
const NO_WAY: [i32; 4] = [libc::ENETUNREACH, libc::EHOSTUNREACH, libc::EACCES, libc::EINVAL];

/// What a list of routes fails with where there can be none: no such link, no such family.
const NO_ROUTES: [i32; 3] = [libc::ENODEV, libc::EAFNOSUPPORT, libc::EOPNOTSUPP];

/// A route of the main table.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Route {
    /// Where to.
    pub destination: IpAddr,
    /// Leading bits of `destination` that count.
    pub prefix: u8,
    /// The next hop, which is taken to be on the link; `None` if the destination is.
    pub via: Option<IpAddr>,
    /// The link.
    pub index: u32,
}

impl std::fmt::Display for Route {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        write!(f, "{}/{} on link {}", self.destination, self.prefix, self.index)
    }
}

impl Netlink {
    /// Gives an address to a link; it is used at once (`IFA_F_NODAD`). One that is there already stays.
    ///
    /// # Errors
    /// [`Error::Netlink`].
    pub fn add_address(&self, index: u32, address: IpAddr, prefix: u8) -> Result<(), Error> {
        let mut message = AddressMessage::default();
        message.header.family = family(address);
        message.header.index = index;
        message.header.prefix_len = prefix;
        message.attributes = vec![AddressAttribute::Local(address), AddressAttribute::Address(address)];
        if address.is_ipv6() {
            message.attributes.push(AddressAttribute::Flags(AddressFlags::Nodad));
        }
        let done = self.replace(RouteNetlinkMessage::NewAddress(message));
        done.map_err(|source| Error::Netlink {
            op: "add address",
            object: format!("{address} to link {index}"),
            source,
        })
    }

    /// Lets packets to an IPv6 address of a link in, at once. The kernel's route for them comes from a worker, without detection of duplicates
    /// too (`addrconf_dad_work` in net/ipv6/addrconf.c), and on a busy machine after the first of them, which go astray. This one lies behind it,
    /// and goes with the link. IPv4 has its route with the address (`fib_add_ifaddr` in net/ipv4/fib_frontend.c).
    ///
    /// # Errors
    /// `ENETDOWN` if the link is down.
    pub fn add_local_route(&self, index: u32, address: Ipv6Addr) -> Result<(), Error> {
        let route = Route { destination: address.into(), prefix: 128, via: None, index };
        let mut message = route.message();
        (message.header.table, message.header.kind) = (libc::RT_TABLE_LOCAL, RouteType::Local);
        let done = self.replace(RouteNetlinkMessage::NewRoute(message));
        done.map_err(|source| Error::Netlink { op: "add local route", object: route.to_string(), source })
    }

    /// The addresses of one link, with their prefix lengths.
    ///
    /// # Errors
    /// `ENODEV` if the link is gone.
    pub fn addresses(&self, index: u32) -> Result<Vec<(IpAddr, u8)>, Error> {
        let mut message = AddressMessage::default();
        message.header.index = index;
        let failed =
            |source| Error::Netlink { op: "list addresses of link", object: index.to_string(), source };
        let answers = self.dump(RouteNetlinkMessage::GetAddress(message)).map_err(failed)?;
        Ok(answers.iter().filter_map(address_of).collect())
    }

    /// Adds a route, or puts it in the place of one to the same destination.
    ///
    /// # Errors
    /// `ENETDOWN` if the link is down.
    pub fn replace_route(&self, route: &Route) -> Result<(), Error> {
        let done = self.replace(RouteNetlinkMessage::NewRoute(route.message()));
        done.map_err(|source| Error::Netlink { op: "add route", object: route.to_string(), source })
    }

    /// Adds a route unless there is one to the same destination, over whichever link. `false` if there is.
    ///
    /// # Errors
    /// As of [`Netlink::replace_route`].
    pub fn add_route(&self, route: &Route) -> Result<bool, Error> {
        match self.create(RouteNetlinkMessage::NewRoute(route.message())) {
            Ok(_) => Ok(true),
            Err(err) if errno(&err) == Some(libc::EEXIST) => Ok(false),
            Err(source) => Err(Error::Netlink { op: "add route", object: route.to_string(), source }),
        }
    }

    /// Deletes a route. `false` if it is gone already.
    ///
    /// # Errors
    /// [`Error::Netlink`].
    pub fn delete_route(&self, route: &Route) -> Result<bool, Error> {
        match self.act(RouteNetlinkMessage::DelRoute(route.message())) {
            Ok(()) => Ok(true),
            // ESRCH: no such route; ENODEV: no such link, and its routes went with it (net/ipv6/route.c).
            Err(err) if matches!(errno(&err), Some(libc::ESRCH | libc::ENODEV)) => Ok(false),
            Err(source) => Err(Error::Netlink { op: "delete route", object: route.to_string(), source }),
        }
    }

    /// Whether a packet to the route's destination would take exactly this route: the kernel is asked for its choice.
    ///
    /// # Errors
    /// [`Error::Netlink`].
    pub fn has_route(&self, route: &Route) -> Result<bool, Error> {
        let asked = if route.prefix == 0 { elsewhere(route.destination) } else { route.destination };
        // The route as it is in the table, not what a packet makes of it.
        let Some(found) = self.way_to(asked, RouteFlags::FibMatch)? else { return Ok(false) };
        Ok(found.index == Some(route.index) && found.via == route.via && found.prefix == route.prefix)
    }

    /// Whether a route that weft made ([`ROUTE_PROTOCOL`]) leads over the link, in any table.
    ///
    /// # Errors
    /// [`Error::Netlink`].
    pub fn has_routes_over(&self, index: u32) -> Result<bool, Error> {
        for family in [AddressFamily::Inet, AddressFamily::Inet6] {
            let mut message = RouteMessage::default();
            message.header.address_family = family;
            message.header.protocol = RouteProtocol::Other(ROUTE_PROTOCOL);
            // The kernel sends those of this link and maker only (`ip_valid_fib_dump_req` in net/ipv4/fib_frontend.c).
            message.attributes.push(RouteAttribute::Oif(index));
            match self.dump(RouteNetlinkMessage::GetRoute(message)) {
                Ok(routes) if routes.iter().filter_map(read).any(|route| route.is_ours_over(index)) => {
                    return Ok(true);
                }
                Ok(_) => {}
                // The link is gone, or the kernel has no IPv6.
                Err(err) if errno(&err).is_some_and(|errno| NO_ROUTES.contains(&errno)) => {}
                Err(source) => {
                    let object = index.to_string();
                    return Err(Error::Netlink { op: "list routes over link", object, source });
                }
            }
        }
        Ok(false)
    }

    /// The link that leads out of the node, by IPv4 or else by IPv6; `None` if none does.
    ///
    /// # Errors
    /// [`Error::Netlink`].
    pub fn default_route_link(&self) -> Result<Option<Link>, Error> {
        for address in [IpAddr::V4(ELSEWHERE), IpAddr::V6(ELSEWHERE_V6)] {
            // What a packet makes of the route is one link, of several next hops too.
            let Some(found) = self.way_to(address, RouteFlags::empty())? else { continue };
            let Some(index) = found.index else { continue };
            return self.link_by_index(index);
        }
        Ok(None)
    }

    /// A family's default route, if there is one.
    ///
    /// # Errors
    /// [`Error::Netlink`].
    pub fn default_route(&self, ipv4: bool) -> Result<Option<Route>, Error> {
        let asked = if ipv4 { IpAddr::V4(ELSEWHERE) } else { IpAddr::V6(ELSEWHERE_V6) };
        let found = self.way_to(asked, RouteFlags::FibMatch)?.filter(|route| route.prefix == 0);
        Ok(found.and_then(|Found { index, via, .. }| {
            Some(Route { destination: any(asked), prefix: 0, via, index: index? })
        }))
    }

    /// Over which link what an own address sends leaves the node.
    pub(crate) fn way_from(&self, source: IpAddr) -> Result<Option<u32>, Error> {
        let found = self.ask_way(elsewhere(source), Some(source), RouteFlags::empty())?;
        Ok(found.and_then(|found| found.index))
    }

    /// How the kernel would send to an address; `None` if it would not.
    fn way_to(&self, address: IpAddr, flags: RouteFlags) -> Result<Option<Found>, Error> {
        self.ask_way(address, None, flags)
    }

    fn ask_way(
        &self,
        address: IpAddr,
        source: Option<IpAddr>,
        flags: RouteFlags,
    ) -> Result<Option<Found>, Error> {
        let mut message = RouteMessage::default();
        if let Some(source) = source {
            message.header.source_prefix_length = if source.is_ipv4() { 32 } else { 128 };
            message.attributes.push(RouteAttribute::Source(source.into()));
        }
        message.header.address_family = family(address);
        message.header.destination_prefix_length = if address.is_ipv4() { 32 } else { 128 };
        message.header.flags = flags;
        message.attributes.push(RouteAttribute::Destination(address.into()));
        match self.query(RouteNetlinkMessage::GetRoute(message)) {
            // IPv6 tells of a route that refuses; to an own address the way is `lo`.
            Ok(answer) => Ok(read(&answer).filter(|route| route.kind == libc::RTN_UNICAST)),
            Err(err) if errno(&err).is_some_and(|errno| NO_WAY.contains(&errno)) => Ok(None),
            Err(source) => {
                Err(Error::Netlink { op: "look up the route to", object: address.to_string(), source })
            }
        }
    }

    /// Makes `address` known on a link as `mac`, for good (`NUD_PERMANENT`, `arp(7)`): nobody is asked.
    ///
    /// # Errors
    /// [`Error::Netlink`].
    pub fn replace_neighbour(&self, index: u32, address: IpAddr, mac: Mac) -> Result<(), Error> {
        let mut message = neighbour(index, address);
        message.header.state = NeighbourState::Permanent;
        message.header.kind = RouteType::Unicast;
        message.attributes.push(NeighbourAttribute::LinkLayerAddress(mac.bytes().to_vec()));
        let done = self.replace(RouteNetlinkMessage::NewNeighbour(message));
        done.map_err(|source| Error::Netlink {
            op: "add neighbour",
            object: format!("{address} to link {index}"),
            source,
        })
    }

    /// Whether `address` is known on a link as `mac`, for good.
    ///
    /// # Errors
    /// [`Error::Netlink`].
    pub fn has_neighbour(&self, index: u32, address: IpAddr, mac: Mac) -> Result<bool, Error> {
        let message = neighbour(index, address);
        match self.query(RouteNetlinkMessage::GetNeighbour(message)) {
            Ok(found) => Ok(is_permanent(&found, mac).unwrap_or(false)),
            Err(err) if errno(&err) == Some(libc::ENOENT) => Ok(false),
            Err(source) => Err(Error::Netlink {
                op: "look up neighbour",
                object: format!("{address} of link {index}"),
                source,
            }),
        }
    }
}

impl Route {
    pub(crate) fn message(&self) -> RouteMessage {
        let mut message = RouteMessage::default();
        let ipv4_on_link = self.destination.is_ipv4() && self.via.is_none();
        message.header = RouteHeader {
            address_family: family(self.destination),
            destination_prefix_length: self.prefix,
            table: RouteHeader::RT_TABLE_MAIN,
            protocol: RouteProtocol::Other(ROUTE_PROTOCOL),
            // IPv6 knows no scopes of routes, and shows what it was told as global.
            scope: if ipv4_on_link { RouteScope::Link } else { RouteScope::Universe },
            kind: RouteType::Unicast,
            flags: if self.via.is_some() { RouteFlags::Onlink } else { RouteFlags::empty() },
            ..RouteHeader::default()
        };
        if self.prefix > 0 {
            message.attributes.push(RouteAttribute::Destination(self.destination.into()));
        }
        message.attributes.extend(self.via.map(|via| RouteAttribute::Gateway(via.into())));
        message.attributes.push(RouteAttribute::Oif(self.index));
        message
    }
}

pub(crate) fn family(address: IpAddr) -> AddressFamily {
    if address.is_ipv4() { AddressFamily::Inet } else { AddressFamily::Inet6 }
}

/// The unspecified address of a family.
pub(crate) fn any(of_family: IpAddr) -> IpAddr {
    if of_family.is_ipv4() { Ipv4Addr::UNSPECIFIED.into() } else { Ipv6Addr::UNSPECIFIED.into() }
}

fn elsewhere(of_family: IpAddr) -> IpAddr {
    if of_family.is_ipv4() { ELSEWHERE.into() } else { ELSEWHERE_V6.into() }
}

fn neighbour(index: u32, address: IpAddr) -> NeighbourMessage {
    let mut message = NeighbourMessage::default();
    message.header.family = family(address);
    message.header.ifindex = index;
    let address = match address {
        IpAddr::V4(address) => NeighbourAddress::Inet(address),
        IpAddr::V6(address) => NeighbourAddress::Inet6(address),
    };
    message.attributes.push(NeighbourAttribute::Destination(address));
    message
}

/// A route, as far as it is asked about.
#[derive(Debug)]
pub(crate) struct Found {
    prefix: u8,
    protocol: u8,
    /// `RTN_*` (rtnetlink(7)).
    kind: u8,
    /// Of its one link.
    pub(crate) index: Option<u32>,
    via: Option<IpAddr>,
}

impl Found {
    pub(crate) fn is_ours_over(&self, index: u32) -> bool {
        self.protocol == ROUTE_PROTOCOL && self.index == Some(index)
    }
}

pub(crate) fn read(answer: &Raw) -> Option<Found> {
    // struct rtmsg (linux/rtnetlink.h): 8 bytes and the flags. The second is the prefix' length, the sixth the maker, the last the kind.
    let (header, rest) = answer.parts::<12>(libc::RTM_NEWROUTE)?;
    let [_, prefix, _, _, _, protocol, _, kind, ..] = *header;
    Some(Found {
        prefix,
        protocol,
        kind,
        index: attribute(rest, libc::RTA_OIF).and_then(|index| number_at(index, 0)),
        via: attribute(rest, libc::RTA_GATEWAY).and_then(ip),
    })
}

/// An address and the length of its prefix.
pub(crate) fn address_of(answer: &Raw) -> Option<(IpAddr, u8)> {
    // struct ifaddrmsg (linux/if_addr.h); the second byte is the length.
    let ([_, prefix, ..], rest) = answer.parts::<8>(libc::RTM_NEWADDR)?;
    Some((attribute(rest, libc::IFA_ADDRESS).and_then(ip)?, *prefix))
}

/// Whether a neighbour is there for good, and has this address of the link layer.
pub(crate) fn is_permanent(answer: &Raw, mac: Mac) -> Option<bool> {
    // struct ndmsg (linux/neighbour.h): 8 bytes, then the state of 16 bits.
    let ([_, _, _, _, _, _, _, _, a, b, ..], rest) = answer.parts::<12>(libc::RTM_NEWNEIGH)?;
    let known = attribute(rest, libc::NDA_LLADDR)?;
    Some(u16::from_ne_bytes([*a, *b]) == libc::NUD_PERMANENT && known == mac.bytes())
}

fn ip(bytes: &[u8]) -> Option<IpAddr> {
    let ipv4 = || <[u8; 4]>::try_from(bytes).ok().map(IpAddr::from);
    <[u8; 16]>::try_from(bytes).ok().map(IpAddr::from).or_else(ipv4)
}
