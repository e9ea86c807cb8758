//! What can go wrong with a task, and the code that tells a client.
//!
//! containerd acts on the codes: it takes "not found" for "already done" (Kill, Delete, Pids), and "unimplemented" for
//! "ask otherwise".

use nix::errno::Errno;
use std::error::Error as StdError;
use std::io;
use std::path::PathBuf;

use ttrpc::Code;

use super::{rootfs, stdio};
use crate::oci;
use crate::pod::DetachError;

/// Why a request about a task was refused.
#[derive(Debug, thiserror::Error)]
pub(crate) enum Error {
    /// No such task or exec.
    #[error("{kind} {id:?} does not exist")]
    NotFound {
        /// `task` or `exec`.
        kind: &'static str,
        /// As asked for.
        id: String,
    },
    /// The id is taken.
    #[error("{kind} {id:?} exists already")]
    Exists {
        /// `task` or `exec`.
        kind: &'static str,
        /// As asked for.
        id: String,
    },
    /// A signal came too late.
    #[error("process already finished")]
    Finished,
    /// Not in this state.
    #[error("{op} {id:?}: the process is {state}")]
    State {
        /// The request.
        op: &'static str,
        /// Task or exec.
        id: String,
        /// What the process is instead.
        state: &'static str,
    },
    /// A field of the request is not usable.
    #[error("{field}: got {got:?}, want {want}")]
    Invalid {
        /// The field.
        field: &'static str,
        /// Its value.
        got: String,
        /// What it may be.
        want: &'static str,
    },
    /// Bytes in a request that are not what its type says.
    #[error("decode {field}")]
    Decode {
        /// The field.
        field: &'static str,
        /// Where it went wrong.
        source: Box<dyn StdError + Send + Sync>,
    },
    /// A file of the bundle.
    #[error("{op} {}", path.display())]
    Bundle {
        /// `read`, `parse`, `write`.
        op: &'static str,
        /// The file.
        path: PathBuf,
        /// Why.
        source: io::Error,
    },
    /// The pod cannot take the container in.
    #[error("fit container {id:?} into its pod")]
    Adapt {
        /// The container.
        id: String,
        /// The pod's answer.
        source: Box<dyn StdError + Send + Sync>,
    },
    /// kill(2), ioctl(2) or reading a cgroup.
    #[error("{op} {id:?}")]
    Kernel {
        /// The request.
        op: &'static str,
        /// The task.
        id: String,
        /// The kernel's answer.
        source: io::Error,
    },
    /// The OCI runtime.
    #[error(transparent)]
    Oci(#[from] oci::Error),
    /// Its streams.
    #[error(transparent)]
    Stdio(#[from] stdio::Error),
    /// Its network.
    #[error("detach the container")]
    Detach(#[from] DetachError),
    /// Its root file system.
    #[error(transparent)]
    Rootfs(#[from] rootfs::Error),
}

impl Error {
    /// The ttrpc code.
    pub(crate) fn code(&self) -> Code {
        match self {
            Error::NotFound { .. } | Error::Finished => Code::NOT_FOUND,
            // A cgroup that is gone.
            Error::Kernel { source, .. } if source.kind() == io::ErrorKind::NotFound => Code::NOT_FOUND,
            Error::Exists { .. } => Code::ALREADY_EXISTS,
            Error::State { .. } => Code::FAILED_PRECONDITION,
            Error::Invalid { .. }
            | Error::Decode { .. }
            | Error::Stdio(stdio::Error::Address(_))
            // Not UNIMPLEMENTED, on which containerd tries again by an older version of the service (core/runtime/v2/task_manager.go).
            | Error::Rootfs(
                rootfs::Error::Target { .. }
                | rootfs::Error::Option { .. }
                | rootfs::Error::Transform { .. }
                | rootfs::Error::Template { .. }
                | rootfs::Error::TooLong { .. }
                | rootfs::Error::Folders { .. }
                // The kernel knows no such file system (mount(2)).
                | rootfs::Error::Mount { source: Errno::ENODEV, .. },
            ) => Code::INVALID_ARGUMENT,
            Error::Detach(_)
            | Error::Bundle { .. }
            | Error::Adapt { .. }
            | Error::Kernel { .. }
            | Error::Oci(_)
            | Error::Stdio(_)
            | Error::Rootfs(_) => Code::INTERNAL,
        }
    }
}

impl From<Error> for ttrpc::Error {
    fn from(err: Error) -> Self {
        crate::error::status(err.code(), &err)
    }
}

#[cfg(test)]
mod tests {
    use super::super::target::Target;
    use super::*;

    #[test]
    fn every_refusal_has_its_code_and_text() {
        let id = || "c1".to_owned();
        let table = [
            (Error::NotFound { kind: "task", id: id() }, Code::NOT_FOUND, "task \"c1\" does not exist"),
            (Error::Exists { kind: "exec", id: id() }, Code::ALREADY_EXISTS, "exec \"c1\" exists already"),
            (Error::Finished, Code::NOT_FOUND, "process already finished"),
            (
                Error::State { op: "delete", id: id(), state: "running" },
                Code::FAILED_PRECONDITION,
                "delete \"c1\": the process is running",
            ),
            (
                Error::Invalid { field: "signal", got: "0".into(), want: "1 to 64" },
                Code::INVALID_ARGUMENT,
                "signal: got \"0\", want 1 to 64",
            ),
            (
                Error::Stdio(stdio::Error::Address(Target::parse("x:///y").unwrap_err())),
                Code::INVALID_ARGUMENT,
                "stdio \"x:///y\": got scheme \"x\", want a path or scheme fifo, file, binary or binary-v2",
            ),
            (
                Error::Oci(oci::Error::Refused { verb: "create", message: "no".into() }),
                Code::INTERNAL,
                "OCI runtime create failed: no",
            ),
        ];
        for (err, code, text) in table {
            assert_eq!(err.code(), code, "{err}");
            assert_eq!(crate::error::chain(&err), text);
        }
    }
}
