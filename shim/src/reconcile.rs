//! Reconcile: what the store and the kernel say of pods that are gone is taken away, whatever died when.
//!
//! **What lives.** A pod lives while the path of its namespace leads to the namespace that was attached, or else
//! while the host's end of its veth pair is there. The kernel deletes a pair with the namespace of either end
//! (`default_device_exit_batch` in net/core/dev.c), so the host's end proves that the other namespace lives, whoever
//! keeps it: a process without a mount, a mount of another mount namespace, an open file. Without path and without
//! pair no packet can come from the address or go to it, and it is safe in another pod's hands.
//!
//! **What is dead.** The record of any other pod; of an attach that was killed, whose record says "attaching" and
//! whose [`Turn`] is free; and a tombstone, which detach left because a step of it failed. Each is detached from its
//! record alone, as CNI DEL does, and under its turn: what another process works on right now is left alone.
//!
//! **Strays.** Links and map entries without a record are in `strays.rs`.

mod pressure;
mod strays;

use std::net::IpAddr;

use serde::Serialize;
use weft_ipam::Owner;
use weft_netns::{Error as NetnsError, NetNs, Netlink};

use crate::config::Config;
use crate::error::chain;
use crate::nat;
use crate::pod::{self, DetachError, Error, Links, kernel};
use crate::record::{Record, State};
use crate::state::{self, Ledger};
use crate::tally::{self, Event};
use crate::turn::Turn;

pub(crate) use pressure::{FILES, make_room, when_full, when_low, when_taken};

/// What was found and done, or would be.
#[derive(Debug, Default, Serialize)]
pub(crate) struct Report {
    /// Nothing was changed.
    pub(crate) dry_run: bool,
    /// Attachments that live, or that another process is working on.
    pub(crate) kept: usize,
    /// Attachments that were detached: their addresses are free.
    pub(crate) freed: Vec<Gone>,
    /// Host ends, and ifbs, without a record that were deleted.
    pub(crate) links: Vec<String>,
    /// Addresses whose map entries had no record and were deleted.
    pub(crate) entries: Vec<IpAddr>,
    /// Indices of links without a record whose counters were deleted.
    pub(crate) counters: Vec<u32>,
    /// Host ends without a record that carry traffic or are being made: their records are in another store, or were lost.
    /// Left alone.
    pub(crate) foreign: Vec<String>,
    /// Attachments that could not be detached whole; the next reconcile tries again.
    pub(crate) tombstones: Vec<Gone>,
    /// The table of host ports and masquerade was not as the records say.
    pub(crate) nat_repaired: bool,
    /// Pods whose MAC address a plugin behind weft has changed, and that have their network again.
    pub(crate) adopted: Vec<String>,
    /// What could not be looked at, or not be removed.
    pub(crate) failed: Vec<String>,
}

/// One attachment and its end.
#[derive(Debug, Serialize)]
pub(crate) struct Gone {
    pub(crate) container: String,
    pub(crate) interface: String,
    pub(crate) network: String,
    pub(crate) addresses: Vec<IpAddr>,
    /// Why it is freed, or what of it could not be removed.
    pub(crate) why: String,
}

impl Report {
    /// All that is still to be done, in words.
    pub(crate) fn left(&self) -> Vec<String> {
        let tombstone = |gone: &Gone| format!("{} {}: {}", gone.container, gone.interface, gone.why);
        self.tombstones.iter().map(tombstone).chain(self.failed.iter().cloned()).collect()
    }
}

impl Gone {
    fn new(record: &Record, why: &str) -> Gone {
        Gone {
            container: record.container.clone(),
            interface: record.interface.clone(),
            network: record.network.clone(),
            addresses: record.addresses.clone(),
            why: why.into(),
        }
    }
}

