//! The terminal of a process: how its master end reaches us, and its size.
//!
//! An OCI runtime connects to a unix socket and sends the master as ancillary data. The socket lies in the bundle, so
//! that it goes with it, and is named through `/proc/<pid>/fd/<bundle>`: a bundle's own path does not fit the 107 bytes
//! of `sun_path` (unix(7)).

use std::io::{self, IoSliceMut};
use std::os::fd::{AsRawFd, FromRawFd, OwnedFd, RawFd};
use std::path::{Path, PathBuf};
use std::sync::atomic::{AtomicU32, Ordering};
use std::time::Duration;

use nix::fcntl::{OFlag, open};
use nix::sys::socket::{ControlMessageOwned, MsgFlags, recvmsg};
use nix::sys::stat::Mode;
use nix::unistd::{UnlinkatFlags, unlinkat};
use tokio::io::Interest;
use tokio::net::{UnixListener, UnixStream};
use tokio::time::timeout;

/// The runtime has already ended well when we ask: the master is on its way.
const ARRIVAL: Duration = Duration::from_secs(5);

/// A socket that waits for one terminal.
#[derive(Debug)]
pub(crate) struct Console {
    listener: UnixListener,
    bundle: OwnedFd,
    name: String,
}

impl Console {
    /// Listens in `bundle`.
    pub(crate) fn listen(bundle: &Path) -> io::Result<Console> {
        static NEXT: AtomicU32 = AtomicU32::new(0);
        let name = format!("pty{}", NEXT.fetch_add(1, Ordering::Relaxed));
        let bundle = open(bundle, OFlag::O_PATH | OFlag::O_DIRECTORY | OFlag::O_CLOEXEC, Mode::empty())?;
        let listener = UnixListener::bind(socket_path(&bundle, &name))?;
        Ok(Console { listener, bundle, name })
    }

    /// What the runtime gets as `--console-socket`.
    pub(crate) fn path(&self) -> PathBuf {
        socket_path(&self.bundle, &self.name)
    }

    /// The master.
    pub(crate) async fn receive(self) -> io::Result<OwnedFd> {
        timeout(ARRIVAL, async {
            let (stream, _) = self.listener.accept().await?;
            loop {
                stream.readable().await?;
                match stream.try_io(Interest::READABLE, || receive_fd(&stream)) {
                    Err(err) if err.kind() == io::ErrorKind::WouldBlock => {}
                    result => return result,
                }
            }
        })
        .await?
    }
}

impl Drop for Console {
    fn drop(&mut self) {
        if let Err(err) = unlinkat(&self.bundle, self.name.as_str(), UnlinkatFlags::NoRemoveDir) {
            log::debug!("remove the console socket: {err}");
        }
    }
}

/// Sets the size in characters, and so sends `SIGWINCH`.
pub(crate) fn resize(master: &OwnedFd, width: u16, height: u16) -> io::Result<()> {
    let size = libc::winsize { ws_row: height, ws_col: width, ws_xpixel: 0, ws_ypixel: 0 };
    // SAFETY: TIOCSWINSZ (ioctl_tty(2)) reads one winsize from a live local; the descriptor is borrowed and open.
    let result = unsafe { libc::ioctl(master.as_raw_fd(), libc::TIOCSWINSZ, &size) };
    nix::errno::Errno::result(result)?;
    Ok(())
}

fn socket_path(bundle: &OwnedFd, name: &str) -> PathBuf {
    format!("/proc/{}/fd/{}/{name}", std::process::id(), bundle.as_raw_fd()).into()
}

fn receive_fd(stream: &UnixStream) -> io::Result<OwnedFd> {
    let mut name = [0; 256];
    let mut parts = [IoSliceMut::new(&mut name)];
    let mut space = nix::cmsg_space!(RawFd);
    let message =
        recvmsg::<()>(stream.as_raw_fd(), &mut parts, Some(&mut space), MsgFlags::MSG_CMSG_CLOEXEC)?;
    for control in message.cmsgs()? {
        if let ControlMessageOwned::ScmRights(fds) = control
            && let Some(fd) = fds.first()
        {
            // SAFETY: the kernel has just installed this descriptor for us; nothing else knows its number. The space
            // above holds one descriptor, so there is no second one.
            return Ok(unsafe { OwnedFd::from_raw_fd(*fd) });
        }
    }
    Err(io::Error::new(io::ErrorKind::InvalidData, "no descriptor on the console socket"))
}
