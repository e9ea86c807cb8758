//! What can go wrong with a root file system, with the thing that it went wrong with.

use std::io;
use std::path::PathBuf;

use nix::errno::Errno;

/// A mount that cannot be made or undone.
#[derive(Debug, thiserror::Error)]
pub(crate) enum Error {
    /// The folder to mount at.
    #[error("make {}", path.display())]
    Folder {
        /// The folder.
        path: PathBuf,
        /// The system's answer.
        source: io::Error,
    },
    /// A folder in which something was mounted.
    #[error("remove {}", path.display())]
    Remove {
        /// The folder.
        path: PathBuf,
        /// The system's answer.
        source: io::Error,
    },
    /// An option that says nothing here.
    #[error("mount {kind:?} {mounted:?}: option {option:?} is not supported")]
    Option {
        /// File system.
        kind: String,
        /// What was to be mounted.
        mounted: String,
        /// The option.
        option: String,
    },
    /// A type that asks for something first that is not known.
    #[error("mount type {kind:?} has an unknown transform; format and mkdir are supported, each once")]
    Transform {
        /// The type.
        kind: String,
    },
    /// A template that is none, or that names a mount that is not there.
    #[error("template {text:?} cannot be filled in from the {mounts} mounts before it")]
    Template {
        /// As given.
        text: String,
        /// How many mounts come before it.
        mounts: usize,
    },
    /// A template that names others that name others: it would take all memory.
    #[error("template {text:?} has more than {most} bytes when it is filled in")]
    TooLong {
        /// As given.
        text: String,
        /// Of bytes.
        most: usize,
    },
    /// An option about folders that is none.
    #[error("option {option:?} is not X-containerd.mkdir.path=PATH[:MODE[:UID:GID]]")]
    Folders {
        /// As given.
        option: String,
    },
    /// A target that leaves the root file system.
    #[error("mount target {target:?}: it must lie in the root file system")]
    Target {
        /// As given.
        target: String,
    },
    /// Layers and ids.
    #[error("{op} {}", path.display())]
    Map {
        /// The step.
        op: &'static str,
        /// Of what.
        path: PathBuf,
        /// The kernel's answer.
        source: io::Error,
    },
    /// mount(2) or umount2(2).
    #[error("{op} {} ({kind})", path.display())]
    Mount {
        /// The step.
        op: &'static str,
        /// Where.
        path: PathBuf,
        /// File system.
        kind: String,
        /// The kernel's answer.
        source: Errno,
    },
}
