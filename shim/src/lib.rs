//! The containerd shim, the CNI plugin and the `weft` command.
//!
//! This is the only crate that joins the network ([`weft_netns`]), the addresses ([`weft_ipam`]) and the eBPF
//! programs ([`weft_hooks`]). The binaries parse their arguments, call one function of this library and turn
//! its answer into an exit code.

pub(crate) mod asked;
pub(crate) mod bandwidth;
pub mod cni;
pub mod config;
pub mod ctl;
pub mod daemon;
pub mod entry;
pub(crate) mod error;
pub(crate) mod events;
pub(crate) mod failpoint;
pub(crate) mod fast_path;
#[cfg(feature = "fuzzing")]
#[doc(hidden)]
pub mod fuzz;
pub mod heap;
pub(crate) mod journal;
pub(crate) mod memory;
pub(crate) mod nat;
pub(crate) mod network;
pub(crate) mod oci;
pub(crate) mod peers;
pub(crate) mod pod;
pub(crate) mod reaper;
pub(crate) mod reconcile;
pub(crate) mod record;
pub(crate) mod routes;
pub(crate) mod sandbox;
pub(crate) mod signals;
pub(crate) mod standalone;
pub(crate) mod state;
pub(crate) mod tally;
pub(crate) mod task;
pub(crate) mod turn;

/// `weft.network.v1` for clients in Rust: the messages, and `PodNetworkClient`.
pub mod api {
    pub use crate::proto::{network, network_ttrpc};
}

/// Messages and services generated from `proto/`.
#[expect(
    unreachable_pub,
    clippy::allow_attributes,
    clippy::allow_attributes_without_reason,
    clippy::too_many_lines,
    clippy::unwrap_used,
    reason = "generated; the .proto files carry the documentation"
)]
pub(crate) mod proto {
    include!(concat!(env!("OUT_DIR"), "/messages/modules.rs"));
}
