//! What an ADD and a DEL may cost, counted and not timed: a busy machine counts the same. Whoever makes one dearer changes a number
//! here, and says why.

use std::collections::BTreeMap;
use std::fs;
use std::path::{Path, PathBuf};
use std::process::Command;

use nix::mount::{MntFlags, MsFlags, mount, umount2};

use crate::common::{Node, conf};

/// As of containerd: DEL leaves the links to the namespace, which is about to end.
const OF_CRI: (&str, &str) = ("CNI_ARGS", "K8S_POD_INFRA_CONTAINER_ID=a");

/// Functions of the kernel in which a process waits for a grace period (RCU, also "Sleepable RCU"), or for others' to end.
const GRACE_PERIODS: [&str; 7] = [
    // What a worker is waited for in may be one: nftables frees what was deleted after one.
    "__flush_work",
    "synchronize_rcu",
    "synchronize_rcu_expedited",
    "synchronize_rcu_normal",
    "__wait_rcu_gp",
    "__synchronize_srcu",
    "rcu_barrier",
];

/// System calls that cost more than a look: programs, processes, netlink requests and their answers, eBPF, what waits.
const COUNTED: &str = "execve,clone,clone3,fork,vfork,sendto,sendmsg,recvfrom,recvmsg,bpf,setns,unshare,mount,fsync,\
                       fdatasync,epoll_wait,nanosleep,clock_nanosleep";

/// How often the plugin makes each of [`COUNTED`], by strace(1).
fn calls(node: &Node, verb: &str) -> BTreeMap<String, u32> {
    let trace = node.dir.path().join("trace");
    let conf_file = node.dir.path().join("conf");
    fs::write(&conf_file, conf().to_string()).unwrap();
    let mut command = node.command("strace");
    command.args(["-f", "-qq", "-e", "signal=none", "-e", &format!("trace={COUNTED}"), "-o"]).arg(&trace);
    plugin(node, command.arg(env!("CARGO_BIN_EXE_weft-cni")), verb);
    let text = fs::read_to_string(&trace).unwrap();
    let mut counts = BTreeMap::new();
    for line in text.lines() {
        // `PID NAME(…`, and `PID <... NAME resumed>…` for the end of one that was counted already.
        let call = line.split_whitespace().nth(1).unwrap().split('(').next().unwrap();
        if call != "<..." && call != "???" {
            *counts.entry(call.to_owned()).or_default() += 1;
        }
    }
    counts
}

/// Runs the command as the plugin for pod `a`.
fn plugin(node: &Node, command: &mut Command, verb: &str) {
    command.env("CNI_COMMAND", verb).env("CNI_NETNS", node.dir.path().join("netns-a")).envs([
        ("CNI_CONTAINERID", "a"),
        ("CNI_IFNAME", "eth0"),
        ("CNI_PATH", "/"),
        OF_CRI,
    ]);
    let output = node.run(command, &conf().to_string());
    let said = String::from_utf8_lossy(&output.stdout).into_owned();
    assert!(output.status.success(), "{verb}: {said} {}", String::from_utf8_lossy(&output.stderr));
}

#[track_caller]
fn assert_within(counts: &BTreeMap<String, u32>, budget: &[(&str, u32)]) {
    for (call, count) in counts {
        let most = budget.iter().find(|(name, _)| name == call).map_or(0, |(_, most)| *most);
        assert!(*count <= most, "{count} × {call}, at most {most}: {counts:?}");
    }
    assert_eq!(counts["execve"], 1, "the plugin itself: {counts:?}");
}

#[test]
fn an_add_and_a_del_make_no_more_expensive_calls_than_before() {
    let node = Node::new();
    // The first of a node loads the programs and makes the table.
    node.add("first");
    node.pod("a");
    // No thread: into the pod's namespace to open a socket there, and back, which is tried before.
    // One of the questions makes the host's end send at once, one of the requests the pod take what comes to its IPv6 address.
    // An answer is one read, what comes before it one more; those of nftables are read until there is none.
    let netlink = [("sendto", 25), ("recvfrom", 27)];
    let add = [&netlink[..], &[("execve", 1), ("setns", 3), ("bpf", 19), ("fdatasync", 2)]];
    let add = add.concat();
    assert_within(&calls(&node, "ADD"), &add);
    let del = [("execve", 1), ("sendto", 4), ("recvfrom", 7), ("bpf", 13), ("fdatasync", 1)];
    assert_within(&calls(&node, "DEL"), &del);
    for pod in ["a", "first"] {
        node.remove_pod(pod);
    }
    node.weft(&["cleanup"]);
}

/// The kernel lets a link whose carrier came late send only when a worker has seen it (its `operstate` says so): of eighty ADDs on a
/// busy machine, six answered before. A dump, other than a question about one link, leaves it to the worker.
#[test]
fn the_hosts_end_sends_as_soon_as_add_answers() {
    let node = Node::new();
    for turn in 0..40 {
        let name = node.add("a").json["interfaces"][0]["name"].clone();
        let links = node.ip(&["link", "show", "type", "veth"]);
        let end = links.as_array().unwrap().iter().find(|link| link["ifname"] == name).unwrap();
        assert_eq!(end["operstate"], "UP", "{turn}: {end}");
        assert!(node.cni("DEL", "a", &conf()).status.success());
        node.remove_pod("a");
    }
    node.weft(&["cleanup"]);
}

