//! What `delete` must know when the daemon is dead: `state.json` in the pod's folder.
//!
//! Written before the first thing that outlives the daemon is made, and again when there is more to know. The
//! shared memory and the files are found by their place, the network by weft's own record of it.

use serde::{Deserialize, Serialize};

use super::Error;
use super::cgroup::Cgroup;
use super::files::Dir;
use super::process::Process;

/// Changes when an older `delete` would misread the file.
const VERSION: u32 = 1;
const FILE: &str = "state.json";

/// The pod's traces outside its own folder.
#[derive(Debug, Serialize, Deserialize)]
pub(super) struct State {
    version: u32,
    /// The daemon itself: `delete` ends one that hangs.
    #[serde(default)]
    pub(super) daemon: Option<Process>,
    /// The pod's own cgroup.
    pub(super) cgroup: Option<Cgroup>,
    /// Process 1 of a shared PID namespace.
    pub(super) init: Option<Process>,
}

impl State {
    pub(super) fn new(cgroup: Option<Cgroup>) -> State {
        let daemon = Process::of(std::process::id()).ok();
        State { version: VERSION, daemon, cgroup, init: None }
    }

    pub(super) fn save(&self, dir: &Dir) -> Result<(), Error> {
        let text =
            serde_json::to_vec(self).map_err(|source| Error::State { path: dir.path(FILE), source })?;
        dir.write(FILE, &text)
    }

    /// The state of a pod whose daemon is dead; `None` if there is no such pod.
    pub(super) fn load(dir: &Dir) -> Result<Option<State>, Error> {
        let path = dir.path(FILE);
        let text = match std::fs::read(&path) {
            Ok(text) => text,
            Err(err) if err.kind() == std::io::ErrorKind::NotFound => return Ok(None),
            Err(source) => return Err(Error::File { op: "read", path, source }),
        };
        let state: State = serde_json::from_slice(&text).map_err(|source| Error::State { path, source })?;
        if state.version > VERSION {
            return Err(Error::Version { got: state.version, want: VERSION });
        }
        Ok(Some(state))
    }
}
