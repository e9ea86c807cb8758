//! The process behind `containerd-shim-weft-v1`, from its command line to its exit code.
//!
//! `start` binds the pod's socket and leaves a daemon behind it; the daemon serves containerd for the life of the
//! pod, on one thread, which is the main thread, because the process itself enters the pod's namespaces; `delete`
//! cleans up from the outside. containerd reads the output of `start` byte by byte, standard error included, so
//! nothing is printed there but the reply, or the reason of a failure.

mod args;
mod bootstrap;
mod delete;
#[cfg(feature = "fuzzing")]
pub(crate) mod fuzz;
mod given_up;
mod info;
mod logger;
mod server;
mod socket;

use std::io::{self, Write};
use std::path::PathBuf;

use nix::errno::Errno;

use crate::config;
use crate::error::chain;
use crate::sandbox;

use args::{Args, Verb};

/// Why a verb did not do what it should.
#[derive(Debug, thiserror::Error)]
enum Error {
    #[error("command line")]
    Args(#[from] args::Error),
    #[error(transparent)]
    Config(#[from] config::Error),
    #[error("{op}")]
    Io { op: &'static str, source: io::Error },
    #[error("{op} {}", path.display())]
    File { op: &'static str, path: PathBuf, source: io::Error },
    #[error("{op}")]
    System { op: &'static str, source: Errno },
    #[error("open the node's network namespace")]
    Namespace { source: weft_netns::Error },
    #[error("{op}")]
    Message { op: &'static str, source: protobuf::Error },
    #[error("parse {}", path.display())]
    Json { path: PathBuf, source: serde_json::Error },
    #[error("{op}")]
    Serve { op: &'static str, source: ttrpc::Error },
    #[error(transparent)]
    Sandbox(#[from] sandbox::Error),
    #[error("clean up task {id}")]
    Task { id: String, source: crate::task::Error },
    #[error("{}", crate::error::all(.0))]
    Several(Vec<Error>),
}

fn io_error(op: &'static str) -> impl FnOnce(io::Error) -> Error {
    move |source| Error::Io { op, source }
}

/// Does what `words`, the command line without the program's name, ask for, and returns the exit code. A failure is printed on
/// standard error.
pub fn main(words: impl Iterator<Item = String>) -> i32 {
    let done = Args::parse(words).map_err(Error::Args).and_then(|args| run(&args));
    match done.and_then(|answer| io::stdout().write_all(&answer).map_err(io_error("write the answer"))) {
        Ok(()) => 0,
        Err(err) => {
            log::error!("{}", chain(&err));
            // Where even standard error is closed, the exit code is all that is left to say.
            writeln!(io::stderr(), "{}", chain(&err)).map_or(2, |()| 1)
        }
    }
}

/// The bytes for standard output. The larger verbs are no part of this function (`#[inline(never)]`): those that last as long as the pod
/// would keep the frames of the others, 3 kB.
fn run(args: &Args) -> Result<Vec<u8>, Error> {
    match args.verb {
        Verb::Start => bootstrap::start(args),
        Verb::Delete => delete::delete(args),
        Verb::Info => info::info(),
        Verb::Version => Ok(info::version().into_bytes()),
        Verb::Serve => server::serve(args).map(|()| Vec::new()),
        Verb::SandboxUser => sandbox::inside::run().map(|()| Vec::new()).map_err(io_error("be the sandbox")),
        Verb::SandboxInit => sandbox::init::run().map(|()| Vec::new()).map_err(io_error("reap")),
    }
}
