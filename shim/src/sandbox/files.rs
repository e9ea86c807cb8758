//! The pod's own files: `hostname`, `hosts`, `resolv.conf` and the memory behind `/dev/shm`.
//!
//! containerd leaves them to the shim. They lie in weft's own folder, because containerd empties its own at a
//! restart. Contents, flags and size are those of containerd's `podsandbox` controller.
//!
//! ```text
//! <run_dir>/pods/<namespace>/<id>/{hostname,hosts,resolv.conf,state.json}    0644
//! <run_dir>/pods/<namespace>/<id>/shm/                                       a tmpfs, unless the pod has the node's
//! ```

use std::fs::{DirBuilder, Permissions};
use std::io;
use std::os::unix::fs::{DirBuilderExt, PermissionsExt};
use std::path::{Path, PathBuf};

use nix::errno::Errno;
use nix::mount::{MntFlags, MsFlags, mount, umount2};

use super::Error;
use crate::config::Config;
use crate::proto::cri::DNSConfig;

/// A pod's folder.
#[derive(Debug, Clone)]
pub(super) struct Dir(PathBuf);

impl Dir {
    pub(super) fn of(config: &Config, namespace: &str, id: &str) -> Dir {
        Dir(config.run_dir.join("pods").join(namespace).join(id))
    }

    pub(super) fn path(&self, name: &str) -> PathBuf {
        self.0.join(name)
    }

    pub(super) fn exists(&self) -> bool {
        self.0.exists()
    }

    pub(super) fn create(&self) -> Result<(), Error> {
        let made = DirBuilder::new().recursive(true).mode(0o700).create(&self.0);
        made.map_err(|source| Error::File { op: "create", path: self.0.clone(), source })
    }

    /// Writes one file, whole or not at all: a reader in another process never sees half of it.
    pub(super) fn write(&self, name: &str, content: &[u8]) -> Result<(), Error> {
        let (path, draft) = (self.path(name), self.path(&format!(".{name}")));
        let written = std::fs::write(&draft, content)
            .and_then(|()| std::fs::set_permissions(&draft, Permissions::from_mode(0o644)))
            .and_then(|()| std::fs::rename(&draft, &path));
        written.map_err(|source| Error::File { op: "write", path, source })
    }

    /// Writes the three files that the pod's containers see below `/etc`. `owner` is the node's user and group that the
    /// pod's root is in a user namespace: the files would be nobody's there, and not to be written.
    pub(super) fn write_etc(
        &self,
        hostname: &str,
        dns: Option<&DNSConfig>,
        owner: Option<(u32, u32)>,
    ) -> Result<(), Error> {
        let resolv = dns.map_or_else(|| read("/etc/resolv.conf"), |dns| Ok(resolv_conf(dns).into_bytes()))?;
        let hosts = read("/etc/hosts")?;
        let files =
            [("hostname", format!("{hostname}\n").into_bytes()), ("hosts", hosts), ("resolv.conf", resolv)];
        for (name, content) in files {
            self.write(name, &content)?;
            if let Some((uid, gid)) = owner {
                let path = self.path(name);
                let given = std::os::unix::fs::chown(&path, Some(uid), Some(gid));
                given.map_err(|source| Error::File { op: "change the owner of", path, source })?;
            }
        }
        Ok(())
    }

    /// Mounts the pod's shared memory, which is `owner`'s.
    pub(super) fn mount_shm(&self, owner: Option<(u32, u32)>) -> Result<(), Error> {
        let path = self.path("shm");
        let made = std::fs::create_dir(&path);
        made.map_err(|source| Error::File { op: "create", path: path.clone(), source })?;
        let flags = MsFlags::MS_NOEXEC | MsFlags::MS_NOSUID | MsFlags::MS_NODEV;
        let (uid, gid) = owner.unwrap_or_default();
        let options = format!("mode=1777,size=65536k,uid={uid},gid={gid}");
        let mounted = mount(Some("shm"), &path, Some("tmpfs"), flags, Some(options.as_str()));
        mounted.map_err(|errno| Error::File { op: "mount", path, source: errno.into() })
    }

    /// Takes the shared memory out of the node's mounts; containers that still have it keep it.
    pub(super) fn unmount_shm(&self) -> Result<(), Error> {
        let path = self.path("shm");
        match umount2(&path, MntFlags::MNT_DETACH) {
            // EINVAL: not mounted (umount(2)).
            Ok(()) | Err(Errno::EINVAL | Errno::ENOENT) => Ok(()),
            Err(errno) => Err(Error::File { op: "unmount", path, source: errno.into() }),
        }
    }

    /// Removes the folder, which may be gone.
    pub(super) fn remove(&self) -> Result<(), Error> {
        match std::fs::remove_dir_all(&self.0) {
            Err(err) if err.kind() != io::ErrorKind::NotFound => {
                Err(Error::File { op: "remove", path: self.0.clone(), source: err })
            }
            _ => Ok(()),
        }
    }
}

fn read(path: &str) -> Result<Vec<u8>, Error> {
    std::fs::read(path).map_err(|source| Error::File { op: "read", path: Path::new(path).into(), source })
}

/// resolv.conf(5). An empty configuration is an empty file, not the node's.
fn resolv_conf(dns: &DNSConfig) -> String {
    let mut text = String::new();
    if !dns.searches.is_empty() {
        text += &format!("search {}\n", dns.searches.join(" "));
    }
    for server in &dns.servers {
        text += &format!("nameserver {server}\n");
    }
    if !dns.options.is_empty() {
        text += &format!("options {}\n", dns.options.join(" "));
    }
    text
}
