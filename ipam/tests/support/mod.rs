//! What the tests of the store share: a folder on a tmpfs, and a second reader of the files.
//!
//! `audit` knows the format from its drawing in `row.rs` only and reads it through LMDB alone.
#![expect(clippy::unwrap_used, reason = "a test that cannot go on panics")]
#![allow(dead_code, clippy::allow_attributes, reason = "every test binary takes what it needs")]

use std::collections::{BTreeMap, BTreeSet};
use std::net::{IpAddr, Ipv4Addr, Ipv6Addr};
use std::path::Path;
use std::time::{Duration, Instant};

use heed::types::Bytes;
use heed::{CommitOrAbort, Database, EnvOpenOptions, RwTxn};
use tempfile::TempDir;
use weft_ipam::{Owner, Range, RangeSpec, Store};

/// A folder on a tmpfs, where the store belongs.
pub(crate) fn folder() -> TempDir {
    tempfile::Builder::new().prefix("weft-ipam-").tempdir_in("/dev/shm").unwrap()
}

pub(crate) fn range(subnet: &str) -> Range {
    let subnet = subnet.parse().unwrap();
    Range::new(RangeSpec { subnet, start: None, end: None, gateway: None, exclude: Vec::new() }).unwrap()
}

pub(crate) fn owner(container: impl std::fmt::Display) -> Owner {
    Owner::new(&container.to_string(), "eth0").unwrap()
}

/// Reserves in a transaction of its own.
pub(crate) fn lease(store: &Store, ranges: &[Range], owner: &Owner) -> Result<Vec<IpAddr>, weft_ipam::Error> {
    let mut txn = store.write()?;
    let leases = txn.reserve("net", ranges, owner)?;
    txn.commit()?;
    Ok(leases.into_iter().map(|lease| lease.address).collect())
}

pub(crate) fn release(store: &Store, owner: &Owner) -> Vec<IpAddr> {
    let mut txn = store.write().unwrap();
    let leases = txn.release(owner).unwrap();
    txn.commit().unwrap();
    leases.into_iter().map(|lease| lease.address).collect()
}

/// Opens the files without the crate under test; no `Store` may be open on the folder in this process.
pub(crate) fn raw<T>(
    dir: &Path,
    with: impl FnOnce(&Database<'static, Bytes, Bytes>, &mut RwTxn<'_>) -> T,
) -> T {
    let mut options = EnvOpenOptions::new();
    options.map_size(1 << 30);
    let deadline = Instant::now() + Duration::from_secs(10);
    let env = loop {
        // SAFETY: the files are the test's own and on no remote file system.
        match unsafe { options.open(dir) } {
            // Another test's thread looks through the open stores at this moment, and holds this one, which is not open any more.
            Err(heed::Error::EnvAlreadyOpened) if Instant::now() < deadline => std::thread::yield_now(),
            opened => break opened.unwrap(),
        }
    };
    let read = env.read_txn().unwrap();
    let open = env.open_databases_and_commit(read, |opener, txn| {
        Ok::<_, heed::Error>(CommitOrAbort::<_, ()>::Commit(opener.open_database(txn, None)?))
    });
    let rows = open.unwrap().commit().unwrap().unwrap();
    let mut txn = env.write_txn().unwrap();
    let result = with(&rows, &mut txn);
    txn.commit().unwrap();
    result
}

