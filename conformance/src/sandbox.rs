//! The namespaces of a node: network, mounts, IPC and processes, held by one process.
//!
//! A node must not touch the machine, and must be gone when the test is, however the test ends. So its processes live in a pid
//! namespace whose process 1 is a `cat` that reads a pipe from the test: when the test lets go of the pipe, or dies, `cat` ends, and
//! the kernel kills everything in the node (`pid_namespaces(7)`) and with it the mounts and the network. `cat` ignores SIGCHLD, so
//! orphans that are given to it are reaped by the kernel (`wait(2)`, notes).
//!
//! Inside, /run and /var/lib/cni are private tmpfs, /proc is the node's own, and a namespace `world` stands for the rest of the
//! network: `uplink` has 192.0.2.10/24 and 2001:db8::10/64, the world has .1 and ::1 and is the default gateway.
//! The namespaces are entered with `nsenter(1)`: a thread of a test never changes its own.

use std::fs;
use std::io::{BufRead, BufReader};
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};

use nix::unistd::Pid;

/// `$1` is the directory of the node.
const SETUP: &str = r"
set -eu
mount -t tmpfs -o mode=755 tmpfs /run
mkdir -p /var/lib/cni
mount -t tmpfs tmpfs /var/lib/cni
mount -t bpf bpf $1/bpf
ip link set lo up
ip netns add world
ip link add uplink type veth peer name node0 netns world
ip addr add 192.0.2.10/24 dev uplink
ip addr add 2001:db8::10/64 dev uplink nodad
ip link set uplink up
ip -n world link set lo up
ip -n world addr add 192.0.2.1/24 dev node0
ip -n world addr add 2001:db8::1/64 dev node0 nodad
ip -n world link set node0 up
ip route add default via 192.0.2.1
ip -6 route add default via 2001:db8::1
echo ready
exec env --ignore-signal=CHLD cat
";

/// The namespaces of one node.
pub(crate) struct Sandbox {
    holder: Child,
    /// Process 1 of the node, as the test sees it.
    init: u32,
}

impl Sandbox {
    /// Makes the namespaces and what is in them; `dir/bpf` must exist.
    pub(crate) fn start(dir: &Path) -> Self {
        let mut holder = Command::new("unshare")
            .args(["--net", "--ipc", "--mount", "--propagation=private", "--pid", "--fork", "--mount-proc"])
            .args(["sh", "-c", SETUP, "node"])
            .arg(dir)
            .stdin(Stdio::piped())
            .stdout(Stdio::piped())
            .spawn()
            .expect("run unshare(1)");
        let mut line = String::new();
        let stdout = holder.stdout.take().expect("stdout is piped");
        BufReader::new(stdout).read_line(&mut line).expect("read from the holder of the namespaces");
        assert_eq!(
            line, "ready\n",
            "the namespaces of the node could not be set up; conformance tests run as root"
        );
        let init = only_child(holder.id());
        Self { holder, init }
    }

    /// A command that will run inside, with no environment but PATH.
    pub(crate) fn command(&self, program: impl AsRef<std::ffi::OsStr>) -> Command {
        let mut command = Command::new("nsenter");
        command
            .arg("--target")
            .arg(self.init.to_string())
            .args(["--net", "--ipc", "--mount", "--pid", "--"])
            .arg(program);
        command
    }

    /// Where the test sees a path of the node's.
    pub(crate) fn path(&self, inside: impl AsRef<Path>) -> PathBuf {
        let inside = inside.as_ref();
        Path::new("/proc")
            .join(self.init.to_string())
            .join("root")
            .join(inside.strip_prefix("/").unwrap_or(inside))
    }

    /// The mount points of the node, in order.
    pub(crate) fn mounts(&self) -> Vec<String> {
        let table =
            fs::read_to_string(format!("/proc/{}/mountinfo", self.init)).expect("read the node's mountinfo");
        table.lines().filter_map(|line| line.split(' ').nth(4)).map(str::to_owned).collect()
    }

    /// The processes of the node but the first: the pid inside, and the command line.
    pub(crate) fn processes(&self) -> Vec<(u32, String)> {
        let entries = fs::read_dir(self.path("/proc")).expect("list the node's /proc");
        let pids = entries
            .flatten()
            .filter_map(|entry| entry.file_name().to_str()?.parse().ok())
            .filter(|pid| *pid != 1);
        // A process that ends meanwhile has no command line to read.
        pids.filter_map(|pid: u32| {
            let line = fs::read(self.path(format!("/proc/{pid}/cmdline"))).ok()?;
            Some((pid, String::from_utf8_lossy(&line).replace('\0', " ").trim().to_owned()))
        })
        .collect()
    }
}

impl Sandbox {
    /// The processes of the node but the first, as the test sees them.
    pub(crate) fn processes_outside(&self) -> Vec<(Pid, String)> {
        let namespace = |pid: u32| fs::read_link(format!("/proc/{pid}/ns/pid")).ok();
        let own = namespace(self.init).expect("the node has a first process");
        let entries = fs::read_dir("/proc").expect("list /proc").flatten();
        let pids = entries.filter_map(|entry| entry.file_name().to_str()?.parse().ok());
        let pids = pids.filter(|pid| *pid != self.init && namespace(*pid).as_ref() == Some(&own));
        pids.filter_map(|pid: u32| {
            let line = fs::read(format!("/proc/{pid}/cmdline")).ok()?;
            let line = String::from_utf8_lossy(&line).replace('\0', " ").trim().to_owned();
            Some((Pid::from_raw(i32::try_from(pid).ok()?), line))
        })
        .collect()
    }
}

impl Drop for Sandbox {
    /// Ends every process of the node; returns when they are dead.
    fn drop(&mut self) {
        drop(self.holder.stdin.take());
        // The kernel lets process 1 end only after all others; `unshare` ends with it.
        self.holder.wait().expect("wait for the holder of the namespaces");
    }
}

/// The one child of a process started here that forks once: `unshare --fork`, `nsenter --pid`.
pub(crate) fn only_child(pid: u32) -> u32 {
    let mut child = None;
    crate::wait_until(std::time::Duration::from_secs(10), "a child process", || {
        let children = fs::read_to_string(format!("/proc/{pid}/task/{pid}/children")).unwrap_or_default();
        child = children.split_whitespace().next().and_then(|first| first.parse().ok());
        child.is_some()
    });
    child.expect("waited for it")
}
