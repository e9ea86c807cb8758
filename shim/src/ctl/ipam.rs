//! `weft ipam`: which address is whose, and whether all that say so agree.

use std::collections::BTreeMap;
use std::io::Write;
use std::net::IpAddr;

use serde_json::{Value, json};
use weft_hooks::{FastPath, PodEntry};
use weft_ipam::{Lease, Owner};
use weft_netns::{NetNs, Netlink};

use super::args::{Format, Ipam};
use super::show::{line, pod_name, print_json, table};
use super::{Error, Node, status};
use crate::config::Config;
use crate::fast_path;
use crate::pod::{self, Links};
use crate::record::{DataPath, Record, State};
use crate::state::{self, Ledger};

pub(super) async fn run(
    config: &Config,
    verb: &Ipam,
    format: Format,
    out: &mut impl Write,
) -> Result<(), Error> {
    match verb {
        Ipam::Show { leases } => show(config, *leases, format, out).await,
        Ipam::Free { address, force } => free(config, *address, *force).await,
        Ipam::Check => print_check(&check(config)?, format, out),
    }
}

async fn show(config: &Config, leases: bool, format: Format, out: &mut impl Write) -> Result<(), Error> {
    let ranges = Node::reach(config).await.status().await?.ranges;
    let held = if leases { held(config)? } else { Vec::new() };
    if format == Format::Json {
        let mut json = json!({ "ranges": status::ranges_json(&ranges) });
        if leases {
            let one = |(lease, pod): &(Lease, String)| {
                json!({
                    "address": lease.address, "network": lease.network, "pod": pod,
                    "container": lease.owner.container(), "interface": lease.owner.interface(),
                })
            };
            json["leases"] = held.iter().map(one).collect();
        }
        return print_json(out, &json);
    }
    status::ranges_table(&ranges, out)?;
    if leases {
        line(out, "")?;
        let header = ["ADDRESS", "NETWORK", "POD", "INTERFACE", "CONTAINER"].map(str::to_owned);
        let rows = held.into_iter().map(|(lease, pod)| {
            let owner = [lease.owner.interface(), lease.owner.container()].map(str::to_owned);
            let [interface, container] = owner;
            [lease.address.to_string(), lease.network, pod, interface, container]
        });
        table(out, std::iter::once(header).chain(rows).collect())?;
    }
    Ok(())
}

/// Every lease with its pod's name, in the order of addresses.
fn held(config: &Config) -> Result<Vec<(Lease, String)>, Error> {
    let ledger = Ledger::open(config)?;
    let records = ledger.records()?;
    let mut leases = ledger.view()?.leases().map_err(|source| ledger.failed(source))?;
    leases.sort_by_key(|lease| lease.address);
    let name = |lease: &Lease| {
        let of = |record: &&Record| {
            (record.container.as_str(), record.interface.as_str())
                == (lease.owner.container(), lease.owner.interface())
        };
        records.iter().find(of).map_or_else(|| "-".to_owned(), |record| pod_name(&record.pod))
    };
    Ok(leases.into_iter().map(|lease| (lease.clone(), name(&lease))).collect())
}

/// Detaches the interface that holds the address; a lease that no record knows is given back.
async fn free(config: &Config, address: IpAddr, force: bool) -> Result<(), Error> {
    let ledger = Ledger::open(config)?;
    let holders = ledger.view()?.holders().map_err(|source| ledger.failed(source))?;
    let holder = holders.into_iter().find(|(held, _)| *held == address).map(|(_, owner)| owner);
    let owner = holder.ok_or(Error::NotLeased(address))?;
    let Some(record) = ledger.read(&owner)? else {
        return Ok(ledger.forget(&owner)?);
    };
    if !force && is_alive(&record)? {
        let pod = format!("{} ({})", pod_name(&record.pod), record.container);
        return Err(Error::Alive { address, pod });
    }
    Ok(pod::detach(config, &owner, Links::Delete).await?)
}

/// A pod lives while its namespace does: the file at its path is still that namespace, or the host's end of its pair is still there,
/// which would have gone with it.
fn is_alive(record: &Record) -> Result<bool, Error> {
    if NetNs::open(&record.netns.path).is_ok_and(|netns| netns.identity() == record.identity()) {
        return Ok(true);
    }
    Ok(Netlink::open()?.link(&record.host_link.parse()?)?.is_some())
}

