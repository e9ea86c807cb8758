//! What a record puts into the sets.

use std::borrow::Cow;
use std::net::IpAddr;

use weft_netns::nft::Element;

use super::ruleset::{IPV4, IPV6, Sets};
use crate::record::{HostPort, Masquerade, Record, fnv1a};

/// An element, and the set it belongs in.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct Placed {
    pub(crate) set: Cow<'static, str>,
    pub(crate) element: Element,
    /// The host port that it publishes.
    pub(crate) port: Option<HostPort>,
}

/// What belongs to this pod alone.
pub(crate) fn own(record: &Record) -> Vec<Placed> {
    let masquerade = record.masquerade.iter().flat_map(|masquerade| {
        let list = list(masquerade);
        masquerade.addresses.iter().map(move |address| Placed {
            set: sets(*address).hidden_by(&list).into(),
            element: Element { key: octets(*address), value: None },
            port: None,
        })
    });
    // From any of its addresses to the one that its ports lead to.
    let hairpin = record.first_addresses().filter(|_| !record.ports.is_empty()).flat_map(|to| {
        let from = record.addresses.iter().filter(move |from| from.is_ipv4() == to.is_ipv4());
        from.map(move |from| Placed {
            set: sets(to).hairpin.into(),
            element: Element { key: [octets(*from), octets(to)].concat(), value: None },
            port: None,
        })
    });
    let ports = ends(record).map(|(port, address)| publish(&port, address));
    masquerade.chain(hairpin).chain(ports).collect()
}

/// Whether the set says which addresses are hidden.
pub(super) fn is_hiding(set: &str) -> bool {
    set.starts_with(IPV4.hidden) || set.starts_with(IPV6.hidden)
}

/// Each host port with each address that it leads to: the first of each family, if it is at addresses of that family.
pub(crate) fn ends(record: &Record) -> impl Iterator<Item = (HostPort, IpAddr)> {
    record.ports.iter().flat_map(|port| {
        let serves = |address: &IpAddr| port.host_ip.is_none_or(|at| at.is_ipv4() == address.is_ipv4());
        record.first_addresses().filter(serves).map(|address| (*port, address))
    })
}

pub(super) fn publish(port: &HostPort, address: IpAddr) -> Placed {
    let number = |port: u16| [port.to_be_bytes(), [0; 2]].concat();
    let protocol = vec![port.protocol.number(), 0, 0, 0];
    let at = port.host_ip.filter(|at| !at.is_unspecified()).map(octets);
    let ports = if at.is_some() { sets(address).ports_at } else { sets(address).ports };
    let key = [at.unwrap_or_default(), protocol, number(port.host_port)].concat();
    let value = Some([octets(address), number(port.pod_port)].concat());
    Placed { set: ports.map.into(), element: Element { key, value }, port: Some(*port) }
}

fn sets(address: IpAddr) -> Sets {
    if address.is_ipv4() { IPV4 } else { IPV6 }
}

pub(super) fn octets(address: IpAddr) -> Vec<u8> {
    match address {
        IpAddr::V4(address) => address.octets().to_vec(),
        IpAddr::V6(address) => address.octets().to_vec(),
    }
}

/// The name of a list of exceptions: networks with the same ones share it.
pub(super) fn list(masquerade: &Masquerade) -> String {
    let list: Vec<String> = masquerade.except.iter().map(ToString::to_string).collect();
    let list: Vec<&str> = list.iter().map(String::as_str).collect();
    format!("{:016x}", fnv1a(&list))
}
