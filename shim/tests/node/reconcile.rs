//! `weft reconcile`, and what ADD and GC do of it: pods die in every way, living ones are not touched, and nothing of the
//! dead is left.

use std::os::unix::fs::symlink;
use std::path::Path;
use std::process::{Child, Command, Stdio};

use crate::common::{Node, Pinging, conf, pings, wait_until};
use crate::killed::{STEPS, killed_at};
use crate::ports::{HOST, at, port, tcp, with_ports};
use nix::mount::{MntFlags, MsFlags, mount, umount2};
use nix::sys::signal::{Signal, kill};
use nix::unistd::Pid;
use serde_json::{Value, json};
use weft_hooks::{FastPath, PodEntry};
use weft_ipam::{Owner, Store};

const KUBERNETES: &str = "IgnoreUnknown=1;K8S_POD_INFRA_CONTAINER_ID=a";

/// All that a reconcile may change, as other programs see it.
fn everything(node: &Node) -> (Value, Vec<Value>, Vec<String>, usize) {
    // Not the state of operation, which follows a link's rise a moment later.
    let key = |link: &Value| json!([link["ifindex"], link["ifname"], link["address"], link["link_netnsid"]]);
    let links = node.ip(&["link", "show"]).as_array().unwrap().iter().map(key).collect();
    (node.weft(&["pods", "-o", "json"]), links, node.routes(), node.map_entries())
}

fn freed(report: &Value) -> Vec<(&str, &str)> {
    report["freed"]
        .as_array()
        .unwrap()
        .iter()
        .map(|gone| (gone["container"].as_str().unwrap(), gone["why"].as_str().unwrap()))
        .collect()
}

fn containers(node: &Node) -> Vec<String> {
    let pods = node.weft(&["pods", "-o", "json"]);
    pods.as_array().unwrap().iter().map(|pod| pod["container"].as_str().unwrap().to_owned()).collect()
}

/// The namespace of the pod ends without a DEL, and the kernel has taken its links.
pub(crate) fn dies(node: &Node, pods: &[&str]) {
    let links = node.links().len();
    for pod in pods {
        node.remove_pod(pod);
    }
    wait_until("the namespaces are gone", || node.links().len() == links - pods.len());
}

/// An ADD for the pod "a" that has stopped at a step.
fn stopped_at(node: &Node, step: &str) -> Stopped {
    let input = node.dir.path().join("conf");
    std::fs::write(&input, conf().to_string()).unwrap();
    let mut command = node.command(env!("CARGO_BIN_EXE_weft-cni"));
    command
        .env("CNI_COMMAND", "ADD")
        .env("CNI_CONTAINERID", "a")
        .env("CNI_IFNAME", "eth0")
        .env("CNI_PATH", "/");
    command.env("CNI_NETNS", node.pod("a")).env("WEFT_STOPPOINT", step).stdout(Stdio::piped());
    command.stdin(std::fs::File::open(&input).unwrap());
    let add = node.host.run(|| command.spawn().unwrap()).unwrap();
    let add = Stopped(add);
    let stat = format!("/proc/{}/stat", add.0.id());
    wait_until("ADD has stopped", || std::fs::read_to_string(&stat).unwrap().contains(") T "));
    add
}

/// A stopped process; a test that fails does not leave it behind.
struct Stopped(Child);

impl Stopped {
    /// Lets it go on; whether it succeeds, and what it answers.
    fn goes_on(mut self) -> (bool, Value) {
        kill(Pid::from_raw(i32::try_from(self.0.id()).unwrap()), Signal::SIGCONT).unwrap();
        let answer = serde_json::from_reader(self.0.stdout.take().unwrap()).unwrap();
        (self.0.wait().unwrap().success(), answer)
    }
}

impl Drop for Stopped {
    fn drop(&mut self) {
        self.0.kill().unwrap();
        self.0.wait().unwrap();
    }
}

