//! What the fuzz targets call: a store whose rows are arbitrary bytes.
//!
//! Whatever the rows are, an operation ends with an answer or with an error: it does not panic, it does not search for ever, it
//! gives nobody an address that is somebody else's, and it loses no record.

use std::net::IpAddr;

use crate::allocator::now;
use crate::range::{Family, bits};
use crate::row::{Address, Freed, META, Meta, Pool, Table, decode_leases, encode_leases};
use crate::store::WriteTxn;
use crate::{Error, Owner, Range, RangeSpec, Store};

/// A key and a value.
type Row<'b> = (&'b [u8], &'b [u8]);
/// The same, for keeps.
type Rows = Vec<(Vec<u8>, Vec<u8>)>;

/// Takes `bytes` for rows, each with one byte for the length of its key, one for that of its value, key and value; and tries
/// everything on a store of such rows, which is as before afterwards.
pub fn rows(store: &Store, bytes: &[u8]) {
    let rows = split(bytes);
    for &(key, value) in &rows {
        reads_as_written(key, value);
    }
    let ranges = ranges();
    let Ok(owner) = Owner::new("fuzz", "eth0") else { return };
    with(store, &rows, |txn| look(txn, &ranges));
    with(store, &rows, |txn| reserve(txn, &ranges, &[], &owner));
    // One of each family.
    let wanted: Vec<IpAddr> = ranges.iter().skip(1).map(|range| range.ends().1).collect();
    with(store, &rows, |txn| reserve(txn, &ranges, &wanted, &owner));
    for &(key, _) in &rows {
        if let Ok(holder) = Table::Lease.owner(key) {
            with(store, &rows, |txn| release(txn, &holder));
            with(store, &rows, |txn| reserve(txn, &ranges, &[], &holder));
        }
    }
}

/// Rows as this version writes them, in the form that [`rows`] takes: after leases, a release and a record.
///
/// # Errors
/// Those of the store.
pub fn seed(store: &Store) -> Result<Vec<u8>, Error> {
    let mut txn = store.write()?;
    let ranges = ranges();
    let owners = [Owner::new("a", "eth0")?, Owner::new("b", "eth0")?, Owner::new("fuzz", "eth0")?];
    for owner in &owners {
        txn.reserve("n", &ranges, owner)?;
        txn.put_record(owner, b"{}")?;
    }
    txn.release(&owners[1])?;
    let mut seed = Vec::new();
    for table in [Table::Pool, Table::Address, Table::Freed, Table::Lease, Table::Record] {
        for (key, value) in bytes_under(&txn, table)? {
            seed.extend([key.len() as u8, value.len() as u8]);
            seed.extend([key, value].concat());
        }
    }
    Ok(seed)
}

fn split(bytes: &[u8]) -> Vec<Row<'_>> {
    let mut rest = bytes;
    let row = move || {
        let ([key, value], after) = rest.split_first_chunk()?;
        let (key, after) = after.split_at_checked((*key).into())?;
        let (value, after) = after.split_at_checked((*value).into())?;
        rest = after;
        Some((key, value))
    };
    // A key is never empty, and the meta row is the store's own.
    std::iter::from_fn(row).filter(|(key, _)| !key.is_empty() && *key != META).collect()
}

/// Small ones, of which everything can be leased, and one that is not.
fn ranges() -> Vec<Range> {
    let range = |subnet: &str| {
        let subnet = subnet.parse().ok()?;
        Range::new(RangeSpec { subnet, start: None, end: None, gateway: None, exclude: vec![] }).ok()
    };
    let ranges: Vec<Range> =
        ["10.0.0.0/29", "10.1.0.0/30", "fd00::/64"].into_iter().filter_map(range).collect();
    assert_eq!(ranges.len(), 3);
    ranges
}

/// What can be read says, written again, the same.
fn reads_as_written(key: &[u8], value: &[u8]) {
    if let Ok(pool) = Pool::decode(key, value) {
        assert_eq!((&pool.key()[1..], &pool.encode()[..]), (&key[1..], value));
        assert!(pool.span.len() >= u128::from(pool.leased), "{pool:?}");
    }
    if let Ok(freed) = Freed::decode(key, value) {
        assert_eq!(freed.encode(), value);
    }
    if let Ok(address) = Address::decode(key, value) {
        assert_eq!(address.encode(), value);
    }
    if let Ok(leases) = decode_leases(key, value) {
        let addresses: Vec<IpAddr> = leases.iter().map(|lease| lease.address).collect();
        if let Some(lease) = leases.first() {
            assert_eq!(encode_leases(&lease.network, &addresses), value);
        }
    }
    if let Ok(meta) = Meta::decode(value) {
        assert_eq!(meta.encode(), value);
    }
    for table in [Table::Lease, Table::Record] {
        if let Ok(owner) = table.owner(key) {
            assert_eq!(table.of_owner(&owner)[1..], key[1..]);
        }
    }
}

