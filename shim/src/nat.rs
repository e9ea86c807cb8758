//! Host ports and masquerade: the elements of the table `inet weft`, whose rules are in [`ruleset`].
//!
//! The records say what belongs there. A pod adds and removes what is its own, in one transaction each; a table that
//! somebody has flushed is made again from all records, by whoever notices first. The kernel numbers the transactions, so
//! that a table that is made again never replaces what another process has changed since the records were read; and a
//! record is marked before its elements go, so that it does not bring them back.

pub(crate) mod element;
mod masquerade;
mod ports;
mod repair;
mod ruleset;
mod watch;

use std::borrow::Cow;
use std::collections::BTreeMap;
use std::net::{IpAddr, UdpSocket};

use ipnet::IpNet;
use nix::libc;
use weft_netns::nft::{self, Batch, Element, Family};
use weft_netns::{Flows, Netfilter, sysctl};

use crate::record::{HostPort, Protocol, Record, State};
use crate::state::Ledger;
use crate::{fast_path, pod};
use element::Placed;
pub(crate) use element::ends;
pub(crate) use masquerade::masquerade;
pub(crate) use ports::{Published, Table, is_absent, refuse_unservable};
pub(crate) use repair::{is_as_recorded, lost, repair};
pub(crate) use ruleset::TABLE;
pub(crate) use watch::keep;

/// Why ports and masquerade cannot be had, or not be removed.
#[derive(Debug, thiserror::Error)]
pub(crate) enum Error {
    #[error("host port {port} is taken by {holder}")]
    Taken { port: HostPort, holder: Box<Record> },
    #[error(
        "host port {port} is at an IP{family} address, and the pod has none to lead it to: its addresses are {addresses}"
    )]
    Unservable { port: HostPort, family: &'static str, addresses: String },
    #[error("make the table inet {TABLE} anew: others changed nftables {} times meanwhile", repair::ATTEMPTS)]
    Overtaken,
    #[error("{step}")]
    Kernel { step: &'static str, source: weft_netns::Error },
}

fn kernel(step: &'static str) -> impl Fn(weft_netns::Error) -> pod::Error {
    move |source| Error::Kernel { step, source }.into()
}

/// Publishes the host ports of a record that the store has already, and lets its addresses be masqueraded.
///
/// # Errors
/// [`Error::Taken`]. What was added is removed by [`withdraw`].
pub(crate) fn publish(ledger: &Ledger, record: &Record) -> Result<(), pod::Error> {
    let own = element::own(record);
    if own.is_empty() && !needs_guard(record) {
        return Ok(());
    }
    let step = "publish ports and masquerade";
    if record.ports.iter().any(|port| port.host_ip.is_none_or(|at| at.is_ipv4())) {
        // Without it, what comes from 127.0.0.1 is dropped on its way back (`ip_route_input_slow` in net/ipv4/route.c).
        let key = format!("net/ipv4/conf/{}/route_localnet", record.host_link);
        sysctl::ensure(&key, "1").map_err(kernel("let localhost reach the pod's host ports"))?;
    }
    let netfilter = Netfilter::open().map_err(kernel(step))?;
    if own.is_empty() {
        let is_there = netfilter.has_table(TABLE).map_err(kernel(step))?;
        return if is_there { Ok(()) } else { repair::restore(ledger, &netfilter) };
    }
    let mut done = netfilter.commit(additions(&own));
    if done.as_ref().is_err_and(|err| err.errno() == Some(libc::EEXIST)) {
        // Its last pod may have left a moment ago.
        nft::await_tick().map_err(kernel(step))?;
        done = netfilter.commit(additions(&own));
    }
    if let Err(source) = done {
        match source.errno() {
            Some(libc::ENOENT) => {}
            Some(libc::EEXIST) => refuse_taken(ledger, &netfilter, &own)?,
            _ => return Err(kernel(step)(source)),
        }
        // The table is missing, or a chain of it, or it holds what no record knows of.
        repair::restore(ledger, &netfilter)?;
        refuse_taken(ledger, &netfilter, &own)?;
    }
    forget_unpublished(&netfilter, record).map_err(kernel("forget what was sent to the host ports before"))
}

fn additions(own: &[Placed]) -> Batch {
    let mut batch = Batch::of(TABLE);
    for (set, elements) in by_set(own) {
        match element::is_hiding(&set) {
            // The address's last pod may have left a moment ago.
            true => batch.have_elements(&set, &elements),
            false => batch.add_elements(&set, &elements),
        }
    }
    batch
}

/// Without the programs it is the table that drops what a pod sends from a foreign address.
fn needs_guard(record: &Record) -> bool {
    !fast_path::is_hooked(record)
}

fn by_set<'a>(placed: impl IntoIterator<Item = &'a Placed>) -> BTreeMap<Cow<'static, str>, Vec<Element>> {
    let mut sets: BTreeMap<_, Vec<_>> = BTreeMap::new();
    for placed in placed {
        sets.entry(placed.set.clone()).or_default().push(placed.element.clone());
    }
    sets
}

