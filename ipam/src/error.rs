//! What can go wrong with leases and their store.

use std::io;
use std::net::IpAddr;
use std::path::PathBuf;

use ipnet::IpNet;
use nix::errno::Errno;

use crate::lease::{Lease, Owner};
use crate::range::Family;
use crate::store;

/// Why an operation of this crate was not done; nothing of it is done then.
#[derive(Debug, thiserror::Error)]
pub enum Error {
    /// The store's folder cannot be made, entered or locked.
    #[error("open store folder {path}")]
    Folder {
        /// The folder.
        path: PathBuf,
        /// The system's answer.
        source: io::Error,
    },
    /// The files in the folder cannot be opened as a store.
    #[error("open store {path}")]
    Open {
        /// The folder.
        path: PathBuf,
        /// LMDB's or the system's answer.
        source: heed::Error,
    },
    /// A newer version wrote the store; it was left as it is.
    #[error("store {path} has format {found}, this version knows up to {known}")]
    NewerFormat {
        /// The folder.
        path: PathBuf,
        /// What the store says.
        found: u16,
        /// What this program writes.
        known: u16,
    },
    /// The kernel does not say which boot this is.
    #[error("read {}", store::BOOT_ID)]
    BootId(#[source] io::Error),
    /// The kernel does not say how late it is.
    #[error("read the clock")]
    Clock(#[source] Errno),
    /// A transaction cannot be begun, read from, written to or committed.
    #[error("{step} in the store")]
    Transaction {
        /// What was being done.
        step: &'static str,
        /// LMDB's or the system's answer.
        source: heed::Error,
    },
    /// The store has no room for another row.
    #[error("store is full: it holds at most {} MiB", store::MAP_SIZE >> 20)]
    Full,
    /// A row that this version did not write so.
    #[error("{table} row {key:02x?} of the store is damaged")]
    Damaged {
        /// What the row should be.
        table: &'static str,
        /// The row's key.
        key: Vec<u8>,
    },
    /// A container id or an interface name that cannot be a key.
    #[error("{field} {name:?} is empty or has a control character")]
    OwnerName {
        /// Which of the two.
        field: &'static str,
        /// As given.
        name: String,
    },
    /// Container id and interface name do not fit a key.
    #[error("container id and interface name have {length} bytes together, want at most {}", Owner::MAX_LEN)]
    OwnerTooLong {
        /// Of both, in bytes.
        length: usize,
    },
    /// All addresses of a family are leased, the cooling ones too.
    #[error("network {network} has no free {family} address: {used} of {total} are leased")]
    Exhausted {
        /// The network that was asked for.
        network: String,
        /// The family without a free address.
        family: Family,
        /// Addresses in all ranges of the family.
        total: u128,
        /// How many of them are leased.
        used: u128,
    },
    /// The owner has leases, and they are not what is asked for now: release them first.
    #[error("{}, not what network {asked} would lease now", holds(held))]
    Held {
        /// All that they hold.
        held: Vec<Lease>,
        /// The network that was asked for.
        asked: String,
    },
    /// An address that was asked for is in no subnet of the network.
    #[error("address {address} is in no range of network {network}")]
    Elsewhere {
        /// As asked for.
        address: IpAddr,
        /// The network that was asked for.
        network: String,
    },
    /// An address that was asked for is never leased.
    #[error("address {address} of subnet {subnet} cannot be leased: it is {why}")]
    Unleasable {
        /// As asked for.
        address: IpAddr,
        /// The subnet that it is in.
        subnet: IpNet,
        /// What it is kept for.
        why: &'static str,
    },
    /// More addresses than an interface may have.
    #[error("the ranges give an interface {asked} addresses, and it may have {most}")]
    TooMany {
        /// One of each family of each set.
        asked: usize,
        /// How many are possible.
        most: usize,
    },
    /// Two addresses of one family and set were asked for.
    #[error(
        "addresses {one} and {other} are both {family}, and of ranges that give an interface one address"
    )]
    TwoOfSet {
        /// Of both.
        family: Family,
        /// As asked for.
        one: IpAddr,
        /// As asked for.
        other: IpAddr,
    },
    /// An address that was asked for is leased.
    #[error("address {address} is leased to {owner}")]
    Taken {
        /// As asked for.
        address: IpAddr,
        /// Who has it.
        owner: Owner,
    },
    /// Two ranges of one request have an address in common.
    #[error("ranges in {one} and {other} overlap")]
    Overlap {
        /// The subnet of the first.
        one: IpNet,
        /// The subnet of the second.
        other: IpNet,
    },
}

impl Error {
    /// The system's error number, where the cause has one.
    #[must_use]
    pub fn errno(&self) -> Option<i32> {
        match self {
            Error::Folder { source, .. } | Error::BootId(source) => source.raw_os_error(),
            Error::Open { source: heed::Error::Io(source), .. }
            | Error::Transaction { source: heed::Error::Io(source), .. } => source.raw_os_error(),
            Error::Clock(errno) => Some(*errno as i32),
            _ => None,
        }
    }
}

fn holds(held: &[Lease]) -> String {
    let one = |lease: &Lease| format!("{} holds {} of network {}", lease.owner, lease.address, lease.network);
    held.iter().map(one).collect::<Vec<_>>().join(", ")
}