#[test]
fn a_killed_attach_is_freed_at_every_step_while_packets_of_others_pass() {
    let node = Node::new();
    node.add("x");
    let y = node.add("y").addresses();
    let pinging = y.iter().map(|address| Pinging::start(&node.pod_ns("x"), address)).collect::<Vec<_>>();
    for step in STEPS {
        killed_at(&node, step);
        if step == "attached" {
            assert_eq!(node.reconcile(&[]).0["kept"], 3, "the attach was whole, only nobody heard of it");
            dies(&node, &["a"]);
        }
        let before = everything(&node);
        let (would, _) = node.reconcile(&["--dry-run"]);
        assert_eq!(everything(&node), before, "{step}: --dry-run changed something");
        let (did, code) = node.reconcile(&[]);
        let why = if step == "attached" { "its namespace is gone" } else { "its attach was killed" };
        assert_eq!((freed(&did), code), (vec![("a", why)], 0), "{step}");
        assert_eq!((freed(&would), &would["dry_run"]), (vec![("a", why)], &json!(true)), "{step}");
        assert_eq!((&did["kept"], &did["dry_run"]), (&json!(2), &json!(false)), "{step}");
        assert_eq!(containers(&node), ["x", "y"], "{step}");
        assert_eq!((node.routes().len(), node.map_entries(), node.links().len()), (4, 4, 2), "{step}");
        if step != "attached" {
            assert_eq!(
                node.ip_in_pod("a", &["link", "show"]).as_array().unwrap().len(),
                1,
                "{step}: only lo"
            );
            node.remove_pod("a");
        }
    }
    pinging.into_iter().for_each(Pinging::assert_no_loss);
    for pod in ["x", "y"] {
        assert!(node.cni("DEL", pod, &conf()).status.success());
    }
    node.assert_empty();
}

#[test]
fn an_attach_that_is_under_way_is_left_alone() {
    let node = Node::new();
    for step in ["leased", "veth", "fast-path"] {
        let add = stopped_at(&node, step);
        let before = everything(&node);
        let (report, code) = node.reconcile(&[]);
        assert_eq!((&report["kept"], freed(&report), code), (&json!(1), vec![], 0), "{step}");
        assert_eq!(everything(&node), before, "{step}");
        let (done, result) = add.goes_on();
        assert!(done, "{step}: {result}");
        let address = result["ips"][0]["address"].as_str().unwrap().split('/').next().unwrap().to_owned();
        assert!(pings(&node.host, &address), "{step}");
        assert!(node.cni("DEL", "a", &conf()).status.success());
        node.remove_pod("a");
        node.assert_empty();
        // And one that was stopped and then killed is a killed one.
        drop(stopped_at(&node, step));
        assert_eq!(freed(&node.reconcile(&[]).0), [("a", "its attach was killed")], "{step}");
        node.remove_pod("a");
        node.assert_empty();
    }
}

/// A runtime whose patience ends kills ADD and calls DEL; one that does not kill it must not get half a pod for it.
#[test]
fn del_waits_for_an_add_of_the_same_interface() {
    let node = Node::new();
    let add = stopped_at(&node, "veth");
    let netns = node.dir.path().join("netns-a");
    let mut command = node.command(env!("CARGO_BIN_EXE_weft-cni"));
    command
        .env("CNI_COMMAND", "DEL")
        .env("CNI_CONTAINERID", "a")
        .env("CNI_IFNAME", "eth0")
        .env("CNI_PATH", "/");
    command.env("CNI_NETNS", netns).stdin(std::fs::File::open(node.dir.path().join("conf")).unwrap());
    let mut del = node.host.run(|| command.spawn().unwrap()).unwrap();
    let tasks = format!("/proc/{}/task", del.id());
    wait_until("DEL waits", || std::fs::read_dir(&tasks).is_ok_and(|tasks| tasks.count() == 2));
    let other = node.add("b");
    assert!(pings(&node.host, &other.addresses()[0]), "another interface waits for nobody");
    assert!(add.goes_on().0);
    assert!(del.wait().unwrap().success());
    assert_eq!(node.ip_in_pod("a", &["link", "show"]).as_array().unwrap().len(), 1, "only lo");
    assert!(node.cni("DEL", "b", &conf()).status.success());
    node.assert_empty();
}

