//! The node's store as the rest of the shim sees it: records decoded, every error with the store's path.

use weft_ipam::{Owner, Store};

use crate::config::Config;
use crate::pod::Error;
use crate::record::Record;

/// Opens the node's store.
pub(crate) fn open(config: &Config) -> Result<Store, Error> {
    let dir = config.run_dir.join("store");
    Store::open(&dir).map_err(|source| Error::Store { dir, source })
}

/// Wraps what the store says outside a lease.
pub(crate) fn stored(config: &Config) -> impl Fn(weft_ipam::Error) -> Error + '_ {
    |source| Error::Store { dir: config.run_dir.join("store"), source }
}

/// Frees the leases and drops the record, in one transaction.
pub(crate) fn forget(config: &Config, owner: &Owner) -> Result<(), Error> {
    let store = open(config)?;
    let mut txn = store.write().map_err(stored(config))?;
    txn.release(owner).map_err(stored(config))?;
    txn.delete_record(owner).map_err(stored(config))?;
    txn.commit().map_err(stored(config))
}

/// The record of an interface, if there is one.
pub(crate) fn read(config: &Config, owner: &Owner) -> Result<Option<Record>, Error> {
    let store = open(config)?;
    let txn = store.read().map_err(stored(config))?;
    let Some(bytes) = txn.record(owner).map_err(stored(config))? else { return Ok(None) };
    Ok(Some(Record::decode(owner, bytes)?))
}

/// All records of the node, in the order of their owners.
pub(crate) fn records(config: &Config) -> Result<Vec<Record>, Error> {
    let store = open(config)?;
    let txn = store.read().map_err(stored(config))?;
    let rows = txn.records().map_err(stored(config))?;
    rows.iter().map(|(owner, bytes)| Ok(Record::decode(owner, bytes)?)).collect()
}

pub(crate) fn owners_of(config: &Config, container: &str) -> Result<Vec<Owner>, Error> {
    let store = open(config)?;
    let txn = store.read().map_err(stored(config))?;
    let rows = txn.records_of(container).map_err(stored(config))?;
    Ok(rows.into_iter().map(|(owner, _)| owner).collect())
}

pub(crate) fn write(config: &Config, record: &Record) -> Result<(), Error> {
    let store = open(config)?;
    let mut txn = store.write().map_err(stored(config))?;
    txn.put_record(&owner(record)?, &record.encode()?).map_err(stored(config))?;
    txn.commit().map_err(stored(config))
}

pub(crate) fn owner(record: &Record) -> Result<Owner, Error> {
    Owner::new(&record.container, &record.interface).map_err(Error::Lease)
}
