//! A network namespace and what is in it: links and how fast they may be, addresses, routes, neighbours, nftables, conntrack,
//! sysctls.
//!
//! A thread enters a namespace, not a process. So [`NetNs::run`] enters on a thread that is made for it and ends: nothing
//! has to be restored, and neither a panic nor an early return can strand a thread of the caller's. A socket stays in the
//! namespace that opened it: [`Netlink::open_in`] goes there and back on the caller's thread, and carries the socket out.
//!
//! Nothing here knows of pods, CNI or containerd.

mod conntrack;
mod counters;
mod error;
#[cfg(feature = "fuzzing")]
#[doc(hidden)]
pub mod fuzz;
mod ifb;
mod link;
mod name;
mod netfilter;
mod netlink;
pub mod nft;
mod ns;
mod qdisc;
mod raw;
mod route;
mod source;
pub mod sysctl;

pub use conntrack::{Connection, Flows};
pub use counters::{LinkCounters, Traffic};
pub use error::Error;
pub use link::{Link, PacketSizes, Veth};
pub use name::{LinkName, Mac};
pub use netfilter::{Changes, Netfilter};
pub use netlink::Netlink;
pub use ns::{Identity, NetNs};
pub use qdisc::TokenBucket;
pub use route::{ROUTE_PROTOCOL, Route};
