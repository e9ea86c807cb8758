//! `weft capture`: what it writes is read back by `tcpdump`.

use std::io::Read;
use std::process::{Child, Command, ExitStatus, Stdio};

use crate::common::{Node, conf, pings, wait_until};
use crate::network::spawn;
use nix::sys::signal::{Signal, kill};
use nix::unistd::Pid;

fn signal(process: &Child, signal: Signal) {
    kill(Pid::from_raw(i32::try_from(process.id()).unwrap()), signal).unwrap();
}

fn capture(node: &Node, args: &[&str]) -> Child {
    let mut command = node.command(env!("CARGO_BIN_EXE_weft"));
    spawn(node, command.arg("capture").args(args).stdout(Stdio::piped()).stderr(Stdio::piped()))
}

/// How the process ended, and what it said.
fn ended(mut process: Child) -> (ExitStatus, String) {
    let mut said = String::new();
    process.stderr.take().unwrap().read_to_string(&mut said).unwrap();
    (process.wait().unwrap(), said)
}

/// `tcpdump -r FILE`, one line a packet.
fn read_back(file: &str) -> Vec<String> {
    let output = Command::new("tcpdump").args(["-n", "-e", "-r", file]).output().unwrap();
    assert!(output.status.success(), "{}", String::from_utf8_lossy(&output.stderr));
    String::from_utf8(output.stdout).unwrap().lines().map(str::to_owned).collect()
}

#[test]
fn both_directions_are_captured_fast_path_included() {
    let node = Node::new();
    for pod in ["a", "b"] {
        node.add(pod);
    }
    let file = node.dir.path().join("a.pcap");
    let file = file.to_str().unwrap();
    let process = capture(&node, &["a", "-w", file, "-s", "64"]);
    wait_until("it listens", || std::fs::metadata(file).is_ok_and(|file| file.len() >= 24));
    for address in ["10.88.0.3", "fd00:88::3", "192.0.2.10"] {
        assert!(pings(&node.pod_ns("a"), address), "{address}");
    }
    assert!(pings(&node.pod_ns("b"), "10.88.0.2"));
    signal(&process, Signal::SIGINT);
    let (status, said) = ended(process);
    assert!(status.success(), "{said}");
    let packets = read_back(file);
    assert_eq!(said, format!("weft: {} packets captured, 0 dropped by the kernel\n", packets.len()));
    let has = |text: &str| packets.iter().filter(|packet| packet.contains(text)).count();
    for text in [
        "10.88.0.2 > 10.88.0.3: ICMP echo request",
        "10.88.0.3 > 10.88.0.2: ICMP echo reply",
        "fd00:88::2 > fd00:88::3: ICMP6, echo request",
        "fd00:88::3 > fd00:88::2: ICMP6, echo reply",
        "10.88.0.2 > 192.0.2.10: ICMP echo request",
        "192.0.2.10 > 10.88.0.2: ICMP echo reply",
        "10.88.0.3 > 10.88.0.2: ICMP echo request",
        "10.88.0.2 > 10.88.0.3: ICMP echo reply",
    ] {
        assert_eq!(has(text), 1, "{text} in {packets:#?}");
    }
    let redirected = node.weft(&["status", "-o", "json"])["counters"]["redirected"]["packets"].clone();
    assert_eq!(redirected, 6, "what went between pods took the fast path");
    let size = std::fs::metadata(file).unwrap().len();
    let most = 24 + u64::try_from(packets.len()).unwrap() * (16 + 64);
    assert!(size <= most, "64 bytes of each packet are kept: {size} of {most}");
    for pod in ["a", "b"] {
        node.cni("DEL", pod, &conf());
    }
    node.assert_empty();
}

#[test]
fn a_count_ends_it_and_standard_output_is_a_file_too() {
    let node = Node::new();
    node.add("a");
    let mut process = capture(&node, &["a", "-c", "3"]);
    let mut out = process.stdout.take().unwrap();
    let mut head = [0; 24];
    out.read_exact(&mut head).unwrap();
    for _ in 0..2 {
        assert!(pings(&node.pod_ns("a"), "192.0.2.10"));
    }
    let mut rest = Vec::new();
    out.read_to_end(&mut rest).unwrap();
    let (status, said) = ended(process);
    assert!(status.success(), "{said}");
    assert_eq!(said, "weft: 3 packets captured, 0 dropped by the kernel\n");
    let file = node.dir.path().join("out.pcap");
    std::fs::write(&file, [&head[..], &rest].concat()).unwrap();
    assert_eq!(read_back(file.to_str().unwrap()).len(), 3);
    node.cni("DEL", "a", &conf());
    node.assert_empty();
}

/// An open socket would keep the namespace, and with it the pod's links.
#[test]
fn it_ends_with_the_pod() {
    let node = Node::new();
    let netns = node.pod("a");
    let call = |verb: &str| {
        let args = "K8S_POD_NAMESPACE=default;K8S_POD_NAME=web;K8S_POD_INFRA_CONTAINER_ID=a";
        let answer = node.cni_with(verb, "a", &conf().to_string(), |command| {
            command.env("CNI_NETNS", &netns).env("CNI_ARGS", args);
        });
        assert!(answer.status.success(), "{}", answer.json);
    };
    call("ADD");
    let file = node.dir.path().join("a.pcap");
    let process = capture(&node, &["default/web", "-w", file.to_str().unwrap()]);
    wait_until("it listens", || std::fs::metadata(&file).is_ok_and(|file| file.len() >= 24));
    call("DEL");
    let (status, said) = ended(process);
    assert!(status.success(), "{said}");
    assert!(said.contains("packets captured"), "{said}");
    node.remove_pod("a");
    wait_until("the links go with the namespace", || node.links().is_empty());
    node.assert_empty();
}

#[test]
fn what_is_not_there_cannot_be_captured() {
    let node = Node::new();
    node.add("a");
    for (args, wanted) in [
        (&["b"][..], "no pod is called \"b\""),
        (&["a", "-i", "eth1"][..], "pod a has no interface eth1"),
        (&["a", "-w", "/absent/file"][..], "write /absent/file"),
    ] {
        let (status, said) = ended(capture(&node, args));
        assert_eq!(status.code(), Some(1), "{args:?}");
        assert!(said.contains(wanted), "{wanted} in {said}");
    }
    node.cni("DEL", "a", &conf());
    node.assert_empty();
}
