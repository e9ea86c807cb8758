//! The copying itself, in tasks: a process's output to its client, and input the other way.
//!
//! A buffer exists only while data flows: an idle process costs descriptors, not memory.

use std::fs::File;
use std::io::{self, Write};
use std::os::fd::{AsRawFd, OwnedFd};
use std::sync::Arc;
use std::time::Duration;

use tokio::io::unix::AsyncFd;
use tokio::sync::watch;
use tokio::task::{AbortHandle, JoinSet};
use tokio::time::{sleep, timeout};

/// One read; a fifo takes four of them before it is full.
const BUFFER: usize = 16 * 1024;
/// Between two looks at a fifo that a client has yet to read: doubled from the first to the second.
const UNREAD: (Duration, Duration) = (Duration::from_millis(1), Duration::from_millis(200));

#[derive(Debug)]
pub(super) enum Sink {
    Null,
    /// A pipe, a fifo or a terminal.
    Stream(Arc<AsyncFd<OwnedFd>>),
    File(File),
}

impl Sink {
    async fn write_all(&mut self, mut bytes: &[u8]) -> io::Result<()> {
        match self {
            Sink::Null => Ok(()),
            // Local and bounded by the disk; a regular file is always ready for epoll(7).
            Sink::File(file) => file.write_all(bytes),
            Sink::Stream(stream) => {
                while !bytes.is_empty() {
                    let mut ready = stream.writable().await?;
                    match ready.try_io(|fd| nix::unistd::write(fd, bytes).map_err(io::Error::from)) {
                        Ok(Err(err)) if err.kind() == io::ErrorKind::Interrupted => {}
                        Ok(written) => bytes = bytes.get(written?..).unwrap_or_default(),
                        Err(_) => {}
                    }
                }
                Ok(())
            }
        }
    }

    /// Waits until a fifo is empty. What is in it goes when its last descriptor is closed (pipe(7)), and while containerd
    /// restarts ours is the last. Nothing tells a writer of a reader's progress, so it is looked at, ever more seldom.
    async fn until_read(&self) {
        let Sink::Stream(stream) = self else { return };
        let mut pause = UNREAD.0;
        while unread(stream.get_ref()) > 0 {
            sleep(pause).await;
            pause = (pause * 2).min(UNREAD.1);
        }
    }
}

nix::ioctl_read_bad!(
    /// Bytes that wait to be read (`ioctl_tty(2)`, which holds for pipes too: pipe(7)).
    fionread,
    libc::FIONREAD,
    libc::c_int
);

pub(super) fn unread(fd: &OwnedFd) -> i32 {
    let mut bytes = 0;
    // SAFETY: the request writes one int, and that is what it gets.
    let answer = unsafe { fionread(fd.as_raw_fd(), &mut bytes) };
    answer.map_or(0, |_| bytes)
}

/// How many streams of a process's output are not yet at their end.
#[derive(Debug, Default, Clone, Copy)]
pub(super) struct Left {
    to_copy: usize,
    to_read: usize,
}

/// The copies of a process's output.
#[derive(Debug, Default)]
pub(super) struct Copies {
    /// Ended with this value, and with them the client's ends are closed.
    tasks: JoinSet<()>,
    left: watch::Sender<Left>,
}

impl Copies {
    pub(super) fn spawn(&mut self, source: Arc<AsyncFd<OwnedFd>>, mut sink: Sink) {
        let left = self.left.clone();
        left.send_modify(|left| (left.to_copy, left.to_read) = (left.to_copy + 1, left.to_read + 1));
        self.tasks.spawn(async move {
            copy(source, &mut sink).await;
            left.send_modify(|left| left.to_copy -= 1);
            sink.until_read().await;
            left.send_modify(|left| left.to_read -= 1);
        });
    }

    /// Waits until all output is with the client, and at most for `limit`; the rest is given up then.
    pub(super) async fn drain(&mut self, limit: Duration) {
        let mut left = self.left.subscribe();
        if timeout(limit, left.wait_for(|left| left.to_copy == 0)).await.is_err() {
            log::warn!("output is still open or unread {limit:?} after the exit: the rest is dropped");
            self.tasks.shutdown().await;
        }
    }

    /// For [`read`].
    pub(super) fn left(&self) -> watch::Receiver<Left> {
        self.left.subscribe()
    }
}

/// Waits until the client has read all output, and at most for `limit`.
pub(super) async fn read(mut left: watch::Receiver<Left>, limit: Duration) {
    if timeout(limit, left.wait_for(|left| left.to_read == 0)).await.is_err() {
        log::debug!("output is open or unread {limit:?} after the exit");
    }
}

/// Copies until `source` ends. A sink that fails is not a reason to stop reading: the writer would block.
async fn copy(source: Arc<AsyncFd<OwnedFd>>, sink: &mut Sink) {
    loop {
        let Ok(mut ready) = source.readable().await else { return };
        let mut buffer = vec![0; BUFFER];
        loop {
            match ready.try_io(|fd| nix::unistd::read(fd, &mut buffer).map_err(io::Error::from)) {
                Err(_) => break,
                Ok(Err(err)) if err.kind() == io::ErrorKind::Interrupted => {}
                // EIO is how a terminal's master says that the last process has closed the other end.
                Ok(Ok(0) | Err(_)) => return,
                Ok(Ok(read)) => {
                    if let Err(err) = sink.write_all(buffer.get(..read).unwrap_or_default()).await {
                        if err.kind() == io::ErrorKind::BrokenPipe {
                            return;
                        }
                        log::warn!("write output: {err}");
                        *sink = Sink::Null;
                    }
                    // Source and sink may both be ready for ever.
                    tokio::task::coop::consume_budget().await;
                }
            }
        }
    }
}

/// Copies input until there is none, or the copying is aborted.
pub(super) fn spawn_input(fifo: AsyncFd<OwnedFd>, to: Arc<AsyncFd<OwnedFd>>) -> AbortHandle {
    tokio::spawn(async move { copy(Arc::new(fifo), &mut Sink::Stream(to)).await }).abort_handle()
}
