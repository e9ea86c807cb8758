//! The streams between a process and the fifos of its client.
//!
//! A process gets pipes or a terminal, never a fifo: a client that goes away (containerd restarts) would else break or
//! block it. Output fifos are opened for reading too, so that there is always a reader: no `EPIPE` without a client,
//! and no end of file for the next one. Of an input fifo a writing end is held until `CloseIO`: end of file comes when
//! that one and all clients are gone, as fifo(7) has it. What a fifo does not take waits in the pipe.

use std::fs::File;
use std::io;
use std::os::fd::{AsFd, OwnedFd};
use std::os::unix::fs::{FileTypeExt, OpenOptionsExt};
use std::path::{Path, PathBuf};
use std::process::Stdio as Descriptor;
use std::sync::{Arc, Mutex, PoisonError};
use std::time::{Duration, Instant};

use nix::fcntl::{FcntlArg, OFlag, fcntl};
use nix::unistd::{Gid, Uid};
use tokio::io::Interest;
use tokio::io::unix::AsyncFd;
use tokio::sync::watch;
use tokio::task::AbortHandle;
use tokio::time::sleep;

use super::TaskContext;
use super::copies::{self, Copies, Left, Sink, spawn_input};
use super::logging::{self, Logger, Outputs};
use super::process::Process;
use super::target::{self, Target};
use crate::oci::Descriptors;

/// How long a client may take to open its end of an output fifo, and the time between two looks.
const COMING: Duration = Duration::from_secs(10);
const PAUSE: Duration = Duration::from_millis(2);

/// What a client wants connected; an empty path is the null device.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub(crate) struct Paths {
    /// A fifo.
    pub(crate) stdin: String,
    /// A fifo, a file to append to, a `file://` URL, or that of a logging binary, which then takes the errors too.
    pub(crate) stdout: String,
    /// A fifo, a file or a `file://` URL; unused with a terminal or a logging binary.
    pub(crate) stderr: String,
    /// The process has a terminal.
    pub(crate) terminal: bool,
}

