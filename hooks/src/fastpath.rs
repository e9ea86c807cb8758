//! The fast path of a node: open its pins, hang it on a pod's link, tell it of pods, take it away.
//!
//! The pins outlive every process. Whoever opens them and finds none, older ones, or what a crash left, loads under a lock; newer
//! ones are used as they are, so a downgrade replaces nothing. An upgrade keeps the maps and replaces the programs on every
//! link while packets flow.

use std::{
    net::IpAddr,
    os::fd::AsFd as _,
    path::{Path, PathBuf},
};

use nix::{errno::Errno, fcntl::FlockArg, net::if_::if_nametoindex};

use crate::{
    bpffs,
    counters::{Counters, PodCounters},
    error::Error,
    lock,
    pods::{PodEntry, Pods},
    program::{self, Pinned, Wanted, Way},
    tc::{Direction, Tc},
    version::{LAYOUT_VERSION, Versions},
};

/// The pinned programs and maps of a node.
#[derive(Debug)]
pub struct FastPath {
    dir: PathBuf,
    lock_dir: PathBuf,
    pods: Pods,
}

impl FastPath {
    /// Open the pins in `dir`, a folder on a bpf file system such as /sys/fs/bpf/weft; load and pin what is missing or older.
    ///
    /// `lock_dir`, which is made if absent, holds the locks between processes. Opens in microseconds; loads in tens of
    /// milliseconds, in one process, while others wait. Mounts a bpf file system on the parent of `dir` where that is an empty
    /// folder without one. To replace programs it must be called in the network namespace of the pods' links.
    ///
    /// # Errors
    /// [`Error::Load`] and [`Error::Program`] where the kernel cannot run the programs in any way; [`Error::Layout`] where the pins
    /// are of another layout. The pods' packets can then take plain routing.
    pub fn open(dir: &Path, lock_dir: &Path) -> Result<Self, Error> {
        Self::open_wanted(dir, lock_dir, Wanted::default())
    }

    /// [`FastPath::open`], and has the programs redirect in that way: those that do not are replaced on every link.
    ///
    /// # Errors
    /// As [`FastPath::open`].
    pub fn open_by(dir: &Path, lock_dir: &Path, way: Way) -> Result<Self, Error> {
        Self::open_wanted(dir, lock_dir, Wanted { way, ..Wanted::default() })
    }

    /// [`FastPath::open_by`] for tests: as another version.
    #[doc(hidden)]
    pub fn open_wanted(dir: &Path, lock_dir: &Path, wanted: Wanted) -> Result<Self, Error> {
        if !is_current(dir, wanted)? {
            load(dir, lock_dir, wanted)?;
        }
        Ok(Self { dir: dir.to_owned(), lock_dir: lock_dir.to_owned(), pods: Pods::open(dir)? })
    }

    /// Hang the programs on both sides of a pod's host end, in the network namespace of the calling thread, and count for the pod
    /// from now on.
    ///
    /// Call it after [`FastPath::set_pod`]: until then nothing of the pod would pass, and an upgrade at the same time would not
    /// know of the link. What hangs there already is replaced; filters of others are never touched.
    ///
    /// # Errors
    /// [`Error::Link`] with `ENODEV` where there is no such link; [`Error::ForeignFilter`].
    pub fn attach(&self, link_name: &str) -> Result<(), Error> {
        let _lock = lock::take(&self.lock_dir, lock::PROGRAMS, FlockArg::LockShared)?;
        let (tc, ifindex) = link(link_name)?;
        count(&self.dir, &[ifindex])?;
        tc.add_clsact(ifindex).map_err(on("add clsact", link_name))?;
        for direction in Direction::BOTH {
            let program = Pinned::open(&self.dir, direction)?.fd()?;
            match tc.add(ifindex, direction, program.as_fd()) {
                Err(Errno::EEXIST) => replace(&tc, ifindex, link_name, direction, &program)?,
                added => added.map_err(on("add filter", link_name))?,
            }
        }
        Ok(())
    }

    /// Whether the pinned programs hang on both sides of the link.
    ///
    /// # Errors
    /// [`Error::Link`] with `ENODEV` where there is no such link.
    pub fn is_attached(&self, link_name: &str) -> Result<bool, Error> {
        let (tc, ifindex) = link(link_name)?;
        for direction in Direction::BOTH {
            let found = tc.find(ifindex, direction).map_err(on("read filter", link_name))?;
            let pinned = Pinned::open(&self.dir, direction)?.id();
            if !found.is_some_and(|filter| filter.is_ours() && filter.program == Some(pinned)) {
                return Ok(false);
            }
        }
        Ok(true)
    }

