//! The root file system of a container: containerd's list of mounts, made at `<bundle>/rootfs` in the host's mount
//! namespace, where containerd itself looks for it.

mod error;
#[cfg(feature = "fuzzing")]
pub(super) mod fuzz;
mod idmap;
mod loop_device;
mod transform;

use std::ffi::OsString;
use std::io;
use std::os::fd::{AsRawFd, OwnedFd};
use std::path::{Path, PathBuf};

use containerd_shim_protos::types::mount::Mount;
use nix::errno::Errno;
use nix::fcntl::{OFlag, open};
use nix::mount::{MntFlags, MsFlags, mount, umount2};
use nix::sys::stat::Mode;

pub(crate) use error::Error;
use loop_device::LoopDevice;

/// mount(2) takes one page of data, its end mark included.
const MAX_DATA: usize = 4095;
/// File systems that containerd's snapshotters keep in files.
const FILE_SYSTEMS: [&str; 2] = ["erofs", "ext4"];
/// Where a process finds what it has open, by number (proc_pid_fd(5)).
const OPEN: &str = "/proc/self/fd";

/// Makes `mounts`, in their order. After an error nothing is left mounted.
pub(crate) fn mount_all(mounts: &[Mount], rootfs: &Path) -> Result<(), Error> {
    if mounts.is_empty() {
        return Ok(());
    }
    std::fs::create_dir_all(rootfs).map_err(|source| Error::Folder { path: rootfs.into(), source })?;
    let mut made = Vec::new();
    let result = mount_list(mounts, rootfs, &mut made);
    if result.is_err() {
        let undone = unmount(rootfs);
        let folders = made.iter().rev().map(|folder| remove_folder(folder));
        for err in [undone].into_iter().chain(folders).filter_map(Result::err) {
            log::warn!("{}", crate::error::chain(&err));
        }
    }
    result
}

fn mount_list(mounts: &[Mount], rootfs: &Path, made: &mut Vec<PathBuf>) -> Result<(), Error> {
    let (aside, onto) = mounts.split_at(transform::aside(mounts));
    let mut active = Vec::new();
    // A device lives as long as it is open or mounted.
    let mut devices = Vec::new();
    for (index, mount) in aside.iter().enumerate() {
        let plain = transform::apply(mount, &active, made)?;
        let mut point = mounts_folder(rootfs).join(index.to_string());
        if plain.type_ == "loop" {
            let device = loop_device(Path::new(&plain.source), plain.options.iter().any(|it| it == "ro"))?;
            point.clone_from(&device.path);
            devices.push(device);
        } else {
            std::fs::create_dir_all(&point)
                .map_err(|source| Error::Folder { path: point.clone(), source })?;
            mount_at(&plain, &point, rootfs)?;
        }
        active.push(transform::Active { source: plain.source, target: plain.target, point });
    }
    for mount in onto {
        let plain = transform::apply(mount, &active, made)?;
        mount_at(&plain, &target(&plain, rootfs)?, rootfs)?;
    }
    Ok(())
}

/// Unmounts all that is mounted at `rootfs`, and below it, and what is mounted beside it. Nothing mounted, or no such folder,
/// is fine.
pub(crate) fn unmount(rootfs: &Path) -> Result<(), Error> {
    let mut result = detach(rootfs).and(detach(&layers_folder(rootfs)));
    let folder = mounts_folder(rootfs);
    let entries = match std::fs::read_dir(&folder) {
        Err(err) if err.kind() == io::ErrorKind::NotFound => return result,
        entries => entries.and_then(Iterator::collect::<io::Result<Vec<_>>>),
    };
    for entry in entries.map_err(|source| Error::Remove { path: folder.clone(), source })? {
        result = result.and(detach(&entry.path()).and_then(|()| remove_folder(&entry.path())));
    }
    result.and_then(|()| remove_folder(&folder))
}

/// Only if it is empty: what is still mounted there must not be removed for the folder.
fn remove_folder(path: &Path) -> Result<(), Error> {
    match std::fs::remove_dir(path) {
        Err(source) if source.kind() != io::ErrorKind::NotFound => {
            Err(Error::Remove { path: path.to_owned(), source })
        }
        _ => Ok(()),
    }
}

/// Where those mounts are that others are made of, beside the root file system.
fn mounts_folder(rootfs: &Path) -> PathBuf {
    rootfs.with_file_name("mounts")
}

fn loop_device(file: &Path, read_only: bool) -> Result<LoopDevice, Error> {
    LoopDevice::of(file, read_only).map_err(map_failed("make a loop device of", file))
}

