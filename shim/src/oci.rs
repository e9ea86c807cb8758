//! The OCI runtime's command line: runc, crun and youki agree on what is used here.
//!
//! Every run is a child of the one reaper. Errors are read back from a memory file, which the runtime opens through
//! `/proc/<our pid>/fd` as its `--log` and, where the container does not own it, gets as its stderr; nothing of it can
//! stay behind on a disk or leak into a container. The process of an exec is passed the same way.
//!
//! Signals, lists of processes and counters do not come from here: a parent has them without a run of the runtime,
//! which costs some 10 ms.

use std::ffi::OsString;
use std::fs::File;
use std::io::{self, Read, Seek, SeekFrom, Write};
use std::os::fd::{AsRawFd, OwnedFd};
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};
use std::sync::Arc;

use nix::errno::Errno;
use nix::sys::memfd::{MFdFlags, memfd_create};

use crate::memory;
use crate::reaper::{Child, Reaper};

/// An OCI runtime as one container uses it.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct Runtime {
    /// A name to look up in `PATH`, or a path.
    pub(crate) binary: PathBuf,
    /// The runtime's own state, of one containerd namespace.
    pub(crate) root: PathBuf,
    /// systemd makes the cgroups.
    pub(crate) systemd_cgroup: bool,
}

/// The three descriptors of a new process; the runtime hands its own ones on.
#[derive(Debug)]
pub(crate) struct Descriptors {
    /// 0.
    pub(crate) stdin: Stdio,
    /// 1.
    pub(crate) stdout: Stdio,
    /// 2; `None` gives the process the null device and the runtime the log, for a process with a terminal.
    pub(crate) stderr: Option<Stdio>,
}

/// What `create` and `exec` have in common.
#[derive(Debug)]
pub(crate) struct Launch<'a> {
    /// The container.
    pub(crate) id: &'a str,
    /// Where the runtime writes the pid; must not exist.
    pub(crate) pid_file: &'a Path,
    /// Where the terminal's master is sent to.
    pub(crate) console_socket: Option<PathBuf>,
    /// Of the process to be.
    pub(crate) descriptors: Descriptors,
}

/// A failed run.
#[derive(Debug, thiserror::Error)]
pub(crate) enum Error {
    /// The runtime could not be started.
    #[error("run {}", binary.display())]
    Spawn {
        /// The runtime.
        binary: PathBuf,
        /// The system's answer.
        source: io::Error,
    },
    /// The memory file that carries the log or a process could not be made.
    #[error("make a memory file for the oci runtime")]
    Memory(#[source] io::Error),
    /// The runtime says no. The words are those of containerd's own shim: `kubectl describe` shows them as they are, and
    /// people search for them.
    #[error("OCI runtime {verb} failed: {message}")]
    Refused {
        /// `create`, `start` …
        verb: &'static str,
        /// The last error of its log.
        message: String,
    },
    /// The runtime has ended well and left no usable pid.
    #[error("read the pid from {}", path.display())]
    Pid {
        /// The file.
        path: PathBuf,
        /// Why.
        source: io::Error,
    },
}

impl Runtime {
    /// Makes a container whose process waits for [`Runtime::start`]; `switches` are `--no-pivot` and the like.
    pub(crate) async fn create(
        &self,
        reaper: &Arc<Reaper>,
        bundle: &Path,
        switches: &[&str],
        launch: Launch<'_>,
    ) -> Result<Child, Error> {
        let mut args: Vec<OsString> = vec!["--bundle".into(), bundle.into()];
        args.extend(switches.iter().map(OsString::from));
        self.launch(reaper, "create", args, launch).await
    }

    /// Makes a container and its processes from a checkpoint; they run. `args` say where it is.
    pub(crate) async fn restore(
        &self,
        reaper: &Arc<Reaper>,
        bundle: &Path,
        mut args: Vec<OsString>,
        launch: Launch<'_>,
    ) -> Result<Child, Error> {
        // Orphans are this process's to reap, not the runtime's, which ends.
        args.extend(["--detach".into(), "--no-subreaper".into(), "--bundle".into(), bundle.into()]);
        self.launch(reaper, "restore", args, launch).await
    }

    /// Starts one more process, described by the JSON of an OCI `process`.
    pub(crate) async fn exec(
        &self,
        reaper: &Arc<Reaper>,
        process: &[u8],
        launch: Launch<'_>,
    ) -> Result<Child, Error> {
        let mut file = memory_file()?;
        file.write_all(process).map_err(Error::Memory)?;
        let args = vec!["--process".into(), path_of(&file), "--detach".into()];
        self.launch(reaper, "exec", args, launch).await
    }

    /// Lets the process of a created container run.
    pub(crate) async fn start(&self, reaper: &Reaper, id: &str) -> Result<(), Error> {
        self.run(reaper, "start", &[id]).await
    }

