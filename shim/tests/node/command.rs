//! The `weft` command as an administrator uses it: the built binary, what it prints and how it ends.

use std::path::{Path, PathBuf};
use std::process::{Command, Output};

use crate::api::Serve;
use crate::common::{Node, conf, pings, run_in};
use serde_json::{Value, json};
use weft_ipam::{Owner, Store};

const KUBERNETES: &str =
    "IgnoreUnknown=1;K8S_POD_NAMESPACE=default;K8S_POD_NAME=web;K8S_POD_INFRA_CONTAINER_ID=a;K8S_POD_UID=u1";

fn weft(node: &Node, args: &[&str]) -> Output {
    node.run(node.command(env!("CARGO_BIN_EXE_weft")).args(args), "")
}

fn text(node: &Node, args: &[&str]) -> String {
    let output = weft(node, args);
    assert!(output.status.success(), "weft {args:?}: {}", String::from_utf8_lossy(&output.stderr));
    String::from_utf8(output.stdout).unwrap()
}

/// The exit code and what was said on standard error.
fn refused(node: &Node, args: &[&str]) -> (Option<i32>, String) {
    let output = weft(node, args);
    (output.status.code(), String::from_utf8(output.stderr).unwrap())
}

/// A pod with a name in Kubernetes, and one without.
fn two_pods() -> Node {
    let node = Node::new();
    let netns = node.pod("a");
    let answer = node.cni_with("ADD", "a", &conf().to_string(), |command| {
        command.env("CNI_NETNS", netns).env("CNI_ARGS", KUBERNETES);
    });
    assert!(answer.status.success(), "{}", answer.json);
    node.add("b");
    assert!(pings(&node.pod_ns("a"), "10.88.0.3"));
    node
}

fn remove(node: &Node) {
    for pod in ["a", "b"] {
        assert!(node.cni("DEL", pod, &conf()).status.success());
    }
    node.assert_empty();
}

#[test]
fn the_answer_is_the_same_with_and_without_a_server() {
    let node = two_pods();
    let questions: &[&[&str]] = &[
        &["pods"],
        &["pods", "-o", "json"],
        &["pods", "--wide", "-n", "default"],
        &["ipam", "show", "--leases"],
        &["ipam", "show", "-o", "json"],
    ];
    let ask = || questions.iter().map(|args| text(&node, args)).collect::<Vec<_>>();
    let straight = ask();
    let serve = Serve::start(&node, &[]);
    let served = ask();
    for ((args, straight), served) in questions.iter().zip(straight).zip(served) {
        assert_eq!(served, straight, "{args:?}");
    }
    // A link may say a word of its own between two looks; what it counts is compared elsewhere.
    let answer = |args: &[&str]| {
        let mut answer = node.weft(args);
        let answer = if answer.is_array() { answer[0].take() } else { answer };
        let Value::Object(mut answer) = answer else { panic!("{answer}") };
        answer.retain(|key, _| !["counters", "received", "sent"].contains(&key.as_str()));
        answer
    };
    let served = [&["pod", "web", "-o", "json"][..], &["status", "-o", "json"]].map(answer);
    drop(serve);
    let straight = [&["pod", "web", "-o", "json"][..], &["status", "-o", "json"]].map(answer);
    assert_eq!(served, straight);
    let serve = Serve::start(&node, &[]);
    // A node whose socket is this one's and whose store is empty tells where the answer comes from.
    let other = Node::new();
    assert_eq!(other.weft(&["pods", "-o", "json"]), json!([]));
    std::os::unix::fs::symlink(node.run_dir().join("weft.sock"), other.run_dir().join("weft.sock")).unwrap();
    assert_eq!(other.weft(&["pods", "-o", "json"]), node.weft(&["pods", "-o", "json"]));
    drop(serve);
    assert_eq!(other.weft(&["pods", "-o", "json"]), json!([]), "nobody serves any more");
    remove(&node);
}