    /// Say which link is behind an address. What another pod with that address left behind is forgotten.
    ///
    /// # Errors
    /// [`Error::Map`] with `E2BIG` where the node has 65,536 addresses.
    pub fn set_pod(&mut self, addr: IpAddr, entry: &PodEntry) -> Result<(), Error> {
        let _lock = lock::take(&self.lock_dir, lock::PODS, FlockArg::LockExclusive)?;
        self.pods.set(addr, entry)
    }

    /// What is behind an address.
    ///
    /// # Errors
    /// [`Error::Map`].
    pub fn pod(&self, addr: IpAddr) -> Result<Option<PodEntry>, Error> {
        self.pods.get(addr)
    }

    /// Forget an address, if it still is that of the link: the address may have a new owner. Says whether it was.
    ///
    /// # Errors
    /// [`Error::Map`].
    pub fn remove_pod(&mut self, addr: IpAddr, ifindex: u32) -> Result<bool, Error> {
        let _lock = lock::take(&self.lock_dir, lock::PODS, FlockArg::LockExclusive)?;
        self.pods.remove(addr, ifindex)
    }

    /// Forget what was counted for the pod behind a link; says whether anything was. Call it after [`FastPath::remove_pod`]: an
    /// upgrade at the same time makes a row for every link that has an address.
    ///
    /// # Errors
    /// [`Error::Map`].
    pub fn forget_counters(&self, ifindex: u32) -> Result<bool, Error> {
        let counters = PodCounters::open(&self.dir)?;
        counters.map_or(Ok(false), |mut counters| counters.remove(ifindex))
    }

    /// Every address, in no order. While others write, one may come twice.
    pub fn pods(&self) -> impl Iterator<Item = Result<(IpAddr, PodEntry), Error>> {
        self.pods.iter()
    }

    /// What became of the packets that pods sent.
    ///
    /// # Errors
    /// [`Error::Map`].
    pub fn counters(&self) -> Result<Counters, Error> {
        Counters::read(&self.dir)
    }

    /// What is pinned in `dir`; `None` if nothing is, or nothing whole. Changes nothing.
    ///
    /// # Errors
    /// [`Error::Version`], [`Error::File`].
    pub fn status(dir: &Path) -> Result<Option<Versions>, Error> {
        Versions::read(dir)
    }

    /// Take the programs off the pods' links, as far as these are in the network namespace of the calling thread, and remove every
    /// pin. Goes on after a failure; what is absent is removed. Leaves the clsact qdiscs, which others may use, and the mount.
    ///
    /// # Errors
    /// All of them.
    pub fn unload(dir: &Path) -> Result<(), Vec<Error>> {
        let mut errors = detach_all(dir);
        errors.extend(program::unpin(dir));
        if errors.is_empty() { Ok(()) } else { Err(errors) }
    }
}

/// Whether the pins in `dir` can be used as they are.
fn is_current(dir: &Path, wanted: Wanted) -> Result<bool, Error> {
    match Versions::read(dir)? {
        Some(Versions { layout, .. }) if layout != LAYOUT_VERSION => {
            Err(Error::Layout { found: layout, known: LAYOUT_VERSION })
        }
        found => Ok(found.is_some_and(|v| v.program > wanted.program || v.serves(wanted))),
    }
}

/// The version is written last: a crash anywhere before leaves what the next caller loads again.
fn load(dir: &Path, lock_dir: &Path, wanted: Wanted) -> Result<(), Error> {
    let _lock = lock::take(lock_dir, lock::PROGRAMS, FlockArg::LockExclusive)?;
    if is_current(dir, wanted)? {
        return Ok(()); // another process was faster
    }
    bpffs::ensure(dir)?;
    if Versions::read(dir)?.is_none() {
        // Half a load, or half an unload: begin anew.
        if let Err(mut errors) = FastPath::unload(dir) {
            return errors.pop().map_or(Ok(()), Err);
        }
        bpffs::ensure(dir)?;
    }
    let way = match (wanted.way, Versions::read(dir)?) {
        (Way::AsLoaded, Some(Versions { mode, forced: true, .. })) => Way::Only(mode),
        (way, _) => way,
    };
    let mode = program::load(dir, way)?;
    {
        let _lock = lock::take(lock_dir, lock::PODS, FlockArg::LockExclusive)?;
        count(dir, &Pods::open(dir)?.links()?)?;
    }
    replace_all(dir)?;
    let forced = matches!(way, Way::Only(_));
    Versions { layout: LAYOUT_VERSION, program: wanted.program, mode, forced }.write(dir)
}