/// [`Error::Taken`] if another record has one of the ports.
fn refuse_taken(ledger: &Ledger, netfilter: &Netfilter, own: &[Placed]) -> Result<(), pod::Error> {
    let step = "look up who has a host port";
    for placed in own {
        let Some(port) = placed.port else { continue };
        let there = netfilter.element(TABLE, &placed.set, &placed.element).map_err(kernel(step))?;
        let Some(there) = there.filter(|there| there.value != placed.element.value) else { continue };
        let has = |record: &Record| {
            element::own(record).iter().any(|other| other.set == placed.set && other.element == there)
        };
        if let Some(holder) = ledger.readable_records()?.into_iter().filter(is_published).find(has) {
            return Err(Error::Taken { port, holder: Box::new(holder) }.into());
        }
    }
    Ok(())
}

/// Whether a record's elements belong into the table.
fn is_published(record: &Record) -> bool {
    record.state != State::Detaching
}

/// Connections that were sent to a port while nothing was published there would go on to nowhere: UDP has no end that the
/// kernel could see.
fn forget_unpublished(netfilter: &Netfilter, record: &Record) -> Result<(), weft_netns::Error> {
    for port in record.ports.iter().filter(|port| port.protocol == Protocol::Udp) {
        for family in [Family::Ipv4, Family::Ipv6] {
            for connection in netfilter.connections(Flows::ToUdpPort(family, port.host_port))? {
                let meant = match port.host_ip {
                    Some(at) if !at.is_unspecified() => connection.to == at,
                    _ => is_local(connection.to),
                };
                if meant {
                    netfilter.forget(connection)?;
                }
            }
        }
    }
    Ok(())
}

/// Only an address of the host's own can be bound (ip(7)).
fn is_local(address: IpAddr) -> bool {
    UdpSocket::bind((address, 0)).is_ok()
}

/// Removes what [`publish`] added for a record, which is marked as [`State::Detaching`] if it has ports. What is gone, is gone; what
/// is not this pod's, stays. Nothing is translated any more when this returns, and what was is forgotten.
///
/// # Errors
/// The kernel's.
pub(crate) fn withdraw(record: &Record) -> Result<(), pod::Error> {
    let mut own = element::own(record);
    if own.is_empty() {
        return Ok(());
    }
    let step = "withdraw ports and masquerade";
    let netfilter = Netfilter::open().map_err(kernel(step))?;
    let mut expires = expire(&netfilter, &own).map_err(kernel(step))?;
    if !expires {
        own = present(&netfilter, own).map_err(kernel(step))?;
        expires = expire(&netfilter, &own).map_err(kernel(step))?;
    }
    if !expires {
        delete(&netfilter, &own)?;
    }
    if record.ports.is_empty() {
        return Ok(());
    }
    if expires && !shut(&netfilter, &own).map_err(kernel(step))? {
        nft::await_tick().map_err(kernel(step))?;
    }
    forget_published(&netfilter, record).map_err(kernel("forget the connections to the host ports"))?;
    if !expires {
        netfilter.close_aside();
    }
    Ok(())
}

/// Those that are there as they are here.
fn present(netfilter: &Netfilter, placed: Vec<Placed>) -> Result<Vec<Placed>, weft_netns::Error> {
    let mut found = Vec::new();
    for placed in placed {
        let there = netfilter.element(TABLE, &placed.set, &placed.element)?;
        found.extend(there.filter(|there| *there == placed.element).map(|_| placed));
    }
    Ok(found)
}

