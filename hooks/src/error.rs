//! What can go wrong, by operation. Every variant keeps its cause, and `errno` finds the kernel's word in it.

use std::{io, path::PathBuf};

use aya::{EbpfError, maps::MapError, pin::PinError, programs::ProgramError};
use nix::errno::Errno;

use crate::{tc::Direction, version::Mode};

/// A failure of this crate.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum Error {
    /// A lock file could not be made or taken.
    #[error("lock {}", path.display())]
    Lock {
        /// The lock file, or its folder.
        path: PathBuf,
        /// Why.
        #[source]
        source: io::Error,
    },
    /// A bpf file system could not be mounted.
    #[error("mount a bpf file system on {}", path.display())]
    Mount {
        /// Where.
        path: PathBuf,
        /// Why.
        #[source]
        source: Errno,
    },
    /// The folder for the pins is not on a bpf file system, and none can be mounted above it.
    #[error("{} is not on a bpf file system, and its parent is not an empty folder to mount one on", path.display())]
    NoBpffs {
        /// The folder for the pins.
        path: PathBuf,
    },
    /// A file on the bpf file system could not be read, made, renamed or removed.
    #[error("{action} {}", path.display())]
    File {
        /// What was tried.
        action: &'static str,
        /// With which file.
        path: PathBuf,
        /// Why.
        #[source]
        source: io::Error,
    },
    /// The version file holds something that no version of weft writes.
    #[error("{} says {text:?}, which is no version", path.display())]
    Version {
        /// The version file.
        path: PathBuf,
        /// What it says.
        text: String,
    },
    /// The pinned maps have another layout than this program's; it can neither read nor replace them.
    #[error("pinned maps have layout {found}, want {known}")]
    Layout {
        /// Layout of the pins.
        found: u32,
        /// Layout that this program knows.
        known: u32,
    },
    /// The object could not be read, or its maps not be made.
    #[error("load the eBPF object for {mode}")]
    Load {
        /// Way of redirecting that was tried.
        mode: Mode,
        /// Why.
        #[source]
        source: Box<EbpfError>,
    },
    /// The kernel refused a program. The source has the verifier's words.
    #[error("load program {program} for {mode}")]
    Program {
        /// Which program.
        program: &'static str,
        /// Way of redirecting that was tried.
        mode: Mode,
        /// Why.
        #[source]
        source: Box<ProgramError>,
    },
    /// A program could not be pinned.
    #[error("pin {}", path.display())]
    Pin {
        /// Where.
        path: PathBuf,
        /// Why.
        #[source]
        source: Box<PinError>,
    },
    /// A pinned program could not be opened.
    #[error("open pinned program {}", path.display())]
    OpenProgram {
        /// Where.
        path: PathBuf,
        /// Why.
        #[source]
        source: Box<ProgramError>,
    },
    /// A map could not be opened, read or written.
    #[error("{action} map {map}")]
    Map {
        /// What was tried.
        action: &'static str,
        /// With which map.
        map: &'static str,
        /// Why.
        #[source]
        source: Box<MapError>,
    },
    /// A request about a link failed.
    #[error("{action} on {link}")]
    Link {
        /// What was tried.
        action: &'static str,
        /// The link's name, or its index.
        link: String,
        /// Why.
        #[source]
        source: Errno,
    },
    /// Someone else's filter has the priority and handle that are weft's.
    #[error("{direction} filter of {link} belongs to {owner:?}")]
    ForeignFilter {
        /// The link's name, or its index.
        link: String,
        /// Which side.
        direction: Direction,
        /// The filter's name.
        owner: String,
    },
}

impl Error {
    /// The kernel's error number, where the cause is one.
    #[must_use]
    pub fn errno(&self) -> Option<i32> {
        let mut error: Option<&(dyn std::error::Error + 'static)> = Some(self);
        while let Some(this) = error {
            if let Some(io) = this.downcast_ref::<io::Error>() {
                return io.raw_os_error();
            }
            if let Some(errno) = this.downcast_ref::<Errno>() {
                return Some(*errno as i32);
            }
            error = this.source();
        }
        None
    }

    /// Whether what was looked for is not there.
    pub(crate) fn is_absent(&self) -> bool {
        self.errno() == Some(Errno::ENOENT as i32)
    }

    /// An operation on a map, for `map_err`.
    pub(crate) fn map(action: &'static str, map: &'static str) -> impl FnOnce(MapError) -> Self {
        move |source| Self::Map { action, map, source: Box::new(source) }
    }

    /// An operation on a file, for `map_err`.
    pub(crate) fn file<'a>(
        action: &'static str,
        path: &'a std::path::Path,
    ) -> impl FnOnce(io::Error) -> Self + 'a {
        move |source| Self::File { action, path: path.to_owned(), source }
    }
}