    /// Freezes all processes.
    pub(crate) async fn pause(&self, reaper: &Reaper, id: &str) -> Result<(), Error> {
        self.run(reaper, "pause", &[id]).await
    }

    /// Thaws all processes.
    pub(crate) async fn resume(&self, reaper: &Reaper, id: &str) -> Result<(), Error> {
        self.run(reaper, "resume", &[id]).await
    }

    /// Writes the state of all processes to disk, as `args` say.
    pub(crate) async fn checkpoint(
        &self,
        reaper: &Reaper,
        id: &str,
        mut args: Vec<OsString>,
    ) -> Result<(), Error> {
        args.push(id.into());
        self.run(reaper, "checkpoint", &args).await
    }

    /// Sets resource limits, the JSON of OCI `linux.resources`.
    pub(crate) async fn update(&self, reaper: &Reaper, id: &str, resources: &[u8]) -> Result<(), Error> {
        let mut file = memory_file()?;
        file.write_all(resources).map_err(Error::Memory)?;
        let path = path_of(&file);
        self.run(reaper, "update", &["--resources".as_ref(), path.as_os_str(), id.as_ref()]).await
    }

    /// Kills what is left and removes the runtime's state and the cgroups. A container that does not exist is fine.
    pub(crate) async fn delete(&self, reaper: &Reaper, id: &str) -> Result<(), Error> {
        self.run(reaper, "delete", &["--force", id]).await
    }

    /// Removes what [`Runtime::delete`] does of a container that is dead. `--force` only if that does not do: with it runc
    /// always sleeps for 100 ms, to give what it may have killed the time to die (`killContainer` in delete.go of 1.4).
    pub(crate) async fn delete_dead(&self, reaper: &Reaper, id: &str) -> Result<(), Error> {
        match self.run(reaper, "delete", &[id]).await {
            Ok(()) => Ok(()),
            Err(err) => {
                log::debug!("{}", crate::error::chain(&err));
                self.delete(reaper, id).await
            }
        }
    }

    /// [`Runtime::delete`] in a process that has neither a reaper nor a runtime of async tasks.
    pub(crate) fn delete_blocking(&self, id: &str) -> Result<(), Error> {
        let log = memory_file()?;
        let mut command = self.command(&log, "delete");
        command.args(["--force", id]).stdin(Stdio::null()).stdout(Stdio::null()).stderr(clone(&log)?);
        let status = command.status().map_err(|source| self.spawn_error(source))?;
        if status.success() { Ok(()) } else { Err(refused("delete", log)) }
    }

    async fn run<S: AsRef<std::ffi::OsStr>>(
        &self,
        reaper: &Reaper,
        verb: &'static str,
        args: &[S],
    ) -> Result<(), Error> {
        let log = memory_file()?;
        let mut command = self.command(&log, verb);
        command.args(args).stdin(Stdio::null()).stdout(Stdio::null()).stderr(clone(&log)?);
        let mut child = reaper.spawn(&mut command).map_err(|source| self.spawn_error(source))?;
        if child.exit().await.status == 0 { Ok(()) } else { Err(refused(verb, log)) }
    }

    async fn launch(
        &self,
        reaper: &Arc<Reaper>,
        verb: &'static str,
        args: Vec<OsString>,
        launch: Launch<'_>,
    ) -> Result<Child, Error> {
        let log = memory_file()?;
        let mut command = self.command(&log, verb);
        command.args(args).arg("--pid-file").arg(launch.pid_file);
        if let Some(socket) = &launch.console_socket {
            command.arg("--console-socket").arg(socket);
        }
        let stderr = match launch.descriptors.stderr {
            Some(stderr) => stderr,
            None => clone(&log)?,
        };
        command.arg(launch.id);
        command.stdin(launch.descriptors.stdin).stdout(launch.descriptors.stdout).stderr(stderr);
        let _adoption = reaper.adopt();
        let spawned = reaper.spawn(&mut command);
        // Our copies of the container's ends: a pipe ends only when the last one is closed.
        drop(command);
        let mut child = spawned.map_err(|source| self.spawn_error(source))?;
        if child.exit().await.status != 0 {
            return Err(refused(verb, log));
        }
        let pid = read_pid(launch.pid_file)
            .map_err(|source| Error::Pid { path: launch.pid_file.to_owned(), source })?;
        Ok(reaper.watch(pid))
    }

    fn command(&self, log: &File, verb: &str) -> Command {
        let mut command = Command::new(&self.binary);
        command.arg("--root").arg(&self.root).arg("--log").arg(path_of(log)).args(["--log-format", "json"]);
        if self.systemd_cgroup {
            command.arg("--systemd-cgroup");
        }
        // A bundle may be gone when its container is deleted. runc would report readiness to our service manager, and how
        // memory is allocated is its own business.
        command.arg(verb).current_dir("/").env_remove("NOTIFY_SOCKET");
        for (name, _) in memory::TUNABLES {
            command.env_remove(name);
        }
        command
    }

