//! What makes this process a pod's sandbox, step by step, and back.

use std::io::{self, BufReader};
use std::os::unix::net::UnixStream;
use std::sync::Arc;
use std::time::{Duration, SystemTime};

use containerd_shim_protos::sandbox_api::CreateSandboxRequest;
use nix::errno::Errno;
use tokio::task::JoinHandle;
use tokio::time::timeout;

use super::cgroup::{Cgroup, Entrance, Hierarchies, Move};
use super::files::Dir;
use super::namespaces::{self, Home};
use super::plan::Plan;
use super::process::Process;
use super::spec::Facts;
use super::state::State;
use super::user::User;
use super::{Error, Owner, init, inside};
use crate::config::Config;
use crate::error::all;
use crate::reaper::{Child, Reaper};

/// How long `sandbox-init` may take to end before it is killed: it waits for all processes of the pod.
const END: Duration = Duration::from_secs(2);

/// The sandbox that this process is.
#[derive(Debug)]
pub(super) struct Instance {
    pub(super) plan: Plan,
    pub(super) created: SystemTime,
    pub(super) started: bool,
    /// All is undone but the files.
    pub(super) stopped: bool,
    dir: Dir,
    hostname: String,
    home: Home,
    hierarchies: Arc<Hierarchies>,
    /// Into the pod's cgroup, or out of it.
    moving: Option<Move>,
    state: State,
    /// The process in the pod's PID or user namespace, while it runs.
    pub(super) init: Option<Init>,
}

/// `sandbox-init`, which ends when `life` is closed.
#[derive(Debug)]
pub(super) struct Init {
    process: Process,
    life: UnixStream,
    is_ready: bool,
    /// Over when the process has been reaped.
    pub(super) followed: Option<JoinHandle<()>>,
}

/// How far [`Instance::leave`] came.
pub(super) struct Left {
    /// Whether the process is in the node's namespaces again.
    pub(super) is_home: bool,
    pub(super) errors: Vec<Error>,
}

fn system(op: &'static str) -> impl FnOnce(Errno) -> Error {
    move |source| Error::System { op, source }
}

fn io_error(op: &'static str) -> impl FnOnce(io::Error) -> Error {
    move |source| Error::Io { op, source }
}

impl Instance {
    /// Becomes the sandbox that `request` describes. The second value is `sandbox-init`, if there has to be one.
    ///
    /// # Errors
    /// Whatever was made is unmade.
    pub(super) fn create(
        config: &Config,
        owner: &Owner,
        reaper: &Arc<Reaper>,
        hierarchies: Arc<Hierarchies>,
        request: CreateSandboxRequest,
    ) -> Result<(Instance, Option<Child>), Error> {
        let mut instance = Instance::plan(config, owner, hierarchies, request)?;
        match instance.enter(reaper) {
            Ok(init) => Ok((instance, init)),
            Err(err) => {
                instance.init = None;
                let mut errors = instance.leave().errors;
                errors.extend(instance.leave_cgroup().err());
                errors.extend(instance.remove().err());
                if !errors.is_empty() {
                    log::warn!("undo a sandbox that could not be created: {}", all(&errors));
                }
                Err(err)
            }
        }
    }

    /// Looks around and changes nothing.
    fn plan(
        config: &Config,
        owner: &Owner,
        hierarchies: Arc<Hierarchies>,
        request: CreateSandboxRequest,
    ) -> Result<Instance, Error> {
        let plan = Plan::of(request)?;
        let cgroup = match plan.cgroup_parent() {
            "" => None,
            parent => Some(Cgroup::plan(&hierarchies, parent, &owner.id)?),
        };
        let node = nix::unistd::gethostname().map_err(system("read the node's name"))?;
        Ok(Instance {
            hostname: match plan.config.hostname.as_str() {
                "" => node.to_string_lossy().into_owned(),
                hostname => hostname.to_owned(),
            },
            plan,
            created: SystemTime::now(),
            started: false,
            stopped: false,
            dir: Dir::of(config, &owner.namespace, &owner.id),
            home: Home::here().map_err(io_error("open the node's namespaces"))?,
            hierarchies,
            moving: None,
            state: State::new(cgroup),
            init: None,
        })
    }

    /// Each step may rely on those before: the state is on disk before anything that outlives this process, and the
    /// child is born in the pod's namespaces.
    fn enter(&mut self, reaper: &Arc<Reaper>) -> Result<Option<Child>, Error> {
        self.dir.create()?;
        self.state.save(&self.dir)?;
        let entrance = self.make_cgroup()?;
        let owner = self.plan.user.map(|user| (user.uids.host, user.gids.host));
        self.dir.write_etc(&self.hostname, self.plan.dns(), owner)?;
        if self.plan.own_ipc {
            self.dir.mount_shm(owner)?;
        }
        if let Some(netns) = &self.plan.netns {
            let entered = namespaces::enter_net(netns);
            entered.map_err(|source| Error::File {
                op: "enter network namespace",
                path: netns.clone(),
                source,
            })?;
        }
        let init = match self.plan.user {
            Some(user) => Some(self.start_inside(&user, reaper)?),
            None => self.become_sandbox(reaper)?,
        };
        let init_pid = self.init.as_ref().map(|init| init.process.pid);
        let pids = [Some(std::process::id()), init_pid].into_iter().flatten().collect();
        if let Some(entrance) = entrance
            && entrance.send(pids).is_err()
        {
            log::debug!("there is no cgroup to move into");
        }
        Ok(init)
    }