fn detach(rootfs: &Path) -> Result<(), Error> {
    loop {
        // A lazy unmount takes the whole tree below along. Mounts may lie on one another.
        match umount2(rootfs, MntFlags::MNT_DETACH | MntFlags::UMOUNT_NOFOLLOW) {
            Ok(()) => {}
            Err(Errno::EINVAL | Errno::ENOENT | Errno::ENOTDIR) => return Ok(()),
            Err(source) => return Err(failed("unmount", rootfs, "")(source)),
        }
    }
}

fn mount_at(wanted: &Mount, target: &Path, rootfs: &Path) -> Result<(), Error> {
    let options = parse(wanted)?;
    let kind = wanted.type_.as_str();
    match (&options.maps, options.flags.contains(MsFlags::MS_BIND)) {
        (None, _) => plain(wanted, &options, target)?,
        (Some(maps), true) => mapped_bind(wanted, &options, target, maps)?,
        (Some(maps), false) => mapped_overlay(&options, target, maps, &layers_folder(rootfs))?,
    }
    // The remount applies them: a bind mount ignores all flags but MS_REC (mount(2)).
    let restrict = options.flags & !(MsFlags::MS_BIND | MsFlags::MS_REC);
    if options.flags.contains(MsFlags::MS_BIND) && !restrict.is_empty() {
        let flags = restrict | MsFlags::MS_BIND | MsFlags::MS_REMOUNT;
        mount(None::<&Path>, target, None::<&Path>, flags, None::<&Path>)
            .map_err(failed("remount", target, kind))?;
    }
    if let Some(propagation) = options.propagation {
        mount(None::<&Path>, target, None::<&Path>, propagation, None::<&Path>).map_err(failed(
            "set propagation of",
            target,
            kind,
        ))?;
    }
    Ok(())
}

fn plain(wanted: &Mount, options: &Options<'_>, target: &Path) -> Result<(), Error> {
    let kind = wanted.type_.as_str();
    let data = options.data.join(",");
    if kind == "overlay" && data.len() > MAX_DATA {
        let layers =
            options.layers().map(|layer| open_layer(Path::new(layer))).collect::<Result<Vec<_>, _>>()?;
        return overlay(options, target, Path::new(OPEN), numbers(&layers))
            .map_err(failed("mount", target, kind));
    }
    // File systems of images: in a file, unless it is a device already.
    let is_file = FILE_SYSTEMS.contains(&kind) && Path::new(&wanted.source).is_file();
    let device = if options.is_loop || is_file {
        Some(loop_device(Path::new(&wanted.source), options.flags.contains(MsFlags::MS_RDONLY))?)
    } else {
        None
    };
    let named = Path::new(if wanted.source.is_empty() { kind } else { &wanted.source });
    let source = device.as_ref().map_or(named, |device| &device.path);
    mount(Some(source), target, Some(kind), options.flags, Some(OsString::from(data).as_os_str()))
        .map_err(failed("mount", target, kind))
}

/// Mounts an overlay whose lower layers are called by `names` below `folder`: so a list of hundreds fits.
fn overlay(options: &Options<'_>, target: &Path, folder: &Path, names: Vec<String>) -> Result<(), Errno> {
    let lower = format!("lowerdir={}", names.join(":"));
    let others =
        options.data.iter().map(|option| if option.starts_with("lowerdir=") { &lower } else { *option });
    let data = OsString::from(others.collect::<Vec<_>>().join(","));
    within(folder, || mount(Some("overlay"), target, Some("overlay"), options.flags, Some(data.as_os_str())))
}

fn open_layer(path: &Path) -> Result<OwnedFd, Error> {
    let flags = OFlag::O_PATH | OFlag::O_DIRECTORY | OFlag::O_CLOEXEC;
    open(path, flags, Mode::empty()).map_err(|errno| map_failed("open the layer", path)(errno.into()))
}

/// The names of descriptors in [`OPEN`].
fn numbers(layers: &[OwnedFd]) -> Vec<String> {
    layers.iter().map(|layer| layer.as_raw_fd().to_string()).collect()
}

fn mapped_bind(
    wanted: &Mount,
    options: &Options<'_>,
    target: &Path,
    maps: &idmap::Maps,
) -> Result<(), Error> {
    let source = Path::new(&wanted.source);
    let user = idmap::user(maps).map_err(map_failed("make a user namespace for", source))?;
    let tree = idmap::clone(source, &user, options.flags.contains(MsFlags::MS_REC));
    let tree = tree.map_err(|errno| map_failed("map the ids of", source)(errno.into()))?;
    idmap::attach(&tree, target).map_err(failed("mount", target, "bind"))
}

