//! Rows that no version writes: an operation on them ends, with an error, and nobody gets an address of somebody else's. Found by
//! the fuzz target `store`.
#![expect(clippy::unwrap_used, reason = "a test that cannot go on panics")]

mod support;

use std::time::{Duration, Instant};

use support::{folder, lease, owner, range, raw, release};
use weft_ipam::{Error, Store};

const SUBNET: &str = "10.0.0.0/29";

/// The key of a row about 10.0.0.`last`, or about the range that begins there.
fn key(table: u8, last: u8) -> Vec<u8> {
    [&[table, 4][..], &[0; 12], &[10, 0, 0, last]].concat()
}

/// A store in which `a` has the first address and `b` has given back the second, after one row was changed.
fn changed(key: &[u8], edit: impl Fn(&mut Vec<u8>)) -> (tempfile::TempDir, Store) {
    let dir = folder();
    let store = Store::open(dir.path()).unwrap();
    for name in ["a", "b"] {
        lease(&store, &[range(SUBNET)], &owner(name)).unwrap();
    }
    release(&store, &owner("b"));
    drop(store);
    raw(dir.path(), |rows, txn| {
        let mut value = rows.get(txn, key).unwrap().unwrap().to_vec();
        edit(&mut value);
        rows.put(txn, key, &value).unwrap();
    });
    let store = Store::open(dir.path()).unwrap().with_cool_down(Duration::ZERO);
    (dir, store)
}

#[track_caller]
fn is_damaged(result: Result<Vec<std::net::IpAddr>, Error>, table: &str) {
    match result {
        Err(err @ Error::Damaged { .. }) => assert!(err.to_string().starts_with(table), "{err}"),
        other => panic!("{other:?}"),
    }
}

#[test]
fn a_pool_with_endless_freed_addresses_is_not_searched_for_ever() {
    // last, passed, leased, head, tail
    let tail = 16 + 16 + 8 + 8;
    let (_dir, store) = changed(&key(1, 2), |pool| pool[tail..tail + 8].fill(0xff));
    let begun = Instant::now();
    is_damaged(lease(&store, &[range(SUBNET)], &owner("c")), "pool row");
    // Another range over the same addresses would have dropped the rows one by one.
    is_damaged(lease(&store, &[range("10.0.0.0/30")], &owner("c")), "pool row");
    assert!(begun.elapsed() < Duration::from_secs(5), "took {:?}", begun.elapsed());
}

#[test]
fn a_freed_address_outside_its_range_is_not_leased() {
    let freed = [key(3, 2), vec![0; 8]].concat();
    let (_dir, store) = changed(&freed, |row| row[14] = 99);
    let all: Vec<_> =
        ["c", "d", "e", "f", "g"].map(|name| lease(&store, &[range(SUBNET)], &owner(name))).into();
    let damaged = all.into_iter().find(Result::is_err).unwrap();
    is_damaged(damaged, "freed row");
}

#[test]
fn an_address_that_is_leased_is_not_leased_again_by_a_wrong_index() {
    // The index says that the address of `a` is free.
    let freed = [key(3, 2), vec![0; 8]].concat();
    let (_dir, store) = changed(&freed, |row| row[15] = 2);
    let all: Vec<_> =
        ["c", "d", "e", "f", "g"].map(|name| lease(&store, &[range(SUBNET)], &owner(name))).into();
    let damaged = all.into_iter().find(Result::is_err).unwrap();
    is_damaged(damaged, "address row");
}

#[test]
fn a_lease_that_the_address_does_not_know_of_is_not_confirmed() {
    let (_dir, store) = changed(&key(2, 2), |row| *row = b"\x01z\0eth0".to_vec());
    is_damaged(lease(&store, &[range(SUBNET)], &owner("a")), "address row");
}

/// It would be told, and given back, twice.
#[test]
fn a_lease_that_has_one_address_twice_is_damaged() {
    let (_dir, store) = changed(b"\x04a\0eth0", |value| {
        value[0] = 2;
        let address = value[1..18].to_vec();
        value.splice(1..1, address);
    });
    is_damaged(lease(&store, &[range(SUBNET)], &owner("a")), "lease");
}
