//! Detaching a pod from its network: from its record alone, idempotent, going on past what fails.

use log::Level;
use weft_ipam::Owner;
use weft_netns::Netlink;

use super::{Error, kernel};
use crate::config::Config;
use crate::error::all;
use crate::record::{Names, Record, State};
use crate::routes::host_route;
use crate::state::{self, Ledger};
use crate::turn::Turn;
use crate::{bandwidth, fast_path, journal, nat, tally};

/// What becomes of the pair of links at detach.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Links {
    /// The namespace is about to go and takes them along: the caller does not wait for it (23 ms a pair).
    DieWithNamespace,
    /// The namespace may stay: delete them now.
    Delete,
}

/// Everything that went wrong in one detach; what could be done is done.
#[derive(Debug)]
pub(crate) struct DetachError(pub(crate) Vec<Error>);

impl std::fmt::Display for DetachError {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str(&all(&self.0))
    }
}

impl std::error::Error for DetachError {}

impl From<Error> for DetachError {
    fn from(err: Error) -> DetachError {
        DetachError(vec![err])
    }
}

/// Detaches one interface: leases, map entries, routes and record are gone when this returns. An interface that is
/// not known is detached already.
///
/// # Errors
/// All of them: a step that fails does not keep the others from being done. The record stays until all is gone, and
/// says that the rest is the reconciler's: see [`DetachError::unless_kept`].
pub(crate) async fn detach(config: &Config, owner: &Owner, links: Links) -> Result<(), DetachError> {
    let ledger = Ledger::open(config).map_err(DetachError::from)?;
    detach_one(config, &ledger, owner, links).await
}

async fn detach_one(
    config: &Config,
    ledger: &Ledger,
    owner: &Owner,
    links: Links,
) -> Result<(), DetachError> {
    let _turn = Turn::take(config, owner).await?;
    match ledger.read(owner)? {
        Some(record) => detach_record(config, ledger, record, links),
        // Leases are made and freed with their record: without one there is nothing.
        None => Ok(()),
    }
}

/// Detaches what the record names; the caller has the owner's [`Turn`].
///
/// # Errors
/// As of [`detach`].
pub(crate) fn detach_record(
    config: &Config,
    ledger: &Ledger,
    mut record: Record,
    links: Links,
) -> Result<(), DetachError> {
    let unwired = match Netlink::open() {
        Ok(host) => unwire(config, ledger, &host, &record, links),
        Err(err) => Err(vec![kernel("open the host's netlink socket")(err)]),
    };
    let Err(mut errors) = unwired else {
        ledger.forget(&state::owner(&record)?)?;
        journal::tell(Level::Info, &record, format_args!("detached"));
        return Ok(());
    };
    let why = all(&errors);
    let again = "to be tried again by the next reconcile";
    journal::tell(Level::Warn, &record, format_args!("not detached, {again}: {why}"));
    record.state = State::Detaching;
    record.tombstone = Some(why);
    errors.extend(ledger.write(&record).err());
    // What went wrong is told; that it cannot be counted is not worse.
    drop(tally::add(&config.run_dir, &[(tally::Event::Tombstone, 1)]));
    Err(DetachError(errors))
}

/// Detaches every interface of a container.
///
/// # Errors
/// Those of all interfaces.
pub(crate) async fn detach_all(config: &Config, container: &str, links: Links) -> Result<(), DetachError> {
    let ledger = Ledger::open(config)?;
    let mut errors = Vec::new();
    for owner in ledger.owners_of(container)? {
        if let Err(DetachError(more)) = detach_one(config, &ledger, &owner, links).await {
            errors.extend(more);
        }
    }
    if errors.is_empty() { Ok(()) } else { Err(DetachError(errors)) }
}

/// Removes what [`super::wire`] made, innermost last, going on past every failure.
pub(super) fn unwire(
    config: &Config,
    ledger: &Ledger,
    host: &Netlink,
    record: &Record,
    links: Links,
) -> Result<(), Vec<Error>> {
    let mut errors = Vec::new();
    // First of all: what is sent to a host port from now on is refused, not lost.
    if let Err(err) = unpublish(ledger, record) {
        errors.push(err);
    }
    let index = match (links, record.host_index) {
        // Nothing will be done to the link itself, so it need not be looked at.
        (Links::DieWithNamespace, known @ 1..) => known,
        _ => host_index(host, record).unwrap_or_else(|err| {
            errors.push(err);
            record.host_index
        }),
    };
    if let Err(err) = fast_path::leave(config, record, index) {
        errors.push(Error::FastPath(err));
    }
    for address in record.addresses.iter().filter(|_| index != 0) {
        if let Err(err) = host.delete_route(&host_route(*address, index)) {
            errors.push(kernel("delete the route to the pod")(err));
        }
    }
    if links == Links::Delete
        && index != 0
        && let Err(err) = host.delete_link(index)
    {
        errors.push(kernel("delete the veth pair")(err));
    }
    if let Err(err) = bandwidth::lift(host, record, &Names::derived(record)) {
        errors.push(kernel("lift the pod's bandwidth limits")(err));
    }
    if errors.is_empty() { Ok(()) } else { Err(errors) }
}

/// Takes host ports and masquerade away. Ports are marked first: a table that another process makes anew has none of them.
fn unpublish(ledger: &Ledger, record: &Record) -> Result<(), Error> {
    if !record.ports.is_empty() {
        ledger.write(&Record { state: State::Detaching, ..record.clone() })?;
    }
    nat::withdraw(record)
}

/// The index of the host's end by its name, which no other link has; 0 if it was never made.
fn host_index(host: &Netlink, record: &Record) -> Result<u32, Error> {
    let step = "find the host's end";
    let name = record.host_link.parse().map_err(kernel(step))?;
    let link = host.link(&name).map_err(kernel(step))?;
    Ok(link.map_or(record.host_index, |link| link.index))
}
