//! Which programs are pinned: a symbolic link `version` beside the pins, whose target is the text, such as
//! `layout=1 program=2 mode=redirect_peer`.
//!
//! It is written last and replaced in one rename, so pins without it, or with an older one, are not whole, and whoever opens them
//! next loads again. A symbolic link because a bpf file system holds nothing else that can be read without bpf(2).

use std::{fmt, fs, io::ErrorKind, os::unix::fs::symlink, path::Path};

use crate::{
    error::Error,
    program::{Wanted, Way, remove},
};

/// Version of the programs. Every change of behaviour raises it; pins of a lower version are replaced, of a higher kept.
///
/// 2: counts for each pod, and drops by reason, in maps of their own.
pub const PROGRAM_VERSION: u32 = 2;

/// Version of the maps' keys and values (`bpf/pods.h`). There is no other yet: whoever raises it says how the entries of live
/// pods are carried over. A map that older programs do not have is no change of the layout: the upgrade makes it.
pub const LAYOUT_VERSION: u32 = 1;

pub(crate) const VERSION: &str = "version";
/// Names on a bpf file system must not have dots (kernel/bpf/inode.c, `bpf_lookup`).
const VERSION_NEW: &str = "version-new";

/// How a packet gets from one pod to another.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Mode {
    /// Straight into the other namespace: `bpf_redirect_peer`, Linux 5.10.
    RedirectPeer,
    /// Out of the host's end of the other pod: `bpf_redirect`.
    Redirect,
}

/// What is pinned.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Versions {
    /// Layout of the maps.
    pub layout: u32,
    /// Version of the programs.
    pub program: u32,
    /// How they redirect.
    pub mode: Mode,
    /// Whether that was asked for, whatever else the kernel has.
    pub forced: bool,
}

impl Versions {
    /// What is pinned in `dir`; `None` if nothing is, or nothing whole.
    pub(crate) fn read(dir: &Path) -> Result<Option<Self>, Error> {
        let path = dir.join(VERSION);
        let text = match fs::read_link(&path) {
            Ok(target) => target.to_string_lossy().into_owned(),
            Err(e) if e.kind() == ErrorKind::NotFound => return Ok(None),
            Err(e) => return Err(Error::file("read", &path)(e)),
        };
        match Self::parse(&text) {
            Some(versions) => Ok(Some(versions)),
            None => Err(Error::Version { path, text }),
        }
    }

    /// Read what `Display` writes, and whatever words a later version adds.
    fn parse(text: &str) -> Option<Self> {
        let (mut layout, mut program, mut mode, mut forced) = (None, None, None, false);
        for (key, value) in text.split(' ').filter_map(|word| word.split_once('=')) {
            match key {
                "layout" => layout = value.parse().ok(),
                "program" => program = value.parse().ok(),
                "mode" => {
                    mode = [Mode::RedirectPeer, Mode::Redirect].into_iter().find(|m| m.as_str() == value)
                }
                "forced" => forced = value == "yes",
                _ => {}
            }
        }
        Some(Self { layout: layout?, program: program?, mode: mode?, forced })
    }

    /// Whether programs of this version are as they should be.
    pub(crate) fn serves(&self, wanted: Wanted) -> bool {
        let way = match wanted.way {
            Way::AsLoaded => true,
            Way::Best => !self.forced,
            Way::Only(mode) => self.mode == mode,
        };
        self.program == wanted.program && way
    }

    /// Called after everything else is in place.
    pub(crate) fn write(&self, dir: &Path) -> Result<(), Error> {
        let (path, new) = (dir.join(VERSION), dir.join(VERSION_NEW));
        remove(&new)?;
        symlink(self.to_string(), &new).map_err(Error::file("create", &new))?;
        fs::rename(&new, &path).map_err(Error::file("replace", &path))
    }
}

impl fmt::Display for Versions {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "layout={} program={} mode={}", self.layout, self.program, self.mode)?;
        if self.forced { f.write_str(" forced=yes") } else { Ok(()) }
    }
}

impl Mode {
    fn as_str(self) -> &'static str {
        match self {
            Self::RedirectPeer => "redirect_peer",
            Self::Redirect => "redirect",
        }
    }
}

impl fmt::Display for Mode {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(self.as_str())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn text_round_trips_and_ignores_later_words() {
        let versions = Versions { layout: 1, program: 7, mode: Mode::Redirect, forced: false };
        for forced in [true, false] {
            let versions = Versions { forced, ..versions };
            assert_eq!(Versions::parse(&versions.to_string()), Some(versions));
        }
        assert_eq!(Versions::parse("layout=1 program=7 mode=redirect colour=blue"), Some(versions));
        for text in ["", "layout=1", "layout=1 program=x mode=redirect", "layout=1 program=1 mode=fly"] {
            assert_eq!(Versions::parse(text), None, "{text:?}");
        }
    }
}