/// Tries something on a store with these rows only, and undoes it.
fn with(store: &Store, rows: &[Row<'_>], tried: impl FnOnce(&mut WriteTxn<'_>) -> Result<(), Error>) {
    let done = store.write().and_then(|mut txn| {
        for (key, value) in rows {
            txn.put(key, value)?;
        }
        tried(&mut txn)
    });
    if let Err(err) = done {
        let text = err.to_string();
        assert!(!text.is_empty() && !text.contains('\n'), "{text:?}");
        assert!(!matches!(err, Error::Transaction { .. } | Error::Clock(_)), "{err:?}");
    }
}

fn look(txn: &mut WriteTxn<'_>, ranges: &[Range]) -> Result<(), Error> {
    let view = txn.reader();
    // One that is damaged keeps nobody from the others.
    let tried = [
        view.leases().map(drop),
        view.records().map(drop),
        view.records_of("fuzz").map(drop),
        view.holders().map(drop),
        view.fills().map(|fills| fills.iter().for_each(|fill| assert!(fill.used <= fill.total, "{fill:?}"))),
        view.usage(ranges).map(|all| all.iter().for_each(|one| assert!(one.used <= one.total, "{one:?}"))),
        now().map(drop),
    ];
    tried.into_iter().collect()
}

fn reserve(txn: &mut WriteTxn<'_>, ranges: &[Range], wanted: &[IpAddr], owner: &Owner) -> Result<(), Error> {
    let before = bytes_under(txn, Table::Record)?;
    let taken = bytes_under(txn, Table::Address)?;
    let leases = txn.reserve_these("n", ranges, wanted, owner)?;
    assert_eq!(bytes_under(txn, Table::Record)?, before, "records are lost");
    for lease in &leases {
        assert_eq!(lease.owner, *owner);
        assert!(ranges.iter().any(|range| range.contains(lease.address)), "{lease:?} is in no range");
        let family = Family::of(lease.address);
        let of_others = taken.iter().filter_map(|(key, value)| match Address::decode(key, value) {
            Ok(Address::Leased(other)) if other != *owner => Address::at(key).ok(),
            _ => None,
        });
        assert!(!of_others.into_iter().any(|taken| taken == lease.address), "{lease:?} is taken");
        let held = txn.reader().address(family, bits(lease.address))?;
        assert_eq!(held, Some(Address::Leased(owner.clone())), "{lease:?} is not written down");
    }
    let families = |addresses: &mut dyn Iterator<Item = IpAddr>| addresses.filter(IpAddr::is_ipv4).count();
    assert_eq!(families(&mut leases.iter().map(|lease| lease.address)), 1, "{leases:?}");
    assert!(wanted.iter().all(|address| leases.iter().any(|lease| lease.address == *address)), "{leases:?}");
    // Again it is the same.
    assert_eq!(txn.reserve_these("n", ranges, wanted, owner)?, leases);
    release(txn, owner)
}

fn release(txn: &mut WriteTxn<'_>, owner: &Owner) -> Result<(), Error> {
    let before = bytes_under(txn, Table::Record)?;
    let freed = txn.release(owner)?;
    assert_eq!(bytes_under(txn, Table::Record)?, before, "records are lost");
    for lease in freed {
        let family = Family::of(lease.address);
        let row = txn.reader().address(family, bits(lease.address))?;
        assert!(matches!(row, Some(Address::Freed(_))), "{lease:?} is not free: {row:?}");
    }
    assert!(txn.release(owner)?.is_empty());
    Ok(())
}

fn bytes_under(txn: &WriteTxn<'_>, table: Table) -> Result<Rows, Error> {
    let view = txn.reader();
    let prefix = [table as u8];
    let rows = view.rows_under(&prefix)?;
    rows.map(|row| row.map(|(key, value)| (key.to_vec(), value.to_vec()))).collect()
}