/// overlayfs refuses to be idmapped itself; its lower layers may be (Documentation/filesystems/overlayfs.rst). The upper one
/// is the container's own: containerd gives it the right owner.
fn mapped_overlay(
    options: &Options<'_>,
    target: &Path,
    maps: &idmap::Maps,
    folder: &Path,
) -> Result<(), Error> {
    let user = idmap::user(maps).map_err(map_failed("make a user namespace for", target))?;
    let clone = |layer| {
        let tree = idmap::clone(Path::new(layer), &user, false);
        tree.map_err(|errno| map_failed("map the ids of", Path::new(layer))(errno.into()))
    };
    let trees = options.layers().map(clone).collect::<Result<Vec<_>, _>>()?;
    match overlay(options, target, Path::new(OPEN), numbers(&trees)) {
        // Before Linux 6.15 a layer must be mounted in this mount namespace (clone_private_mount in fs/namespace.c).
        Err(Errno::EINVAL) => {
            let attached = idmap::Attached::at(folder, &trees);
            let attached = attached.map_err(map_failed("mount layers at", folder))?;
            let names = (0..trees.len()).map(|index| index.to_string()).collect();
            let result = overlay(options, target, folder, names);
            drop(attached);
            result
        }
        result => result,
    }
    .map_err(failed("mount", target, "overlay"))
}

/// Where the layers of an overlay lie for a moment, beside the root file system.
fn layers_folder(rootfs: &Path) -> PathBuf {
    rootfs.with_file_name("layers")
}

fn map_failed(op: &'static str, path: &Path) -> impl FnOnce(io::Error) -> Error {
    let path = path.to_owned();
    move |source| Error::Map { op, path, source }
}

/// Runs `action` with `folder` as the working directory. The shim has one thread, so nobody else sees it.
fn within(folder: &Path, action: impl FnOnce() -> Result<(), Errno>) -> Result<(), Errno> {
    nix::unistd::chdir(folder)?;
    let result = action();
    // The shim stays in no folder that could be busy.
    nix::unistd::chdir("/")?;
    result
}

struct Options<'a> {
    flags: MsFlags,
    propagation: Option<MsFlags>,
    data: Vec<&'a str>,
    maps: Option<idmap::Maps>,
    is_loop: bool,
}

impl<'a> Options<'a> {
    /// An overlay's lower layers, the uppermost first.
    fn layers(&self) -> impl Iterator<Item = &'a str> {
        let list = self.data.iter().find_map(|option| option.strip_prefix("lowerdir="));
        list.into_iter().flat_map(|layers| layers.split(':'))
    }
}

fn parse(wanted: &Mount) -> Result<Options<'_>, Error> {
    let refused = |option: &str| Error::Option {
        kind: wanted.type_.clone(),
        mounted: wanted.source.clone(),
        option: option.to_owned(),
    };
    let mut options =
        Options { flags: MsFlags::empty(), propagation: None, data: Vec::new(), maps: None, is_loop: false };
    for option in &wanted.options {
        if let Some((flag, set)) = flag(option) {
            options.flags.set(flag, set);
        } else if let Some(propagation) = propagation(option) {
            options.propagation = Some(propagation);
        } else if let Some(ids) = option.strip_prefix("uidmap=") {
            let lines = idmap::lines(ids).ok_or_else(|| refused(option))?;
            options.maps.get_or_insert_default().uids = lines;
        } else if let Some(ids) = option.strip_prefix("gidmap=") {
            let lines = idmap::lines(ids).ok_or_else(|| refused(option))?;
            options.maps.get_or_insert_default().gids = lines;
        } else if option == "loop" {
            options.is_loop = true;
        } else if option != "defaults" {
            options.data.push(option);
        }
    }
    // It has no other way, and its device need not be writable then.
    options
        .flags
        .set(MsFlags::MS_RDONLY, options.flags.contains(MsFlags::MS_RDONLY) || wanted.type_ == "erofs");
    if let Some(maps) = &options.maps {
        let can_be = options.flags.contains(MsFlags::MS_BIND) || wanted.type_ == "overlay";
        if !can_be || maps.uids.is_empty() || maps.gids.is_empty() {
            return Err(refused(if maps.uids.is_empty() { "gidmap" } else { "uidmap" }));
        }
    }
    Ok(options)
}