/// `ctr run`, and a runtime that was killed between its last steps: the pin is gone, the namespace is not.
#[test]
fn a_pod_without_its_path_lives_as_long_as_its_namespace() {
    let node = Node::new();
    let address = node.add("a").addresses()[0].clone();
    let mut inside = node.pod_ns("a").run(|| Command::new("sleep").arg("600").spawn().unwrap()).unwrap();
    node.remove_pod("a");
    for _ in 0..2 {
        let (report, code) = node.reconcile(&[]);
        assert_eq!((&report["kept"], freed(&report), code), (&json!(1), vec![], 0));
        assert!(pings(&node.host, &address));
    }
    inside.kill().unwrap();
    inside.wait().unwrap();
    wait_until("the namespace is gone", || node.links().is_empty());
    assert_eq!(freed(&node.reconcile(&[]).0), [("a", "its namespace is gone")]);
    node.assert_empty();
}

/// Another namespace is pinned at the path of a dead one by now.
#[test]
fn a_path_that_leads_elsewhere_proves_nothing() {
    let node = Node::new();
    node.add("a");
    // It keeps the number of the old namespace from being given to the new one.
    let old = node.pod_ns("a");
    node.remove_pod("a");
    node.pod("a");
    assert_eq!(node.reconcile(&[]).0["kept"], 1, "its pair of links lives");
    drop(old);
    wait_until("the namespace is gone", || node.links().is_empty());
    assert_eq!(freed(&node.reconcile(&[]).0), [("a", "its namespace is gone")]);
    node.assert_empty();
}

#[test]
fn links_and_map_entries_without_a_record_go() {
    let node = Node::new();
    node.add("b");
    let netns = node.pod("a");
    for verb in ["ADD", "DEL"] {
        let answer = node.cni_with(verb, "a", &conf().to_string(), |command| {
            command.env("CNI_NETNS", &netns).env("CNI_ARGS", KUBERNETES);
        });
        assert!(answer.status.success(), "{}", answer.json);
    }
    let live = node.weft(&["pods", "-o", "json"])[0]["host_link"].as_str().unwrap().to_owned();
    let stray = node.links().into_iter().find(|link| *link != live).unwrap();
    let entry = PodEntry { ifindex: 4711, mac: [2; 6], host_mac: [6; 6], stack_only: false };
    let addresses = ["10.88.0.99", "fd00:88::99"];
    let mut fast_path = FastPath::open(&node.bpf().join("weft"), &node.run_dir()).unwrap();
    for address in addresses {
        fast_path.set_pod(address.parse().unwrap(), &entry).unwrap();
    }
    // Called like one of weft's, and not weft's.
    node.ip(&["link", "add", "weft0123456789a", "type", "veth", "peer", "name", "weftpeer"]);
    let before = everything(&node);
    let (would, code) = node.reconcile(&["--dry-run"]);
    assert_eq!(everything(&node), before, "--dry-run changed something");
    let (did, _) = node.reconcile(&[]);
    for report in [would, did] {
        assert_eq!((&report["links"], code), (&json!([stray]), 0));
        let mut entries: Vec<&str> =
            report["entries"].as_array().unwrap().iter().map(|address| address.as_str().unwrap()).collect();
        entries.sort_unstable();
        assert_eq!(entries, addresses);
        assert_eq!((&report["kept"], &report["foreign"]), (&json!(1), &json!([])));
    }
    assert_eq!(node.map_entries(), 2, "those of b");
    assert_eq!(node.ip_in_pod("a", &["link", "show"]).as_array().unwrap().len(), 1, "only lo is left in a");
    let mut left = node.links();
    left.sort();
    let mut wanted = vec![live, "weft0123456789a".to_owned(), "weftpeer".to_owned()];
    wanted.sort();
    assert_eq!(left, wanted);
    node.ip(&["link", "del", "weftpeer"]);
    node.cni("DEL", "b", &conf());
    node.assert_empty();
}

/// The store was lost, or another node's programs share the host: who has routes of weft's has not been detached.
#[test]
fn a_pod_of_another_store_is_named_and_left_alone() {
    let node = Node::new();
    let address = node.add("a").addresses()[0].clone();
    let link = node.links();
    let before = everything(&node);
    let mut command = node.command(env!("CARGO_BIN_EXE_weft"));
    command.args(["reconcile", "-o", "json"]).env("WEFT_RUN_DIR", node.dir.path().join("other"));
    let output = node.run(&mut command, "");
    assert!(output.status.success());
    let report: Value = serde_json::from_slice(&output.stdout).unwrap();
    assert_eq!(report["foreign"], json!(link));
    assert_eq!((&report["links"], &report["entries"]), (&json!([]), &json!([])));
    assert_eq!(everything(&node), before);
    assert!(pings(&node.host, &address));
    node.cni("DEL", "a", &conf());
    node.assert_empty();
}