/// Count for the pods behind these links. Programs of version 1 count for the node only.
fn count(dir: &Path, links: &[u32]) -> Result<(), Error> {
    let Some(mut counters) = PodCounters::open(dir)? else { return Ok(()) };
    links.iter().try_for_each(|ifindex| counters.add(*ifindex))
}

/// Put the pinned programs in the place of older ones on the pods' links.
fn replace_all(dir: &Path) -> Result<(), Error> {
    let links = Pods::open(dir)?.links()?;
    let tc = Tc::open().map_err(on("open netlink", "any link"))?;
    for direction in Direction::BOTH {
        let program = Pinned::open(dir, direction)?.fd()?;
        for &ifindex in &links {
            let name = index_name(ifindex);
            // A pod that is being attached has no filter yet, and will be given the new one.
            if tc.find(ifindex, direction).map_err(on("read filter", &name))?.is_some_and(|f| f.is_ours()) {
                swap(&tc, ifindex, &name, direction, &program)?;
            }
        }
    }
    Ok(())
}

/// Replace our filter, or none.
fn replace(
    tc: &Tc,
    ifindex: u32,
    link: &str,
    direction: Direction,
    program: &aya::programs::ProgramFd,
) -> Result<(), Error> {
    match tc.find(ifindex, direction).map_err(on("read filter", link))? {
        Some(filter) if !filter.is_ours() => {
            Err(Error::ForeignFilter { link: link.to_owned(), direction, owner: filter.name })
        }
        _ => swap(tc, ifindex, link, direction, program),
    }
}

/// Put the program in the place of ours; a link or filter that is gone by now needs none.
fn swap(
    tc: &Tc,
    ifindex: u32,
    link: &str,
    direction: Direction,
    program: &aya::programs::ProgramFd,
) -> Result<(), Error> {
    match tc.replace(ifindex, direction, program.as_fd()) {
        Ok(()) | Err(Errno::ENOENT | Errno::ENODEV) => Ok(()),
        Err(errno) => Err(on("replace filter", link)(errno)),
    }
}

/// Take our filters off every pod's link. Without a pinned map there are none to be found.
fn detach_all(dir: &Path) -> Vec<Error> {
    let links = match Pods::open(dir).and_then(|pods| pods.links()) {
        Ok(links) => links,
        Err(e) if e.is_absent() => return Vec::new(),
        Err(e) => return vec![e],
    };
    let tc = match Tc::open() {
        Ok(tc) => tc,
        Err(errno) => return vec![on("open netlink", "any link")(errno)],
    };
    let sides = links.into_iter().flat_map(|ifindex| Direction::BOTH.map(|direction| (ifindex, direction)));
    sides.filter_map(|(ifindex, direction)| detach(&tc, ifindex, direction).err()).collect()
}

fn detach(tc: &Tc, ifindex: u32, direction: Direction) -> Result<(), Error> {
    let link = index_name(ifindex);
    if !tc.find(ifindex, direction).map_err(on("read filter", &link))?.is_some_and(|f| f.is_ours()) {
        return Ok(());
    }
    match tc.delete(ifindex, direction) {
        Ok(()) | Err(Errno::ENOENT | Errno::ENODEV) => Ok(()),
        Err(errno) => Err(on("delete filter", &link)(errno)),
    }
}

fn link(name: &str) -> Result<(Tc, u32), Error> {
    let ifindex = if_nametoindex(name).map_err(on("look up", name))?;
    Ok((Tc::open().map_err(on("open netlink", name))?, ifindex))
}

fn index_name(ifindex: u32) -> String {
    format!("link {ifindex}")
}

/// An operation on a link, for `map_err`.
fn on<'a>(action: &'static str, link: &'a str) -> impl FnOnce(Errno) -> Error + 'a {
    move |source| Error::Link { action, link: link.to_owned(), source }
}
