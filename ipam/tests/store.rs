//! The store on real files: opening, formats, boots, records, and the choice of addresses.
#![expect(clippy::unwrap_used, reason = "a test that cannot go on panics")]

mod support;

use std::fs;
use std::net::IpAddr;
use std::os::unix::fs::PermissionsExt;
use std::time::{Duration, Instant};

use support::{audit, folder, lease, owner, range, raw, release};
use weft_ipam::{COOL_DOWN, Error, Owner, Range, RangeSpec, Store};

fn ip(text: &str) -> IpAddr {
    text.parse().unwrap()
}

fn ips<const N: usize>(texts: [&str; N]) -> Vec<IpAddr> {
    texts.map(ip).into()
}

fn boot_id() -> Vec<u8> {
    fs::read("/proc/sys/kernel/random/boot_id").unwrap().trim_ascii_end().to_vec()
}

#[test]
fn a_missing_folder_is_made_for_its_owner_only() {
    let parent = folder();
    let dir = parent.path().join("weft/store");
    Store::open(&dir).unwrap();
    for (path, mode) in
        [(dir.clone(), 0o40700), (dir.join("data.mdb"), 0o100_600), (dir.join("lock.mdb"), 0o100_600)]
    {
        assert_eq!(fs::metadata(&path).unwrap().permissions().mode(), mode, "{path:?}");
    }
}

#[test]
fn a_process_may_open_the_store_many_times() {
    let dir = folder();
    let link = dir.path().join("link");
    std::os::unix::fs::symlink(dir.path(), &link).unwrap();
    let (a, b) = (Store::open(dir.path()).unwrap(), Store::open(&link).unwrap());
    lease(&a, &[range("10.0.0.0/24")], &owner("a")).unwrap();
    assert_eq!(b.read().unwrap().leases().unwrap().len(), 1);
    drop(a);
    assert_eq!(b.read().unwrap().leases().unwrap().len(), 1);
    drop(b);
    for turn in 0..10 {
        let store = Store::open(dir.path()).unwrap();
        lease(&store, &[range("10.0.0.0/24")], &owner(turn)).unwrap();
    }
    assert_eq!(audit(dir.path()).len(), 11);
}

#[test]
fn threads_may_open_and_close_the_store_at_once() {
    let dir = folder();
    std::thread::scope(|scope| {
        for thread in 0..4 {
            let dir = dir.path();
            scope.spawn(move || {
                for turn in 0..50 {
                    let store = Store::open(dir).unwrap();
                    lease(&store, &[range("10.0.0.0/24")], &owner(format!("{thread}-{turn}"))).unwrap();
                }
            });
        }
    });
    assert_eq!(audit(dir.path()).len(), 200);
}

#[test]
fn a_newer_format_is_refused_and_left_alone() {
    let dir = folder();
    lease(&Store::open(dir.path()).unwrap(), &[range("10.0.0.0/24")], &owner("a")).unwrap();
    let newer = [&[0, 2][..], b"what comes after the format is the newer version's"].concat();
    raw(dir.path(), |rows, txn| rows.put(txn, &[0], &newer).unwrap());
    let before = fs::read(dir.path().join("data.mdb")).unwrap();
    let err = Store::open(dir.path()).unwrap_err();
    assert!(matches!(&err, Error::NewerFormat { path, found: 2, known: 1 } if path == dir.path()), "{err:?}");
    assert_eq!(
        err.to_string(),
        format!("store {} has format 2, this version knows up to 1", dir.path().display())
    );
    assert_eq!(fs::read(dir.path().join("data.mdb")).unwrap(), before);
}

