//! Signals as something to wait for.
//!
//! By signalfd(2): tokio's own signals come with a table of all 65 of the platform, 29 kB in every daemon. The signals are
//! blocked in the calling thread and those it starts later; a program that the standard library starts begins with none blocked.

use std::io;

use nix::sys::signal::{SigSet, Signal};
use nix::sys::signalfd::{SfdFlags, SignalFd};
use tokio::io::Interest;
use tokio::io::unix::AsyncFd;

/// Some signals of this process, from now on.
#[derive(Debug)]
pub(crate) struct Signals(AsyncFd<SignalFd>);

impl Signals {
    /// Blocks `signals`, which are then to be had from here only.
    ///
    /// # Errors
    /// What the kernel answers.
    pub(crate) fn of(signals: &[Signal]) -> io::Result<Signals> {
        let set: SigSet = signals.iter().copied().collect();
        set.thread_block()?;
        let fd = SignalFd::with_flags(&set, SfdFlags::SFD_CLOEXEC | SfdFlags::SFD_NONBLOCK)?;
        // SAFETY: the descriptor is the value's own and open as long as the value; nobody exchanges it.
        Ok(Signals(unsafe { AsyncFd::register_with_interest(fd, Interest::READABLE) }?))
    }

    /// Waits for the next one. Several of one kind may come as one (signal(7)).
    ///
    /// # Errors
    /// What the kernel answers.
    pub(crate) async fn next(&self) -> io::Result<Signal> {
        loop {
            let mut ready = self.0.readable().await?;
            match self.0.get_ref().read_signal()? {
                Some(info) => return Ok(Signal::try_from(info.ssi_signo.cast_signed())?),
                None => ready.clear_ready(),
            }
        }
    }
}
