//! What `make install`, the deb and the rpm put on a node, what it does there, and that it goes again.
//!
//! `make test` tries the installation into a folder and the units as files; `make test-packages` tries the packages in clean root
//! file systems, some of which systemd boots.

#![expect(clippy::unwrap_used, clippy::expect_used, reason = "a test that cannot go on panics")]

mod boot;
mod booted;
mod install;
mod links;
mod packages;
mod root;
mod tree;
mod units;
