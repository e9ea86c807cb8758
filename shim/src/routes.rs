//! The routes that a pod's network consists of: what is made by attach, compared by CHECK and told by the result.

use std::net::{IpAddr, Ipv4Addr, Ipv6Addr};

use weft_netns::{Route, sysctl};

use crate::pod::{Error, kernel};

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

/// The gateway is on the link, and everything is behind it.
pub(crate) fn pod_routes(gateway: IpAddr, index: u32) -> [Route; 2] {
    let any =
        if gateway.is_ipv4() { IpAddr::V4(Ipv4Addr::UNSPECIFIED) } else { IpAddr::V6(Ipv6Addr::UNSPECIFIED) };
    [
        Route { destination: gateway, prefix: host_prefix(gateway), via: None, index },
        Route { destination: any, prefix: 0, via: Some(gateway), index },
    ]
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
