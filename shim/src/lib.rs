//! The containerd shim, the CNI plugin and the `weft` command.
//!
//! This is the only crate that joins the network ([`weft_netns`]), the addresses ([`weft_ipam`]) and the eBPF
//! programs ([`weft_hooks`]). The binaries parse their arguments, call one function of this library and turn
//! its answer into an exit code.

pub mod config;
pub(crate) mod error;