impl DetachError {
    /// What failed is in the record, a tombstone by now, and the next reconcile tries again: all that a caller could do
    /// is to ask again and again, and a pod would stay in "Terminating". Only the rest is an error.
    pub(crate) fn unless_kept(self) -> Result<(), DetachError> {
        let is_kept = |err: &Error| matches!(err, Error::Kernel { .. } | Error::FastPath(_) | Error::Nat(_));
        if !self.0.iter().all(is_kept) {
            return Err(self);
        }
        Ok(())
    }
}

/// The whole node: every record, and what has none.
///
/// # Errors
/// If the store or the kernel cannot be asked at all; the rest is in the report.
pub(crate) fn node(config: &Config, dry_run: bool) -> Result<Report, Error> {
    let mut run = Run::new(config, dry_run)?;
    // First what the kernel has: a record is written before what it names is made, so what is older than
    // the records that are read next, and in none of them, has lost its record.
    let strays = strays::find(&mut run);
    let owners = run.ledger.owners()?;
    let strays = strays.without(&mut run, &owners)?;
    for owner in &owners {
        run.visit(owner, None, Doomed::Dead);
    }
    strays.remove(&mut run);
    run.repair_nat();
    Ok(run.end(Event::ReconciledNode))
}

/// The dead pods of one network: what an ADD asks for that finds no address. No list of links is made.
fn network(config: &Config, name: &str) -> Result<Report, Error> {
    let mut run = Run::new(config, false)?;
    for owner in &run.ledger.owners()? {
        run.visit(owner, Some(name), Doomed::Dead);
    }
    Ok(run.end(Event::ReconciledNetwork))
}

/// One attachment, if its pod is dead.
fn one(config: &Config, record: &Record) -> Result<Report, Error> {
    let mut run = Run::new(config, false)?;
    run.visit(&state::owner(record)?, Some(&record.network), Doomed::Dead);
    Ok(run.end(Event::ReconciledNetwork))
}

/// CNI GC: all of one network that the runtime does not know any more, living or not, and what has no record.
///
/// # Errors
/// As of [`node`].
pub(crate) fn collect(config: &Config, name: &str, valid: impl Fn(&Owner) -> bool) -> Result<Report, Error> {
    let mut run = Run::new(config, false)?;
    let strays = strays::find(&mut run);
    let owners = run.ledger.owners()?;
    let strays = strays.without(&mut run, &owners)?;
    for owner in owners.iter().filter(|owner| !valid(owner)) {
        run.visit(owner, Some(name), Doomed::All("the runtime does not know it"));
    }
    strays.remove(&mut run);
    Ok(run.end(Event::CollectedGarbage))
}

/// Which of the attachments that are looked at go.
#[derive(Debug, Clone, Copy)]
enum Doomed {
    /// Those whose pod does not live.
    Dead,
    /// Each, and why.
    All(&'static str),
}

/// One reconcile under way.
struct Run<'a> {
    config: &'a Config,
    ledger: Ledger,
    host: Netlink,
    report: Report,
}

