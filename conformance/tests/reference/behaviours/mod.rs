//! The behaviours, one function each: it panics where the subject does not have it.

pub(crate) mod addresses;
pub(crate) mod bandwidth;
pub(crate) mod chained;
pub(crate) mod lifecycle;
pub(crate) mod pods;
pub(crate) mod ports;
pub(crate) mod results;
pub(crate) mod sctp;
pub(crate) mod traffic;