#[test]
fn pods_are_told_in_columns_and_by_filters() {
    let node = two_pods();
    let table = text(&node, &["pods"]);
    let lines: Vec<Vec<&str>> = table.lines().map(|line| line.split_whitespace().collect()).collect();
    assert_eq!(lines[0], ["POD", "INTERFACE", "ADDRESSES", "DATA", "PATH", "LINK", "CONTAINER"]);
    assert_eq!(lines[1][..4], ["default/web", "eth0", "10.88.0.2,fd00:88::2", "redirect"]);
    assert_eq!((lines[2][0], lines[2][5]), ("-", "b"));
    let count = |args: &[&str]| {
        let args = [&["pods", "-o", "json"], args].concat();
        node.weft(&args).as_array().unwrap().len()
    };
    for (args, wanted) in [
        (&["--namespace", "default"][..], 1),
        (&["--name", "web"][..], 1),
        (&["--name", "web", "-n", "other"][..], 0),
        (&["--network", "test"][..], 2),
        (&["--label", "app=web"][..], 0),
    ] {
        assert_eq!(count(args), wanted, "{args:?}");
    }
    let wide = text(&node, &["pods", "--wide"]);
    for text in ["NETWORK", "1450", &node.pod("x").display().to_string().replace("netns-x", "netns-a")] {
        assert!(wide.contains(text), "{text} in {wide}");
    }
    remove(&node);
}

#[test]
fn everything_of_one_pod_is_what_the_kernel_has() {
    let node = two_pods();
    let all = node.weft(&["pod", "default/web", "-o", "json"]);
    let pod = &all[0];
    assert_eq!(pod["record"]["pod"], json!({ "namespace": "default", "name": "web", "uid": "u1" }));
    let routes = |value: &Value| {
        let of = |route: &Value| route["dst"].as_str().unwrap().split('/').next().unwrap().to_owned();
        value.as_array().unwrap().iter().map(of).collect::<Vec<_>>()
    };
    assert_eq!(routes(&pod["routes"]["host"]), ["10.88.0.2", "fd00:88::2"]);
    for destination in routes(&pod["routes"]["host"]) {
        assert!(node.routes().contains(&destination), "{destination}");
    }
    assert_eq!(routes(&pod["routes"]["pod"]), ["169.254.1.1", "0.0.0.0", "fe80::1", "::"]);
    let shown = node.ip_in_pod("a", &["-s", "link", "show", "eth0"])[0]["stats64"].clone();
    for (told, shown) in [("sent", "tx"), ("received", "rx")].map(|(told, key)| (&pod[told], &shown[key])) {
        let (told, shown) = (told["packets"].as_u64().unwrap(), shown["packets"].as_u64().unwrap());
        assert!(1 <= told && told <= shown, "{told} and {shown}");
    }
    let table = text(&node, &["pod", "web"]);
    for line in [
        "pod             default/web",
        "addresses       10.88.0.2,fd00:88::2",
        "route to it     10.88.0.2/32 via",
    ] {
        assert!(table.contains(line), "{line} in {table}");
    }
    let (code, said) = refused(&node, &["pod", "nobody"]);
    assert_eq!((code, said.contains("no pod is called \"nobody\"")), (Some(1), true), "{said}");
    remove(&node);
}