/// The same before the routes are there: somebody makes it right now.
#[test]
fn a_pair_that_is_made_for_another_store_is_left_alone() {
    let node = Node::new();
    let add = stopped_at(&node, "veth");
    let link = node.links();
    let mut command = node.command(env!("CARGO_BIN_EXE_weft"));
    command.args(["reconcile", "-o", "json"]).env("WEFT_RUN_DIR", node.dir.path().join("other"));
    let report: Value = serde_json::from_slice(&node.run(&mut command, "").stdout).unwrap();
    assert_eq!((&report["foreign"], &report["links"]), (&json!(link), &json!([])));
    let (done, result) = add.goes_on();
    assert!(done, "{result}");
    assert!(pings(&node.host, "10.88.0.2"));
    node.cni("DEL", "a", &conf());
    node.assert_empty();
}

/// The pins say something that nobody understands: map entries can neither be read nor removed.
pub(crate) fn break_pins(node: &Node) -> impl Fn() {
    let version = node.bpf().join("weft/version");
    let good = std::fs::read_link(&version).unwrap();
    let set = move |text: &Path| {
        std::fs::remove_file(&version).unwrap();
        symlink(text, &version).unwrap();
    };
    set(Path::new("nonsense"));
    move || set(&good)
}

#[test]
fn a_detach_that_fails_is_a_success_for_the_runtime_and_a_tombstone_for_the_reconciler() {
    let node = Node::new();
    node.add("a");
    let mend = break_pins(&node);
    for _ in 0..2 {
        assert_eq!(node.cni("DEL", "a", &conf()).json, Value::Null, "kubelet has nothing to repeat");
    }
    let pods = node.weft(&["pods", "-o", "json"]);
    assert!(pods[0]["tombstone"].as_str().unwrap().contains("nonsense"), "{pods}");
    let table = node.run(node.command(env!("CARGO_BIN_EXE_weft")).arg("pods"), "");
    assert!(String::from_utf8_lossy(&table.stdout).contains("detaching"), "{table:?}");
    let mut with_result = conf();
    with_result["prevResult"] = json!({ "ips": [] });
    assert_eq!(node.cni("CHECK", "a", &with_result).error().0, 3, "it is not attached any more");
    assert_eq!(node.add("b").addresses()[0], "10.88.0.3", "the tombstone keeps its addresses");
    let (report, code) = node.reconcile(&[]);
    assert_eq!((code, freed(&report)), (1, vec![]));
    let tombstone = &report["tombstones"][0];
    assert_eq!((&tombstone["container"], &tombstone["addresses"][0]), (&json!("a"), &json!("10.88.0.2")));
    assert!(tombstone["why"].as_str().unwrap().contains("nonsense"), "{report}");
    let human = node.run(node.command(env!("CARGO_BIN_EXE_weft")).arg("reconcile"), "");
    assert_eq!(human.status.code(), Some(1));
    let (out, err) = (String::from_utf8_lossy(&human.stdout), String::from_utf8_lossy(&human.stderr));
    assert!(out.contains("tombstone  a eth0") && out.contains("1 attachments kept"), "{out}");
    assert!(err.starts_with("weft: remove what pods have left: a eth0: "), "{err}");
    mend();
    let (report, code) = node.reconcile(&[]);
    assert_eq!((code, freed(&report)), (0, vec![("a", "an earlier detach is tried again")]));
    assert_eq!(containers(&node), ["b"]);
    node.cni("DEL", "b", &conf());
    node.assert_empty();
}

#[test]
fn add_of_a_tombstone_attaches_anew() {
    let node = Node::new();
    node.add("a");
    let mend = break_pins(&node);
    assert!(node.cni("DEL", "a", &conf()).status.success());
    mend();
    let again = node.cni("ADD", "a", &conf());
    assert!(again.status.success(), "{}", again.json);
    assert!(pings(&node.host, &again.addresses()[0]));
    assert_eq!(node.weft(&["pods", "-o", "json"])[0]["tombstone"], Value::Null);
    node.cni("DEL", "a", &conf());
    node.assert_empty();
}

