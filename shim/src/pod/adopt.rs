//! A pod's end whose MAC address somebody has changed since it was attached: a plugin chained behind weft (`tuning`).
//!
//! Setting an address, the same one too, makes the kernel forget the link's neighbours (`neigh_changeaddr` in net/core/neighbour.c),
//! the permanent ones too, so the pod finds its gateways no more; and the host sends to the old address. The new one is the
//! pod's from then on. It gives a pod no power over another: what bears its addresses is led into its own end only, whoever
//! names that end's MAC address.

use std::path::Path;

use weft_ipam::Owner;
use weft_netns::{Link, NetNs, Netlink};

use super::{Error, kernel};
use crate::asked;
use crate::config::Config;
use crate::fast_path;
use crate::record::{Names, Record};
use crate::routes::gateways;
use crate::state::Ledger;
use crate::turn::Turn;

/// The pod's end, and the way to its links.
struct End {
    inside: Netlink,
    link: Link,
}

/// The pod's end, if it is there and up.
fn find(netns: &NetNs, interface: &str) -> Result<Option<End>, Error> {
    let step = "look at the pod's end";
    let inside = Netlink::open_in(netns).map_err(kernel(step))?;
    let name = interface.parse().map_err(kernel(step))?;
    let link = inside.link(&name).map_err(kernel(step))?.filter(|link| link.up);
    Ok(link.map(|link| End { inside, link }))
}

/// The end of an attached pod that is not as the record says; of a pod whose namespace cannot be found, nothing is known.
fn changed(record: &Record) -> Result<Option<End>, Error> {
    let netns = NetNs::open(&record.netns.path).ok().filter(|netns| netns.identity() == record.identity());
    let Some(netns) = netns else { return Ok(None) };
    let Some(end) = find(&netns, &record.interface)? else { return Ok(None) };
    let failed = kernel("look for the pod's gateways");
    let host_mac = record.host_mac.parse().map_err(&failed)?;
    let mut whole = end.link.mac.to_string() == record.mac;
    for gateway in gateways(record) {
        whole &= end.inside.has_neighbour(end.link.index, gateway, host_mac).map_err(&failed)?;
    }
    Ok(Some(end).filter(|_| !whole))
}

/// Whether [`adopt`] would do anything.
///
/// # Errors
/// The kernel's.
pub(crate) fn is_changed(record: &Record) -> Result<bool, Error> {
    Ok(changed(record)?.is_some())
}

/// Takes the address over, and gives the pod its gateways back; `false` if all is as it was made. The caller has the owner's
/// [`Turn`].
///
/// # Errors
/// The kernel's or the store's. What was done stays done, and the next call does the rest.
pub(crate) fn adopt(config: &Config, ledger: &Ledger, record: &mut Record) -> Result<bool, Error> {
    let Some(End { inside, link }) = changed(record)? else { return Ok(false) };
    let step = "take over the pod's MAC address";
    let host_mac = record.host_mac.parse().map_err(kernel(step))?;
    for gateway in gateways(record) {
        inside.replace_neighbour(link.index, gateway, host_mac).map_err(kernel(step))?;
    }
    let host = Netlink::open().map_err(kernel(step))?;
    for address in &record.addresses {
        host.replace_neighbour(record.host_index, *address, link.mac).map_err(kernel(step))?;
    }
    record.mac = link.mac.to_string();
    let names = Names::of_record(record).map_err(kernel(step))?;
    fast_path::rename(config, record, &names).map_err(Error::FastPath)?;
    ledger.write(record)?;
    Ok(true)
}

/// For a runtime that has attached `eth0` of a container and starts nothing in it yet: [`adopt`], if its address is not the one
/// that weft gives where nobody asks for another. That alone is looked at for every pod.
///
/// # Errors
/// As of [`adopt`].
pub(crate) async fn before_start(config: &Config, container: &str, netns: &Path) -> Result<bool, Error> {
    let Ok(owner) = Owner::new(container, asked::INTERFACE) else { return Ok(false) };
    let netns = NetNs::open(netns).map_err(Error::Namespace)?;
    let end = find(&netns, asked::INTERFACE)?;
    if end.is_none_or(|end| end.link.mac == Names::of(&owner).mac) {
        return Ok(false);
    }
    let ledger = Ledger::open(config)?;
    let _turn = Turn::take(config, &owner).await?;
    match ledger.read(&owner)? {
        Some(mut record) if record.is_attached() => adopt(config, &ledger, &mut record),
        // Another plugin's pod.
        _ => Ok(false),
    }
}
