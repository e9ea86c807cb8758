//! `kill -9` at any instant: no address twice, none lost, and a store that opens.
#![expect(clippy::unwrap_used, reason = "a test that cannot go on panics")]

mod processes;
mod support;

use std::collections::BTreeSet;
use std::net::IpAddr;
use std::path::Path;
use std::process::Child;
use std::time::{Duration, Instant};

use processes::{spawn, worker};
use support::{audit, folder, lease, owner, range, release};
use weft_ipam::{Error, Range, Store};

const KILLS: usize = 250;
/// At once; fewer than the addresses of a family, so that a worker is never turned away.
const WORKERS: usize = 6;

fn main() {
    processes::run(
        &[("a_store_survives_the_death_of_its_users", a_store_survives_the_death_of_its_users)],
        &[("live", live)],
    );
}

fn ranges() -> [Range; 2] {
    [range("10.0.0.0/28"), range("fd00::/124")]
}

/// Lives on the store as pods do, until it is killed.
fn live(arguments: &[String]) {
    let [dir, name] = arguments else { panic!("{arguments:?}") };
    let own = owner(name);
    loop {
        let store = Store::open(Path::new(dir)).unwrap();
        let mut txn = store.write().unwrap();
        let addresses: Vec<String> =
            txn.reserve("net", &ranges(), &own).unwrap().iter().map(|lease| lease.address.to_string()).collect();
        txn.put_record(&own, addresses.join(" ").as_bytes()).unwrap();
        txn.commit().unwrap();
        let store = Store::open(Path::new(dir)).unwrap();
        let mut txn = store.write().unwrap();
        txn.release(&own).unwrap();
        txn.delete_record(&own).unwrap();
        txn.commit().unwrap();
    }
}

/// xorshift64 (Marsaglia, 2003): the same instants in every run, as far as instants can be the same.
struct Random(u64);

impl Random {
    fn below(&mut self, limit: u64) -> u64 {
        self.0 ^= self.0 << 13;
        self.0 ^= self.0 >> 7;
        self.0 ^= self.0 << 17;
        self.0 % limit
    }
}

fn a_store_survives_the_death_of_its_users() {
    let dir = folder();
    let mut random = Random(0x5eed);
    let start = |slot: usize| spawn(worker("live").arg(dir.path()).arg(slot.to_string()));
    let mut children: Vec<Child> = (0..WORKERS).map(start).collect();
    for kill in 0..KILLS {
        // From the middle of exec to many transactions later.
        pause(Duration::from_micros(random.below(12_000)));
        let slot = usize::try_from(random.below(WORKERS as u64)).unwrap();
        let status = {
            children[slot].kill().unwrap();
            children[slot].wait().unwrap()
        };
        assert_eq!(status.code(), None, "worker {slot} ended by itself: {status}");
        if kill % 10 == 0 {
            whole(dir.path());
        }
        children[slot] = start(slot);
    }
    for mut child in children {
        child.kill().unwrap();
        child.wait().unwrap();
    }
    whole(dir.path());
    audit(dir.path());
    nothing_is_lost(dir.path());
    audit(dir.path());
}

fn pause(time: Duration) {
    let end = Instant::now() + time;
    while let Some(rest) = end.checked_duration_since(Instant::now()) {
        std::thread::park_timeout(rest);
    }
}

/// Looks while others live on: leases and records are written together, so they are seen together.
fn whole(dir: &Path) {
    let store = Store::open(dir).unwrap();
    let txn = store.read().unwrap();
    let leases = txn.leases().unwrap();
    let distinct: BTreeSet<IpAddr> = leases.iter().map(|lease| lease.address).collect();
    assert_eq!(distinct.len(), leases.len(), "an address has two owners: {leases:?}");
    for (owner, bytes) in txn.records().unwrap() {
        let held: Vec<String> =
            leases.iter().filter(|lease| lease.owner == owner).map(|lease| lease.address.to_string()).collect();
        assert_eq!(held.join(" ").as_bytes(), bytes);
    }
    for usage in txn.usage(&ranges()).unwrap() {
        assert_eq!(usage.used * 2, leases.len() as u128);
    }
}

/// Every address that is not leased can be.
fn nothing_is_lost(dir: &Path) {
    let store = Store::open(dir).unwrap();
    for slot in 0..WORKERS {
        release(&store, &owner(slot));
    }
    for range in ranges() {
        let mut all = BTreeSet::new();
        loop {
            match lease(&store, std::slice::from_ref(&range), &owner(format!("{}-{}", range.subnet(), all.len()))) {
                Ok(addresses) => assert!(all.insert(addresses[0])),
                Err(Error::Exhausted { .. }) => break,
                Err(err) => panic!("{err:?}"),
            }
        }
        assert_eq!(all.len() as u128, range.capacity());
    }
}