#[test]
fn a_record_of_a_newer_version_is_told_and_left_alone() {
    let node = Node::new();
    let owner = Owner::new("a", "eth0").unwrap();
    let record = br#"{"version":2}"#;
    {
        let store = Store::open(&node.run_dir().join("store")).unwrap();
        let mut txn = store.write().unwrap();
        txn.put_record(&owner, record).unwrap();
        txn.commit().unwrap();
    }
    node.add("b");
    dies(&node, &["b"]);
    let (report, code) = node.reconcile(&[]);
    assert_eq!((code, freed(&report)), (1, vec![("b", "its namespace is gone")]), "the others are looked at");
    let failed =
        json!(["interface eth0 of container a: record of a eth0 has format 2, this version knows up to 1"]);
    assert_eq!(report["failed"], failed);
    let store = Store::open(&node.run_dir().join("store")).unwrap();
    assert_eq!(store.read().unwrap().record(&owner).unwrap(), Some(&record[..]));
}

/// Somebody deleted the pair under a living pod: its address is not given to another while the pod may ask for it.
#[test]
fn a_living_pod_without_its_links_is_kept_and_add_makes_them_anew() {
    let node = Node::new();
    let first = node.add("a").addresses();
    node.ip(&["link", "del", &node.links()[0]]);
    let (report, code) = node.reconcile(&[]);
    assert_eq!((&report["kept"], code), (&json!(1), 0));
    let again = node.cni("ADD", "a", &conf());
    assert!(again.status.success(), "{}", again.json);
    assert_eq!(again.addresses(), first);
    assert!(pings(&node.host, &first[0]));
    node.cni("DEL", "a", &conf());
    node.assert_empty();
}

#[test]
fn gc_removes_what_has_no_record_too() {
    let node = Node::new();
    node.add("b");
    let netns = node.pod("a");
    for verb in ["ADD", "DEL"] {
        node.cni_with(verb, "a", &conf().to_string(), |command| {
            command.env("CNI_NETNS", &netns).env("CNI_ARGS", KUBERNETES);
        });
    }
    assert_eq!(node.links().len(), 2);
    let mut gc = conf();
    gc["cni.dev/valid-attachments"] = json!([{ "containerID": "b", "ifname": "eth0" }]);
    assert_eq!(node.cni("GC", "-", &gc).json, Value::Null);
    assert_eq!((node.links().len(), containers(&node)), (1, vec!["b".to_owned()]));
    let mend = break_pins(&node);
    gc["cni.dev/valid-attachments"] = json!([]);
    let (code, text) = node.cni("GC", "-", &gc).error();
    assert_eq!(code, 102, "{text}");
    assert!(text.contains("remove what the runtime does not know any more: b eth0: "), "{text}");
    mend();
    assert_eq!(node.cni("GC", "-", &gc).json, Value::Null);
    node.assert_empty();
}

/// The run folder and the bpffs of a new boot; containerd still knows the old pods and takes them down.
fn reboot(node: &Node) {
    umount2(&node.bpf(), MntFlags::MNT_DETACH).unwrap();
    mount(Some("bpf"), &node.bpf(), Some("bpf"), MsFlags::empty(), None::<&str>).unwrap();
    std::fs::remove_dir_all(node.run_dir()).unwrap();
}

#[test]
fn after_a_reboot_all_addresses_are_free_and_del_of_old_pods_succeeds() {
    let node = Node::new();
    let mut small = conf();
    small["ranges"] = json!([{ "subnet": "10.88.0.0/29" }, { "subnet": "fd00:88::/64" }]);
    let old = ["a", "b", "c", "d", "e"];
    let mut results = Vec::new();
    for pod in old {
        node.pod(pod);
        results.push(node.cni("ADD", pod, &small).json);
    }
    dies(&node, &old);
    reboot(&node);
    let after = ["n0", "n1", "n2", "n3", "n4"].map(|pod| {
        node.pod(pod);
        node.cni("ADD", pod, &small).addresses()[0].clone()
    });
    assert_eq!(after, ["10.88.0.2", "10.88.0.3", "10.88.0.4", "10.88.0.5", "10.88.0.6"]);
    // As containerd calls it: with the result of ADD and the path that is gone, and once more without either.
    for (pod, result) in old.into_iter().zip(results) {
        let mut with_result = small.clone();
        with_result["prevResult"] = result;
        for (netns, conf) in [("/run/netns/cni-gone", &with_result), ("", &small)] {
            let answer = node.cni_with("DEL", pod, &conf.to_string(), |command| {
                command.env("CNI_NETNS", netns).env("CNI_ARGS", KUBERNETES);
            });
            assert_eq!(answer.json, Value::Null, "{pod}");
        }
    }
    assert_eq!(node.reconcile(&[]).0["kept"], 5);
    for pod in ["n0", "n1", "n2", "n3", "n4"] {
        assert!(pings(&node.host, &after[usize::from(pod.as_bytes()[1] - b'0')]), "{pod}");
        node.cni("DEL", pod, &conf());
    }
    node.assert_empty();
}