/// An instance of the kernel's tracer that is told of every sleep of a process, with the stack that it sleeps in.
struct Tracer {
    tracefs: PathBuf,
    instance: PathBuf,
}

impl Tracer {
    fn new(dir: &Path) -> Tracer {
        let tracefs = dir.join("tracing");
        fs::create_dir(&tracefs).unwrap();
        mount(Some("tracefs"), &tracefs, Some("tracefs"), MsFlags::empty(), None::<&str>).unwrap();
        let instance = tracefs.join(format!("instances/{}", dir.file_name().unwrap().to_str().unwrap()));
        fs::create_dir(&instance).unwrap();
        let tracer = Tracer { tracefs, instance };
        tracer.write("options/event-fork", "1");
        tracer.write("events/sched/sched_switch/trigger", "stacktrace if prev_state & 3");
        tracer.write("events/sched/sched_switch/enable", "1");
        tracer
    }

    fn write(&self, file: &str, text: &str) {
        fs::write(self.instance.join(file), text).unwrap_or_else(|err| panic!("{file}: {err}"));
    }

    /// Runs the program that `$0` and the words after it are, traced from its start on; the grace periods that it waited for.
    fn grace_periods(&self, node: &Node, program: &[&str], run: impl FnOnce(&mut Command)) -> Vec<String> {
        self.write("trace", "");
        let pid_file = self.tracefs.with_file_name("traced");
        let mut shell = node.command("sh");
        let script = "echo $$ | tee \"$1\" >\"$2/set_event_pid\" && shift 2 && exec \"$@\"";
        shell.args(["-c", script, "sh"]).args([&pid_file, &self.instance]).args(program);
        run(&mut shell);
        let pid = fs::read_to_string(&pid_file).unwrap();
        let trace = fs::read_to_string(self.instance.join("trace")).unwrap();
        stacks_of(&trace, pid.trim())
    }
}

impl Drop for Tracer {
    fn drop(&mut self) {
        self.write("events/sched/sched_switch/enable", "0");
        self.write("events/sched/sched_switch/trigger", "!stacktrace if prev_state & 3");
        fs::remove_dir(&self.instance).unwrap();
        umount2(&self.tracefs, MntFlags::MNT_DETACH).unwrap();
    }
}

/// Of a trace, the stacks in which this process waits for a grace period; each as one line. A stack is a head,
/// `COMM-PID [CPU] … <stack trace>`, and lines ` => FUNCTION`.
fn stacks_of(trace: &str, pid: &str) -> Vec<String> {
    let (mut stacks, mut own) = (Vec::<Vec<&str>>::new(), false);
    for line in trace.lines().filter(|line| !line.starts_with('#')) {
        match line.trim_start().strip_prefix("=> ") {
            Some(function) if own => stacks.last_mut().unwrap().push(function.trim()),
            Some(_) => {}
            None => {
                let task = line.split('[').next().unwrap().trim();
                own = line.ends_with("<stack trace>") && task.ends_with(&format!("-{pid}"));
                if own {
                    stacks.push(Vec::new());
                }
            }
        }
    }
    stacks.retain(|stack| stack.iter().any(|function| GRACE_PERIODS.contains(function)));
    stacks.into_iter().map(|stack| stack.join(" < ")).collect()
}

/// But for what the kernel asks of every filter (`mini_qdisc_pair_swap` in net/sched/sch_generic.c).
#[test]
fn neither_add_nor_del_waits_for_a_grace_period() {
    let node = Node::new();
    node.add("first");
    node.pod("a");
    let tracer = Tracer::new(node.dir.path());
    for verb in ["ADD", "DEL"] {
        let plugin = |command: &mut Command| plugin(&node, command, verb);
        let mut waits = tracer.grace_periods(&node, &[env!("CARGO_BIN_EXE_weft-cni")], plugin);
        // A filter on a new qdisc waits unless a grace period has passed since that was made: once, or for either direction.
        waits.retain(|stack| {
            verb == "DEL" || !stack.contains("mini_qdisc_pair_swap < tcf_chain0_head_change")
        });
        assert_eq!(waits, [""; 0], "{verb}");
    }
    // What must wait is seen to wait: the end of a link.
    node.ip(&["link", "add", "gone0", "type", "veth", "peer", "name", "gone1"]);
    let delete = |command: &mut Command| assert!(node.run(command, "").status.success());
    let waits = tracer.grace_periods(&node, &["ip", "link", "del", "gone0"], delete);
    assert!(waits.iter().any(|stack| stack.contains("unregister_netdevice")), "{waits:?}");
    for pod in ["a", "first"] {
        node.remove_pod(pod);
    }
    node.weft(&["cleanup"]);
}
