//! Tests and measurements that know only binaries and specifications.
//!
//! ```no_run
//! use weft_conformance::{ContainerSpec, Node, PodSpec, Subject, image};
//!
//! let node = Node::start(Subject::Reference);
//! let pod = node.run_pod(&PodSpec::new("a"));
//! let container = pod.run(&ContainerSpec::new("main", image::BUSYBOX));
//! assert_eq!(container.exec(&["cat", "/etc/hostname"]), "a\n");
//! node.finish(); // takes down what is left and fails if anything of it stays behind
//! ```
//!
//! A [`Node`] is a machine of its own as far as namespaces go, with a real containerd. What runs its pods and their network is the
//! [`Subject`]: weft, or the reference (runc's shim, a pause container and the CNI project's plugins). The same test runs on both.
//!
//! Everything here panics, with what was run and what it said, when a step fails: a test wants to go on or to end. The few steps
//! that a test may want to see fail have a `try_` form. Root is needed.

#![forbid(unsafe_code)]
#![expect(
    clippy::expect_used,
    clippy::missing_panics_doc,
    reason = "a harness ends the test that it cannot serve"
)]

mod background;
mod cgroup;
mod config;
mod critest;
mod daemon;
mod dice;
mod exchange;
mod held;
pub mod image;
pub mod kubernetes;
mod leaks;
mod node;
mod pod;
mod sandbox;
mod tools;
mod tracer;
mod wait;

pub use background::Background;
pub use config::{Subject, reference_conflist, weft_conflist};
pub use critest::{Outcome, Outcomes, critest, skip_list};
pub use daemon::Daemon;
pub use dice::Dice;
pub use exchange::{Exchange, Exchanged, Server};
pub use held::Held;
pub use node::{Node, NodeSpec};
pub use pod::{Container, ContainerSpec, Pod, PodSpec, Protocol};
pub use tools::Tools;
pub use tracer::Tracer;
pub use wait::{run, try_run, wait_until};
