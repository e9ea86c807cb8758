//! Many processes on one store at once: no address twice, no lease lost, no open that fails.
#![expect(clippy::unwrap_used, reason = "a test that cannot go on panics")]

mod processes;
mod support;

use std::path::Path;
use std::process::Child;

use processes::{spawn, worker};
use support::{audit, folder, lease, owner, range, raw, release};
use weft_ipam::{Error, Store};

const PROCESSES: usize = 8;

fn main() {
    processes::run(
        &[
            ("processes_share_a_store_from_its_first_moment", processes_share_a_store_from_its_first_moment),
            ("processes_that_churn_lose_nothing", processes_that_churn_lose_nothing),
            ("a_range_is_leased_to_its_last_address", a_range_is_leased_to_its_last_address),
            ("a_newer_version_may_take_an_open_store_over", a_newer_version_may_take_an_open_store_over),
        ],
        &[("attach", attach), ("churn", churn), ("fill", fill), ("upgrade", upgrade)],
    );
}

/// Waits for a worker that has to end well.
fn join(mut child: Child) {
    let status = child.wait().unwrap();
    assert!(status.success(), "{status}");
}

/// The way of a CNI process: open, one transaction, close.
fn attach(arguments: &[String]) {
    let [dir, name, count] = arguments else { panic!("{arguments:?}") };
    for turn in 0..count.parse().unwrap() {
        let turn: u32 = turn;
        let store = Store::open(Path::new(dir)).unwrap();
        lease(&store, &[range("10.0.0.0/16"), range("fd00::/64")], &owner(format!("{name}-{turn}"))).unwrap();
    }
}

fn processes_share_a_store_from_its_first_moment() {
    // Often, because the race is for the first moment.
    for _ in 0..25 {
        let dir = folder();
        let start =
            |name: usize| spawn(worker("attach").arg(dir.path()).args([name.to_string(), "10".into()]));
        let children: Vec<_> = (0..PROCESSES).map(start).collect();
        children.into_iter().for_each(join);
        assert_eq!(audit(dir.path()).len(), PROCESSES * 10 * 2);
    }
}

fn churn(arguments: &[String]) {
    let [dir, name] = arguments else { panic!("{arguments:?}") };
    let ranges = [range("10.0.0.0/28")];
    let own = owner(name);
    for turn in 0..300 {
        let store = Store::open(Path::new(dir)).unwrap();
        let held = lease(&store, &ranges, &own).unwrap();
        let mut txn = store.write().unwrap();
        txn.put_record(&own, format!("{turn}").as_bytes()).unwrap();
        txn.commit().unwrap();
        let txn = store.read().unwrap();
        assert_eq!(txn.record(&own).unwrap(), Some(turn.to_string().as_bytes()));
        let holders = txn.leases().unwrap().into_iter().filter(|lease| lease.address == held[0]);
        assert_eq!(holders.map(|lease| lease.owner).collect::<Vec<_>>(), std::slice::from_ref(&own));
        drop(txn);
        assert_eq!(release(&store, &own), held);
    }
}

fn processes_that_churn_lose_nothing() {
    let dir = folder();
    let start = |name: usize| spawn(worker("churn").arg(dir.path()).arg(name.to_string()));
    let children: Vec<_> = (0..PROCESSES).map(start).collect();
    children.into_iter().for_each(join);
    assert_eq!(audit(dir.path()), []);
    let store = Store::open(dir.path()).unwrap();
    assert_eq!(store.read().unwrap().records().unwrap().len(), PROCESSES);
    assert_eq!(store.read().unwrap().usage(&[range("10.0.0.0/28")]).unwrap()[0].used, 0);
}

/// Leases until there is nothing left.
fn fill(arguments: &[String]) {
    let [dir, name] = arguments else { panic!("{arguments:?}") };
    for turn in 0.. {
        let turn: u32 = turn;
        let store = Store::open(Path::new(dir)).unwrap();
        match lease(&store, &[range("10.0.0.0/22")], &owner(format!("{name}-{turn}"))) {
            Ok(_) => {}
            Err(Error::Exhausted { total: 1021, used: 1021, .. }) => return,
            Err(err) => panic!("{err:?}"),
        }
    }
}

fn a_range_is_leased_to_its_last_address() {
    let dir = folder();
    let start = |name: usize| spawn(worker("fill").arg(dir.path()).arg(name.to_string()));
    let children: Vec<_> = (0..PROCESSES).map(start).collect();
    children.into_iter().for_each(join);
    assert_eq!(audit(dir.path()).len(), 1021);
}

fn upgrade(arguments: &[String]) {
    raw(Path::new(&arguments[0]), |rows, txn| rows.put(txn, &[0], &[0, 2]).unwrap());
}

fn a_newer_version_may_take_an_open_store_over() {
    let dir = folder();
    let store = Store::open(dir.path()).unwrap();
    join(spawn(worker("upgrade").arg(dir.path())));
    assert!(matches!(store.write().err(), Some(Error::NewerFormat { found: 2, .. })));
    assert!(matches!(store.read().err(), Some(Error::NewerFormat { found: 2, .. })));
}
