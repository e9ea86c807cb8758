//! What weft keeps: the store, whether all in it agrees, and links that nobody has written down.

use std::collections::BTreeSet;

use nix::net::if_::if_nameindex;
use nix::sys::statfs::{TMPFS_MAGIC, statfs};

use super::super::ipam;
use super::Finding;
use crate::cni::check;
use crate::config::Config;
use crate::error::chain;
use crate::record::{HOST_LINK_PREFIX, Record, State};
use crate::state::Ledger;

pub(super) fn look(config: &Config) -> Vec<Finding> {
    let mut findings = Vec::new();
    let records = match Ledger::open(config).and_then(|ledger| ledger.records()) {
        Ok(records) => records,
        Err(err) => {
            let remedy = "a store of a newer version needs that version; one that is damaged is made anew after `rm -r` of its folder \
                          and a restart of all pods";
            return vec![Finding::problem("store", chain(&err), remedy)];
        }
    };
    findings.push(store(config, &records));
    findings.push(agreement(config));
    findings.push(unfinished(&records));
    findings.push(leftovers(&records));
    findings.push(pods(config, &records));
    findings
}

/// Each attached pod's network, as CNI CHECK looks at it.
fn pods(config: &Config, records: &[Record]) -> Finding {
    let check = "pods";
    let (mut looked, mut harmed) = (0, Vec::new());
    for record in records.iter().filter(|record| record.is_attached()) {
        looked += 1;
        if let Err(deviation) = check::whole(config, record) {
            harmed.push(format!("{record}: {}", chain(&deviation)));
        }
    }
    if harmed.is_empty() {
        return Finding::ok(check, format!("{looked} networks of pods are as they were made"));
    }
    let remedy = "weft reconcile frees dead pods, and mends host ports and changed MAC addresses; any other pod gets its network back by a restart";
    Finding::problem(check, harmed.join("; "), remedy)
}

fn store(config: &Config, records: &[Record]) -> Finding {
    let check = "store";
    let found = format!("{}, {} attachments", config.run_dir.join("store").display(), records.len());
    match statfs(&config.run_dir) {
        Ok(file_system) if file_system.filesystem_type() == TMPFS_MAGIC => Finding::ok(check, found),
        Ok(_) => Finding::warning(
            check,
            format!("{found}, not on a tmpfs"),
            "put run_dir below /run: every commit waits for the disk, and what is there outlives the pods",
        ),
        Err(err) => Finding::problem(check, format!("{found}: {err}"), "make run_dir readable"),
    }
}

fn agreement(config: &Config) -> Finding {
    let check = "addresses";
    let remedy = "weft ipam check names them";
    match ipam::check(config) {
        Ok(deviations) if deviations.is_empty() => Finding::ok(check, "leases, records and map agree"),
        Ok(deviations) => Finding::problem(check, format!("{} deviations", deviations.len()), remedy),
        Err(err) => Finding::problem(check, chain(&err), remedy),
    }
}

fn unfinished(records: &[Record]) -> Finding {
    let check = "attaches";
    let unfinished: Vec<&str> = records
        .iter()
        .filter(|record| record.state == State::Attaching)
        .map(|record| record.container.as_str())
        .collect();
    if unfinished.is_empty() {
        return Finding::ok(check, "all have come to their end");
    }
    let found = format!("not at their end: {}", unfinished.join(", "));
    Finding::warning(
        check,
        found,
        "in progress, or killed: then the runtime's DEL, or weft ipam free, removes them",
    )
}

/// Links of the node that are called as weft's are, and that no record knows. The doctor sees the namespace that it is run in.
fn leftovers(records: &[Record]) -> Finding {
    let check = "links";
    let names = match if_nameindex() {
        Ok(names) => names,
        Err(err) => {
            return Finding::problem(
                check,
                format!("list links: {err}"),
                "run in the node's network namespace",
            );
        }
    };
    let names: BTreeSet<String> =
        names.iter().map(|link| link.name().to_string_lossy().into_owned()).collect();
    let known: BTreeSet<&str> = records.iter().map(|record| record.host_link.as_str()).collect();
    let is_weft = |name: &&String| {
        let digits = name.strip_prefix(HOST_LINK_PREFIX).unwrap_or_default();
        digits.len() == 11 && digits.bytes().all(|digit| digit.is_ascii_hexdigit())
    };
    let left: Vec<&str> =
        names.iter().filter(is_weft).map(String::as_str).filter(|name| !known.contains(name)).collect();
    let lost: Vec<&str> = records
        .iter()
        .filter(|record| record.is_attached() && !names.contains(&record.host_link))
        .map(|record| record.container.as_str())
        .collect();
    if !lost.is_empty() {
        let found = format!("gone, while recorded: of {}", lost.join(", "));
        return Finding::warning(
            check,
            found,
            "their namespaces ended without a DEL: weft ipam free ADDRESS",
        );
    }
    match left.is_empty() {
        true => Finding::ok(check, format!("{} of weft's, each recorded", known.len())),
        false => Finding::warning(
            check,
            format!("not recorded: {}", left.join(", ")),
            "they go with their namespaces; one that stays: ip link del NAME",
        ),
    }
}
