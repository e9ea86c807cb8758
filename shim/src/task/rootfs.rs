//! The root file system of a container: containerd's list of mounts, made at `<bundle>/rootfs` in the host's mount
//! namespace, where containerd itself looks for it.

use std::ffi::OsString;
use std::io;
use std::os::unix::ffi::OsStrExt;
use std::path::{Path, PathBuf};

use containerd_shim_protos::types::mount::Mount;
use nix::errno::Errno;
use nix::mount::{MntFlags, MsFlags, mount, umount2};

/// mount(2) takes one page of data, its end mark included.
const MAX_DATA: usize = 4095;

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
    /// An option that only a mount manager understands.
    #[error("mount {kind} {mounted}: option {option:?} is not supported")]
    Option {
        /// File system.
        kind: String,
        /// What was to be mounted.
        mounted: String,
        /// The option.
        option: String,
    },
    /// A target that leaves the root file system.
    #[error("mount target {target:?}: it must lie in the root file system")]
    Target {
        /// As given.
        target: String,
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

/// Makes `mounts`, in their order. After an error nothing is left mounted.
pub(crate) fn mount_all(mounts: &[Mount], rootfs: &Path) -> Result<(), Error> {
    if mounts.is_empty() {
        return Ok(());
    }
    std::fs::create_dir_all(rootfs).map_err(|source| Error::Folder { path: rootfs.into(), source })?;
    let result = mounts.iter().try_for_each(|mount| mount_one(mount, rootfs));
    if result.is_err()
        && let Err(err) = unmount(rootfs)
    {
        log::warn!("{}", crate::error::chain(&err));
    }
    result
}

/// Unmounts all that is mounted at `rootfs`, and below it. Nothing mounted, or no such folder, is fine.
pub(crate) fn unmount(rootfs: &Path) -> Result<(), Error> {
    loop {
        // A lazy unmount takes the whole tree below along. Mounts may lie on one another.
        match umount2(rootfs, MntFlags::MNT_DETACH | MntFlags::UMOUNT_NOFOLLOW) {
            Ok(()) => {}
            Err(Errno::EINVAL | Errno::ENOENT | Errno::ENOTDIR) => return Ok(()),
            Err(source) => return Err(failed("unmount", rootfs, "")(source)),
        }
    }
}

fn mount_one(wanted: &Mount, rootfs: &Path) -> Result<(), Error> {
    let options = parse(wanted)?;
    let target = target(wanted, rootfs)?;
    let kind = wanted.type_.as_str();
    let mut data = options.data.join(",");
    let mut source = PathBuf::from(&wanted.source);
    let mut base = None;
    if data.len() > MAX_DATA
        && kind == "overlay"
        && let Some((folder, relative)) = relative_layers(&options.data)
    {
        (base, data) = (Some(folder), relative);
    }
    if source.as_os_str().is_empty() {
        source = kind.into();
    }
    // The remount below applies them: a bind mount ignores all flags but MS_REC (mount(2)).
    let bind = options.flags.contains(MsFlags::MS_BIND);
    let result = within(base.as_deref(), || {
        mount(Some(&source), &target, Some(kind), options.flags, Some(OsString::from(&data).as_os_str()))
    });
    result.map_err(failed("mount", &target, kind))?;
    let restrict = options.flags & !(MsFlags::MS_BIND | MsFlags::MS_REC);
    if bind && !restrict.is_empty() {
        let flags = restrict | MsFlags::MS_BIND | MsFlags::MS_REMOUNT;
        mount(None::<&Path>, &target, None::<&Path>, flags, None::<&Path>)
            .map_err(failed("remount", &target, kind))?;
    }
    if let Some(propagation) = options.propagation {
        mount(None::<&Path>, &target, None::<&Path>, propagation, None::<&Path>).map_err(failed(
            "set propagation of",
            &target,
            kind,
        ))?;
    }
    Ok(())
}

/// Runs `action` with `folder` as the working directory: relative names make an overlay's list of layers fit. The shim
/// has one thread, so nobody else sees it.
fn within(folder: Option<&Path>, action: impl FnOnce() -> Result<(), Errno>) -> Result<(), Errno> {
    let Some(folder) = folder else { return action() };
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
}

fn parse(wanted: &Mount) -> Result<Options<'_>, Error> {
    let mut options = Options { flags: MsFlags::empty(), propagation: None, data: Vec::new() };
    for option in &wanted.options {
        if let Some((flag, set)) = flag(option) {
            options.flags.set(flag, set);
        } else if let Some(propagation) = propagation(option) {
            options.propagation = Some(propagation);
        } else if option == "loop" || option.starts_with("uidmap=") || option.starts_with("gidmap=") {
            return Err(Error::Option {
                kind: wanted.type_.clone(),
                mounted: wanted.source.clone(),
                option: option.clone(),
            });
        } else if option != "defaults" {
            options.data.push(option);
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

/// The folder that holds all layers, and the options with the layers named from there.
fn relative_layers(data: &[&str]) -> Option<(PathBuf, String)> {
    let layers = data.iter().find_map(|option| option.strip_prefix("lowerdir="))?;
    let mut common = Path::new(layers.split(':').next()?).parent()?;
    while !layers.split(':').all(|layer| Path::new(layer).starts_with(common)) {
        common = common.parent()?;
    }
    let mut names = Vec::new();
    for layer in layers.split(':') {
        let name = Path::new(layer).strip_prefix(common).ok()?;
        names.push(std::str::from_utf8(name.as_os_str().as_bytes()).ok()?);
    }
    let lower = format!("lowerdir={}", names.join(":"));
    let options = data.iter().map(|option| if option.starts_with("lowerdir=") { &lower } else { *option });
    Some((common.to_owned(), options.collect::<Vec<_>>().join(",")))
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
    fn what_needs_a_mount_manager_is_refused() {
        for option in ["loop", "uidmap=0:100000:65536"] {
            assert!(matches!(parse(&wanted(&[option])), Err(Error::Option { .. })), "{option}");
        }
    }

    #[test]
    fn layers_become_relative_to_their_folder() {
        let data = ["workdir=/s/9/work", "upperdir=/s/9/fs", "lowerdir=/s/1/fs:/s/2/fs", "index=off"];
        let (base, data) = relative_layers(&data).unwrap();
        assert_eq!(base, Path::new("/s"));
        assert_eq!(data, "workdir=/s/9/work,upperdir=/s/9/fs,lowerdir=1/fs:2/fs,index=off");
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
