//! Attaching a pod to its network and detaching it: the whole story, top-down.
//!
//! Attach writes down what it is about to make (leases and a record, one transaction), makes it, and marks the
//! record as whole. A process killed in between leaves a record, and detach works from the record alone; so does
//! the undo of a step that went wrong. Nothing here waits for a grace period of the kernel, except where a veth has
//! to be deleted by hand.
//!
//! The pod's end has a /32 and a /128; its gateways 169.254.1.1 and fe80::1 exist only as permanent neighbours, and
//! the host's end knows the pod as one too: no ARP, no neighbour discovery, no duplicate address detection.

pub(crate) mod adopt;
mod detach;
mod links;

use std::net::IpAddr;
use std::path::PathBuf;

use ipnet::IpNet;
use log::Level;
use weft_ipam::{Owner, Range};
use weft_netns::{NetNs, Netlink, sysctl};

use crate::asked::Asked;
use crate::bandwidth::{self, Bandwidth};
use crate::config::Config;
use crate::error::chain;
use crate::failpoint::failpoint;
use crate::record::{self, DataPath, HostPort, Names, Namespace, PodName, Record, State};
use crate::routes::{
    destinations, enable_forwarding, gateways, host_prefix, host_route, make_route, part_sources, pod_routes,
};
use crate::state::Ledger;
use crate::turn::Turn;
use crate::{fast_path, journal, nat, reconcile};

use detach::unwire;
pub(crate) use detach::{DetachError, Links, detach, detach_all, detach_record};

/// `lo` is the first link of every namespace (`LOOPBACK_IFINDEX` in the kernel's include/net/flow.h).
const LOOPBACK: u32 = 1;
/// Used where neither the configuration nor a default route says otherwise.
const DEFAULT_MTU: u32 = 1500;

/// One network as a caller asks for it.
#[derive(Debug, Clone)]
pub(crate) struct Network {
    pub(crate) name: String,
    pub(crate) ranges: Vec<Range>,
    pub(crate) mtu: Option<u32>,
    /// Whether the outside sees the host's addresses in place of the pods'; by default in place of private ones.
    pub(crate) masquerade: Option<bool>,
    /// Destinations outside that see the pods' addresses all the same.
    pub(crate) masquerade_except: Vec<IpNet>,
    /// What pods reach; everything if there are none.
    pub(crate) routes: Vec<IpNet>,
}

/// What is to be attached.
#[derive(Debug, Clone)]
pub(crate) struct Request {
    pub(crate) owner: Owner,
    pub(crate) netns: PathBuf,
    pub(crate) network: Network,
    pub(crate) asked: Asked,
    pub(crate) bandwidth: Bandwidth,
    pub(crate) pod: PodName,
    pub(crate) ports: Vec<HostPort>,
}