#[test]
fn rows_of_another_boot_are_wiped() {
    let dir = folder();
    let store = Store::open(dir.path()).unwrap();
    lease(&store, &[range("10.0.0.0/24")], &owner("a")).unwrap();
    let mut txn = store.write().unwrap();
    txn.put_record(&owner("a"), b"record").unwrap();
    txn.commit().unwrap();
    drop(store);
    let meta = |boot: &[u8]| [&[0, 1], boot].concat();
    raw(dir.path(), |rows, txn| {
        assert_eq!(rows.get(txn, &[0]).unwrap(), Some(&*meta(&boot_id())));
        rows.put(txn, &[0], &meta(b"00000000-0000-0000-0000-000000000000")).unwrap();
    });
    let store = Store::open(dir.path()).unwrap();
    let txn = store.read().unwrap();
    assert!(txn.leases().unwrap().is_empty() && txn.records().unwrap().is_empty());
    assert_eq!(txn.usage(&[range("10.0.0.0/24")]).unwrap()[0].used, 0);
    drop(txn);
    drop(store);
    raw(dir.path(), |rows, txn| {
        assert_eq!(rows.len(txn).unwrap(), 1);
        assert_eq!(rows.get(txn, &[0]).unwrap(), Some(&*meta(&boot_id())));
    });
}

#[test]
fn a_damaged_row_is_an_error_that_names_it() {
    let dir = folder();
    drop(Store::open(dir.path()).unwrap());
    raw(dir.path(), |rows, txn| rows.put(txn, b"\x04c\0eth0", &[9]).unwrap());
    let store = Store::open(dir.path()).unwrap();
    let err = store.read().unwrap().leases().unwrap_err();
    assert_eq!(err.to_string(), "lease row [04, 63, 00, 65, 74, 68, 30] of the store is damaged");
    drop(store);
    raw(dir.path(), |rows, txn| rows.put(txn, &[0], &[0]).unwrap());
    assert_eq!(Store::open(dir.path()).unwrap_err().to_string(), "meta row [00] of the store is damaged");
}

#[test]
fn a_file_is_no_folder() {
    let dir = folder();
    let file = dir.path().join("file");
    fs::write(&file, b"").unwrap();
    let err = Store::open(&file).unwrap_err();
    assert!(matches!(&err, Error::Folder { path, .. } if *path == file), "{err:?}");
    assert_eq!(err.errno(), Some(nix::libc::ENOTDIR));
    let err = Store::open(&file.join("store")).unwrap_err();
    assert_eq!(err.errno(), Some(nix::libc::ENOTDIR), "{err:?}");
}

#[test]
fn files_of_another_kind_are_no_store() {
    let dir = folder();
    fs::write(dir.path().join("data.mdb"), [7; 8192]).unwrap();
    let err = Store::open(dir.path()).unwrap_err();
    assert!(matches!(&err, Error::Open { path, .. } if path == dir.path()), "{err:?}");
    assert_eq!(err.errno(), None);
}

#[test]
fn records_are_kept_by_owner_and_found_by_container() {
    let dir = folder();
    let store = Store::open(dir.path()).unwrap();
    let [a0, a1, ab] = [("a", "eth0"), ("a", "eth1"), ("ab", "eth0")].map(|(c, i)| Owner::new(c, i).unwrap());
    let mut txn = store.write().unwrap();
    for (owner, bytes) in [(&a1, &b"old"[..]), (&ab, b""), (&a0, b"zero"), (&a1, b"one")] {
        txn.put_record(owner, bytes).unwrap();
    }
    assert_eq!(txn.reader().record(&a1).unwrap(), Some(&b"one"[..]), "a transaction sees its own change");
    assert!(store.read().unwrap().records().unwrap().is_empty(), "others do not");
    txn.commit().unwrap();
    let txn = store.read().unwrap();
    assert_eq!(txn.records().unwrap(), [(a0.clone(), &b"zero"[..]), (a1.clone(), b"one"), (ab.clone(), b"")]);
    assert_eq!(txn.records_of("a").unwrap(), [(a0.clone(), &b"zero"[..]), (a1.clone(), b"one")]);
    assert!(txn.records_of("b").unwrap().is_empty());
    let mut write = store.write().unwrap();
    assert!(write.delete_record(&a0).unwrap());
    assert!(!write.delete_record(&a0).unwrap());
    write.commit().unwrap();
    assert_eq!(txn.record(&a0).unwrap(), Some(&b"zero"[..]), "a reader keeps its view");
    assert_eq!(store.read().unwrap().record(&a0).unwrap(), None);
}

