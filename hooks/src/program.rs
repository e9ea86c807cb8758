//! The two programs: reading the object, loading it into the kernel, and the pins.
//!
//! Loading takes tens of milliseconds and 21 MB, most of it aya reading the kernel's type information, so it happens once per boot
//! and upgrade. A program is pinned under another name and renamed over the old pin, so there is one at every moment.

use std::{fs, io::ErrorKind, iter, path::Path};

use aya::{
    Ebpf, EbpfLoader, include_bytes_aligned,
    programs::{ProgramError, ProgramFd, ProgramInfo, SchedClassifier},
};

use crate::{
    counters::{COUNTERS, DROPS, POD_COUNTERS},
    error::Error,
    pods::{PODS, RETURNS},
    tc::Direction,
    version::{Mode, PROGRAM_VERSION, VERSION},
};

static OBJECT: &[u8] = include_bytes_aligned!(concat!(env!("OUT_DIR"), "/fastpath.bpf.o"));

/// Maps by the names they have in bpf/fastpath.bpf.c, which their pins have too.
const MAPS: [&str; 6] = [PODS, RETURNS, "flows", COUNTERS, DROPS, POD_COUNTERS];

/// What to load. The default is what every caller wants; tests ask for other versions and ways.
#[derive(Debug, Clone, Copy)]
#[doc(hidden)]
pub struct Wanted {
    /// Version that the programs are given.
    pub program: u32,
    /// How they redirect.
    pub way: Way,
}

/// Which way of redirecting to load.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Way {
    /// That of the loaded programs; of none, the best that the kernel has.
    AsLoaded,
    /// The best that the kernel has.
    Best,
    /// This one.
    Only(Mode),
}

impl Default for Wanted {
    fn default() -> Self {
        Self { program: PROGRAM_VERSION, way: Way::AsLoaded }
    }
}

impl Direction {
    /// The program's name, which its pin has too.
    pub(crate) fn program(self) -> &'static str {
        match self {
            Self::Ingress => "from_pod",
            Self::Egress => "to_pod",
        }
    }

    /// The name of the pin before it is renamed. Names on a bpf file system must not have dots.
    fn program_new(self) -> &'static str {
        match self {
            Self::Ingress => "from_pod-new",
            Self::Egress => "to_pod-new",
        }
    }
}

/// Load the programs and pin them in `dir`, over any older ones; maps that are pinned there are used, others are made.
///
/// Falls to the next way of redirecting where the kernel refuses a program, and returns the refusal of the first if it refuses all.
pub(crate) fn load(dir: &Path, way: Way) -> Result<Mode, Error> {
    if let Way::Only(mode) = way {
        return load_mode(dir, mode).map(|()| mode);
    }
    match load_mode(dir, Mode::RedirectPeer) {
        Ok(()) => Ok(Mode::RedirectPeer),
        Err(refused @ Error::Program { .. }) => match load_mode(dir, Mode::Redirect) {
            Ok(()) => Ok(Mode::Redirect),
            Err(_) => Err(refused),
        },
        Err(e) => Err(e),
    }
}

fn load_mode(dir: &Path, mode: Mode) -> Result<(), Error> {
    let redirect_peer = u8::from(mode == Mode::RedirectPeer);
    let mut loader = EbpfLoader::new();
    loader.override_global("redirect_peer", &redirect_peer, true);
    for map in MAPS {
        loader.map_pin_path(map, dir.join(map));
    }
    let mut object = loader.load(OBJECT).map_err(|e| Error::Load { mode, source: Box::new(e) })?;
    for direction in Direction::BOTH {
        load_program(&mut object, direction).map_err(|e| Error::Program {
            program: direction.program(),
            mode,
            source: Box::new(e),
        })?;
    }
    Direction::BOTH.into_iter().try_for_each(|direction| pin(&mut object, dir, direction))
}

fn classifier(object: &mut Ebpf, direction: Direction) -> Result<&mut SchedClassifier, ProgramError> {
    object.program_mut(direction.program()).ok_or(ProgramError::NotLoaded)?.try_into()
}

fn load_program(object: &mut Ebpf, direction: Direction) -> Result<(), ProgramError> {
    classifier(object, direction)?.load()
}

fn pin(object: &mut Ebpf, dir: &Path, direction: Direction) -> Result<(), Error> {
    let (path, new) = (dir.join(direction.program()), dir.join(direction.program_new()));
    let open = |e| Error::OpenProgram { path: path.clone(), source: Box::new(e) };
    remove(&new)?;
    let program = classifier(object, direction).map_err(open)?;
    program.pin(&new).map_err(|e| Error::Pin { path: new.clone(), source: Box::new(e) })?;
    fs::rename(&new, &path).map_err(Error::file("replace", &path))
}

/// The pinned program. Through `ProgramInfo`, because aya's `SchedClassifier::from_pin` first probes for a dozen features.
pub(crate) struct Pinned(ProgramInfo, std::path::PathBuf);

impl Pinned {
    pub(crate) fn open(dir: &Path, direction: Direction) -> Result<Self, Error> {
        let path = dir.join(direction.program());
        match ProgramInfo::from_pin(&path) {
            Ok(info) => Ok(Self(info, path)),
            Err(e) => Err(Error::OpenProgram { path, source: Box::new(e) }),
        }
    }

    /// The kernel's number of the program.
    pub(crate) fn id(&self) -> u32 {
        self.0.id()
    }

    pub(crate) fn fd(&self) -> Result<ProgramFd, Error> {
        self.0.fd().map_err(|e| Error::OpenProgram { path: self.1.clone(), source: Box::new(e) })
    }
}

/// Remove every pin and the folder, those that a newer version made too. First the version, so that nothing takes the rest for
/// whole; last the pods, so that a second try after a crash still finds the links.
pub(crate) fn unpin(dir: &Path) -> Vec<Error> {
    let entries = match fs::read_dir(dir).and_then(Iterator::collect::<Result<Vec<_>, _>>) {
        Ok(entries) => entries,
        Err(e) if e.kind() == ErrorKind::NotFound => return Vec::new(),
        Err(e) => return vec![Error::file("list", dir)(e)],
    };
    let others = entries.into_iter().map(|entry| entry.path()).filter(|path| !path.ends_with(PODS));
    let paths = iter::once(dir.join(VERSION)).chain(others).chain([dir.join(PODS)]);
    let mut errors: Vec<Error> = paths.filter_map(|path| remove(&path).err()).collect();
    errors.extend(fs::remove_dir(dir).map_err(Error::file("remove", dir)).err());
    errors
}

/// Remove a pin; an absent one is removed.
pub(crate) fn remove(path: &Path) -> Result<(), Error> {
    match fs::remove_file(path) {
        Err(e) if e.kind() != ErrorKind::NotFound => Err(Error::file("remove", path)(e)),
        _ => Ok(()),
    }
}
