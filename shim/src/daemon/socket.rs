//! The shim's socket: where it is, who may connect, whether somebody answers.

use std::fs::{DirBuilder, Permissions};
use std::io;
use std::os::unix::fs::{DirBuilderExt, PermissionsExt};
use std::os::unix::net::{UnixListener, UnixStream};
use std::path::{Path, PathBuf};

/// Where the sockets are unless containerd names another folder.
pub(super) const DIR: &str = "/run/containerd/s";

/// What containerd puts before the path of a socket.
const SCHEME: &str = "unix://";

/// The socket of a group of containers: a pod, or one container alone.
///
/// Its name is a digest, because the names of namespace and group may be 76 bytes each and a socket's path 107
/// (`sun_path` in unix(7)); and it does not change between versions, because a newer shim must find the older one's.
pub(super) fn path(dir: &Path, containerd: &str, namespace: &str, group: &str) -> PathBuf {
    dir.join(format!("{:032x}", fnv(&format!("{containerd}/{namespace}/{group}"))))
}

/// The address that containerd connects to.
pub(super) fn address(path: &Path) -> String {
    format!("{SCHEME}{}", path.display())
}

/// The path in an address.
pub(super) fn of_address(address: &str) -> PathBuf {
    address.trim().trim_start_matches(SCHEME).into()
}

/// Whether a living process listens: the kernel refuses the connection when none has the socket open.
pub(super) fn answers(path: &Path) -> bool {
    UnixStream::connect(path).is_ok()
}

/// Listens at `path`, which nobody else answers at: a socket there is the rest of a dead shim.
pub(super) fn bind(path: &Path) -> io::Result<UnixListener> {
    if let Some(dir) = path.parent() {
        DirBuilder::new().recursive(true).mode(0o700).create(dir)?;
    }
    remove(path)?;
    let listener = UnixListener::bind(path)?;
    // Nobody got in before this: the folder is ours alone, and the server asks each peer who it is.
    std::fs::set_permissions(path, Permissions::from_mode(0o600))?;
    Ok(listener)
}

/// Removes a socket that may be gone already.
pub(super) fn remove(path: &Path) -> io::Result<()> {
    match std::fs::remove_file(path) {
        Err(err) if err.kind() != io::ErrorKind::NotFound => Err(err),
        _ => Ok(()),
    }
}

/// FNV-1a with 128 bits (draft-eastlake-fnv): ids are random, and only root chooses them.
fn fnv(text: &str) -> u128 {
    text.bytes().fold(0x6c62_272e_07bb_0142_62b8_2175_6295_c58d, |hash: u128, byte| {
        (hash ^ u128::from(byte)).wrapping_mul(0x0000_0000_0100_0000_0000_0000_0000_013b)
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_digest_is_the_published_one() {
        assert_eq!(fnv(""), 0x6c62_272e_07bb_0142_62b8_2175_6295_c58d);
        assert_eq!(fnv("a"), 0xd228_cb69_6f1a_8caf_7891_2b70_4e4a_8964);
    }

    #[test]
    fn the_longest_names_fit() {
        let long = "n".repeat(76);
        let path = path(Path::new(DIR), "/run/containerd/containerd.sock", &long, &long);
        assert!(path.as_os_str().len() <= 107);
        assert_eq!(of_address(&address(&path)), path);
    }
}