#[test]
fn a_dropped_transaction_never_happened() {
    let dir = folder();
    let store = Store::open(dir.path()).unwrap();
    let mut txn = store.write().unwrap();
    txn.reserve("net", &[range("10.0.0.0/24")], &owner("a")).unwrap();
    txn.put_record(&owner("a"), b"record").unwrap();
    drop(txn);
    let txn = store.read().unwrap();
    assert!(txn.leases().unwrap().is_empty() && txn.records().unwrap().is_empty());
}

#[test]
fn a_record_that_fits_no_more_is_an_error_and_changes_nothing() {
    let dir = folder();
    let store = Store::open(dir.path()).unwrap();
    lease(&store, &[range("10.0.0.0/24")], &owner("a")).unwrap();
    let huge = vec![0; 1 << 30];
    let err = store.write().unwrap().put_record(&owner("a"), &huge).unwrap_err();
    assert!(matches!(err, Error::Full), "{err:?}");
    assert_eq!(err.to_string(), "store is full: it holds at most 1024 MiB");
    lease(&store, &[range("10.0.0.0/24")], &owner("b")).unwrap();
    drop(store);
    assert_eq!(audit(dir.path()).len(), 2);
}

#[test]
fn every_size_leases_its_first_and_knows_its_last() {
    let dir = folder();
    let store = Store::open(dir.path()).unwrap();
    for (subnet, first) in [
        ("10.0.0.0/30", "10.0.0.2"),
        ("11.0.0.0/8", "11.0.0.2"),
        ("fd00::/64", "fd00::2"),
        ("fd01::/126", "fd01::2"),
        ("fe00::/8", "fe00::2"),
    ] {
        assert_eq!(lease(&store, &[range(subnet)], &owner(first)).unwrap(), ips([first]), "{subnet}");
        let usage = store.read().unwrap().usage(&[range(subnet)]).unwrap()[0];
        assert_eq!((usage.total, usage.used), (range(subnet).capacity(), 1), "{subnet}");
    }
    let err = lease(&store, &[range("10.0.0.0/30")], &owner("full")).unwrap_err();
    assert_eq!(err.to_string(), "network net has no free IPv4 address: 1 of 1 are leased");
}

#[test]
fn an_owner_gets_the_same_again_and_nothing_else_meanwhile() {
    let dir = folder();
    let store = Store::open(dir.path()).unwrap();
    let both = [range("fd00::/64"), range("10.0.0.0/24")];
    let held = ips(["10.0.0.2", "fd00::2"]);
    assert_eq!(lease(&store, &both, &owner("a")).unwrap(), held);
    assert_eq!(lease(&store, &both, &owner("a")).unwrap(), held);
    let err = lease(&store, &[range("10.0.1.0/24"), range("fd00::/64")], &owner("a")).unwrap_err();
    assert_eq!(
        err.to_string(),
        "interface eth0 of container a holds 10.0.0.2 of network net, \
         interface eth0 of container a holds fd00::2 of network net, not what network net would lease now"
    );
    let err = lease(&store, &both[..1], &owner("a")).unwrap_err();
    assert!(matches!(err, Error::Held { .. }), "a family less: {err:?}");
    let err = store.write().unwrap().reserve("other", &both, &owner("a")).unwrap_err();
    assert!(matches!(err, Error::Held { .. }), "another network: {err:?}");
    assert_eq!(release(&store, &owner("a")), held);
    assert!(release(&store, &owner("a")).is_empty());
    assert_eq!(lease(&store, &both[..1], &owner("a")).unwrap(), ips(["fd00::3"]));
}

