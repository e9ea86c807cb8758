//! What an administrator is told: every range in use, and every address with its holder.
#![expect(clippy::unwrap_used, reason = "a test that cannot go on panics")]

mod support;

use std::net::IpAddr;

use support::{folder, lease, owner, range, release};
use weft_ipam::Store;

fn ip(text: &str) -> IpAddr {
    text.parse().unwrap()
}

#[test]
fn every_range_in_use_is_told_with_what_is_left_of_it() {
    let dir = folder();
    let store = Store::open(dir.path()).unwrap();
    let both = [range("10.0.0.0/24"), range("fd00::/64")];
    for pod in ["a", "b", "c"] {
        lease(&store, &both, &owner(pod)).unwrap();
    }
    release(&store, &owner("b"));
    let view = store.read().unwrap();
    let fills = view.fills().unwrap();
    let told: Vec<_> = fills.iter().map(|fill| (fill.first, fill.last, fill.used, fill.cooling)).collect();
    assert_eq!(
        told,
        [(ip("10.0.0.2"), ip("10.0.0.254"), 2, 1), (ip("fd00::2"), ip("fd00::ffff:ffff:ffff:ffff"), 2, 1)]
    );
    for (fill, range) in fills.iter().zip(&both) {
        assert_eq!((fill.first, fill.last), range.ends());
        assert_eq!(fill.total, range.capacity());
    }
}

#[test]
fn the_holders_are_the_leases_from_the_other_end() {
    let dir = folder();
    let store = Store::open(dir.path()).unwrap();
    for pod in ["z", "a"] {
        lease(&store, &[range("10.0.0.0/24"), range("fd00::/64")], &owner(pod)).unwrap();
    }
    lease(&store, &[range("10.0.0.0/24")], &owner("gone")).unwrap();
    release(&store, &owner("gone"));
    let view = store.read().unwrap();
    let holders = view.holders().unwrap();
    let wanted = [("10.0.0.2", "z"), ("10.0.0.3", "a"), ("fd00::2", "z"), ("fd00::3", "a")];
    assert_eq!(holders, wanted.map(|(address, pod)| (ip(address), owner(pod))));
    let mut leases: Vec<_> =
        view.leases().unwrap().into_iter().map(|lease| (lease.address, lease.owner)).collect();
    leases.sort();
    assert_eq!(leases, holders);
}
