//! Connects a new process with its client, around the run of the OCI runtime that makes it: pipes exist before, a
//! terminal only after.

use std::path::{Path, PathBuf};

use nix::unistd::{Gid, Uid};

use super::TaskContext;
use super::console::Console;
use super::process::Process;
use super::stdio::{Error, Opened, Stdio};
use crate::oci::Descriptors;

/// Both sides of a process's streams, before the OCI runtime runs.
#[derive(Debug)]
pub(super) struct Streams {
    /// For the runtime.
    pub(super) descriptors: Descriptors,
    pub(super) client: Client,
}

/// The side that stays here.
#[derive(Debug)]
pub(super) enum Client {
    Pipes(Stdio),
    Terminal(Opened, Console),
}

impl Streams {
    pub(super) async fn open(
        process: &Process,
        context: &TaskContext,
        bundle: &Path,
        owner: (Uid, Gid),
    ) -> Result<Streams, Error> {
        let opened = Opened::new(process, context).await?;
        if process.paths.terminal {
            let console = Console::listen(bundle).map_err(Error::Terminal)?;
            let client = Client::Terminal(opened, console);
            return Ok(Streams { descriptors: Descriptors::none(), client });
        }
        let (stdio, descriptors) = opened.pipes(owner)?;
        Ok(Streams { descriptors, client: Client::Pipes(stdio) })
    }
}

impl Client {
    /// Where the runtime sends a terminal to.
    pub(super) fn socket(&self) -> Option<PathBuf> {
        match self {
            Client::Pipes(_) => None,
            Client::Terminal(_, console) => Some(console.path()),
        }
    }

    /// After the runtime has made process `pid`, which is killed if it cannot be connected.
    pub(super) async fn connect(self, pid: u32) -> Result<Stdio, Error> {
        match self {
            Client::Pipes(stdio) => Ok(stdio),
            Client::Terminal(opened, console) => {
                let master = console.receive().await.map_err(Error::Terminal);
                let connected = master.and_then(|master| opened.terminal(master));
                if connected.is_err()
                    && let Err(err) = crate::reaper::send_signal(pid, libc::SIGKILL)
                {
                    log::debug!("kill {pid}: {err}");
                }
                connected
            }
        }
    }
}