/// Lets elements expire when the kernel's clock ticks; `false` if they do not. Deleting makes whoever closes a netfilter socket wait until the
/// kernel has freed what was deleted (`nft_rcv_nl_event` in net/netfilter/nf_tables_api.c), 13 ms in each detach and in every attach beside it.
fn expire(netfilter: &Netfilter, placed: &[Placed]) -> Result<bool, weft_netns::Error> {
    let Some(first) = placed.first() else { return Ok(true) };
    // A kernel before 6.12 leaves them as they are.
    Ok(commit_expiry(netfilter, by_set(placed))?
        && !netfilter.has_lasting(TABLE, &first.set, &first.element)?)
}

/// Translates nothing more to the pod, though its ports have not expired yet; `false` where the table is another's, or an older version's. In a
/// transaction of its own, and the expiry counts from there: it is not over before that of the ports.
fn shut(netfilter: &Netfilter, placed: &[Placed]) -> Result<bool, weft_netns::Error> {
    let mut withdrawn: BTreeMap<_, Vec<_>> = BTreeMap::new();
    for placed in placed {
        if let Some(set) = ruleset::withdrawn(&placed.set) {
            let element = Element { value: None, ..placed.element.clone() };
            withdrawn.entry(set.into()).or_default().push(element);
        }
    }
    commit_expiry(netfilter, withdrawn)
}

/// Elements that expire when the kernel's clock ticks, be they there already or not; `false` if they were refused.
fn commit_expiry(
    netfilter: &Netfilter,
    elements: BTreeMap<Cow<'static, str>, Vec<Element>>,
) -> Result<bool, weft_netns::Error> {
    if elements.is_empty() {
        return Ok(true);
    }
    let mut batch = Batch::of(TABLE);
    for (set, elements) in elements {
        batch.expire_elements(&set, &elements);
    }
    match netfilter.commit(batch) {
        Ok(()) => Ok(true),
        // Flushed, or another's by now; or of a table of an older version, where they cannot expire.
        Err(err) if matches!(err.errno(), Some(libc::ENOENT | libc::EEXIST | libc::EBUSY | libc::EINVAL)) => {
            Ok(false)
        }
        Err(err) => Err(err),
    }
}

fn delete(netfilter: &Netfilter, placed: &[Placed]) -> Result<(), pod::Error> {
    if placed.is_empty() {
        return Ok(());
    }
    let mut batch = Batch::of(TABLE);
    for (set, elements) in by_set(placed) {
        batch.delete_elements(&set, &elements);
    }
    match netfilter.commit(batch) {
        // Flushed since it was looked at.
        Err(err) if err.errno() == Some(libc::ENOENT) => Ok(()),
        done => done.map_err(kernel("delete elements of the table inet weft")),
    }
}

/// Forgets every connection that pods with these addresses had, translated or not: what an address that comes back before
/// it has cooled down would else get of its last pod's, an answer to a masqueraded question for one.
///
/// # Errors
/// The kernel's.
pub(crate) fn forget_connections(addresses: &[IpAddr]) -> Result<(), pod::Error> {
    if addresses.is_empty() {
        return Ok(());
    }
    let forget = || {
        let netfilter = Netfilter::open()?;
        let of = |address: &IpAddr| [Flows::AnsweredBy(*address), Flows::BegunBy(*address)];
        addresses.iter().flat_map(of).try_for_each(|flows| forget_all(&netfilter, flows))
    };
    match forget() {
        // A kernel without this part of conntrack cannot tell what it remembers (`nfnetlink_rcv_msg` in
        // net/netfilter/nfnetlink.c), and a pod always gets a network.
        Err(err) if err.errno() == Some(libc::EINVAL) => Ok(()),
        done => done.map_err(kernel("forget the connections of the addresses' last pods")),
    }
}

/// Without it, the next packets of a connection went to the pod's address, whoever has it by then.
fn forget_published(netfilter: &Netfilter, record: &Record) -> Result<(), weft_netns::Error> {
    let mut addresses = record.first_addresses();
    forget_all(netfilter, Flows::TranslatedTo([addresses.next(), addresses.next()]))
}

