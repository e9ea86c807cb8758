//! The pair of links: made, with what a killed attach has left out of the way.

use weft_netns::{LinkName, NetNs, Netlink, Veth};

use super::{Error, kernel};
use crate::record::{HOST_LINK_PREFIX, Names, Record};

/// Creates the pair; links that an earlier, killed attach of the same owner left are replaced, foreign ones are not.
pub(super) fn create(host: &Netlink, netns: &NetNs, record: &Record) -> Result<u32, Error> {
    let step = "create the veth pair";
    let parse = |text: &str| text.parse::<LinkName>().map_err(kernel(step));
    let names = Names::of_record(record).map_err(kernel(step))?;
    let veth = Veth {
        name: names.link().map_err(kernel(step))?,
        mac: names.host_mac,
        mtu: record.mtu,
        packets: record.packets,
        peer_name: parse(&record.interface)?,
        peer_mac: names.mac,
        peer_ns: netns,
    };
    let source = match host.create_veth(&veth) {
        Ok(index) => return Ok(index),
        Err(source) if source.errno() == Some(nix::libc::EEXIST) => source,
        Err(source) => return Err(Error::Kernel { step, source }),
    };
    if !delete_leftovers(host, netns, &veth)? {
        let (interface, netns) = (record.interface.clone(), record.netns.path.clone());
        return Err(Error::Occupied { interface, netns, source });
    }
    host.create_veth(&veth).map_err(kernel(step))
}

/// Deletes a link of the host end's name, and a link of the pod end's name whose other end is one of ours.
fn delete_leftovers(host: &Netlink, netns: &NetNs, veth: &Veth<'_>) -> Result<bool, Error> {
    let step = "delete a leftover veth pair";
    if let Some(link) = host.link(&veth.name).map_err(kernel(step))? {
        return host.delete_link(link.index).map_err(kernel(step));
    }
    let inside = Netlink::open_in(netns).map_err(kernel(step))?;
    let Some(link) = inside.link(&veth.peer_name).map_err(kernel(step))? else {
        return Ok(false);
    };
    let Some(index) = link.peer_index else { return Ok(false) };
    match host.link_by_index(index).map_err(kernel(step))? {
        Some(other) if are_a_pair(&other, &link) => host.delete_link(other.index).map_err(kernel(step)),
        _ => Ok(false),
    }
}

/// The index of a veth's other end means something in that end's namespace only, and which that is, the kernel does not
/// say in a way that can be trusted across namespaces. The addresses do: both ends of a pair of weft's bear one owner's.
fn are_a_pair(host_end: &weft_netns::Link, pod_end: &weft_netns::Link) -> bool {
    let tail = |mac: weft_netns::Mac| mac.bytes()[1..].to_vec();
    host_end.kind.as_deref() == Some("veth")
        && host_end.name.starts_with(HOST_LINK_PREFIX)
        && tail(host_end.mac) == tail(pod_end.mac)
}
