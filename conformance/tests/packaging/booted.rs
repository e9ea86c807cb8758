//! A root file system that systemd boots as a container: units run as on a node, on the machine's kernel.

use std::fs;
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};
use std::time::Duration;

use nix::sys::signal::{Signal, kill};
use nix::unistd::Pid;
use weft_conformance::{run, try_run, wait_until};

use crate::root::Root;

/// `$1` is the root file system, `$2` the name of a cgroup, `$3` what /sys/fs/bpf is. What systemd-nspawn writes below /run and makes of
/// cgroups goes with the node; it lets nobody load eBPF programs unless told so.
const BOOT: &str = r#"
set -eu
mount -t tmpfs tmpfs /run
mkdir /run/bpf
mount -t bpf bpf /run/bpf
for hierarchy in /sys/fs/cgroup /sys/fs/cgroup/systemd /sys/fs/cgroup/unified; do
    if [ -e $hierarchy/cgroup.procs ]; then
        mkdir $hierarchy/$2
        echo $$ >$hierarchy/$2/cgroup.procs
    fi
done
exec setpriv --pdeathsig KILL systemd-nspawn --quiet --directory="$1" --private-network --register=no --keep-unit --console=pipe \
    --capability=all --system-call-filter=bpf "$3" --boot
"#;

/// What the node has at /sys/fs/bpf.
#[derive(Debug, Clone, Copy)]
pub(crate) enum Bpffs {
    /// A bpffs, as systemd mounts one.
    Mounted,
    /// An empty folder.
    Absent,
}

/// The booted node.
pub(crate) struct Booted {
    root: Root,
    nspawn: Child,
    /// systemd, as the test sees it.
    init: Pid,
}

impl Booted {
    /// Boots, and waits until systemd has started what is enabled.
    pub(crate) fn new(root: Root, bpffs: Bpffs) -> Booted {
        let sys = match bpffs {
            Bpffs::Mounted => "--bind=/run/bpf:/sys/fs/bpf",
            Bpffs::Absent => "--tmpfs=/sys/fs/bpf",
        };
        let mut unshare = Command::new("unshare");
        unshare.args(["--mount", "--propagation=private", "sh", "-c", BOOT, "sh"]).arg(root.dir());
        unshare.arg(cgroup(&root)).arg(sys).stdin(Stdio::null()).stdout(Stdio::null());
        let nspawn = unshare.spawn().unwrap();
        let mut node = Booted { root, nspawn, init: Pid::from_raw(0) };
        wait_until(Duration::from_secs(30), "systemd is process 1 of the node", || node.find_init());
        wait_until(Duration::from_secs(60), "the node has booted", || {
            let state = node.command("systemctl").arg("is-system-running").output().unwrap();
            ["running\n", "degraded\n"].map(str::as_bytes).contains(&state.stdout.as_slice())
        });
        node
    }

    fn find_init(&mut self) -> bool {
        let task = format!("/proc/{0}/task/{0}/children", self.nspawn.id());
        let children = fs::read_to_string(task).unwrap_or_default();
        let child = children.split_whitespace().find(|child| {
            fs::read_to_string(format!("/proc/{child}/comm")).is_ok_and(|name| name == "systemd\n")
        });
        assert!(self.nspawn.try_wait().unwrap().is_none(), "systemd-nspawn has ended");
        self.init = Pid::from_raw(child.map_or(0, |child| child.parse().unwrap()));
        child.is_some()
    }

    /// A program of the node's.
    pub(crate) fn command(&self, program: &str) -> Command {
        let mut command = Command::new("nsenter");
        command.arg(format!("--target={}", self.init)).arg("--all").arg(program);
        command.env_clear().env("PATH", "/usr/sbin:/usr/bin:/sbin:/bin").env("LC_ALL", "C");
        command
    }

    /// Runs words of a command line, which must succeed.
    #[track_caller]
    pub(crate) fn run(&self, words: &str) -> String {
        let mut words = words.split(' ');
        run(self.command(words.next().unwrap()).args(words))
    }

    /// Whether a command line succeeds.
    pub(crate) fn succeeds(&self, words: &str) -> bool {
        let mut words = words.split(' ');
        try_run(self.command(words.next().unwrap()).args(words)).is_ok()
    }

    pub(crate) fn root(&self) -> &Root {
        &self.root
    }
}

impl Drop for Booted {
    fn drop(&mut self) {
        // Everything of a pid namespace ends with its process 1; systemd-nspawn then.
        if self.init.as_raw() != 0 {
            kill(self.init, Signal::SIGKILL).unwrap();
        } else {
            self.nspawn.kill().unwrap();
        }
        self.nspawn.wait().unwrap();
        for hierarchy in ["", "systemd", "unified"] {
            remove(&Path::new("/sys/fs/cgroup").join(hierarchy).join(cgroup(&self.root)));
        }
    }
}

/// The name of the cgroup of a node with this root.
fn cgroup(root: &Root) -> PathBuf {
    format!("weft-boot-{}", root.dir().file_name().unwrap().to_string_lossy()).into()
}

/// A cgroup and those below it.
fn remove(cgroup: &Path) {
    if !cgroup.exists() {
        return;
    }
    for entry in fs::read_dir(cgroup).unwrap().flatten() {
        if entry.file_type().unwrap().is_dir() {
            remove(&entry.path());
        }
    }
    // The last process leaves its cgroup a moment after it has been reaped.
    wait_until(Duration::from_secs(10), "a cgroup is empty", || fs::remove_dir(cgroup).is_ok());
}