impl<'a> Run<'a> {
    fn new(config: &'a Config, dry_run: bool) -> Result<Run<'a>, Error> {
        let host = Netlink::open().map_err(kernel("open the host's netlink socket"))?;
        let report = Report { dry_run, ..Report::default() };
        Ok(Run { config, ledger: Ledger::open(config)?, host, report })
    }

    /// Counts what was done. What cannot be counted is done all the same.
    fn end(self, occasion: Event) -> Report {
        let Report { freed, links, entries, tombstones, failed, .. } = &self.report;
        let counts = [
            (occasion, 1),
            (Event::FreedAttachment, freed.len()),
            (Event::FreedLink, links.len()),
            (Event::FreedEntry, entries.len()),
            (Event::NotReconciled, failed.len() + tombstones.len()),
        ];
        if !self.report.dry_run
            && let Err(err) = tally::add(&self.config.run_dir, &counts)
        {
            log::warn!("count what was reconciled: {err}");
        }
        self.report
    }

    /// The table of host ports and masquerade is as the records say.
    fn repair_nat(&mut self) {
        let repaired = if self.report.dry_run {
            nat::is_as_recorded(&self.ledger).map(|whole| !whole)
        } else {
            nat::repair(&self.ledger)
        };
        match repaired {
            Ok(repaired) => self.report.nat_repaired = repaired,
            // Told already, and what belongs to such a record cannot be told: the table stays as it is.
            Err(Error::Record(_)) => {}
            Err(err) => self.report.failed.push(chain(&err)),
        }
    }

    /// Looks at one record and detaches it if it is to go; what cannot be decided stays.
    fn visit(&mut self, owner: &Owner, network: Option<&str>, doomed: Doomed) {
        match self.look(owner, network, doomed) {
            Ok(Some((_turn, record, why))) => self.detach(record, why),
            Ok(None) => {}
            Err(err) => self.report.failed.push(format!("{owner}: {}", chain(&err))),
        }
    }

    /// The record to be detached and why, with its turn; `None` if there is nothing to do.
    fn look(
        &mut self,
        owner: &Owner,
        network: Option<&str>,
        doomed: Doomed,
    ) -> Result<Option<(Turn, Record, &'static str)>, Error> {
        let Some(turn) = Turn::try_take(self.config, owner)? else {
            self.report.kept += 1;
            return Ok(None);
        };
        // Read under the turn: nobody changes it from here on.
        let Some(record) = self.ledger.read(owner)? else { return Ok(None) };
        if network.is_some_and(|network| network != record.network) {
            return Ok(None);
        }
        let why = match doomed {
            Doomed::Dead => verdict(&self.host, &record)?,
            Doomed::All(why) => Some(why),
        };
        self.report.kept += usize::from(why.is_none());
        if why.is_none() && network.is_none() {
            self.adopt(record.clone())?;
        }
        Ok(why.map(|why| (turn, record, why)))
    }

    /// A pod that lives, with the MAC address that it has.
    fn adopt(&mut self, mut record: Record) -> Result<(), Error> {
        let changed = match self.report.dry_run {
            true => pod::adopt::is_changed(&record)?,
            false => pod::adopt::adopt(self.config, &self.ledger, &mut record)?,
        };
        self.report.adopted.extend(changed.then(|| record.to_string()));
        Ok(())
    }

    fn detach(&mut self, record: Record, why: &'static str) {
        let gone = Gone::new(&record, why);
        if !self.report.dry_run
            && let Err(err) = pod::detach_record(self.config, &self.ledger, record, Links::Delete)
        {
            self.report.tombstones.push(Gone { why: err.to_string(), ..gone });
            return;
        }
        self.report.freed.push(gone);
    }
}

/// Why the pod is dead; `None` if it lives.
fn verdict(host: &Netlink, record: &Record) -> Result<Option<&'static str>, Error> {
    if record.tombstone.is_some() {
        return Ok(Some("an earlier detach is tried again"));
    }
    if record.state == State::Attaching {
        return Ok(Some("its attach was killed"));
    }
    if record.state == State::Detaching {
        return Ok(Some("its detach was killed"));
    }
    if path_leads_to(record)? {
        return Ok(None);
    }
    let name = record.host_link.parse().map_err(kernel("find the host's end"))?;
    let link = host.link(&name).map_err(kernel("find the host's end"))?;
    Ok(if link.is_some() { None } else { Some("its namespace is gone") })
}

/// Whether the path still is that of the namespace that was attached.
fn path_leads_to(record: &Record) -> Result<bool, Error> {
    match NetNs::open(&record.netns.path) {
        Ok(netns) => Ok(netns.identity() == record.identity()),
        // The pin was removed, or unmounted, or another file is there.
        Err(NetnsError::NotANamespace { .. } | NetnsError::OtherNamespace { .. }) => Ok(false),
        Err(err) if matches!(err.errno(), Some(nix::libc::ENOENT | nix::libc::ENOTDIR)) => Ok(false),
        // It cannot be told, so nothing is done.
        Err(err) => Err(Error::Namespace(err)),
    }
}
