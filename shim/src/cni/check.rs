//! CHECK: is the pod's network still what ADD made? Every question goes to the kernel or to the programs' map, and
//! the first deviation is reported by name.

use std::net::IpAddr;

use serde_json::Value;
use weft_hooks::PodEntry;
use weft_netns::{LinkName, NetNs, Netlink, Route};

use crate::config::Config;
use crate::record::{Names, Record};
use crate::routes::{gateway, host_prefix, host_route, pod_routes};
use crate::{fast_path, nat};

/// What is not as it was made.
#[derive(Debug, thiserror::Error)]
pub(crate) enum Deviation {
    #[error("{what}: got {found}, want {wanted}")]
    Differs { what: String, found: String, wanted: String },
    #[error("{0} is missing")]
    Missing(String),
    #[error("look at {what}")]
    Network { what: &'static str, source: weft_netns::Error },
    #[error("look at the fast path")]
    FastPath(#[source] weft_hooks::Error),
    #[error("look at the host ports and the masquerade")]
    Nat(#[source] Box<crate::pod::Error>),
}

fn looking(what: &'static str) -> impl Fn(weft_netns::Error) -> Deviation {
    move |source| Deviation::Network { what, source }
}

fn missing(is_there: bool, what: impl FnOnce() -> String) -> Result<(), Deviation> {
    if is_there { Ok(()) } else { Err(Deviation::Missing(what())) }
}

/// The runtime's idea of the addresses, from an earlier result, must be ours.
pub(super) fn same_as_reported(record: &Record, prev_result: Option<&Value>) -> Result<(), Deviation> {
    let ips = prev_result.and_then(|result| result["ips"].as_array());
    let reported: Vec<&str> = ips.into_iter().flatten().filter_map(|ip| ip["address"].as_str()).collect();
    for address in &record.addresses {
        let wanted = format!("{address}/{}", host_prefix(*address));
        if !reported.contains(&wanted.as_str()) {
            let what = "addresses in prevResult".to_owned();
            return Err(Deviation::Differs { what, found: reported.join(" "), wanted });
        }
    }
    Ok(())
}

/// Both ends, their addresses, neighbours and routes, limits, host ports and masquerade, and the fast path.
pub(crate) fn whole(config: &Config, record: &Record) -> Result<(), Deviation> {
    let netns = NetNs::open(&record.netns.path).map_err(looking("the pod's namespace"))?;
    if netns.identity() != record.identity() {
        let what = format!("namespace {}", record.netns.path.display());
        let (found, wanted) = (netns.identity().to_string(), record.identity().to_string());
        return Err(Deviation::Differs { what, found, wanted });
    }
    let host = Netlink::open().map_err(looking("the host's links"))?;
    let inside = Netlink::open_in(&netns).map_err(looking("the pod's links"))?;
    let host_index = link(&host, &record.host_link, &record.host_mac)?;
    let index = link(&inside, &record.interface, &record.mac)?;
    for address in &record.addresses {
        pod_side(&inside, index, *address, record)?;
        host_side(&host, host_index, *address, record)?;
    }
    limits(&host, host_index, record)?;
    if let Some(lost) = nat::lost(record).map_err(|err| Deviation::Nat(Box::new(err)))? {
        return Err(Deviation::Missing(lost));
    }
    if fast_path::is_hooked(record) { fast_path(config, record, host_index) } else { Ok(()) }
}

/// The link's index, if it is up and has its MAC address.
fn link(netlink: &Netlink, name: &str, mac: &str) -> Result<u32, Deviation> {
    let name: LinkName = name.parse().map_err(looking("a link"))?;
    let link = netlink.link(&name).map_err(looking("a link"))?;
    let link = link.ok_or_else(|| Deviation::Missing(format!("link {name}")))?;
    if link.mac.to_string() != mac {
        let what = format!("address of link {name}");
        return Err(Deviation::Differs { what, found: link.mac.to_string(), wanted: mac.to_owned() });
    }
    if !link.up {
        let what = format!("state of link {name}");
        return Err(Deviation::Differs { what, found: "down".into(), wanted: "up".into() });
    }
    Ok(link.index)
}

fn pod_side(inside: &Netlink, index: u32, address: IpAddr, record: &Record) -> Result<(), Deviation> {
    let looking = looking("the pod's addresses and routes");
    let addresses = inside.addresses(index).map_err(&looking)?;
    missing(addresses.contains(&(address, host_prefix(address))), || {
        format!("address {address} in the pod")
    })?;
    let gateway = gateway(&address);
    if !record.destinations.is_empty() {
        let there = inside.routes_source(address, index).map_err(&looking)?;
        missing(there, || format!("route from {address} in the pod"))?;
    }
    // The default route of an interface that is not alone may have gone to `eth0`, which came later.
    let may_lack = |route: &Route| route.prefix == 0 && !record.destinations.is_empty();
    for route in pod_routes(record, gateway, index).iter().filter(|route| !may_lack(route)) {
        let there = inside.has_route(route).map_err(&looking)?;
        missing(there, || format!("route {}/{} in the pod", route.destination, route.prefix))?;
    }
    let mac = record.host_mac.parse().map_err(&looking)?;
    let there = inside.has_neighbour(index, gateway, mac).map_err(&looking)?;
    missing(there, || format!("neighbour {gateway} in the pod"))
}

fn host_side(host: &Netlink, index: u32, address: IpAddr, record: &Record) -> Result<(), Deviation> {
    let looking = looking("the host's routes");
    let there = host.has_route(&host_route(address, index)).map_err(&looking)?;
    missing(there, || format!("route to {address} on the host"))?;
    let mac = record.mac.parse().map_err(&looking)?;
    let there = host.has_neighbour(index, address, mac).map_err(&looking)?;
    missing(there, || format!("neighbour {address} on the host"))
}

/// The token buckets of a pod with a limit, and the way through the second.
fn limits(host: &Netlink, index: u32, record: &Record) -> Result<(), Deviation> {
    let looking = looking("the pod's bandwidth limits");
    if let Some(limit) = &record.bandwidth.ingress {
        let there = host.has_token_bucket(index, &limit.bucket(record.mtu)).map_err(&looking)?;
        missing(there, || format!("the limit on link {}", record.host_link))?;
    }
    let Some(limit) = &record.bandwidth.egress else { return Ok(()) };
    let name = Names::derived(record).ifb;
    let ifb = host.link(&name.parse().map_err(&looking)?).map_err(&looking)?;
    let ifb = ifb.filter(|ifb| ifb.up).ok_or_else(|| Deviation::Missing(format!("link {name}, up")))?;
    let there = host.has_token_bucket(ifb.index, &limit.bucket(record.mtu)).map_err(&looking)?;
    missing(there, || format!("the limit on link {name}"))?;
    let there = host.is_led_through(index, ifb.index).map_err(&looking)?;
    missing(there, || format!("the way from link {} through link {name}", record.host_link))
}

fn fast_path(config: &Config, record: &Record, host_index: u32) -> Result<(), Deviation> {
    let fast_path = fast_path::open(config).map_err(Deviation::FastPath)?;
    let fast_path = fast_path.ok_or_else(|| Deviation::Missing("the pinned programs".into()))?;
    let attached = fast_path.is_attached(&record.host_link).map_err(Deviation::FastPath)?;
    missing(attached, || format!("the program on link {}", record.host_link))?;
    for address in &record.addresses {
        let entry = fast_path.pod(*address).map_err(Deviation::FastPath)?;
        let stack_only = !record.bandwidth.is_unlimited();
        let as_made = |entry: PodEntry| entry.ifindex == host_index && entry.stack_only == stack_only;
        missing(entry.is_some_and(as_made), || format!("map entry of {address}"))?;
    }
    Ok(())
}