/// Checks that lease rows and address rows say the same, that pools count what the address rows say, and that the
/// freed rows are the free addresses, each once and in the order of freeing. Returns owner and address of each lease.
pub(crate) fn audit(dir: &Path) -> Vec<(Vec<u8>, IpAddr)> {
    let rows: Vec<(Vec<u8>, Vec<u8>)> = raw(dir, |rows, txn| {
        rows.iter(txn)
            .unwrap()
            .map(|row| row.map(|(key, value)| (key.into(), value.into())).unwrap())
            .collect()
    });
    let table = |table: u8| rows.iter().filter(move |(key, _)| key[0] == table);
    let mut leased = BTreeMap::new();
    let mut freed = BTreeMap::new();
    for (key, value) in table(2) {
        match value[0] {
            1 => assert!(leased.insert(ip(&key[1..]), value[1..].to_vec()).is_none()),
            2 => assert!(freed.insert(ip(&key[1..]), u64_of(&value[1..])).is_none()),
            other => panic!("address row of kind {other}"),
        }
    }
    let mut leases = Vec::new();
    for (key, value) in table(4) {
        assert!((1..=16).contains(&value[0]), "leases of one owner");
        for chunk in value[1..][..17 * usize::from(value[0])].chunks(17) {
            leases.push((key[1..].to_vec(), ip(chunk)));
        }
    }
    let of_leases: BTreeMap<IpAddr, Vec<u8>> =
        leases.iter().map(|(owner, ip)| (*ip, owner.clone())).collect();
    assert_eq!(of_leases.len(), leases.len(), "an address has two owners");
    assert_eq!(of_leases, leased, "lease rows and address rows differ");
    for (key, value) in table(1) {
        audit_pool(key, value, &leased.keys().copied().collect(), &freed, table(3));
    }
    leases
}

fn audit_pool<'r>(
    key: &[u8],
    value: &[u8],
    leased: &BTreeSet<IpAddr>,
    freed: &BTreeMap<IpAddr, u64>,
    queue: impl Iterator<Item = &'r (Vec<u8>, Vec<u8>)>,
) {
    let (first, last) = (ip(&key[1..]), ip(&[&key[1..2], &value[..16]].concat()));
    let holes: Vec<(IpAddr, IpAddr)> = value[56..]
        .chunks(32)
        .map(|hole| (ip(&[&key[1..2], &hole[..16]].concat()), ip(&[&key[1..2], &hole[16..]].concat())))
        .collect();
    let within = |ip: &IpAddr| {
        (first..=last).contains(ip) && !holes.iter().any(|(from, to)| (*from..=*to).contains(ip))
    };
    assert_eq!(
        u64_of(&value[32..]),
        leased.iter().filter(|ip| within(ip)).count() as u64,
        "counter of leases"
    );
    let (head, tail) = (u64_of(&value[40..]), u64_of(&value[48..]));
    let queue: Vec<_> = queue.filter(|(queued, _)| queued[1..18] == key[1..18]).collect();
    let numbers: Vec<u64> = queue.iter().map(|(queued, _)| u64_of(&queued[18..])).collect();
    assert_eq!(numbers, (head..tail).collect::<Vec<_>>(), "freed rows without gaps");
    let times: Vec<u64> = queue.iter().map(|(_, value)| u64_of(&value[16..])).collect();
    assert!(times.is_sorted(), "freed rows in the order of freeing");
    let queued: BTreeMap<IpAddr, u64> = queue
        .iter()
        .map(|(key, value)| (ip(&[&key[1..2], &value[..16]].concat()), u64_of(&value[16..])))
        .collect();
    assert_eq!(queued.len(), queue.len(), "an address is free twice");
    let free: BTreeMap<IpAddr, u64> =
        freed.iter().filter(|(ip, _)| within(ip)).map(|(ip, at)| (*ip, *at)).collect();
    assert_eq!(queued, free, "freed rows and address rows differ");
}

fn ip(bytes: &[u8]) -> IpAddr {
    let bits = u128::from_be_bytes(bytes[1..17].try_into().unwrap());
    match bytes[0] {
        4 => Ipv4Addr::from(u32::try_from(bits).unwrap()).into(),
        6 => Ipv6Addr::from(bits).into(),
        other => panic!("family {other}"),
    }
}

fn u64_of(bytes: &[u8]) -> u64 {
    u64::from_be_bytes(bytes[..8].try_into().unwrap())
}