/// Why streams cannot be had.
#[derive(Debug, thiserror::Error)]
pub(crate) enum Error {
    /// A URL that cannot be used for this stream.
    #[error(transparent)]
    Address(#[from] target::Unusable),
    /// The program that should take the output.
    #[error(transparent)]
    Logging(#[from] logging::Error),
    /// The fifo or file cannot be opened.
    #[error("open stdio {}", path.display())]
    Open {
        /// The path.
        path: PathBuf,
        /// The system's answer.
        source: io::Error,
    },
    /// Nobody reads the fifo.
    #[error("open stdio {} for writing: it has had no reader for {COMING:?}", path.display())]
    Unread {
        /// The path.
        path: PathBuf,
        /// `ENXIO`.
        source: io::Error,
    },
    /// A pipe cannot be made or handed to its owner.
    #[error("make a pipe for stdio")]
    Pipe(#[source] io::Error),
    /// The runtime has sent no terminal.
    #[error("receive the terminal")]
    Terminal(#[source] io::Error),
}

/// The client's ends, opened.
#[derive(Debug)]
pub(crate) struct Opened {
    stdin: Option<Input>,
    output: Output,
}

#[derive(Debug)]
enum Output {
    Copied {
        stdout: Sink,
        stderr: Sink,
    },
    /// The process and its logging binary share pipes.
    Logged(Logger, Outputs),
}

/// The running copies of one process.
#[derive(Debug)]
pub(crate) struct Stdio {
    /// The writing end that keeps an input fifo open.
    held: Mutex<Option<File>>,
    input: Option<AbortHandle>,
    left: watch::Receiver<Left>,
    output: tokio::sync::Mutex<Copies>,
    logger: tokio::sync::Mutex<Option<Logger>>,
    master: Option<Arc<AsyncFd<OwnedFd>>>,
}

#[derive(Debug)]
struct Input {
    fifo: AsyncFd<OwnedFd>,
    held: File,
}

impl Opened {
    /// Opens what the client wants connected to `process`, once the client has its ends of the output open.
    pub(crate) async fn new(process: &Process, context: &TaskContext) -> Result<Opened, Error> {
        let paths = &process.paths;
        let stdin = open_input(&paths.stdin)?;
        let stdout = Target::parse(&paths.stdout)?;
        if let Target::Binary(binary) = stdout {
            let (logger, ends) = Logger::start(&binary, context, &process.id).await?;
            return Ok(Opened { stdin, output: Output::Logged(logger, ends) });
        }
        let stdout = open_sink(&paths.stdout, stdout).await?;
        let stderr = match paths.terminal {
            true => Sink::Null,
            false => open_sink(&paths.stderr, Target::parse(&paths.stderr)?).await?,
        };
        Ok(Opened { stdin, output: Output::Copied { stdout, stderr } })
    }

    /// Joins the client's ends to new pipes, which belong to `owner` so that the process may open them again through
    /// `/proc/self/fd`.
    pub(crate) fn pipes(self, owner: (Uid, Gid)) -> Result<(Stdio, Descriptors), Error> {
        let mut copies = Copies::default();
        let (stdout, stderr, logger) = match self.output {
            Output::Copied { stdout, stderr } => {
                (pipe_out(stdout, owner, &mut copies)?, pipe_out(stderr, owner, &mut copies)?, None)
            }
            Output::Logged(logger, ends) => {
                give(&ends.stdout, owner)?;
                give(&ends.stderr, owner)?;
                (ends.stdout.into(), ends.stderr.into(), Some(logger))
            }
        };
        let (mut held, mut input, mut stdin) = (None, None, Descriptor::null());
        if let Some(client) = self.stdin {
            let (theirs, ours) = pipe(owner)?;
            let ours = register(ours, Interest::WRITABLE).map_err(Error::Pipe)?;
            held = Some(client.held);
            input = Some(spawn_input(client.fifo, Arc::new(ours)));
            stdin = theirs.into();
        }
        let stdio = Stdio {
            held: Mutex::new(held),
            input,
            left: copies.left(),
            output: tokio::sync::Mutex::new(copies),
            logger: tokio::sync::Mutex::new(logger),
            master: None,
        };
        Ok((stdio, Descriptors { stdin, stdout, stderr: Some(stderr) }))
    }

    /// Joins the client's ends to a terminal's master.
    pub(crate) fn terminal(self, master: OwnedFd) -> Result<Stdio, Error> {
        let master =
            Arc::new(register(master, Interest::READABLE | Interest::WRITABLE).map_err(Error::Terminal)?);
        let (stdout, logger) = match self.output {
            Output::Copied { stdout, .. } => (stdout, None),
            Output::Logged(logger, ends) => {
                let stdout = register(ends.stdout, Interest::WRITABLE).map_err(Error::Pipe)?;
                (Sink::Stream(Arc::new(stdout)), Some(logger))
            }
        };
        let mut copies = Copies::default();
        copies.spawn(Arc::clone(&master), stdout);
        let (mut held, mut input) = (None, None);
        if let Some(client) = self.stdin {
            held = Some(client.held);
            input = Some(spawn_input(client.fifo, Arc::clone(&master)));
        }
        let left = copies.left();
        let (output, logger) = (tokio::sync::Mutex::new(copies), tokio::sync::Mutex::new(logger));
        Ok(Stdio { held: Mutex::new(held), input, left, output, logger, master: Some(master) })
    }
}

impl Descriptors {
    /// For a process that gets a terminal: what the runtime itself is connected to.
    pub(crate) fn none() -> Descriptors {
        Descriptors { stdin: Descriptor::null(), stdout: Descriptor::null(), stderr: None }
    }
}

impl Stdio {
    /// From now on input ends when the last client has closed it.
    pub(crate) fn close_input(&self) {
        drop(self.held.lock().unwrap_or_else(PoisonError::into_inner).take());
    }

    /// The process is gone: nobody reads input any more.
    pub(crate) fn stop_input(&self) {
        self.close_input();
        if let Some(input) = &self.input {
            input.abort();
        }
    }

    /// Waits until all output is with the client. A process that has outlived its parent may hold the pipes for ever,
    /// and a client may not read: after `limit` the rest is given up.
    pub(crate) async fn drain(&self, limit: Duration) {
        self.output.lock().await.drain(limit).await;
        if let Some(logger) = &mut *self.logger.lock().await {
            logger.end(limit).await;
        }
    }

    /// Waits until the client has read all output, and at most for `limit`.
    pub(crate) async fn read(&self, limit: Duration) {
        copies::read(self.left.clone(), limit).await;
    }

    /// The terminal, if there is one.
    pub(crate) fn master(&self) -> Option<&OwnedFd> {
        self.master.as_deref().map(AsyncFd::get_ref)
    }
}

impl Drop for Stdio {
    fn drop(&mut self) {
        self.stop_input();
    }
}

fn pipe_out(sink: Sink, owner: (Uid, Gid), copies: &mut Copies) -> Result<Descriptor, Error> {
    if matches!(sink, Sink::Null) {
        return Ok(Descriptor::null());
    }
    let (ours, theirs) = pipe(owner)?;
    let ours = register(ours, Interest::READABLE).map_err(Error::Pipe)?;
    copies.spawn(Arc::new(ours), sink);
    Ok(theirs.into())
}

/// The reading end, then the writing end.
fn pipe(owner: (Uid, Gid)) -> Result<(OwnedFd, OwnedFd), Error> {
    let ends = nix::unistd::pipe2(OFlag::O_CLOEXEC).map_err(|errno| Error::Pipe(errno.into()))?;
    give(&ends.0, owner)?;
    Ok(ends)
}

/// Both ends of a pipe have one owner.
fn give(end: &OwnedFd, (user, group): (Uid, Gid)) -> Result<(), Error> {
    if user.is_root() && group.as_raw() == 0 {
        return Ok(());
    }
    nix::unistd::fchown(end, Some(user), Some(group)).map_err(|errno| Error::Pipe(errno.into()))
}

/// For a descriptor of our own: the open file becomes non-blocking.
pub(super) fn register(fd: OwnedFd, interest: Interest) -> io::Result<AsyncFd<OwnedFd>> {
    set_nonblocking(&fd)?;
    // SAFETY: an OwnedFd is open and keeps its number until it is dropped, which the AsyncFd that owns it does last.
    unsafe { AsyncFd::register_with_interest(fd, interest) }.map_err(io::Error::from)
}

fn set_nonblocking(fd: &OwnedFd) -> io::Result<()> {
    let flags = OFlag::from_bits_retain(fcntl(fd.as_fd(), FcntlArg::F_GETFL)?);
    fcntl(fd.as_fd(), FcntlArg::F_SETFL(flags | OFlag::O_NONBLOCK))?;
    Ok(())
}

fn open_input(address: &str) -> Result<Option<Input>, Error> {
    let path = match Target::parse(address)? {
        Target::Null => return Ok(None),
        Target::Path(path) => path,
        Target::File(_) | Target::Binary(_) => return Err(Target::refuse(address, "a fifo").into()),
    };
    let failed = |source| Error::Open { path: path.clone(), source };
    // The reader first: a writer that must not wait needs one.
    let reader = nonblocking().read(true).open(&path).map_err(failed)?;
    if !reader.metadata().map_err(failed)?.file_type().is_fifo() {
        return Err(failed(io::Error::new(io::ErrorKind::InvalidInput, "not a fifo")));
    }
    let held = nonblocking().write(true).open(&path).map_err(failed)?;
    let fifo = register(reader.into(), Interest::READABLE).map_err(failed)?;
    Ok(Some(Input { fifo, held }))
}

async fn open_sink(address: &str, target: Target) -> Result<Sink, Error> {
    let (path, create) = match target {
        Target::Null => return Ok(Sink::Null),
        Target::Path(path) => (path, false),
        Target::File(path) => (path, true),
        Target::Binary(_) => return Err(Target::refuse(address, "the same address for stdout").into()),
    };
    let failed = |source| Error::Open { path: path.clone(), source };
    if create && let Some(folder) = path.parent() {
        std::fs::create_dir_all(folder).map_err(failed)?;
    }
    if create || !std::fs::metadata(&path).map_err(failed)?.file_type().is_fifo() {
        let file = File::options().append(true).create(create).open(&path);
        return file.map(Sink::File).map_err(failed);
    }
    let until_opened = once_read(&path).await?;
    let fifo = nonblocking().read(true).write(true).open(&path).map_err(failed)?;
    drop(until_opened);
    Ok(Sink::Stream(Arc::new(register(fifo.into(), Interest::WRITABLE).map_err(failed)?)))
}

/// A writing end of a fifo, once somebody has it open for reading: before that there is none (`ENXIO`, fifo(7)), which
/// after [`COMING`] is the error. containerd opens its end in a thread of its own, which on a busy node may come to open(2) when
/// the process has ended; it would then wait for another writer for ever, and whoever asked for the output with it
/// (`openFifo` in containerd/fifo, `drainExecSyncIO` in internal/cri/server/container_execsync.go). runc's shim waits
/// too, without an end (`copyPipes` in cmd/containerd-shim-runc-v2/process/io.go).
async fn once_read(path: &Path) -> Result<File, Error> {
    let end = Instant::now() + COMING;
    loop {
        match nonblocking().write(true).open(path) {
            Err(source) if source.raw_os_error() != Some(libc::ENXIO) => {
                return Err(Error::Open { path: path.into(), source });
            }
            Err(source) if Instant::now() > end => return Err(Error::Unread { path: path.into(), source }),
            Err(_) => sleep(PAUSE).await,
            Ok(file) => return Ok(file),
        }
    }
}

fn nonblocking() -> std::fs::OpenOptions {
    let mut options = File::options();
    options.custom_flags(libc::O_NONBLOCK);
    options
}