#[test]
fn addresses_are_told_and_only_those_of_dead_pods_are_freed() {
    let node = two_pods();
    let show = node.weft(&["ipam", "show", "--leases", "-o", "json"]);
    let range = &show["ranges"][0];
    let numbers = ["network", "first", "used", "cooling", "free"].map(|key| range[key].as_str().unwrap());
    assert_eq!(numbers, ["test", "10.88.0.2", "2", "0", "251"]);
    assert_eq!(show["leases"].as_array().unwrap().len(), 4);
    assert_eq!(show["leases"][0]["pod"], "default/web");
    assert_eq!(refused(&node, &["ipam", "check"]), (Some(0), String::new()));

    let (code, said) = refused(&node, &["ipam", "free", "10.88.0.2"]);
    assert_eq!(code, Some(1));
    assert!(said.contains("is that of a pod that is alive, default/web (a): --force"), "{said}");
    assert_eq!(refused(&node, &["ipam", "free", "10.88.0.9"]).1, "weft: address 10.88.0.9 is not leased\n");
    node.remove_pod("a");
    crate::common::wait_until("the namespace is gone", || node.links().len() == 1);
    assert_eq!(refused(&node, &["ipam", "free", "fd00:88::2"]), (Some(0), String::new()));
    let pods = node.weft(&["pods", "-o", "json"]);
    assert_eq!((pods.as_array().unwrap().len(), &pods[0]["container"]), (1, &json!("b")));
    assert_eq!(refused(&node, &["ipam", "free", "10.88.0.3", "--force"]), (Some(0), String::new()));
    assert_eq!(node.ip_in_pod("b", &["link", "show"]).as_array().unwrap().len(), 1, "only lo is left");
    node.assert_empty();
}

#[test]
fn every_contradiction_is_named_and_the_exit_code_says_so() {
    let node = two_pods();
    // A lease without a record, a record without its lease, and a map entry that is gone.
    {
        let store = Store::open(&node.run_dir().join("store")).unwrap();
        let mut txn = store.write().unwrap();
        txn.delete_record(&Owner::new("a", "eth0").unwrap()).unwrap();
        txn.release(&Owner::new("b", "eth0").unwrap()).unwrap();
        txn.commit().unwrap();
    }
    let (code, said) = refused(&node, &["ipam", "check"]);
    assert_eq!((code, said.as_str()), (Some(1), "weft: 6 deviations found\n"));
    let output = weft(&node, &["ipam", "check", "-o", "json"]);
    let found: Value = serde_json::from_slice(&output.stdout).unwrap();
    let texts: Vec<String> = found
        .as_array()
        .unwrap()
        .iter()
        .map(|one| format!("{}: {}", one["address"].as_str().unwrap(), one["what"].as_str().unwrap()))
        .collect();
    for wanted in [
        "10.88.0.2: leased by interface eth0 of container a, which has no record of it",
        "10.88.0.3: recorded for interface eth0 of container b, and not leased",
        "fd00:88::3: recorded for interface eth0 of container b, and not leased",
    ] {
        assert!(texts.iter().any(|text| text == wanted), "{wanted} in {texts:#?}");
    }
    assert!(texts.iter().any(|text| text.starts_with("10.88.0.2: in the map as link")), "{texts:#?}");
    let (code, said) = refused(&node, &["doctor", "--containerd", "/absent"]);
    assert_eq!(code, Some(1), "{said}");
    let freed = refused(&node, &["ipam", "free", "10.88.0.2"]);
    assert_eq!(freed, (Some(0), String::new()), "a lease that no record knows is given back");
    node.weft(&["cleanup"]);
}

fn findings(output: &Output) -> Vec<(String, String, String)> {
    let findings: Value = serde_json::from_slice(&output.stdout).unwrap();
    let text = |finding: &Value, key: &str| finding[key].as_str().unwrap().to_owned();
    let of = |finding: &Value| (text(finding, "check"), text(finding, "level"), text(finding, "found"));
    let all: Vec<_> = findings.as_array().unwrap().iter().map(of).collect();
    for finding in findings.as_array().unwrap() {
        assert_eq!(
            finding["level"] == "ok",
            finding["remedy"] == "",
            "each finding has its remedy: {finding}"
        );
    }
    all
}

/// The files that packages install, in folders of the test's own, and the real containerd.
struct Installed<'n> {
    node: &'n Node,
    plugins: PathBuf,
    confs: PathBuf,
    config: PathBuf,
}

