//! Loop devices: a file system in a file (loop(4)).

use std::fs::{File, OpenOptions};
use std::io;
use std::os::fd::AsRawFd;
use std::path::{Path, PathBuf};

use nix::errno::Errno;

/// Between asking for a free device and taking it another process may take it.
const ATTEMPTS: usize = 64;
// linux/loop.h.
const LO_FLAGS_READ_ONLY: u32 = 1;
const LO_FLAGS_AUTOCLEAR: u32 = 4;

/// `struct loop_config`: descriptor, block size, `struct loop_info64` (of which only the flags are set here), 8 spare words.
#[repr(C)]
struct LoopConfig {
    fd: u32,
    block_size: u32,
    info: LoopInfo,
    spare: [u64; 8],
}

/// `struct loop_info64`, 232 bytes.
#[repr(C)]
struct LoopInfo {
    before_flags: [u8; 52],
    flags: u32,
    after_flags: [u8; 176],
}

nix::ioctl_none_bad!(get_free, 0x4C82);
nix::ioctl_write_ptr_bad!(configure, 0x4C0A, LoopConfig);

/// A device that is there as long as it is open or mounted.
#[derive(Debug)]
pub(super) struct LoopDevice {
    pub(super) path: PathBuf,
    _open: File,
}

impl LoopDevice {
    /// Makes `file` a block device.
    pub(super) fn of(file: &Path, read_only: bool) -> io::Result<LoopDevice> {
        let backing = OpenOptions::new().read(true).write(!read_only).open(file)?;
        let control = OpenOptions::new().read(true).write(true).open("/dev/loop-control")?;
        let flags = LO_FLAGS_AUTOCLEAR | if read_only { LO_FLAGS_READ_ONLY } else { 0 };
        for _ in 0..ATTEMPTS {
            // SAFETY: the request takes no argument.
            let number = unsafe { get_free(control.as_raw_fd()) }?;
            let path = PathBuf::from(format!("/dev/loop{number}"));
            let device = OpenOptions::new().read(true).write(!read_only).open(&path)?;
            let config = LoopConfig {
                fd: backing.as_raw_fd().unsigned_abs(),
                block_size: 0,
                info: LoopInfo { before_flags: [0; 52], flags, after_flags: [0; 176] },
                spare: [0; 8],
            };
            // SAFETY: the kernel reads one structure of this size and layout.
            match unsafe { configure(device.as_raw_fd(), &raw const config) } {
                Ok(_) => return Ok(LoopDevice { path, _open: device }),
                Err(Errno::EBUSY) => {}
                Err(errno) => return Err(errno.into()),
            }
        }
        Err(Errno::EBUSY.into())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_structures_are_the_kernels() {
        assert_eq!(size_of::<LoopInfo>(), 232);
        assert_eq!(size_of::<LoopConfig>(), 304);
        assert_eq!(std::mem::offset_of!(LoopInfo, flags), 52);
    }
}
