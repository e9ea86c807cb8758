//! What `sandbox-init` gives up before a container can see it.
//!
//! A container of the pod that may look into other processes (CAP_SYS_PTRACE, as debuggers have) reaches through
//! `/proc/1/root` whatever process 1 of the pod reaches, and could do what that may do. So it reaches an empty folder and
//! may do nothing, as a pause container.

use std::ffi::{CStr, c_char, c_int, c_long, c_uint};
use std::os::fd::{AsRawFd, FromRawFd, OwnedFd, RawFd};

use nix::errno::Errno;
use nix::sys::prctl;

// linux/mount.h.
const FSOPEN_CLOEXEC: c_uint = 1;
const FSMOUNT_CLOEXEC: c_uint = 1;
const FSCONFIG_SET_STRING: c_uint = 1;
const FSCONFIG_CMD_CREATE: c_uint = 6;
const MOUNT_ATTR_RDONLY: c_uint = 1;

/// linux/capability.h: the version, and this process.
const CAPABILITIES: [u32; 2] = [0x2008_0522, 0];

/// A folder with nothing in it and nothing above it: a file system of its own that is mounted nowhere.
pub(super) fn empty_root() -> Result<OwnedFd, Errno> {
    // SAFETY: the name is a C string that outlives the call.
    let fs = unsafe { libc::syscall(libc::SYS_fsopen, c"tmpfs".as_ptr(), FSOPEN_CLOEXEC) };
    let fs = owned(fs)?;
    configure(fs.as_raw_fd(), FSCONFIG_SET_STRING, Some((c"mode", c"0555")))?;
    configure(fs.as_raw_fd(), FSCONFIG_CMD_CREATE, None)?;
    // SAFETY: the call takes three integers and touches no memory.
    owned(unsafe { libc::syscall(libc::SYS_fsmount, fs.as_raw_fd(), FSMOUNT_CLOEXEC, MOUNT_ATTR_RDONLY) })
}

/// fsconfig(2).
fn configure(fs: RawFd, command: c_uint, option: Option<(&CStr, &CStr)>) -> Result<(), Errno> {
    let null = std::ptr::null::<c_char>();
    let (key, value) = option.map_or((null, null), |(key, value)| (key.as_ptr(), value.as_ptr()));
    // SAFETY: both are null or C strings that outlive the call.
    Errno::result(unsafe { libc::syscall(libc::SYS_fsconfig, fs, command, key, value, 0 as c_int) }).map(drop)
}

fn owned(fd: c_long) -> Result<OwnedFd, Errno> {
    let fd = i32::try_from(Errno::result(fd)?).map_err(|_out_of_range| Errno::EBADF)?;
    // SAFETY: the kernel has just made the descriptor, for this caller alone.
    Ok(unsafe { OwnedFd::from_raw_fd(fd) })
}

/// For good: the folder becomes the root of this process, and all capabilities go; an exec as root brings none back.
pub(super) fn confine(root: &OwnedFd) -> Result<(), Errno> {
    nix::unistd::fchdir(root)?;
    nix::unistd::chroot(".")?;
    prctl::set_dumpable(false)?;
    prctl::set_no_new_privs()?;
    let none = [0_u32; 6];
    // SAFETY: capset(2) reads a header of two words and, in this version, two sets of three; both outlive the call.
    Errno::result(unsafe { libc::syscall(libc::SYS_capset, CAPABILITIES.as_ptr(), none.as_ptr()) }).map(drop)
}
