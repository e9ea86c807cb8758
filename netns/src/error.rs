//! What can go wrong in a namespace.

use std::io;
use std::path::PathBuf;

/// An operation on a namespace, and the object it was about. The source has the errno.
#[derive(Debug, thiserror::Error)]
pub enum Error {
    /// The namespace file is absent or cannot be opened.
    #[error("open namespace {path}")]
    Open {
        /// The file.
        path: PathBuf,
        /// The system's answer.
        source: io::Error,
    },
    /// The file is not on the file system of namespaces (`statfs(2)`: `NSFS_MAGIC`).
    #[error("{path} is not a namespace")]
    NotANamespace {
        /// The file.
        path: PathBuf,
    },
    /// The file is a namespace of another kind (`ioctl_ns(2)`: `NS_GET_NSTYPE`).
    #[error("{path} is a namespace, but not a network namespace")]
    OtherNamespace {
        /// The file.
        path: PathBuf,
    },
    /// A namespace could not be made, entered, pinned or unpinned.
    #[error("{op} namespace {object}")]
    Namespace {
        /// What was tried.
        op: &'static str,
        /// A path, or `(new)`.
        object: String,
        /// The system's answer.
        source: io::Error,
    },
    /// A link name that the kernel would refuse.
    #[error("link name {name:?}: {problem}")]
    LinkName {
        /// What was given.
        name: String,
        /// What is wrong with it.
        problem: &'static str,
    },
    /// Text that is no MAC address.
    #[error("mac address {text:?}: want six bytes in hexadecimal, separated by colons")]
    Mac {
        /// What was given.
        text: String,
    },
    /// A netlink socket could not be opened.
    #[error("open a netlink socket")]
    Socket(#[source] io::Error),
    /// The kernel refused a request.
    #[error("{op} {object}")]
    Netlink {
        /// What was asked for.
        op: &'static str,
        /// The link, address or route.
        object: String,
        /// The kernel's answer.
        source: io::Error,
    },
    /// Netfilter refused a change or a question.
    #[error("{op}")]
    Netfilter {
        /// What was asked for, and of which object.
        op: String,
        /// The kernel's answer.
        source: io::Error,
    },
    /// A link that should be there is not.
    #[error("link {0} is missing")]
    AbsentLink(String),
    /// A sysctl could not be read or written.
    #[error("{op} sysctl {key}")]
    Sysctl {
        /// `read` or `write`.
        op: &'static str,
        /// The path below `/proc/sys`.
        key: String,
        /// The system's answer.
        source: io::Error,
    },
}

impl Error {
    /// The system's error number, where there is one.
    pub fn errno(&self) -> Option<i32> {
        match self {
            Error::Open { source, .. }
            | Error::Namespace { source, .. }
            | Error::Socket(source)
            | Error::Sysctl { source, .. } => source.raw_os_error(),
            Error::Netlink { source, .. } | Error::Netfilter { source, .. } => crate::netlink::errno(source),
            Error::NotANamespace { .. }
            | Error::OtherNamespace { .. }
            | Error::LinkName { .. }
            | Error::Mac { .. }
            | Error::AbsentLink(_) => None,
        }
    }
}