/// Two of leases, records and map entries that contradict each other.
#[derive(Debug, PartialEq, Eq)]
pub(super) struct Deviation {
    address: IpAddr,
    what: String,
}

/// Everything that says whose an address is. The store is read at one instant, the map right after it: a pod that is attached or detached
/// in between may look like a deviation, and does not look so again.
pub(super) fn check(config: &Config) -> Result<Vec<Deviation>, Error> {
    let entries = match fast_path::open(config)? {
        Some(fast_path) => Some(entries(&fast_path)?),
        None => None,
    };
    let ledger = Ledger::open(config)?;
    let view = ledger.view()?;
    let failed = |source| ledger.failed(source);
    let rows = view.records().map_err(failed)?;
    let records: Vec<Record> = rows
        .iter()
        .map(|(owner, bytes)| Ok(Record::decode(owner, bytes).map_err(pod::Error::from)?))
        .collect::<Result<_, Error>>()?;
    let holders = view.holders().map_err(failed)?.into_iter().collect();
    Ok(deviations(&view.leases().map_err(failed)?, &holders, &records, entries.as_ref())?)
}

fn entries(fast_path: &FastPath) -> Result<BTreeMap<IpAddr, PodEntry>, weft_hooks::Error> {
    fast_path.pods().collect()
}

/// Who says what of each address.
struct Witnesses<'a> {
    leases: BTreeMap<IpAddr, &'a Lease>,
    holders: &'a BTreeMap<IpAddr, Owner>,
    records: BTreeMap<IpAddr, &'a Record>,
    entries: Option<&'a BTreeMap<IpAddr, PodEntry>>,
}

fn deviations(
    leases: &[Lease],
    holders: &BTreeMap<IpAddr, Owner>,
    records: &[Record],
    entries: Option<&BTreeMap<IpAddr, PodEntry>>,
) -> Result<Vec<Deviation>, pod::Error> {
    let of_record = |record| move |address: &IpAddr| (*address, record);
    let records = records.iter().flat_map(|record| record.addresses.iter().map(of_record(record))).collect();
    let leases = leases.iter().map(|lease| (lease.address, lease)).collect();
    let witnesses = Witnesses { leases, holders, records, entries };
    let mut addresses: Vec<&IpAddr> = witnesses.leases.keys().chain(witnesses.holders.keys()).collect();
    addresses.extend(witnesses.records.keys().chain(entries.into_iter().flat_map(BTreeMap::keys)));
    addresses.sort_unstable();
    addresses.dedup();
    let mut found = Vec::new();
    for address in addresses {
        let texts = [witnesses.lease(address)?, witnesses.entry(address)?];
        found.extend(texts.into_iter().flatten().map(|what| Deviation { address: *address, what }));
    }
    Ok(found)
}

impl Witnesses<'_> {
    /// What lease, holder and record of an address say against each other.
    fn lease(&self, address: &IpAddr) -> Result<Option<String>, pod::Error> {
        let record = self.records.get(address).copied();
        let recorded = record.map(state::owner).transpose()?;
        let lease = self.leases.get(address).copied();
        Ok(match (lease, self.holders.get(address), record.zip(recorded)) {
            (None, Some(owner), _) => Some(format!("held by {owner}, which has no lease of it")),
            (Some(lease), holder, _) if holder != Some(&lease.owner) => {
                Some(format!("leased by {}, which the address does not say", lease.owner))
            }
            (Some(lease), _, None) => Some(format!("leased by {}, which has no record of it", lease.owner)),
            (Some(lease), _, Some((_, owner))) if lease.owner != owner => {
                Some(format!("recorded for {owner}, and leased by {}", lease.owner))
            }
            (Some(lease), _, Some((record, _))) if lease.network != record.network => {
                Some(format!("recorded for network {}, and leased for {}", record.network, lease.network))
            }
            (None, None, Some((_, owner))) => Some(format!("recorded for {owner}, and not leased")),
            (Some(_), _, Some(_)) | (None, None, None) => None,
        })
    }

    /// What record and map entry of an address say against each other. While a pod is being attached the two may differ.
    fn entry(&self, address: &IpAddr) -> Result<Option<String>, pod::Error> {
        let Some(entries) = self.entries else { return Ok(None) };
        Ok(match (self.records.get(address), entries.get(address)) {
            (None, Some(entry)) => Some(format!("in the map as link {}, and not recorded", entry.ifindex)),
            (Some(record), _) if record.state == State::Attaching => None,
            (Some(record), Some(entry)) if record.host_index != entry.ifindex => {
                Some(format!("in the map as link {}, and recorded as {}", entry.ifindex, record.host_index))
            }
            (Some(record), None) if record.data_path == DataPath::Redirect => {
                Some(format!("recorded for {}, and not in the map", state::owner(record)?))
            }
            _ => None,
        })
    }
}

