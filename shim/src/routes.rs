//! The routes that a pod's network consists of: what is made by attach, compared by CHECK and told by the result.

use std::net::{IpAddr, Ipv4Addr, Ipv6Addr};

use ipnet::{IpNet, Ipv4Net, Ipv6Net};
use weft_ipam::Range;
use weft_netns::{NetNs, Netlink, Route, sysctl};

use crate::asked;
use crate::pod::{Error, Request, kernel};
use crate::record::Record;

/// The pod's IPv4 gateway: link-local (RFC 3927), so that it collides with no range.
pub(crate) const GATEWAY_V4: Ipv4Addr = Ipv4Addr::new(169, 254, 1, 1);
/// The pod's IPv6 gateway.
pub(crate) const GATEWAY_V6: Ipv6Addr = Ipv6Addr::new(0xfe80, 0, 0, 0, 0, 0, 0, 1);

/// All bits: a pod's address is a host of its own.
pub(crate) fn host_prefix(address: IpAddr) -> u8 {
    if address.is_ipv4() { 32 } else { 128 }
}

/// The gateway of an address's family.
pub(crate) fn gateway(address: &IpAddr) -> IpAddr {
    if address.is_ipv4() { GATEWAY_V4.into() } else { GATEWAY_V6.into() }
}

/// The gateways of the families that the pod has addresses of.
pub(crate) fn gateways(record: &Record) -> impl Iterator<Item = IpAddr> {
    record.first_addresses().map(|address| gateway(&address))
}

/// What the pod's end of `record` reaches through a gateway: everything, with the gateway on the link; or, of an
/// interface beside the one with the default route, its destinations. The gateway of those has no route of its own: all
/// interfaces have the same one, and the route to it is the first one's.
pub(crate) fn pod_routes(record: &Record, gateway: IpAddr, index: u32) -> Vec<Route> {
    let through =
        |net: IpNet| Route { destination: net.addr(), prefix: net.prefix_len(), via: Some(gateway), index };
    if record.destinations.is_empty() {
        let on_link = Route { destination: gateway, prefix: host_prefix(gateway), via: None, index };
        return vec![on_link, through(everything(gateway.is_ipv4()))];
    }
    let of_family = record.destinations.iter().filter(|net| net.addr().is_ipv4() == gateway.is_ipv4());
    of_family.copied().map(through).collect()
}

/// What a new interface is for. `eth0` has the default route, for its addresses are the pod's to Kubernetes, and runtimes
/// may attach several networks at once. Any other reaches the ranges of its network, and everything if nothing else of the
/// pod does. A configuration that names routes means these instead of everything.
pub(crate) fn destinations(request: &Request, netns: &NetNs) -> Result<Vec<IpNet>, Error> {
    let routes = &request.network.routes;
    let used = |ipv4| request.network.ranges.iter().any(|range| range.subnet().addr().is_ipv4() == ipv4);
    if request.owner.interface() == asked::INTERFACE {
        let all = [true, false].into_iter().all(|ipv4| !used(ipv4) || routes.contains(&everything(ipv4)));
        return Ok(if all { Vec::new() } else { routes.clone() });
    }
    let failed = kernel("look for the pod's default route");
    let inside = Netlink::open_in(netns).map_err(&failed)?;
    let mut nets: Vec<IpNet> = request.network.ranges.iter().map(Range::subnet).collect();
    nets.extend(routes);
    nets.sort_unstable();
    nets.dedup();
    for ipv4 in [true, false] {
        let wanted = used(ipv4) && routes.is_empty();
        if wanted && inside.default_route(ipv4).map_err(&failed)?.is_none() {
            nets.push(everything(ipv4));
        }
    }
    Ok(nets)
}

/// The default route of an interface that is not `eth0` must not take the place of another's that came in between.
pub(crate) fn make_route(inside: &Netlink, record: &Record, route: &Route) -> Result<(), weft_netns::Error> {
    if route.prefix == 0 && !record.destinations.is_empty() {
        return inside.add_route(route).map(drop);
    }
    inside.replace_route(route)
}

/// Makes each address of a pod with several interfaces leave by its own: the programs let it send over no other, and a
/// route to the other's network must not make it try. Called when the interface's own routes are made; the interface that
/// had the default route before, weft's or another's, gets its rules here too, because it came alone.
///
/// Of two that are attached at once, `eth0` sees the record of the other, which comes before that one's routes, or the other
/// sees the default route of `eth0`.
pub(crate) fn part_sources(inside: &Netlink, record: &Record) -> Result<(), Error> {
    let step = "route by source";
    let name = record.interface.parse().map_err(kernel(step))?;
    let own = inside.link(&name).map_err(kernel(step))?.map_or(0, |link| link.index);
    for address in &record.addresses {
        inside.route_source(*address, Some(gateway(address)), own).map_err(kernel(step))?;
    }
    for ipv4 in [true, false] {
        let default = inside.default_route(ipv4).map_err(kernel(step))?;
        let Some(other) = default.filter(|route| route.index != own) else { continue };
        let addresses = inside.addresses(other.index).map_err(kernel(step))?;
        for (address, _) in addresses.into_iter().filter(|(address, _)| is_routed(address, ipv4)) {
            inside.route_source(address, other.via, other.index).map_err(kernel(step))?;
        }
    }
    Ok(())
}

fn is_routed(address: &IpAddr, ipv4: bool) -> bool {
    let is_link_local = matches!(address, IpAddr::V6(address) if address.is_unicast_link_local());
    address.is_ipv4() == ipv4 && !is_link_local
}

/// The default route.
pub(crate) fn everything(ipv4: bool) -> IpNet {
    if ipv4 { IpNet::V4(Ipv4Net::default()) } else { IpNet::V6(Ipv6Net::default()) }
}

/// The host's way to one address of the pod.
pub(crate) fn host_route(address: IpAddr, index: u32) -> Route {
    Route { destination: address, prefix: host_prefix(address), via: None, index }
}

/// Routing between pods and the outside needs the kernel to forward (`ip-sysctl.rst`); read first, because a write of
/// `forwarding` takes the RTNL lock and walks all links.
pub(crate) fn enable_forwarding(addresses: &[IpAddr]) -> Result<(), Error> {
    for (used, key) in [
        (addresses.iter().any(IpAddr::is_ipv4), "net/ipv4/ip_forward"),
        (addresses.iter().any(IpAddr::is_ipv6), "net/ipv6/conf/all/forwarding"),
    ] {
        if used {
            sysctl::ensure(key, "1").map_err(kernel("enable forwarding"))?;
        }
    }
    Ok(())
}