/// The options of mount(8) that are flags of mount(2), and whether they set or clear it.
fn flag(option: &str) -> Option<(MsFlags, bool)> {
    Some(match option {
        "bind" => (MsFlags::MS_BIND, true),
        "rbind" => (MsFlags::MS_BIND | MsFlags::MS_REC, true),
        "ro" => (MsFlags::MS_RDONLY, true),
        "rw" => (MsFlags::MS_RDONLY, false),
        "nosuid" => (MsFlags::MS_NOSUID, true),
        "suid" => (MsFlags::MS_NOSUID, false),
        "nodev" => (MsFlags::MS_NODEV, true),
        "dev" => (MsFlags::MS_NODEV, false),
        "noexec" => (MsFlags::MS_NOEXEC, true),
        "exec" => (MsFlags::MS_NOEXEC, false),
        "noatime" => (MsFlags::MS_NOATIME, true),
        "atime" => (MsFlags::MS_NOATIME, false),
        "nodiratime" => (MsFlags::MS_NODIRATIME, true),
        "diratime" => (MsFlags::MS_NODIRATIME, false),
        "relatime" => (MsFlags::MS_RELATIME, true),
        "norelatime" => (MsFlags::MS_RELATIME, false),
        "strictatime" => (MsFlags::MS_STRICTATIME, true),
        "nostrictatime" => (MsFlags::MS_STRICTATIME, false),
        "sync" => (MsFlags::MS_SYNCHRONOUS, true),
        "async" => (MsFlags::MS_SYNCHRONOUS, false),
        "dirsync" => (MsFlags::MS_DIRSYNC, true),
        "mand" => (MsFlags::MS_MANDLOCK, true),
        "nomand" => (MsFlags::MS_MANDLOCK, false),
        "remount" => (MsFlags::MS_REMOUNT, true),
        _ => return None,
    })
}

fn propagation(option: &str) -> Option<MsFlags> {
    Some(match option {
        "private" => MsFlags::MS_PRIVATE,
        "rprivate" => MsFlags::MS_PRIVATE | MsFlags::MS_REC,
        "shared" => MsFlags::MS_SHARED,
        "rshared" => MsFlags::MS_SHARED | MsFlags::MS_REC,
        "slave" => MsFlags::MS_SLAVE,
        "rslave" => MsFlags::MS_SLAVE | MsFlags::MS_REC,
        "unbindable" => MsFlags::MS_UNBINDABLE,
        "runbindable" => MsFlags::MS_UNBINDABLE | MsFlags::MS_REC,
        _ => return None,
    })
}

/// Almost always the rootfs itself. A target below it is refused if it could lead out again.
fn target(wanted: &Mount, rootfs: &Path) -> Result<PathBuf, Error> {
    let below = wanted.target.trim_start_matches('/');
    let target = rootfs.join(below);
    if below.is_empty() {
        return Ok(rootfs.to_owned());
    }
    // A symbolic link in an image may point anywhere.
    match (target.canonicalize(), rootfs.canonicalize()) {
        (Ok(real), Ok(rootfs)) if real.starts_with(&rootfs) => Ok(real),
        _ => Err(Error::Target { target: wanted.target.clone() }),
    }
}

fn failed<'a>(op: &'static str, path: &'a Path, kind: &'a str) -> impl Fn(Errno) -> Error + 'a {
    move |source| Error::Mount { op, path: path.to_owned(), kind: kind.to_owned(), source }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn wanted(options: &[&str]) -> Mount {
        Mount {
            type_: "bind".into(),
            source: "/usr".into(),
            options: options.iter().map(|option| (*option).to_owned()).collect(),
            ..Default::default()
        }
    }

    #[test]
    fn options_are_flags_propagation_and_data() {
        let mount = wanted(&["rbind", "ro", "rprivate", "size=1k", "defaults", "rw"]);
        let options = parse(&mount).unwrap();
        assert_eq!(options.flags, MsFlags::MS_BIND | MsFlags::MS_REC);
        assert_eq!(options.propagation, Some(MsFlags::MS_PRIVATE | MsFlags::MS_REC));
        assert_eq!(options.data, ["size=1k"]);
    }

    #[test]
    fn maps_come_in_pairs_and_for_what_can_have_them() {
        for option in ["uidmap=0:100000:65536", "gidmap=0:100000:65536", "uidmap=0:1"] {
            assert!(matches!(parse(&wanted(&["bind", option])), Err(Error::Option { .. })), "{option}");
        }
        let both = ["uidmap=0:100000:65536", "gidmap=0:100000:65536"];
        let proc = Mount { type_: "proc".into(), ..wanted(&both) };
        assert!(matches!(parse(&proc), Err(Error::Option { .. })), "only bind and overlay");
        assert!(parse(&wanted(&["bind", both[0], both[1]])).unwrap().maps.is_some());
    }

    #[test]
    fn a_target_outside_is_refused() {
        let dir = tempfile::tempdir().unwrap();
        std::os::unix::fs::symlink("/", dir.path().join("out")).unwrap();
        for target_path in ["../x", "out/tmp", "missing"] {
            let mount = Mount { target: target_path.into(), ..wanted(&[]) };
            assert!(target(&mount, dir.path()).is_err(), "{target_path}");
        }
    }
}
