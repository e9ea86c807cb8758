//! The one process of a pod that lives in the pod's user namespace, and how the daemon has it made.
//!
//! The daemon must stay the node's root, and IPC, UTS and PID namespaces belong to the user namespace that they are made
//! in (user_namespaces(7)); mounting `/proc` in a container, for one, needs a PID namespace of the container's own user
//! namespace. So a child goes in and makes them there, after its exec: that keeps the program's memory out of the pod's
//! reach, because ptrace(2) asks for a capability over the user namespace of the exec. Then it lives on as
//! `sandbox-init`; where the pod shares a PID namespace, it is a child of the child, which alone is in that.
//!
//! The two talk in lines over a socket, the child's standard input, whose end is also the end of the process:
//!
//! ```text
//! daemon   Birth, as JSON
//! child    "map"                  only if the user namespace is new
//! daemon   ""                     the maps are written
//! child    <pid> of the process that stays, as the daemon sees it; anything else is what went wrong
//! ```

use std::collections::BTreeMap;
use std::io::{self, BufReader};
use std::os::unix::net::UnixStream;
use std::sync::Arc;

use nix::errno::Errno;
use nix::unistd::{Gid, Uid, setgroups, setresgid, setresuid};
use serde::{Deserialize, Serialize};

use super::confine::{confine, empty_root};
use super::init::{self, hear, say};
use super::plan::Plan;
use super::user::User;
use super::{Error, namespaces};
use crate::reaper::{Child, Reaper};

const MAP: &str = "map";

/// What the child is to make.
#[derive(Debug, Serialize, Deserialize)]
struct Birth {
    /// A user namespace of its own; else that of the network namespace it is in.
    new_user: bool,
    ipc: bool,
    pid: bool,
    /// Of a new UTS namespace.
    hostname: Option<String>,
    /// Only a root of the IPC namespace's own user namespace may write all of them (`ipc_permissions` in ipc/ipc_sysctl.c).
    sysctls: BTreeMap<String, String>,
}

fn system(op: &'static str) -> impl FnOnce(Errno) -> Error {
    move |source| Error::System { op, source }
}

fn io_error(op: &'static str) -> impl FnOnce(io::Error) -> Error {
    move |source| Error::Io { op, source }
}

/// Starts the process from within the pod's network namespace. It ends with the returned descriptor.
pub(super) fn start(
    plan: &Plan,
    user: &User,
    hostname: &str,
    reaper: &Arc<Reaper>,
) -> Result<(Child, UnixStream), Error> {
    let birth = Birth {
        new_user: plan.netns.is_none(),
        ipc: plan.own_ipc,
        pid: plan.shared_pid,
        hostname: plan.netns.is_some().then(|| hostname.to_owned()),
        sysctls: plan.sysctls.clone(),
    };
    let (mut command, ours) = init::command("sandbox-user").map_err(io_error("start sandbox-init"))?;
    let first = reaper.spawn(&mut command);
    // Our copy of the other end: without it the child's death is the end of the conversation.
    drop(command);
    let first = first.map_err(io_error("start sandbox-init"))?;
    let mut replies = BufReader::new(&ours);
    let birth = serde_json::to_string(&birth).map_err(|err| io_error("start sandbox-init")(err.into()))?;
    say(&ours, &birth)?;
    if plan.netns.is_none() {
        let reply = hear(&mut replies)?;
        if reply != MAP {
            return Err(Error::Inside(reply));
        }
        user.map(first.pid)?;
        say(&ours, "")?;
    }
    let reply = hear(&mut replies)?;
    let pid = reply.parse().ok().ok_or(Error::Inside(reply))?;
    let child = if pid == first.pid { first } else { reaper.watch(pid) };
    Ok((child, ours))
}

/// The child's side, in a process that has never had a second thread. Returns at the end of `sandbox-init`, and in the
/// process between the daemon and it at once.
///
/// # Errors
/// The daemon is told too.
pub(crate) fn run() -> io::Result<()> {
    let daemon = init::daemon()?;
    let stays = enter(&daemon).map_err(|err| init::fail(&daemon, &err))?;
    drop(daemon);
    if stays { init::reap_until_end() } else { Ok(()) }
}

/// Goes into the user namespace, makes the others, and tells the daemon. Whether this process stays.
fn enter(daemon: &UnixStream) -> Result<bool, Error> {
    let mut lines = BufReader::new(daemon);
    let birth: Birth =
        serde_json::from_str(&hear(&mut lines)?).map_err(|err| io_error("read what to make")(err.into()))?;
    // Only the node's root may make a mount, even one that is nowhere.
    let root = empty_root().map_err(system("make an empty root"))?;
    setgroups(&[]).map_err(system("leave the node's groups"))?;
    if birth.new_user {
        namespaces::new_user().map_err(system("make the pod's user namespace"))?;
        say(daemon, MAP)?;
        hear(&mut lines)?;
    } else {
        let entered = namespaces::enter_user_of_net();
        entered.map_err(io_error("enter the user namespace of the pod's network namespace"))?;
    }
    let (uid, gid) = (Uid::from_raw(0), Gid::from_raw(0));
    setresgid(gid, gid, gid).map_err(system("become the pod's root"))?;
    setresuid(uid, uid, uid).map_err(system("become the pod's root"))?;
    if let Some(hostname) = &birth.hostname {
        namespaces::new_uts(hostname).map_err(system("make the pod's UTS namespace"))?;
    }
    if birth.ipc {
        namespaces::new_ipc().map_err(system("make the pod's IPC namespace"))?;
    }
    init::set_sysctls(&birth.sysctls)?;
    if birth.pid {
        namespaces::new_pid().map_err(system("make the pod's PID namespace"))?;
    }
    confine(&root).map_err(system("confine sandbox-init"))?;
    if !birth.pid {
        return say(daemon, &std::process::id().to_string()).map(|()| true);
    }
    match namespaces::fork_alone().map_err(system("start process 1"))? {
        Some(pid) => say(daemon, &pid.to_string()).map(|()| false),
        None => Ok(true),
    }
}