/// `/run` survived, which it should not: the store knows by the boot's id that its rows are of no use.
#[test]
fn a_store_of_another_boot_is_empty() {
    let node = Node::new();
    node.add("a");
    dies(&node, &["a"]);
    let other_boot = node.dir.path().join("boot_id");
    std::fs::write(&other_boot, "00000000-0000-4000-8000-000000000000\n").unwrap();
    let in_other_boot = |program: &str, args: &str, input: &str| {
        let script = format!(
            "mount --bind {} /proc/sys/kernel/random/boot_id && exec {program} {args}",
            other_boot.display()
        );
        let mut command = node.command("unshare");
        command.args(["-m", "--propagation", "private", "sh", "-c", &script]);
        command.env("CNI_COMMAND", "DEL").env("CNI_CONTAINERID", "a").env("CNI_IFNAME", "eth0");
        let output = node.run(command.env("CNI_PATH", "/").env("CNI_NETNS", ""), input);
        assert!(output.status.success(), "{output:?}");
        String::from_utf8(output.stdout).unwrap()
    };
    let (weft, cni) = (env!("CARGO_BIN_EXE_weft"), env!("CARGO_BIN_EXE_weft-cni"));
    assert_eq!(in_other_boot(weft, "pods -o json", "").trim(), "[]");
    assert_eq!(in_other_boot(cni, "", &conf().to_string()), "", "DEL of an old pod");
    let report: Value = serde_json::from_str(&in_other_boot(weft, "reconcile -o json", "")).unwrap();
    assert_eq!((&report["kept"], freed(&report)), (&json!(0), vec![]));
    assert_eq!(report["entries"].as_array().unwrap().len(), 2, "here the bpffs survived too");
    assert_eq!(node.map_entries(), 0);
}

fn with_range(subnet: &str) -> Value {
    let mut conf = conf();
    conf["ranges"] = json!([{ "subnet": subnet }]);
    conf
}

fn add(node: &Node, pod: &str, conf: &Value) -> String {
    node.pod(pod);
    let answer = node.cni("ADD", pod, conf);
    assert!(answer.status.success(), "ADD {pod}: {}", answer.json);
    answer.addresses()[0].clone()
}

#[test]
fn a_full_range_frees_itself_of_the_dead() {
    for (subnet, capacity) in [("10.88.0.0/30", 1), ("10.88.0.0/29", 5), ("10.88.0.0/28", 13)] {
        let node = Node::new();
        let conf = with_range(subnet);
        let pods: Vec<String> = (0..capacity).map(|n| format!("p{n}")).collect();
        for pod in &pods {
            add(&node, pod, &conf);
        }
        // One of them lives, if there are more than one.
        let (living, dead) = pods.split_at(usize::from(capacity > 1));
        dies(&node, &dead.iter().map(String::as_str).collect::<Vec<_>>());
        let pinging = living.iter().map(|_| Pinging::start(&node.host, "10.88.0.2")).collect::<Vec<_>>();
        for n in 0..dead.len() {
            add(&node, &format!("q{n}"), &conf);
        }
        pinging.into_iter().for_each(Pinging::assert_no_loss);
        node.pod("one-more");
        let (code, text) = node.cni("ADD", "one-more", &conf).error();
        assert_eq!(code, 100, "{subnet}: {text}");
        for pod in containers(&node) {
            node.cni("DEL", &pod, &conf);
        }
        node.assert_empty();
    }
}