#[test]
fn one_exhausted_family_leases_neither() {
    let dir = folder();
    let store = Store::open(dir.path()).unwrap();
    let both = [range("10.0.0.0/24"), range("fd00::/126")];
    for name in ["a", "b"] {
        lease(&store, &both, &owner(name)).unwrap();
    }
    let mut txn = store.write().unwrap();
    let err = txn.reserve("net", &both, &owner("c")).unwrap_err();
    assert_eq!(err.to_string(), "network net has no free IPv6 address: 2 of 2 are leased");
    // Even if the caller goes on with the transaction.
    txn.commit().unwrap();
    assert_eq!(store.read().unwrap().usage(&both).unwrap()[0].used, 2);
    assert_eq!(lease(&store, &both[..1], &owner("c")).unwrap(), ips(["10.0.0.4"]));
}

#[test]
fn ranges_that_overlap_are_refused() {
    let dir = folder();
    let store = Store::open(dir.path()).unwrap();
    let err = lease(&store, &[range("10.0.0.0/16"), range("10.0.5.0/24")], &owner("a")).unwrap_err();
    assert_eq!(err.to_string(), "ranges in 10.0.0.0/16 and 10.0.5.0/24 overlap");
}

#[test]
fn an_address_is_leased_once_whatever_the_network_is_called() {
    let dir = folder();
    let store = Store::open(dir.path()).unwrap();
    let ranges = [range("10.0.0.0/29")];
    let mut txn = store.write().unwrap();
    let mut all = Vec::new();
    for turn in 0..5 {
        let network = if turn % 2 == 0 { "old" } else { "new" };
        all.push(txn.reserve(network, &ranges, &owner(turn)).unwrap()[0].address);
    }
    assert_eq!(all, ips(["10.0.0.2", "10.0.0.3", "10.0.0.4", "10.0.0.5", "10.0.0.6"]));
    assert!(matches!(txn.reserve("new", &ranges, &owner("f")), Err(Error::Exhausted { .. })));
}

#[test]
fn a_range_that_changes_keeps_its_leases_and_the_order_of_freeing() {
    let dir = folder();
    let store = Store::open(dir.path()).unwrap().with_cool_down(Duration::ZERO);
    let small = [range("10.0.0.0/29")];
    for name in ["a", "b", "c"] {
        lease(&store, &small, &owner(name)).unwrap();
    }
    release(&store, &owner("b"));
    release(&store, &owner("a"));
    let spec = RangeSpec {
        subnet: "10.0.0.0/28".parse().unwrap(),
        start: None,
        end: Some(ip("10.0.0.8")),
        gateway: Some(ip("10.0.0.6")),
        exclude: vec!["10.0.0.5/32".parse().unwrap()],
    };
    let grown = [Range::new(spec).unwrap()];
    let usage = store.read().unwrap().usage(&grown).unwrap()[0];
    assert_eq!((usage.total, usage.used, usage.cooling), (6, 1, 0), "before the range is first used");
    let names = ["d", "e", "f", "g", "h"];
    let got: Vec<IpAddr> =
        names.iter().flat_map(|name| lease(&store, &grown, &owner(name)).unwrap()).collect();
    assert_eq!(got, ips(["10.0.0.1", "10.0.0.7", "10.0.0.8", "10.0.0.3", "10.0.0.2"]));
    assert!(matches!(lease(&store, &grown, &owner("i")), Err(Error::Exhausted { total: 6, used: 6, .. })));
    // And back: 10.0.0.1 is the gateway again, and still leased until its owner goes.
    let usage = store.read().unwrap().usage(&small).unwrap()[0];
    assert_eq!((usage.total, usage.used), (5, 3));
    assert_eq!(lease(&store, &small, &owner("j")).unwrap(), ips(["10.0.0.5"]));
    assert_eq!(release(&store, &owner("d")), ips(["10.0.0.1"]));
    drop(store);
    assert_eq!(audit(dir.path()).len(), 6);
}