/// Why a pod is not attached, or cannot be looked at.
#[derive(Debug, thiserror::Error)]
pub(crate) enum Error {
    #[error("open the pod's namespace")]
    Namespace(#[source] weft_netns::Error),
    #[error("lease an address")]
    Lease(#[source] weft_ipam::Error),
    #[error("keep leases and records in {dir}")]
    Store { dir: PathBuf, source: weft_ipam::Error },
    #[error("wait for a turn in {path}")]
    Turn { path: PathBuf, source: std::io::Error },
    #[error("note in {path} when the node was reconciled")]
    Stamp { path: PathBuf, source: std::io::Error },
    #[error(transparent)]
    Record(#[from] record::Error),
    #[error("{step}")]
    Kernel { step: &'static str, source: weft_netns::Error },
    #[error("take the pod off the fast path")]
    FastPath(#[source] weft_hooks::Error),
    #[error(transparent)]
    Nat(#[from] nat::Error),
    #[error("interface {interface} exists already in {netns} and is not weft's")]
    Occupied { interface: String, netns: PathBuf, source: weft_netns::Error },
}

pub(crate) fn kernel(step: &'static str) -> impl Fn(weft_netns::Error) -> Error {
    move |source| Error::Kernel { step, source }
}

/// Attaches the interface, or returns the record of the same interface if it is attached already.
///
/// # Errors
/// Whatever was made is unmade; what could not be unmade is left in the record, for detach.
pub(crate) async fn attach(config: &Config, request: &Request) -> Result<Record, Error> {
    let attached = attach_one(config, request).await;
    if let Err(err) = &attached {
        journal::tell(Level::Error, request, format_args!("not attached: {}", chain(err)));
    }
    attached
}

async fn attach_one(config: &Config, request: &Request) -> Result<Record, Error> {
    let netns = NetNs::open(&request.netns).map_err(Error::Namespace)?;
    let host = Netlink::open().map_err(kernel("open the host's netlink socket"))?;
    let ledger = Ledger::open(config)?;
    let _turn = Turn::take(config, &request.owner).await?;
    let old = ledger.read(&request.owner)?;
    if let Some(old) = &old {
        if old.is_attached() && old.identity() == netns.identity() && has_host_end(&host, old)? {
            return Ok(old.clone());
        }
        unwire(config, &ledger, &host, old, Links::Delete).map_err(first)?;
    }
    reconcile::when_low(config, &ledger, &request.network).await;
    let (mut record, mut early) = match plan(&ledger, request, &netns, &host) {
        Err(err) if reconcile::when_full(config, &request.network, &err).await => {
            plan(&ledger, request, &netns, &host)?
        }
        planned => planned?,
    };
    failpoint("leased");
    if old.is_some() {
        // Of an attach that was killed, and that may not have come to it.
        early.clone_from(&record.addresses);
    }
    let wired = match nat::forget_connections(&early) {
        Ok(()) => wire(config, &ledger, &host, &netns, &mut record),
        failed => failed,
    };
    match wired {
        Ok(()) => Ok(record),
        Err(err) => {
            // The error that stopped the attach is the one to report; whatever the undo could not remove stays
            // in the record, and the runtime calls DEL after a failed ADD (CNI spec 1.1, section 4).
            if unwire(config, &ledger, &host, &record, Links::Delete).is_ok() {
                ledger.forget(&request.owner)?;
            }
            Err(err)
        }
    }
}

fn first(mut errors: Vec<Error>) -> Error {
    errors.swap_remove(0)
}

/// The number of a namespace that ended is given to the next one, so the identity alone does not tell a pod from its
/// successor at the same path; the pair of links does, which ends with the namespace.
fn has_host_end(host: &Netlink, record: &Record) -> Result<bool, Error> {
    let link = host.link_by_index(record.host_index).map_err(kernel("find the host's end"))?;
    Ok(link.is_some_and(|link| link.name == record.host_link))
}

/// Leases the addresses and writes down, in the same transaction, everything that [`wire`] is going to make.
/// With the record come those of its addresses that had not cooled down.
fn plan(
    ledger: &Ledger,
    request: &Request,
    netns: &NetNs,
    host: &Netlink,
) -> Result<(Record, Vec<IpAddr>), Error> {
    let uplink = match request.network.mtu {
        Some(_) => None,
        None => host.default_route_link().map_err(kernel("find the MTU"))?,
    };
    let of_uplink = uplink.as_ref().map(|link| link.mtu);
    let destinations = destinations(request, netns)?;
    let names = Names::of(&request.owner);
    let identity = netns.identity();
    ledger.reserve(&request.network, &request.asked.ips, &request.owner, |addresses| Record {
        version: record::VERSION,
        state: State::Attaching,
        container: request.owner.container().into(),
        interface: request.owner.interface().into(),
        network: request.network.name.clone(),
        netns: Namespace { path: request.netns.clone(), dev: identity.dev, inode: identity.inode },
        mac: request.asked.mac.unwrap_or(names.mac).to_string(),
        host_mac: names.host_mac.to_string(),
        host_link: names.host_link,
        host_index: 0,
        mtu: request.network.mtu.or(of_uplink).unwrap_or(DEFAULT_MTU),
        packets: uplink.as_ref().map(|link| link.packets).unwrap_or_default(),
        data_path: DataPath::Routing,
        data_path_reason: None,
        bandwidth: request.bandwidth.clone(),
        pod: request.pod.clone(),
        masquerade: nat::masquerade(&request.network, &addresses),
        ports: request.ports.clone(),
        addresses,
        destinations,
        tombstone: None,
    })
}

/// Makes what the record says, outermost first, and marks it as attached.
fn wire(
    config: &Config,
    ledger: &Ledger,
    host: &Netlink,
    netns: &NetNs,
    record: &mut Record,
) -> Result<(), Error> {
    enable_forwarding(&record.addresses)?;
    failpoint("forwarding");
    record.host_index = links::create(host, netns, record)?;
    failpoint("veth");
    let names = Names::of_record(record).map_err(kernel("read the MAC addresses"))?;
    bandwidth::limit(host, record, &names).map_err(kernel("limit the pod's bandwidth"))?;
    failpoint("limits");
    // Before the link is up: then nothing passes unchecked, and a qdisc on a link that runs is waited for (`qdisc_graft` in
    // net/sched/sch_api.c: a grace period).
    fast_path::take(config, record, &names);
    failpoint("fast-path");
    let inside = Netlink::open_in(netns).map_err(kernel("open the pod's netlink socket"))?;
    // The pod's end last: of a pair the end that comes up last sends at once.
    route_to_pod(host, record)?;
    address_pod(&inside, record)?;
    // It came up before the pod's end, so without a carrier, and drops what it is to send until a worker of the kernel's gets to it
    // (`linkwatch_event` in net/core/link_watch.c). A question about the link does that work at once, from Linux 6.8 on.
    host.link_by_index(record.host_index).map_err(kernel("look at the host's end"))?;
    if ledger.owners_of(&record.container)?.len() > 1 || !record.destinations.is_empty() {
        part_sources(&inside, record)?;
    }
    failpoint("routes");
    while let Err(err) = nat::publish(ledger, record) {
        if !reconcile::when_taken(config, &err) {
            return Err(err);
        }
    }
    failpoint("published");
    record.state = State::Attached;
    ledger.write(record)?;
    failpoint("attached");
    journal::tell(Level::Info, &*record, format_args!("attached"));
    Ok(())
}

/// Inside the pod: addresses, both links up, and the gateways as permanent neighbours behind two routes a family.
fn address_pod(inside: &Netlink, record: &Record) -> Result<(), Error> {
    let step = "address the pod's end";
    let name = record.interface.parse().map_err(kernel(step))?;
    let link = inside.link(&name).map_err(kernel(step))?;
    let Some(link) = link else {
        let source = weft_netns::Error::AbsentLink(record.interface.clone());
        return Err(Error::Kernel { step, source });
    };
    inside.set_up(LOOPBACK).map_err(kernel(step))?;
    for address in &record.addresses {
        inside.add_address(link.index, *address, host_prefix(*address)).map_err(kernel(step))?;
    }
    inside.set_up_silent(link.index).map_err(kernel(step))?;
    for address in &record.addresses {
        if let IpAddr::V6(address) = address {
            inside.add_local_route(link.index, *address).map_err(kernel(step))?;
        }
    }
    let host_mac = record.host_mac.parse().map_err(kernel(step))?;
    for gateway in gateways(record) {
        inside.replace_neighbour(link.index, gateway, host_mac).map_err(kernel(step))?;
        for route in pod_routes(record, gateway, link.index) {
            make_route(inside, record, &route).map_err(kernel(step))?;
        }
    }
    Ok(())
}

/// On the host: a route to each address, and the pod as a permanent neighbour behind it.
fn route_to_pod(host: &Netlink, record: &Record) -> Result<(), Error> {
    let step = "route to the pod";
    record.host_link.parse().and_then(|link| sysctl::refuse_routers(&link)).map_err(kernel(step))?;
    host.set_up_silent(record.host_index).map_err(kernel(step))?;
    let mac = record.mac.parse().map_err(kernel(step))?;
    for address in &record.addresses {
        host.replace_neighbour(record.host_index, *address, mac).map_err(kernel(step))?;
        host.replace_route(&host_route(*address, record.host_index)).map_err(kernel(step))?;
    }
    Ok(())
}
