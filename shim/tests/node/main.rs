//! A node without containerd: the CNI plugin, the `weft` command and the network service, as built, in namespaces of their
//! own. `ip`, `ping`, `tc` and `bpftool` are the witnesses. Needs root, and the feature `failpoints`.

#![cfg(feature = "failpoints")]
#![expect(clippy::unwrap_used, reason = "a test that cannot go on panics")]

mod adopt;
mod api;
mod api_attach;
mod api_ports;
mod api_repairs;
mod asked;
mod bandwidth;
mod big_packets;
mod budget;
mod campaign;
mod capture;
mod cni;
mod command;
mod common;
mod counters;
mod host_ip;
mod journal;
mod killed;
mod ladder;
mod network;
mod networks;
mod ports;
mod reconcile;
mod reuse;
mod router;
mod sctp;
mod serve;
mod sets;
