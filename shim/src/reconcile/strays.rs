//! Links, map entries and counters without a record.
//!
//! Detach ends the record last, after map entries and routes, and with a namespace that is about to die it leaves the
//! pair of links to that. So a host end without a record and without routes has been detached, and is deleted. One that
//! weft's routes still lead to has not: its record is in another store, or was lost with the store, and its pod may
//! live. One that is down has not been attached yet, by somebody with another store. Both are named, and left alone.
//!
//! A row of counters is made after the map entries of its link and deleted after them: without one that stays, it goes.
//!
//! An ifb is made after the host end that leads through it, and does not die with it. So one without a record whose host
//! end is not there, or goes now, has lost its pod.

use std::collections::{HashMap, HashSet};
use std::net::IpAddr;

use weft_hooks::PodCounters;
use weft_ipam::Owner;
use weft_netns::Link;

use super::Run;
use crate::error::chain;
use crate::fast_path;
use crate::pod::{Error, kernel};
use crate::record::{Names, State};

/// What has, or may have, no record.
pub(super) struct Strays {
    links: Vec<Link>,
    ifbs: Vec<Link>,
    /// The names of all host ends, and of what is called like one.
    host_ends: Vec<String>,
    entries: Vec<(IpAddr, u32)>,
    /// Indices of links.
    counters: Vec<u32>,
}

/// All host ends, ifbs, map entries and counters of the node. The ifbs first: whose host end is not seen after it has none. Counters
/// before the entries, which are older than they.
pub(super) fn find(run: &mut Run<'_>) -> Strays {
    let ifbs = run.host.ifbs().map_err(kernel("list the ifbs"));
    let counters = counters(run).map_err(Error::FastPath);
    let links = run.host.veths().map_err(kernel("list the host's ends"));
    let entries = entries(run).map_err(Error::FastPath);
    let mut failed = |err: Error| run.report.failed.push(chain(&err));
    // Without the host ends it cannot be told which of the ifbs are needed.
    let ifbs = if links.is_ok() { ifbs.map_err(&mut failed).unwrap_or_default() } else { Vec::new() };
    let links = links.map_err(&mut failed).unwrap_or_default();
    // Whose counters they are, only the entries tell.
    let counters =
        if entries.is_ok() { counters.map_err(&mut failed).unwrap_or_default() } else { Vec::new() };
    let entries = entries.map_err(failed).unwrap_or_default();
    let ours = |link: &Link| Names::belong_together(&link.name, link.mac);
    Strays {
        host_ends: links.iter().map(|link| link.name.clone()).collect(),
        links: links.into_iter().filter(ours).collect(),
        ifbs: ifbs.into_iter().filter(|link| Names::is_ifb(&link.name, link.mac)).collect(),
        entries,
        counters,
    }
}

fn counters(run: &Run<'_>) -> Result<Vec<u32>, weft_hooks::Error> {
    let Some(counters) = PodCounters::open(&run.config.bpf_dir)? else { return Ok(Vec::new()) };
    counters.links().collect()
}

fn entries(run: &Run<'_>) -> Result<Vec<(IpAddr, u32)>, weft_hooks::Error> {
    let Some(fast_path) = fast_path::open(run.config)? else { return Ok(Vec::new()) };
    fast_path.pods().map(|pod| pod.map(|(address, entry)| (address, entry.ifindex))).collect()
}

impl Strays {
    /// Leaves out what has a record. `owners` were read after the links and entries.
    pub(super) fn without(mut self, run: &mut Run<'_>, owners: &[Owner]) -> Result<Strays, Error> {
        let names: Vec<Names> = owners.iter().map(Names::of).collect();
        let names: HashSet<&str> = names.iter().flat_map(|of| [&*of.host_link, &*of.ifb]).collect();
        self.links.retain(|link| !names.contains(&*link.name));
        self.ifbs.retain(|ifb| !names.contains(&*ifb.name));
        let leases = run.ledger.view()?.leases().map_err(|source| run.ledger.failed(source))?;
        let holders: HashMap<IpAddr, Owner> =
            leases.into_iter().map(|lease| (lease.address, lease.owner)).collect();
        let mut counted = HashSet::new();
        self.entries.retain(|(address, index)| {
            let stray = match holders.get(address) {
                // A record that cannot be read may be right.
                Some(owner) => run.ledger.read(owner).is_ok_and(|record| {
                    record
                        .is_some_and(|record| record.state == State::Attached && record.host_index != *index)
                }),
                None => true,
            };
            if !stray {
                counted.insert(*index);
            }
            stray
        });
        self.counters.retain(|index| !counted.contains(index));
        Ok(self)
    }

    /// Entries before links, as in a detach.
    pub(super) fn remove(self, run: &mut Run<'_>) {
        let mut live = HashSet::new();
        for link in &self.links {
            let routed = run.host.has_routes_over(link.index);
            match routed.map_err(kernel("look for routes to a stray")) {
                Ok(false) if link.up => {}
                Ok(_) => {
                    live.insert(link.index);
                    run.report.foreign.push(link.name.clone());
                }
                Err(err) => {
                    live.insert(link.index);
                    run.report.failed.push(chain(&err));
                }
            }
        }
        for (address, index) in self.entries.into_iter().filter(|(_, index)| !live.contains(index)) {
            match remove_entry(run, address, index) {
                Ok(true) => run.report.entries.push(address),
                Ok(false) => {}
                Err(err) => run.report.failed.push(chain(&err)),
            }
        }
        for index in self.counters.into_iter().filter(|index| !live.contains(index)) {
            match forget_counters(run, index) {
                Ok(true) => run.report.counters.push(index),
                Ok(false) => {}
                Err(err) => run.report.failed.push(chain(&err)),
            }
        }
        let dead: Vec<Link> = self.links.into_iter().filter(|link| !live.contains(&link.index)).collect();
        let stays = |name: &String| dead.iter().all(|link| link.name != *name);
        let host_ends: Vec<String> = self.host_ends.into_iter().filter(stays).collect();
        let is_needed = |ifb: &Link| host_ends.iter().any(|name| Names::are_of_one(&ifb.name, name));
        for link in dead.into_iter().chain(self.ifbs.into_iter().filter(|ifb| !is_needed(ifb))) {
            match remove_link(run, &link) {
                Ok(true) => run.report.links.push(link.name),
                Ok(false) => {}
                Err(err) => run.report.failed.push(chain(&err)),
            }
        }
    }
}

/// Goes by address and index, so an entry that was replaced meanwhile stays. `false` if it has gone.
fn remove_entry(run: &Run<'_>, address: IpAddr, index: u32) -> Result<bool, Error> {
    if run.report.dry_run {
        return Ok(true);
    }
    let Some(mut fast_path) = fast_path::open(run.config).map_err(Error::FastPath)? else { return Ok(false) };
    fast_path.remove_pod(address, index).map_err(Error::FastPath)
}

/// `false` if they have gone.
fn forget_counters(run: &Run<'_>, index: u32) -> Result<bool, Error> {
    if run.report.dry_run {
        return Ok(true);
    }
    let Some(fast_path) = fast_path::open(run.config).map_err(Error::FastPath)? else { return Ok(false) };
    fast_path.forget_counters(index).map_err(Error::FastPath)
}

/// Goes by index, which no other link of the namespace ever has had. `false` if it has gone.
fn remove_link(run: &Run<'_>, link: &Link) -> Result<bool, Error> {
    if run.report.dry_run {
        return Ok(true);
    }
    run.host.delete_link(link.index).map_err(kernel("delete a stray link"))
}
