//! Why a call is not answered, and the code of each reason (the table is in proto/network.proto).

use std::error::Error as StdError;

use ttrpc::Code;

use crate::error::status;
use crate::{nat, pod, record};

/// Why the node's state cannot be told.
#[derive(Debug, thiserror::Error)]
pub(crate) enum Error {
    #[error(transparent)]
    Pod(#[from] pod::Error),
    #[error("read the fast path's state")]
    FastPath(#[from] weft_hooks::Error),
    #[error("look at a pod's link")]
    Link(#[from] weft_netns::Error),
}

impl Error {
    /// As a ttrpc status.
    pub(super) fn status(self) -> ttrpc::Error {
        match self {
            Error::Pod(err) => refused(err),
            Error::FastPath(_) | Error::Link(_) => status(Code::INTERNAL, &self),
        }
    }
}

/// A request that does not say what it should.
pub(super) fn invalid(err: &dyn StdError) -> ttrpc::Error {
    status(Code::INVALID_ARGUMENT, err)
}

/// What could not be done, or read.
pub(super) fn refused(err: pod::Error) -> ttrpc::Error {
    status(code(&err), &err)
}

fn code(err: &pod::Error) -> Code {
    match err {
        pod::Error::Record(record::Error::Newer { .. })
        | pod::Error::Store { source: weft_ipam::Error::NewerFormat { .. }, .. } => Code::FAILED_PRECONDITION,
        pod::Error::Namespace(_) => Code::INVALID_ARGUMENT,
        pod::Error::Lease(weft_ipam::Error::Exhausted { .. } | weft_ipam::Error::Taken { .. }) => {
            Code::RESOURCE_EXHAUSTED
        }
        pod::Error::Lease(
            weft_ipam::Error::Overlap { .. }
            | weft_ipam::Error::Elsewhere { .. }
            | weft_ipam::Error::Unleasable { .. }
            | weft_ipam::Error::TwoOfSet { .. }
            | weft_ipam::Error::TooMany { .. }
            | weft_ipam::Error::OwnerName { .. }
            | weft_ipam::Error::OwnerTooLong { .. },
        ) => Code::INVALID_ARGUMENT,
        pod::Error::Nat(nat::Error::Unservable { .. }) => Code::INVALID_ARGUMENT,
        pod::Error::Occupied { .. } | pod::Error::Nat(nat::Error::Taken { .. }) => Code::ALREADY_EXISTS,
        _ => Code::INTERNAL,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_reason_has_the_code_that_the_protocol_names() {
        let newer = record::Error::Newer { container: "c".into(), interface: "eth0".into(), found: 2 };
        let full = weft_ipam::Error::Exhausted {
            network: "n".into(),
            family: weft_ipam::Family::V4,
            total: 1,
            used: 1,
        };
        let absent = weft_netns::Error::NotANamespace { path: "/x".into() };
        for (err, wanted) in [
            (pod::Error::Record(newer), Code::FAILED_PRECONDITION),
            (pod::Error::Lease(full), Code::RESOURCE_EXHAUSTED),
            (pod::Error::Lease(weft_ipam::Error::Full), Code::INTERNAL),
            (pod::Error::Namespace(absent), Code::INVALID_ARGUMENT),
        ] {
            assert_eq!(code(&err), wanted, "{err}");
        }
    }
}
