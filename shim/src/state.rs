//! The node's store as the rest of the shim sees it: records decoded, every error with the store's path.
//!
//! Opening it costs more than all that is done with it (60 µs against 15), so an attach or a detach opens it once.

use std::net::IpAddr;
use std::path::PathBuf;

use weft_ipam::{Owner, ReadTxn, Store, WriteTxn};

use crate::config::Config;
use crate::error::chain;
use crate::nat;
use crate::pod::{Error, Network};
use crate::record::Record;

/// The name of a number in the store: how often the table of nftables was made anew because it was damaged.
const REPAIRS: &str = "table repairs";

/// The records and what goes with them, at one instant.
pub(crate) struct Settled {
    /// The bytes of each.
    pub(crate) records: Vec<(Owner, Vec<u8>)>,
    /// How often the table of nftables was repaired.
    pub(crate) repairs: u64,
}

/// The opened store.
pub(crate) struct Ledger {
    dir: PathBuf,
    store: Store,
}

impl Ledger {
    pub(crate) fn open(config: &Config) -> Result<Ledger, Error> {
        let dir = config.run_dir.join("store");
        let store = Store::open(&dir).map_err(|source| Error::Store { dir: dir.clone(), source })?;
        Ok(Ledger { dir, store })
    }

    /// The store that is there, for whoever only looks on; `None` if there is none.
    pub(crate) fn open_existing(config: &Config) -> Result<Option<Ledger>, Error> {
        let dir = config.run_dir.join("store");
        let store = Store::open_existing(&dir).map_err(|source| Error::Store { dir: dir.clone(), source })?;
        Ok(store.map(|store| Ledger { dir, store }))
    }

    /// Says of which store `source` is.
    pub(crate) fn failed(&self, source: weft_ipam::Error) -> Error {
        Error::Store { dir: self.dir.clone(), source }
    }