#[test]
fn a_range_and_what_was_carved_out_of_it_leave_each_other_alone() {
    let dir = folder();
    let store = Store::open(dir.path()).unwrap();
    let block = range("10.0.0.4/30");
    let spec = RangeSpec {
        subnet: "10.0.0.0/28".parse().unwrap(),
        start: None,
        end: None,
        gateway: None,
        exclude: vec![block.subnet()],
    };
    let rest = Range::new(spec).unwrap();
    lease(&store, std::slice::from_ref(&block), &owner("block")).unwrap();
    for turn in 0..9 {
        lease(&store, std::slice::from_ref(&rest), &owner(turn)).unwrap();
    }
    release(&store, &owner(0));
    release(&store, &owner(8));
    release(&store, &owner("block"));
    let usage = store.read().unwrap().usage(&[rest, block]).unwrap();
    assert_eq!(usage.iter().map(|usage| (usage.total, usage.used)).collect::<Vec<_>>(), [(9, 7), (1, 0)]);
    drop(store);
    assert_eq!(audit(dir.path()).len(), 7);
}

#[test]
fn freed_addresses_rest_unless_there_is_nothing_else() {
    let dir = folder();
    let store = Store::open(dir.path()).unwrap();
    let ranges = [range("10.0.0.0/29"), range("10.0.1.0/30")];
    for turn in 0..4 {
        lease(&store, &ranges, &owner(turn)).unwrap();
    }
    for turn in [2, 0] {
        release(&store, &owner(turn));
    }
    let usage = store.read().unwrap().usage(&ranges).unwrap()[0];
    assert_eq!((usage.total, usage.used, usage.cooling), (5, 2, 2));
    let next = |name: &str| lease(&store, &ranges, &owner(name)).unwrap()[0];
    assert_eq!(next("a"), ip("10.0.0.6"), "never leased");
    assert_eq!(next("b"), ip("10.0.1.2"), "never leased, in the next range");
    assert_eq!(next("c"), ip("10.0.0.4"), "warm, but freed first");
    assert_eq!(next("d"), ip("10.0.0.2"));
    assert!(matches!(lease(&store, &ranges, &owner("e")), Err(Error::Exhausted { total: 6, used: 6, .. })));
}

#[test]
fn an_address_cools_down_by_time() {
    assert_eq!(COOL_DOWN, Duration::from_secs(120));
    let dir = folder();
    let store = Store::open(dir.path()).unwrap().with_cool_down(Duration::from_millis(100));
    let ranges = [range("10.0.0.0/30"), range("10.0.1.0/30")];
    lease(&store, &ranges[..1], &owner("a")).unwrap();
    release(&store, &owner("a"));
    assert_eq!(lease(&store, &ranges, &owner("b")).unwrap(), ips(["10.0.1.2"]), "the first range is warm");
    release(&store, &owner("b"));
    let deadline = Instant::now() + Duration::from_secs(10);
    let cooling =
        || store.read().unwrap().usage(&ranges).unwrap().iter().map(|usage| usage.cooling).sum::<u128>();
    while cooling() > 0 {
        assert!(Instant::now() < deadline);
        std::thread::park_timeout(Duration::from_millis(5));
    }
    assert_eq!(
        lease(&store, &ranges, &owner("c")).unwrap(),
        ips(["10.0.0.2"]),
        "the first range has cooled down"
    );
}

#[test]
fn a_large_range_does_not_remember_every_pod_there_ever_was() {
    let dir = folder();
    let store = Store::open(dir.path()).unwrap().with_cool_down(Duration::ZERO);
    let ranges = [range("fd00::/64")];
    let mut txn = store.write().unwrap();
    let mut seen = std::collections::BTreeSet::new();
    for _ in 0..10_000 {
        seen.insert(txn.reserve("net", &ranges, &owner("a")).unwrap()[0].address);
        txn.release(&owner("a")).unwrap();
    }
    txn.commit().unwrap();
    assert_eq!(seen.len(), 4097);
}