#[test]
fn the_host_ports_of_dead_pods_are_the_next_pods() {
    let node = Node::new();
    for (pod, number) in [("a", 8080), ("b", 8081), ("c", 8082)] {
        add(&node, pod, &with_ports(json!([port("tcp", number, 80)])));
    }
    dies(&node, &["a", "b"]);
    add(&node, "d", &with_ports(json!([port("tcp", 8080, 81), port("tcp", 8081, 82)])));
    assert_eq!(containers(&node), ["c", "d"], "those who had them are gone");
    assert!(tcp(&node.pod_ns("c"), at(HOST[0], 8081), &node.pod_ns("d"), 82).is_some());
    node.pod("e");
    let (code, text) = node.cni("ADD", "e", &with_ports(json!([port("tcp", 8082, 80)]))).error();
    assert_eq!(code, 105, "of one that lives: {text}");
    for pod in ["c", "d"] {
        node.cni("DEL", pod, &conf());
    }
    node.assert_empty();
}

#[test]
fn a_range_that_runs_low_is_freed_before_it_is_full_and_other_networks_are_not_looked_at() {
    let node = Node::new();
    let conf = with_range("10.88.0.0/28");
    let mut other = with_range("10.88.1.0/28");
    other["name"] = "other".into();
    add(&node, "other", &other);
    for n in 0..9 {
        add(&node, &format!("p{n}"), &conf);
    }
    dies(&node, &["other", "p0", "p1"]);
    // 9 of 13, then 10: there is room.
    add(&node, "p9", &conf);
    assert_eq!(containers(&node).len(), 11);
    add(&node, "p10", &conf);
    // 11 of 13 are more than nine of ten, by what is counted whole.
    assert_eq!(add(&node, "p11", &conf), "10.88.0.13");
    let left = containers(&node);
    assert!(!left.contains(&"p0".to_owned()) && !left.contains(&"p1".to_owned()), "{left:?}");
    assert!(left.contains(&"other".to_owned()), "{left:?}");
    assert_eq!(freed(&node.reconcile(&[]).0), [("other", "its namespace is gone")]);
    for pod in containers(&node) {
        node.cni("DEL", &pod, &conf);
    }
    node.assert_empty();
}

/// A node that is not ready gets no pods, so no ADD would ever find out.
#[test]
fn a_network_full_of_dead_pods_is_ready() {
    let node = Node::new();
    let conf = with_range("10.88.0.0/29");
    for n in 0..5 {
        add(&node, &format!("p{n}"), &conf);
    }
    let full = node.cni("STATUS", "-", &conf).error();
    assert_eq!(full, (50, "network test: every IPv4 address is in use: ".to_owned()));
    dies(&node, &["p1", "p2"]);
    wait_until("STATUS looks again", || node.cni("STATUS", "-", &conf).status.success());
    assert_eq!(containers(&node), ["p0", "p3", "p4"]);
    for n in [0, 3, 4] {
        assert!(node.cni("DEL", &format!("p{n}"), &conf).status.success());
    }
    node.assert_empty();
}

/// All pods of a node die at once, and come back at once.
#[test]
fn a_burst_after_a_crash_finds_room() {
    let node = Node::new();
    let conf = with_range("10.88.0.0/28");
    let names = |prefix: &str| (0..13).map(|n| format!("{prefix}{n}")).collect::<Vec<_>>();
    for pod in names("p") {
        add(&node, &pod, &conf);
    }
    dies(&node, &names("p").iter().map(String::as_str).collect::<Vec<_>>());
    let input = node.dir.path().join("conf");
    std::fs::write(&input, conf.to_string()).unwrap();
    let adds: Vec<Child> = names("q")
        .iter()
        .map(|pod| {
            let netns = node.pod(pod);
            let mut command = node.command(env!("CARGO_BIN_EXE_weft-cni"));
            command.env("CNI_COMMAND", "ADD").env("CNI_CONTAINERID", pod).env("CNI_IFNAME", "eth0");
            command.env("CNI_NETNS", netns).env("CNI_PATH", "/").stdout(Stdio::piped());
            command.stdin(std::fs::File::open(&input).unwrap());
            node.host.run(|| command.spawn().unwrap()).unwrap()
        })
        .collect();
    for add in adds {
        let output = add.wait_with_output().unwrap();
        assert!(output.status.success(), "{}", String::from_utf8_lossy(&output.stdout));
    }
    assert_eq!(containers(&node).len(), 13);
    for pod in names("q") {
        node.cni("DEL", &pod, &conf);
    }
    node.assert_empty();
}