fn forget_all(netfilter: &Netfilter, flows: Flows) -> Result<(), weft_netns::Error> {
    netfilter.connections(flows)?.into_iter().try_for_each(|connection| netfilter.forget(connection))
}

/// What belongs into the table. Where two records want the same port, the one that was attached first has it.
fn wanted(records: &[Record]) -> BTreeMap<Cow<'static, str>, Vec<Element>> {
    let mut published: Vec<&Record> = records.iter().filter(|record| is_published(record)).collect();
    published.sort_by_key(|record| record.state == State::Attaching);
    let mut elements = BTreeMap::new();
    for record in published {
        for placed in element::own(record) {
            elements.entry((placed.set.clone(), placed.element.key.clone())).or_insert(placed);
        }
    }
    by_set(elements.values())
}

/// The lists of exceptions that the records name.
fn lists(records: &[Record]) -> BTreeMap<String, &[IpNet]> {
    let named = records.iter().filter_map(|record| record.masquerade.as_ref());
    named.map(|masquerade| (element::list(masquerade), masquerade.except.as_slice())).collect()
}

/// Removes the table.
///
/// # Errors
/// The kernel's.
pub(crate) fn remove() -> Result<(), pod::Error> {
    let step = "delete the table inet weft";
    let netfilter = Netfilter::open().map_err(kernel(step))?;
    let mut batch = Batch::of(TABLE);
    batch.add_table();
    batch.delete_table();
    netfilter.commit(batch).map_err(kernel(step))
}

#[cfg(test)]
mod tests {
    use std::io::ErrorKind;
    use std::net::{TcpListener, TcpStream};

    use serde_json::json;
    use weft_netns::{NetNs, Netlink};

    use super::*;
    use crate::config::Config;

    /// The pod's address and link are the host's own here: what is translated arrives, whatever else of the pod has gone.
    fn record() -> Record {
        serde_json::from_value(json!({
            "version": 1, "state": "detaching", "container": "c", "interface": "eth0", "network": "n",
            "netns": { "path": "/run/netns/a", "dev": 1, "inode": 2 }, "addresses": ["127.0.0.2"],
            "host_link": "lo", "host_index": 1, "mac": "", "host_mac": "", "mtu": 1500, "data_path": "redirect",
            "ports": [{ "protocol": "tcp", "host_port": 8080, "pod_port": 80 }],
        }))
        .unwrap()
    }

    /// A namespace of its own for each round: a walk through the connections of the ones before would outlast the tick.
    fn connected_after(steps: impl FnOnce(&Ledger) + Send) -> Result<(), ErrorKind> {
        let run_dir = tempfile::tempdir().unwrap();
        let ledger = Ledger::open(&Config { run_dir: run_dir.path().into(), ..Config::default() }).unwrap();
        let in_a_namespace = || {
            const LO: u32 = 1;
            Netlink::open().unwrap().set_up(LO).unwrap();
            let mut batch = Batch::of(TABLE);
            batch.add_table();
            ruleset::build(&mut batch);
            Netfilter::open().unwrap().commit(batch).unwrap();
            let _pod = TcpListener::bind("127.0.0.2:80").unwrap();
            nft::await_tick().unwrap();
            publish(&ledger, &record()).unwrap();
            steps(&ledger);
            TcpStream::connect("127.0.0.1:8080").map(drop).map_err(|err| err.kind())
        };
        NetNs::create().unwrap().run(in_a_namespace).unwrap()
    }

    #[test]
    fn a_withdrawn_port_is_shut_before_its_element_expires() {
        assert_eq!(connected_after(|_| {}), Ok(()));
        for _ in 0..5 {
            let refused = connected_after(|_| withdraw(&record()).unwrap());
            assert_eq!(refused, Err(ErrorKind::ConnectionRefused));
        }
    }

    #[test]
    fn a_port_is_published_again_before_its_element_expires() {
        for _ in 0..5 {
            let again = |ledger: &Ledger| {
                withdraw(&record()).unwrap();
                publish(ledger, &record()).unwrap();
            };
            assert_eq!(connected_after(again), Ok(()));
        }
    }
}