    /// The daemon's own namespaces are the pod's, except for a shared PID namespace.
    fn become_sandbox(&mut self, reaper: &Arc<Reaper>) -> Result<Option<Child>, Error> {
        if self.plan.netns.is_some() {
            namespaces::new_uts(&self.hostname).map_err(system("make the pod's UTS namespace"))?;
        }
        if self.plan.own_ipc {
            namespaces::new_ipc().map_err(system("make the pod's IPC namespace"))?;
        }
        init::set_sysctls(&self.plan.sysctls)?;
        if self.plan.shared_pid { self.start_init(reaper).map(Some) } else { Ok(None) }
    }

    /// A child makes the pod's namespaces in its user namespace, and the daemon enters all but the user and the PID one.
    fn start_inside(&mut self, user: &User, reaper: &Arc<Reaper>) -> Result<Child, Error> {
        let (child, life) = inside::start(&self.plan, user, &self.hostname, reaper)?;
        self.keep(child.pid, life, true)?;
        let names = [("uts", self.plan.netns.is_some()), ("ipc", self.plan.own_ipc)];
        let names: Vec<_> = names.into_iter().filter_map(|(name, own)| own.then_some(name)).collect();
        let entered = namespaces::enter_of(child.pid, &names);
        entered.map_err(io_error("enter the namespaces of sandbox-init"))?;
        Ok(child)
    }

    fn make_cgroup(&mut self) -> Result<Option<Entrance>, Error> {
        let Some(cgroup) = self.state.cgroup.clone() else { return Ok(None) };
        let (moving, entrance) = Move::into(cgroup, Arc::clone(&self.hierarchies))?;
        self.moving = Some(moving);
        Ok(Some(entrance))
    }

    /// Waits until the cgroup is there, for which [`Instance::create`] does not wait: its client comes back only to start the sandbox.
    /// Nobody waits for the move itself.
    ///
    /// # Errors
    /// If it cannot be made.
    pub(super) fn await_cgroup(&mut self) -> Result<(), Error> {
        self.moving.as_mut().map_or(Ok(()), Move::made)
    }

    /// The change of cgroups that is under way.
    pub(super) fn moving(&mut self) -> Option<&mut Move> {
        self.moving.as_mut()
    }

    /// Out of the pod's cgroup, which is removed then, so `sandbox-init` has to have ended. What went wrong is told by
    /// [`Instance::remove`].
    pub(super) fn leave_cgroup(&mut self) -> Result<(), Error> {
        let Some(cgroup) = self.state.cgroup.clone() else { return Ok(()) };
        let (hierarchies, earlier) = (Arc::clone(&self.hierarchies), self.moving.take());
        let leave = move || {
            let mut errors = earlier.map_or_else(Vec::new, Move::end);
            errors.extend(hierarchies.come_home());
            errors.extend(cgroup.remove());
            errors
        };
        self.moving = Some(Move::start(leave)?);
        Ok(())
    }

    fn start_init(&mut self, reaper: &Arc<Reaper>) -> Result<Child, Error> {
        let start = || {
            let (mut command, life) = init::command("sandbox-init")?;
            io::Result::Ok((namespaces::in_new_pid(|| reaper.spawn(&mut command))?, life))
        };
        let (child, life) = start().map_err(io_error("start sandbox-init"))?;
        self.keep(child.pid, life, false)?;
        Ok(child)
    }

    /// `delete` must know the process too.
    fn keep(&mut self, pid: u32, life: UnixStream, is_ready: bool) -> Result<(), Error> {
        let process = Process::of(pid).map_err(io_error("start sandbox-init"))?;
        self.init = Some(Init { process, life, is_ready, followed: None });
        self.state.init = Some(process);
        self.state.save(&self.dir)
    }

    /// Waits until containers may come to `sandbox-init`. Asked when the first one does, it has said so long ago.
    pub(super) fn await_init(&mut self) -> Result<(), Error> {
        if let Some(init) = self.init.as_mut().filter(|init| !init.is_ready) {
            let said = init::hear(&mut BufReader::new(&init.life))?;
            init.is_ready = said == init::READY;
            if !init.is_ready {
                return Err(Error::Inside(said));
            }
        }
        Ok(())
    }

    /// Goes back to the node's namespaces, and unmounts. Not the files: a status may still be asked for.
    pub(super) fn leave(&mut self) -> Left {
        let home = self.home.enter().map_err(system("leave the pod's namespaces"));
        let is_home = home.is_ok();
        let mut errors: Vec<Error> = home.err().into_iter().collect();
        errors.extend(self.dir.unmount_shm().err());
        Left { is_home, errors }
    }

    /// Removes the pod's files, once the cgroup is gone too; until then they say what is left.
    pub(super) fn remove(&mut self) -> Result<(), Error> {
        let errors = self.moving.take().map_or_else(Vec::new, Move::end);
        if errors.is_empty() { self.dir.remove() } else { Err(Error::Several(errors)) }
    }

    pub(super) fn cgroup(&self) -> Option<&Cgroup> {
        self.state.cgroup.as_ref()
    }

    pub(super) fn facts(&self) -> Facts<'_> {
        let own = std::process::id();
        Facts {
            plan: &self.plan,
            dir: &self.dir,
            hostname: &self.hostname,
            cgroups_path: self.cgroup().map(|cgroup| cgroup.oci_path.as_str()),
            own,
            reported: self.init.as_ref().map_or(own, |init| init.process.pid),
        }
    }
}

impl Init {
    /// Ends the process, and with it all others in its PID namespace, and returns what is to be waited for.
    pub(super) fn end(self) -> impl Future<Output = Result<(), Error>> {
        let Init { process, life, followed, .. } = self;
        drop(life);
        async move {
            let Some(followed) = followed else { return Ok(()) };
            match timeout(END, followed).await {
                Ok(_) => Ok(()),
                Err(_elapsed) => process.kill().map_err(io_error("end sandbox-init")),
            }
        }
    }
}