    /// A view that does not change.
    pub(crate) fn view(&self) -> Result<ReadTxn<'_>, Error> {
        self.store.read().map_err(|source| self.failed(source))
    }

    /// Leases addresses, those of `ips` among them, and writes down in the same transaction what `record` makes of them.
    /// What the owner held before is given back if it does not fit: the caller has taken it down. Told are also the
    /// addresses that had not cooled down.
    pub(crate) fn reserve(
        &self,
        network: &Network,
        ips: &[IpAddr],
        owner: &Owner,
        record: impl FnOnce(Vec<IpAddr>) -> Record,
    ) -> Result<(Record, Vec<IpAddr>), Error> {
        self.change(|txn| {
            let reserved = match txn.reserve_these(&network.name, &network.ranges, ips, owner) {
                // Of an attach that is over, and taken down: the owner comes back and asks for something else.
                Err(weft_ipam::Error::Held { .. }) => {
                    txn.release(owner).map_err(|source| self.failed(source))?;
                    txn.reserve_these(&network.name, &network.ranges, ips, owner)
                }
                reserved => reserved,
            };
            let leases = reserved.map_err(Error::Lease)?;
            let record = record(leases.iter().map(|lease| lease.address).collect());
            // Before anything is leased: without the commit it never was.
            nat::refuse_unservable(&record.ports, &record.addresses)?;
            txn.put_record(owner, &record.encode()?).map_err(|source| self.failed(source))?;
            Ok((record, txn.early().to_vec()))
        })
    }

    pub(crate) fn write(&self, record: &Record) -> Result<(), Error> {
        let (owner, bytes) = (owner(record)?, record.encode()?);
        self.change(|txn| txn.put_record(&owner, &bytes).map_err(|source| self.failed(source)))
    }

    /// Frees the leases and drops the record, in one transaction.
    pub(crate) fn forget(&self, owner: &Owner) -> Result<(), Error> {
        self.change(|txn| {
            let freed = txn.release(owner).and_then(|_| txn.delete_record(owner));
            freed.map(drop).map_err(|source| self.failed(source))
        })
    }

    fn change<T>(&self, change: impl FnOnce(&mut WriteTxn<'_>) -> Result<T, Error>) -> Result<T, Error> {
        let mut txn = self.store.write().map_err(|source| self.failed(source))?;
        let changed = change(&mut txn)?;
        txn.commit().map_err(|source| self.failed(source))?;
        Ok(changed)
    }

    /// The record of an interface, if there is one.
    pub(crate) fn read(&self, owner: &Owner) -> Result<Option<Record>, Error> {
        let view = self.view()?;
        let bytes = view.record(owner).map_err(|source| self.failed(source))?;
        bytes.map(|bytes| Record::decode(owner, bytes).map_err(Error::from)).transpose()
    }

    /// The records that this version can read; of the others it cannot tell what belongs to them.
    pub(crate) fn readable_records(&self) -> Result<Vec<Record>, Error> {
        let view = self.view()?;
        let rows = view.records().map_err(|source| self.failed(source))?;
        let read = |(owner, bytes): &(Owner, &[u8])| {
            Record::decode(owner, bytes).map_err(|err| log::warn!("{}", chain(&err))).ok()
        };
        Ok(rows.iter().filter_map(read).collect())
    }

    /// All records of the node, in the order of their owners.
    pub(crate) fn records(&self) -> Result<Vec<Record>, Error> {
        let view = self.view()?;
        let rows = view.records().map_err(|source| self.failed(source))?;
        rows.iter().map(|(owner, bytes)| Ok(Record::decode(owner, bytes)?)).collect()
    }

    /// Whose records there are.
    pub(crate) fn owners(&self) -> Result<Vec<Owner>, Error> {
        let view = self.view()?;
        let rows = view.records().map_err(|source| self.failed(source))?;
        Ok(rows.into_iter().map(|(owner, _)| owner).collect())
    }

    /// What the store says after the last commit that has been begun: waits for one in progress.
    pub(crate) fn settled(&self) -> Result<Settled, Error> {
        let txn = self.store.write().map_err(|source| self.failed(source))?;
        let view = txn.reader();
        let rows = view.records().map_err(|source| self.failed(source))?;
        let records = rows.into_iter().map(|(owner, bytes)| (owner, bytes.to_vec())).collect();
        let repairs = view.counted(REPAIRS).map_err(|source| self.failed(source))?;
        Ok(Settled { records, repairs })
    }

    /// Counts a repair of the table of nftables: a commit, by which those who watch the store hear of it.
    pub(crate) fn count_repair(&self) -> Result<(), Error> {
        self.change(|txn| txn.count(REPAIRS).map(drop).map_err(|source| self.failed(source)))
    }

    /// How often the table of nftables was repaired.
    pub(crate) fn repairs(&self) -> Result<u64, Error> {
        self.view()?.counted(REPAIRS).map_err(|source| self.failed(source))
    }

    /// [`Ledger::read`] after the last commit that has been begun.
    pub(crate) fn read_settled(&self, owner: &Owner) -> Result<Option<Record>, Error> {
        let txn = self.store.write().map_err(|source| self.failed(source))?;
        let view = txn.reader();
        let bytes = view.record(owner).map_err(|source| self.failed(source))?;
        bytes.map(|bytes| Record::decode(owner, bytes).map_err(Error::from)).transpose()
    }

    /// The interfaces of one container.
    pub(crate) fn owners_of(&self, container: &str) -> Result<Vec<Owner>, Error> {
        let view = self.view()?;
        let rows = view.records_of(container).map_err(|source| self.failed(source))?;
        Ok(rows.into_iter().map(|(owner, _)| owner).collect())
    }
}

/// Whose record it is.
pub(crate) fn owner(record: &Record) -> Result<Owner, Error> {
    Owner::new(&record.container, &record.interface).map_err(Error::Lease)
}
