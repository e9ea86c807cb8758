//! The eBPF programs of the pod data path: loading, pinning, attaching, upgrading, removing.
//!
//! What a pod sends to another pod of the node goes straight into that pod's namespace (`bpf/fastpath.bpf.c`). Everything
//! lives in pins on a bpf file system, so the data path outlives every process of weft, and a process that attaches a pod
//! only opens pins. This crate knows addresses, links and programs; it knows nothing of pods' names, namespaces or leases, and
//! the caller answers for calling it in the node's network namespace.
#![forbid(unsafe_code)]

mod bpffs;
mod counters;
mod error;
mod fastpath;
#[cfg(feature = "fuzzing")]
#[doc(hidden)]
pub mod fuzz;
mod lock;
mod pods;
mod program;
mod tc;
mod version;

pub use crate::{
    counters::{Count, Counters, Drops, PodCounters, Reason},
    error::Error,
    fastpath::FastPath,
    pods::PodEntry,
    program::{Wanted, Way},
    tc::Direction,
    version::{LAYOUT_VERSION, Mode, PROGRAM_VERSION, Versions},
};