impl Installed<'_> {
    fn on(node: &Node) -> Installed<'_> {
        let dir = node.dir.path();
        let (plugins, confs, config) = (dir.join("bin"), dir.join("net.d"), dir.join("containerd.toml"));
        for folder in [&plugins, &confs] {
            std::fs::create_dir(folder).unwrap();
        }
        let packaging = concat!(env!("CARGO_MANIFEST_DIR"), "/../packaging");
        std::fs::copy(format!("{packaging}/cni/10-weft.conflist"), confs.join("10-weft.conflist")).unwrap();
        std::os::unix::fs::symlink(env!("CARGO_BIN_EXE_weft-cni"), plugins.join("weft")).unwrap();
        let handler = std::fs::read_to_string(format!("{packaging}/containerd/weft.toml")).unwrap();
        // The file ends in the table of CNI.
        let dirs = format!("  conf_dir = {confs:?}\n  bin_dirs = [{plugins:?}]\n");
        std::fs::write(&config, handler + &dirs).unwrap();
        Installed { node, plugins, confs, config }
    }

    fn doctor(&self, format: &str) -> Output {
        let shims = Path::new(env!("CARGO_BIN_EXE_containerd-shim-weft-v1")).parent().unwrap();
        let path = format!("{}:{}", shims.display(), std::env::var("WEFT_TOOLS_DIR").unwrap());
        let mut command = self.node.command(env!("CARGO_BIN_EXE_weft"));
        command.env("PATH", path).args(["doctor", "-o", format, "--containerd-config"]).arg(&self.config);
        self.node.run(&mut command, "")
    }
}

#[test]
fn the_doctor_asks_the_real_containerd() {
    let node = two_pods();
    let output = Installed::on(&node).doctor("json");
    assert!(output.status.success(), "{}", String::from_utf8_lossy(&output.stdout));
    let found = findings(&output);
    let of = |check: &str| {
        let finding = found.iter().find(|finding| finding.0 == check);
        finding.map(|(_, level, text)| (level.as_str(), text.as_str())).unwrap_or(("none", ""))
    };
    for check in ["kernel", "veth", "ipv4 forwarding", "bpffs", "programs", "addresses", "attaches", "links"]
    {
        assert_eq!(of(check).0, "ok", "{check}: {found:#?}");
    }
    for check in ["loopback", "CNI configuration", "CNI version", "CNI capabilities", "shim", "CNI plugin"] {
        assert_eq!(of(check).0, "ok", "{check}: {found:#?}");
    }
    assert_eq!(of("runtime handler"), ("ok", "weft, sandboxer shim"), "{found:#?}");
    assert!(of("containerd").1.starts_with("containerd "), "{found:#?}");
    assert_eq!(of("links").1, "2 of weft's, each recorded");
    remove(&node);
}

#[test]
fn the_doctor_sees_a_closed_node_and_a_pod_that_was_changed() {
    let node = two_pods();
    let installed = Installed::on(&node);
    let of = |check: &str| {
        let found = findings(&installed.doctor("json"));
        let (_, level, text) = found.iter().find(|finding| finding.0 == check).unwrap().clone();
        (level, text)
    };
    let ok = |text: &str| ("ok".to_owned(), text.to_owned());
    assert_eq!(of("firewall"), ok("no chain of nftables drops by its policy what is forwarded"));
    assert_eq!(of("pods"), ok("2 networks of pods are as they were made"));
    let closed = "table ip other {\n chain open {\n type filter hook forward priority 0\n }\n chain closed {\n type filter hook \
                  forward priority 0; policy drop\n }\n chain in {\n type filter hook input priority 0; policy drop\n }\n}";
    assert!(node.run(Command::new("nft").args(["-f", "-"]), closed).status.success());
    let (level, text) = of("firewall");
    assert_eq!(level, "warning");
    assert!(text.ends_with("drop what they do not accept: ip other closed"), "{text}");
    // What the reference plugin tuning does behind weft.
    node.ip_in_pod("a", &["link", "set", "eth0", "address", "02:00:00:00:00:99"]);
    let (level, text) = of("pods");
    assert_eq!(level, "problem");
    assert!(text.contains("pod default/web: address of link eth0: got 02:00:00:00:00:99, want"), "{text}");
    remove(&node);
}

