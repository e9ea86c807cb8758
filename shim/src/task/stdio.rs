//! The streams between a process and the fifos of its client.
//!
//! A process gets pipes or a terminal, never a fifo: a client that goes away (containerd restarts) would else break or
//! block it. Output fifos are opened for reading too, so that there is always a reader: no `EPIPE` without a client,
//! and no end of file for the next one. Of an input fifo a writing end is held until `CloseIO`: end of file comes when
//! that one and all clients are gone, as fifo(7) has it. What a fifo does not take waits in the pipe.
//!
//! A buffer exists only while data flows: an idle process costs descriptors, not memory.

use std::fs::File;
use std::io::{self, Write};
use std::os::fd::{AsFd, AsRawFd, OwnedFd};
use std::os::unix::fs::{FileTypeExt, OpenOptionsExt};
use std::path::PathBuf;
use std::process::Stdio as Descriptor;
use std::sync::{Arc, Mutex, PoisonError};
use std::time::Duration;

use nix::fcntl::{FcntlArg, OFlag, fcntl};
use nix::unistd::{Gid, Uid};
use tokio::io::Interest;
use tokio::io::unix::AsyncFd;
use tokio::sync::mpsc;
use tokio::task::{AbortHandle, JoinSet};
use tokio::time::{sleep, timeout};

use super::TaskContext;
use super::logging::{self, Logger, Outputs};
use super::process::Process;
use super::target::{self, Target};
use crate::oci::Descriptors;

/// One read; a fifo takes four of them before it is full.
const BUFFER: usize = 16 * 1024;
/// Between two looks at a fifo that a client has yet to read: doubled from the first to the second.
const UNREAD: (Duration, Duration) = (Duration::from_millis(1), Duration::from_millis(200));

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
    output: tokio::sync::Mutex<Copies>,
    logger: tokio::sync::Mutex<Option<Logger>>,
    master: Option<Arc<AsyncFd<OwnedFd>>>,
}

#[derive(Debug)]
struct Input {
    fifo: AsyncFd<OwnedFd>,
    held: File,
}

#[derive(Debug)]
enum Sink {
    Null,
    /// A pipe, a fifo or a terminal.
    Stream(Arc<AsyncFd<OwnedFd>>),
    File(File),
}

impl Opened {
    /// Opens what the client wants connected to `process`; nothing here waits for a client, only for a logging binary.
    pub(crate) async fn new(process: &Process, context: &TaskContext) -> Result<Opened, Error> {
        let paths = &process.paths;
        let stdin = open_input(&paths.stdin)?;
        let stdout = Target::parse(&paths.stdout)?;
        if let Target::Binary(binary) = stdout {
            let (logger, ends) = Logger::start(&binary, context, &process.id).await?;
            return Ok(Opened { stdin, output: Output::Logged(logger, ends) });
        }
        let stdout = open_sink(&paths.stdout, stdout)?;
        let stderr = match paths.terminal {
            true => Sink::Null,
            false => open_sink(&paths.stderr, Target::parse(&paths.stderr)?)?,
        };
        Ok(Opened { stdin, output: Output::Copied { stdout, stderr } })
    }

    /// Joins the client's ends to new pipes, which belong to `owner` so that the process may open them again through
    /// `/proc/self/fd`.
    pub(crate) fn pipes(self, owner: (Uid, Gid)) -> Result<(Stdio, Descriptors), Error> {
        let mut copies = Copies::new();
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
        let mut copies = Copies::new();
        copies.spawn(Arc::clone(&master), stdout);
        let (mut held, mut input) = (None, None);
        if let Some(client) = self.stdin {
            held = Some(client.held);
            input = Some(spawn_input(client.fifo, Arc::clone(&master)));
        }
        let (output, logger) = (tokio::sync::Mutex::new(copies), tokio::sync::Mutex::new(logger));
        Ok(Stdio { held: Mutex::new(held), input, output, logger, master: Some(master) })
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
        let mut output = self.output.lock().await;
        output.last = None;
        if timeout(limit, output.ended.recv()).await.is_err() {
            log::warn!("output is still open or unread {limit:?} after the exit: the rest is dropped");
            output.tasks.shutdown().await;
        }
        if let Some(logger) = &mut *self.logger.lock().await {
            logger.end(limit).await;
        }
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

/// The copies of a process's output.
#[derive(Debug)]
struct Copies {
    /// Ended with this value, and with them the client's ends are closed.
    tasks: JoinSet<()>,
    /// Closed when `last` and those of the tasks are: nothing is left to copy.
    ended: mpsc::Receiver<()>,
    last: Option<mpsc::Sender<()>>,
}

impl Copies {
    fn new() -> Copies {
        let (last, ended) = mpsc::channel(1);
        Copies { tasks: JoinSet::new(), ended, last: Some(last) }
    }

    fn spawn(&mut self, source: Arc<AsyncFd<OwnedFd>>, mut sink: Sink) {
        let copying = self.last.clone();
        self.tasks.spawn(async move {
            copy(source, &mut sink).await;
            drop(copying);
            sink.until_read().await;
        });
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

fn spawn_input(fifo: AsyncFd<OwnedFd>, to: Arc<AsyncFd<OwnedFd>>) -> AbortHandle {
    tokio::spawn(async move { copy(Arc::new(fifo), &mut Sink::Stream(to)).await }).abort_handle()
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

fn open_sink(address: &str, target: Target) -> Result<Sink, Error> {
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
    let fifo = nonblocking().read(true).write(true).open(&path).map_err(failed)?;
    Ok(Sink::Stream(Arc::new(register(fifo.into(), Interest::WRITABLE).map_err(failed)?)))
}

fn nonblocking() -> std::fs::OpenOptions {
    let mut options = File::options();
    options.custom_flags(libc::O_NONBLOCK);
    options
}
