//! Which namespaces a pod and its containers are in, by mode, on this kernel, with the built shim and runc. Needs root.
#![expect(clippy::unwrap_used, reason = "a test that cannot go on has failed")]

mod fixture;
mod modes;
mod user;