    fn spawn_error(&self, source: io::Error) -> Error {
        Error::Spawn { binary: self.binary.clone(), source }
    }
}

/// The pid that a runtime has written.
pub(crate) fn read_pid(path: &Path) -> io::Result<u32> {
    std::fs::read_to_string(path)?
        .trim()
        .parse()
        .map_err(|err| io::Error::new(io::ErrorKind::InvalidData, err))
}

fn memory_file() -> Result<File, Error> {
    let fd: Result<OwnedFd, Errno> = memfd_create("weft-oci", MFdFlags::MFD_CLOEXEC);
    fd.map(File::from).map_err(|errno| Error::Memory(errno.into()))
}

/// How another process of this user opens `file` anew.
fn path_of(file: &File) -> OsString {
    format!("/proc/{}/fd/{}", std::process::id(), file.as_raw_fd()).into()
}

fn clone(log: &File) -> Result<Stdio, Error> {
    // Opened anew to append: a duplicate would share its offset with nobody and overwrite the log's beginning.
    File::options().append(true).open(path_of(log)).map(Stdio::from).map_err(Error::Memory)
}

fn refused(verb: &'static str, mut log: File) -> Error {
    let mut bytes = Vec::new();
    match log.seek(SeekFrom::Start(0)).and_then(|_| log.read_to_end(&mut bytes)) {
        Ok(_) => Error::Refused { verb, message: last_error(&String::from_utf8_lossy(&bytes)) },
        Err(err) => Error::Memory(err),
    }
}

/// The last error of a log in JSON lines; without one, all that is not JSON.
pub(crate) fn last_error(log: &str) -> String {
    let mut message = None;
    let mut rest = Vec::new();
    for line in log.lines().filter(|line| !line.trim().is_empty()) {
        match serde_json::from_str::<serde_json::Value>(line) {
            Ok(entry) => {
                let serious = matches!(entry["level"].as_str(), Some("error" | "fatal" | "panic" | "ERROR"));
                // runc and crun say `msg`; youki `message`, nested in `fields` before 0.6.
                let texts = [&entry["msg"], &entry["message"], &entry["fields"]["message"]];
                let text = texts.into_iter().find_map(|text| text.as_str());
                let text = text.filter(|_| serious).map(one_line);
                message = text.filter(|text| !text.is_empty()).or(message);
            }
            Err(_) => rest.push(line.trim()),
        }
    }
    message.unwrap_or_else(|| match rest.is_empty() {
        true => "the oci runtime gives no reason".into(),
        false => rest.join(": "),
    })
}

/// runc has a second line to say where criu's log is; after an empty one youki lists its stack.
fn one_line(text: &str) -> String {
    let lines = text.trim().lines().map(str::trim).take_while(|line| !line.is_empty());
    lines.collect::<Vec<_>>().join(": ")
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_message_is_one_line_and_without_a_stack() {
        let runc =
            r#"{"level":"error","msg":"criu failed: type DUMP errno 0\nlog file: /w/dump.log","time":"t"}"#;
        assert_eq!(last_error(runc), "criu failed: type DUMP errno 0: log file: /w/dump.log");
        let youki =
            r#"{"level":"ERROR","message":"not found in $PATH\n\nStack backtrace:\n   0: <unknown>"}"#;
        assert_eq!(last_error(youki), "not found in $PATH");
        let nested = r#"{"level":"ERROR","fields":{"message":"no such container"}}"#;
        assert_eq!(last_error(nested), "no such container");
    }

    #[test]
    fn the_last_json_error_is_the_message() {
        let log = concat!(
            r#"{"level":"error","msg":"first","time":"t"}"#,
            "\n",
            r#"{"level":"error","msg":"second","time":"t"}"#,
            "\n",
            r#"{"level":"warning","msg":"third","time":"t"}"#,
            "\nsecond\n"
        );
        assert_eq!(last_error(log), "second");
    }

    #[test]
    fn plain_text_is_taken_when_there_is_no_json() {
        assert_eq!(last_error("runc: unknown flag\n\nsee help\n"), "runc: unknown flag: see help");
        assert_eq!(last_error(""), "the oci runtime gives no reason");
    }

    #[test]
    fn a_missing_runtime_is_named() {
        let runtime = Runtime { binary: "/nowhere/runc".into(), root: "/tmp".into(), systemd_cgroup: false };
        let err = runtime.delete_blocking("x").unwrap_err();
        assert_eq!(crate::error::chain(&err), "run /nowhere/runc: No such file or directory (os error 2)");
    }
}
