//! Which addresses are hidden behind the host's, and from whom.

use std::net::{IpAddr, Ipv4Addr, Ipv6Addr};

use ipnet::{IpNet, Ipv4Net, Ipv6Net};
use weft_ipam::Range;

use crate::pod::Network;
use crate::record::Masquerade;

/// RFC 5771 and RFC 4291.
const MULTICAST: [IpNet; 2] = [
    IpNet::V4(Ipv4Net::new_assert(Ipv4Addr::new(224, 0, 0, 0), 4)),
    IpNet::V6(Ipv6Net::new_assert(Ipv6Addr::new(0xff00, 0, 0, 0, 0, 0, 0, 0), 8)),
];

/// Which of the pod's addresses are hidden, and from whom. Pods see each other's, on other nodes too; multicast is for the
/// link that it is sent on.
pub(crate) fn masquerade(network: &Network, addresses: &[IpAddr]) -> Option<Masquerade> {
    let hidden = |address: &&IpAddr| network.masquerade.unwrap_or_else(|| is_private(**address));
    let addresses: Vec<IpAddr> = addresses.iter().filter(hidden).copied().collect();
    if addresses.is_empty() {
        return None;
    }
    let own = network.ranges.iter().map(Range::subnet);
    let except: Vec<IpNet> = own.chain(MULTICAST).chain(network.masquerade_except.iter().copied()).collect();
    Some(Masquerade { addresses, except: IpNet::aggregate(&except) })
}

/// RFC 1918, RFC 6598 and RFC 4193.
fn is_private(address: IpAddr) -> bool {
    match address {
        IpAddr::V4(v4) => v4.is_private() || (v4.octets()[0] == 100 && v4.octets()[1] & 0xc0 == 64),
        IpAddr::V6(v6) => v6.is_unique_local(),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn only_private_addresses_are_hidden_unless_it_is_said() {
        for (address, private) in [
            ("10.1.2.3", true),
            ("172.31.0.1", true),
            ("192.168.1.1", true),
            ("100.64.0.1", true),
            ("100.128.0.1", false),
            ("192.0.2.1", false),
            ("fd00::1", true),
            ("2001:db8::1", false),
        ] {
            assert_eq!(is_private(address.parse().unwrap()), private, "{address}");
        }
    }
}