fn print_check(deviations: &[Deviation], format: Format, out: &mut impl Write) -> Result<(), Error> {
    match format {
        Format::Json => {
            let one = |deviation: &Deviation| json!({ "address": deviation.address, "what": deviation.what });
            print_json(out, &deviations.iter().map(one).collect::<Value>())?;
        }
        Format::Table => {
            for deviation in deviations {
                line(out, &format!("{}: {}", deviation.address, deviation.what))?;
            }
        }
    }
    match deviations.len() {
        0 => Ok(()),
        1 => Err(Error::Found("1 deviation".into())),
        count => Err(Error::Found(format!("{count} deviations"))),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn ip(text: &str) -> IpAddr {
        text.parse().unwrap()
    }

    fn owner(container: &str) -> Owner {
        Owner::new(container, "eth0").unwrap()
    }

    fn lease(container: &str, address: &str) -> Lease {
        Lease { owner: owner(container), network: "n".into(), address: ip(address) }
    }

    fn record(container: &str, address: &str, index: u32) -> Record {
        serde_json::from_value(json!({
            "version": 1, "state": "attached", "container": container, "interface": "eth0", "network": "n",
            "netns": { "path": "/run/netns/a", "dev": 1, "inode": 2 }, "addresses": [address], "host_link": "weft0",
            "host_index": index, "mac": "", "host_mac": "", "mtu": 1500, "data_path": "redirect",
        }))
        .unwrap()
    }

    fn entry(ifindex: u32) -> PodEntry {
        PodEntry { ifindex, mac: [0; 6], host_mac: [0; 6], stack_only: false }
    }

    fn told(
        leases: &[Lease],
        holders: &[(&str, &str)],
        records: &[Record],
        entries: &[(&str, u32)],
    ) -> Vec<String> {
        let holders = holders.iter().map(|(address, container)| (ip(address), owner(container))).collect();
        let entries = entries.iter().map(|(address, index)| (ip(address), entry(*index))).collect();
        let found = deviations(leases, &holders, records, Some(&entries)).unwrap();
        found.into_iter().map(|deviation| format!("{}: {}", deviation.address, deviation.what)).collect()
    }

    #[test]
    fn what_agrees_is_not_told() {
        let (leases, records) = ([lease("a", "10.0.0.2")], [record("a", "10.0.0.2", 7)]);
        assert_eq!(told(&leases, &[("10.0.0.2", "a")], &records, &[("10.0.0.2", 7)]), [""; 0]);
        assert_eq!(told(&[], &[], &[], &[]), [""; 0]);
    }

    #[test]
    fn every_contradiction_is_told() {
        let a = "interface eth0 of container a";
        let b = "interface eth0 of container b";
        let (leases, records) = ([lease("a", "10.0.0.2")], [record("a", "10.0.0.2", 7)]);
        let holders = [("10.0.0.2", "a")];
        for (found, wanted) in [
            (told(&leases, &holders, &[], &[]), format!("leased by {a}, which has no record of it")),
            (told(&leases, &holders, &records, &[]), format!("recorded for {a}, and not in the map")),
            (
                told(&leases, &holders, &records, &[("10.0.0.2", 8)]),
                "in the map as link 8, and recorded as 7".to_owned(),
            ),
            (
                told(&leases, &[], &records, &[("10.0.0.2", 7)]),
                format!("leased by {a}, which the address does not say"),
            ),
            (told(&[], &holders, &[], &[]), format!("held by {a}, which has no lease of it")),
            (told(&[], &[], &records, &[("10.0.0.2", 7)]), format!("recorded for {a}, and not leased")),
            (told(&[], &[], &[], &[("10.0.0.2", 7)]), "in the map as link 7, and not recorded".to_owned()),
            (
                told(&leases, &holders, &[record("b", "10.0.0.2", 7)], &[("10.0.0.2", 7)]),
                format!("recorded for {b}, and leased by {a}"),
            ),
        ] {
            assert_eq!(found, [format!("10.0.0.2: {wanted}")]);
        }
    }
}
