//! Which address is whose.
//!
//! A [`Range`] says what may be leased, the [`Store`] keeps what is: leases by [`Owner`], and beside each lease one
//! record whose bytes belong to the caller. Any number of processes use the store at once; a change is a
//! transaction, which a `kill -9` at any instruction either leaves out or leaves whole. An address has one owner on
//! the whole node, whichever network it was leased for.
//!
//! Everything is void after a reboot, as the namespaces are. No network code, no async, and one `unsafe` call: the
//! memory map in `store.rs`.
#![deny(unsafe_code)]

mod allocator;
mod count;
mod error;
mod exact;
#[cfg(feature = "fuzzing")]
#[doc(hidden)]
pub mod fuzz;
mod lease;
mod range;
mod report;
mod row;
mod store;
mod turn;

pub use error::Error;
pub use lease::{Lease, Owner};
pub use range::{Family, Range, RangeError, RangeSpec};
pub use report::{Fill, Stock, Usage};
pub use store::{COOL_DOWN, ReadTxn, Store, WriteTxn};
