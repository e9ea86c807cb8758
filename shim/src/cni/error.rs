//! What can go wrong in a CNI call, and the code of each (CNI specification 1.1, section 5; 100 and above are ours).
//!
//! | code | meaning |
//! |---|---|
//! | 1 | the configuration's version is not spoken |
//! | 3 | the attachment is not known (CHECK) |
//! | 4 | a `CNI_*` variable is missing or wrong, the namespace included |
//! | 5 | standard input cannot be read |
//! | 6 | standard input is not JSON of the expected shape |
//! | 7 | the network configuration lacks something or contradicts itself, or asks for an address that it does not have, or for a host port that no address of the pod can serve, or has a key that would keep nobody out |
//! | 50 | STATUS: no ADD can be served |
//! | 100 | no address is free, or not the one that was asked for |
//! | 101 | the store cannot be used, or was written by a newer version |
//! | 102 | the kernel refused a step |
//! | 103 | CHECK: something of the pod's network is not as it was made |
//! | 105 | a host port is taken
//! | 104 | the node's configuration cannot be used |

use std::error::Error;
use std::io;

use serde_json::{Value, json};
use weft_ipam::{Error as Lease, Family};

use super::check::Deviation;
use super::conf::VERSIONS;
use crate::asked;
use crate::config;
use crate::error::chain;
use crate::nat;
use crate::pod;

/// Why a call failed.
#[derive(Debug, thiserror::Error)]
pub(crate) enum Failure {
    #[error("read the network configuration from standard input")]
    Input(#[source] io::Error),
    #[error("parse the network configuration")]
    Json(#[source] serde_json::Error),
    #[error("network configuration: {field}")]
    Shape { field: String, source: serde_json::Error },
    #[error("cniVersion {found:?} is not supported, want one of {}", VERSIONS.join(", "))]
    Version { found: String },
    #[error("{name} {problem}")]
    Variable { name: &'static str, problem: String },
    #[error("CNI_IFNAME")]
    Interface(#[source] weft_netns::Error),
    #[error("CNI_CONTAINERID")]
    Owner(#[source] weft_ipam::Error),
    #[error("network configuration: {field} {problem}")]
    Conf { field: &'static str, problem: String },
    #[error("addresses that are asked for")]
    Asked(#[from] asked::Error),
    #[error("network configuration: ranges")]
    Range(#[source] weft_ipam::RangeError),
    #[error("container {owner} is not attached")]
    Unknown { owner: String },
    #[error("network {network}: every {family} address is in use")]
    Full { network: String, family: Family },
    #[error("load the node's configuration")]
    Config(#[source] config::Error),
    #[error("start the runtime")]
    Runtime(#[source] io::Error),
    #[error("attach the pod")]
    Pod(#[from] pod::Error),
    #[error("detach the pod")]
    Detach(#[from] pod::DetachError),
    #[error("remove what the runtime does not know any more: {}", .left.join("; "))]
    Left { left: Vec<String> },
    #[error("the pod's network is not as it was made")]
    Deviation(#[from] Deviation),
}

impl Failure {
    fn code(&self) -> u32 {
        match self {
            Failure::Version { .. } => 1,
            Failure::Unknown { .. } => 3,
            Failure::Variable { .. } | Failure::Interface(_) | Failure::Owner(_) => 4,
            Failure::Input(_) => 5,
            Failure::Json(_) | Failure::Shape { .. } => 6,
            Failure::Conf { .. } | Failure::Range(_) | Failure::Asked(_) => 7,
            Failure::Full { .. } => 50,
            Failure::Pod(err) => pod_code(err),
            Failure::Detach(err) => err.0.first().map_or(102, pod_code),
            Failure::Runtime(_) | Failure::Left { .. } => 102,
            Failure::Deviation(_) => 103,
            Failure::Config(_) => 104,
        }
    }
}

fn pod_code(err: &pod::Error) -> u32 {
    match err {
        pod::Error::Namespace(_) => 4,
        pod::Error::Lease(Lease::Exhausted { .. } | Lease::Taken { .. }) => 100,
        pod::Error::Lease(
            Lease::Elsewhere { .. }
            | Lease::Unleasable { .. }
            | Lease::TwoOfSet { .. }
            | Lease::TooMany { .. }
            | Lease::Overlap { .. },
        ) => 7,
        pod::Error::Lease(_) | pod::Error::Store { .. } | pod::Error::Record(_) => 101,
        pod::Error::Turn { .. } | pod::Error::Stamp { .. } => 101,
        pod::Error::Nat(nat::Error::Taken { .. }) => 105,
        pod::Error::Nat(nat::Error::Unservable { .. }) => 7,
        pod::Error::Nat(_)
        | pod::Error::Kernel { .. }
        | pod::Error::FastPath(_)
        | pod::Error::Occupied { .. } => 102,
    }
}

/// The error object: the outermost message, and the chain behind it as details.
pub(super) fn object(version: &str, failure: &Failure) -> Value {
    let details = failure.source().map(chain).unwrap_or_default();
    json!({ "cniVersion": version, "code": failure.code(), "msg": failure.to_string(), "details": details })
}