#[test]
fn the_doctor_names_what_is_wrong_and_its_remedy() {
    let node = two_pods();
    let installed = Installed::on(&node);
    let other = r#"{"cniVersion":"1.0.0","name":"o","type":"bridge"}"#;
    std::fs::write(installed.confs.join("00-other.conf"), other).unwrap();
    std::fs::remove_file(installed.plugins.join("weft")).unwrap();
    node.ip(&["link", "add", "weft0123456789a", "type", "veth", "peer", "name", "other"]);
    node.host.run(|| std::fs::write("/proc/sys/net/ipv4/ip_forward", "0").unwrap()).unwrap();
    let output = installed.doctor("json");
    assert_eq!(output.status.code(), Some(1));
    assert_eq!(String::from_utf8_lossy(&output.stderr), "weft: 3 problems found\n");
    let found = findings(&output);
    for (check, level, text) in [
        ("CNI configuration", "problem", "00-other.conf is the first of its folder, and is not weft's"),
        ("CNI plugin", "problem", "no weft in"),
        ("ipv4 forwarding", "problem", "net/ipv4/ip_forward = 0, and pods have addresses"),
        ("links", "warning", "not recorded: weft0123456789a"),
    ] {
        let is = |finding: &(String, String, String)| {
            finding.0 == check && finding.1 == level && finding.2.contains(text)
        };
        assert!(found.iter().any(is), "{check} in {found:#?}");
    }
    let table = String::from_utf8(installed.doctor("table").stdout).unwrap();
    assert!(table.contains("problem  CNI plugin"), "{table}");
    assert!(table.contains("remedy: install weft-cni there"), "{table}");
    node.ip(&["link", "del", "weft0123456789a"]);
    remove(&node);
}

#[test]
fn man_pages_and_completion_come_from_the_command_line() {
    let node = Node::new();
    let dir = node.dir.path().join("man");
    text(&node, &["man", dir.to_str().unwrap()]);
    let mut pages: Vec<String> = std::fs::read_dir(&dir)
        .unwrap()
        .map(|file| file.unwrap().file_name().into_string().unwrap())
        .collect();
    pages.sort();
    for page in ["weft.8", "weft-pods.8", "weft-capture.8", "weft-ipam-free.8", "weft-doctor.8"] {
        assert!(pages.iter().any(|found| found == page), "{page} in {pages:?}");
    }
    assert!(!pages.iter().any(|page| page.contains("-man.")), "{pages:?}");
    for page in &pages {
        let text = std::fs::read_to_string(dir.join(page)).unwrap();
        assert!(text.contains("Exit codes:"), "{page}: {text}");
        assert!(text.starts_with(".ie") || text.contains(".TH weft"), "{page}: {text}");
    }
    // Bash itself says what it would complete.
    let script = node.dir.path().join("weft.bash");
    std::fs::write(&script, text(&node, &["completion", "bash"])).unwrap();
    let complete = format!(
        "source {}; COMP_WORDS=(weft ipam ''); COMP_CWORD=2; _weft weft '' ipam; echo ${{COMPREPLY[@]}}",
        script.display()
    );
    let output = run_in(&node.host, Command::new("bash").args(["--norc", "-c", &complete]), "");
    let completed = String::from_utf8(output.stdout).unwrap();
    for word in ["show", "free", "check", "--output"] {
        assert!(completed.split_whitespace().any(|found| found == word), "{word} in {completed}");
    }
    assert!(text(&node, &["help", "capture"]).contains("wireshark"));
}
