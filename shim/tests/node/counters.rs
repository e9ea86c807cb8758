//! What becomes of each pod's packets, as `weft` tells it: per pod, by reason, and no longer than the pod is there. `bpftool`
//! reads the same rows.

use std::collections::BTreeMap;
use std::net::Ipv4Addr;
use std::os::fd::AsRawFd;
use std::os::unix::net::UnixStream;
use std::process::Command;

use nix::libc;
use nix::net::if_::if_nametoindex;
use nix::sys::socket::{AddressFamily, LinkAddr, MsgFlags, SockFlag, SockType, SockaddrLike, sendto, socket};
use serde_json::{Value, json};

use crate::api::Serve;
use crate::common::{Node, conf, pings, run_in};
use crate::serve::{get, value};

type Mac = [u8; 6];

/// A pod as its frames have to be.
struct Pod {
    name: &'static str,
    mac: Mac,
    host_mac: Mac,
    v4: Ipv4Addr,
    index: u64,
}

impl Pod {
    fn add(node: &Node, name: &'static str) -> Pod {
        let v4 = node.add(name).addresses()[0].parse().unwrap();
        let all = node.weft(&["pods", "-o", "json"]);
        let record = all.as_array().unwrap().iter().find(|record| record["container"] == name).unwrap();
        let mac = |key: &str| {
            let bytes = record[key].as_str().unwrap().split(':');
            let bytes: Vec<u8> = bytes.map(|byte| u8::from_str_radix(byte, 16).unwrap()).collect();
            bytes.try_into().unwrap()
        };
        let index = record["host_index"].as_u64().unwrap();
        Pod { name, mac: mac("mac"), host_mac: mac("host_mac"), v4, index }
    }

    /// An Ethernet frame of this pod with the type and the payload.
    fn frame(&self, from: Mac, kind: u16, payload: &[u8]) -> Vec<u8> {
        [&self.host_mac[..], &from, &kind.to_be_bytes(), payload].concat()
    }

    fn send(&self, node: &Node, frame: &[u8]) {
        node.pod_ns(self.name).run(|| send("eth0", frame)).unwrap();
    }

    /// `weft pod`, in JSON.
    fn told(&self, node: &Node) -> Value {
        node.weft(&["pod", self.name, "-o", "json"])[0]["counters"].clone()
    }
}

fn send(interface: &str, frame: &[u8]) {
    let socket = socket(AddressFamily::Packet, SockType::Raw, SockFlag::SOCK_CLOEXEC, None).unwrap();
    let address = libc::sockaddr_ll {
        sll_family: libc::AF_PACKET as u16,
        sll_protocol: 0,
        sll_ifindex: if_nametoindex(interface).unwrap() as i32,
        sll_hatype: 0,
        sll_pkttype: 0,
        sll_halen: 6,
        sll_addr: [0; 8],
    };
    let len = size_of_val(&address) as libc::socklen_t;
    // SAFETY: it points to a whole address of the family that it names, of that length.
    let to = unsafe { LinkAddr::from_raw((&raw const address).cast(), Some(len)) }.unwrap();
    assert_eq!(sendto(socket.as_raw_fd(), frame, &to, MsgFlags::empty()), Ok(frame.len()));
}

/// A UDP datagram for the port 9 without data and checksum.
fn ipv4(src: Ipv4Addr, dst: Ipv4Addr) -> Vec<u8> {
    let mut header = [&[0x45, 0, 0, 28, 0, 1, 0, 0, 64, 17, 0, 0][..], &src.octets(), &dst.octets()].concat();
    let sum: u32 = header.chunks(2).map(|word| u32::from(word[0]) << 8 | u32::from(word[1])).sum();
    let sum = !((sum & 0xffff) + (sum >> 16)) as u16;
    header[10..12].copy_from_slice(&sum.to_be_bytes());
    header.extend([0, 9, 0, 9, 0, 8, 0, 0]);
    header
}

/// A packet with nothing but the type behind its header.
fn icmpv6(src: &str, kind: u8) -> Vec<u8> {
    let address = |text: &str| text.parse::<std::net::Ipv6Addr>().unwrap().octets();
    let payload = [kind, 0, 0, 0, 0, 0, 0, 0];
    [&[0x60, 0, 0, 0, 0, 8, 58, 255][..], &address(src), &address("ff02::1"), &payload].concat()
}

fn arp(mac: Mac, sender: Ipv4Addr) -> Vec<u8> {
    let fixed = [0, 1, 8, 0, 6, 4, 0, 1];
    [&fixed[..], &mac, &sender.octets(), &[0; 6], &[169, 254, 1, 1]].concat()
}

fn packets(counters: &Value, way: &str) -> u64 {
    counters[way]["packets"].as_u64().unwrap()
}

/// Packets by outcome in the order of the row, as bpftool has them: redirected, passed, dropped, returned; and by reason.
fn row(node: &Node, pod: &Pod) -> ([u64; 4], Vec<u64>) {
    let rows = node.map_dump("pod_counters");
    let row = rows.iter().find(|row| row["key"].as_u64() == Some(pod.index)).unwrap();
    let (mut outcomes, mut drops) = ([0; 4], vec![0; 16]);
    for cpu in row["values"].as_array().unwrap() {
        let value = &cpu["value"];
        for (at, sum) in outcomes.iter_mut().enumerate() {
            *sum += value["outcomes"][at]["packets"].as_u64().unwrap();
        }
        for (at, sum) in drops.iter_mut().enumerate() {
            *sum += value["drops"][at].as_u64().unwrap();
        }
    }
    (outcomes, drops)
}

/// Make a row of zeroes, or delete one, as another program would.
fn change_row(node: &Node, verb: &str, index: u64) {
    let mut command = Command::new("bpftool");
    command.args(["map", verb, "pinned"]).arg(node.bpf().join("weft/pod_counters")).args(["key", "hex"]);
    command.args((index as u32).to_ne_bytes().map(|byte| format!("{byte:02x}")));
    if verb == "update" {
        command.args(["value", "hex"]).args(["00"; 192]);
    }
    assert!(command.status().unwrap().success());
}

#[test]
fn every_reason_of_a_drop_is_told_of_its_pod_alone() {
    let node = Node::new();
    let (a, b) = (Pod::add(&node, "a"), Pod::add(&node, "b"));
    let other = [2, 0, 0, 0, 0, 9];
    let frames = [
        ("source_address", a.frame(a.mac, 0x0800, &ipv4(b.v4, a.v4))),
        ("source_mac", a.frame(other, 0x0800, &ipv4(a.v4, b.v4))),
        ("link_local", a.frame(a.mac, 0x86dd, &icmpv6("fe80::5", 128))),
        ("router", a.frame(a.mac, 0x86dd, &icmpv6("fe80::5", 134))),
        ("arp", a.frame(a.mac, 0x0806, &arp(a.mac, b.v4))),
        ("vlan", a.frame(a.mac, 0x8100, &[&[0, 5, 8, 0][..], &ipv4(a.v4, b.v4)].concat())),
        ("protocol", a.frame(a.mac, 0x88cc, &[0; 40])),
        ("truncated", a.frame(a.mac, 0x0800, &ipv4(a.v4, b.v4)[..16])),
    ];
    let mut wanted = BTreeMap::new();
    for (times, (reason, frame)) in (1..).zip(&frames) {
        (0..times).for_each(|_| a.send(&node, frame));
        wanted.insert(*reason, times);
    }
    let told = a.told(&node);
    let drops = told["drops"].as_object().unwrap();
    let found: BTreeMap<&str, u64> =
        drops.iter().map(|(reason, packets)| (reason.as_str(), packets.as_u64().unwrap())).collect();
    let zero = |reason: &str| found[reason] == 0;
    assert!(zero("detached") && zero("other"), "{found:?}");
    let found: BTreeMap<_, _> = found.into_iter().filter(|(_, packets)| *packets > 0).collect();
    assert_eq!(found, wanted);
    let all = (1..=frames.len() as u64).sum();
    assert_eq!(packets(&told, "dropped"), all);
    // Its link may have told the groups that it joined, and nothing else.
    assert_eq!((packets(&b.told(&node), "dropped"), row(&node, &b).1), (0, vec![0; 16]), "not b's");
    let (outcomes, drops) = row(&node, &a);
    assert_eq!((outcomes[2], &drops[..8]), (all, &[1, 2, 3, 4, 5, 6, 7, 8][..]), "by bpftool");

    // The same of the node, in all its words.
    let status = node.weft(&["status", "-o", "json"])["counters"].clone();
    assert_eq!((packets(&status, "dropped"), &status["drops"]), (all, &told["drops"]));
    let socket = node.dir.path().join("metrics.sock");
    let serve = Serve::start(&node, &["--metrics", &format!("unix:{}", socket.display())]);
    assert_eq!(a.told(&node)["drops"], told["drops"], "by weft serve");
    let (_, page) = get(UnixStream::connect(&socket).unwrap(), "/metrics");
    for (reason, times) in wanted.into_iter().chain([("detached", 0), ("other", 0)]) {
        let sample = format!("weft_drops_total{{reason=\"{reason}\"}}");
        assert_eq!(value(&page, &sample), f64::from(times as u32), "{sample}");
    }
    drop(serve);
    let text = |args: &[&str]| {
        let output = node.run(node.command(env!("CARGO_BIN_EXE_weft")).args(args), "");
        String::from_utf8(output.stdout).unwrap()
    };
    let (pod, status) = (text(&["pod", "a"]), text(&["status"]));
    for line in [format!("dropped         {all} packets, "), format!("{:16}8 truncated", "")] {
        assert!(pod.contains(&line), "{line} in {pod}");
    }
    assert!(!pod.contains("detached"), "only what happened: {pod}");
    assert!(status.contains("DROPPED FOR") && status.contains("source_mac"), "{status}");
    for pod in [a, b] {
        assert!(node.cni("DEL", pod.name, &conf()).status.success());
    }
    node.assert_empty();
}

#[test]
fn ways_are_counted_for_each_pod() {
    let node = Node::new();
    let (a, b) = (Pod::add(&node, "a"), Pod::add(&node, "b"));
    let way = |pod: &Pod, way: &str| packets(&pod.told(&node), way);
    let before = (way(&a, "passed"), way(&b, "passed"));
    for _ in 0..3 {
        assert!(pings(&node.pod_ns("a"), "10.88.0.3"), "by the fast path");
        assert!(pings(&node.pod_ns("a"), "192.0.2.10"), "through the stack");
    }
    assert_eq!((way(&a, "redirected"), way(&b, "redirected")), (3, 3));
    assert_eq!(a.told(&node)["redirected"]["bytes"], 3 * 98);
    assert!(way(&a, "passed") >= before.0 + 3);
    // What kube-proxy does for a service.
    let rules = "table ip nat { chain prerouting { type nat hook prerouting priority dstnat;
                 ip daddr 10.96.0.1 dnat to 10.88.0.3; }; }";
    assert!(run_in(&node.host, Command::new("nft").args(["-f", "-"]), rules).status.success());
    for _ in 0..2 {
        assert!(pings(&node.pod_ns("a"), "10.96.0.1"));
    }
    assert_eq!((way(&a, "returned"), way(&b, "returned")), (0, 2));
    assert_eq!((way(&a, "redirected"), way(&b, "redirected")), (3, 3));
    for pod in [&a, &b] {
        let told = pod.told(&node);
        let (outcomes, _) = row(&node, pod);
        // The link may say a word of its own between two looks.
        assert_eq!((outcomes[0], outcomes[3]), (packets(&told, "redirected"), packets(&told, "returned")));
        assert!(outcomes[1] >= packets(&told, "passed"));
    }
    let sums = node.weft(&["status", "-o", "json"])["counters"].clone();
    for pod in [a, b] {
        assert!(node.cni("DEL", pod.name, &conf()).status.success());
    }
    node.assert_empty();
    let after = node.weft(&["status", "-o", "json"])["counters"].clone();
    assert_eq!(after["redirected"], sums["redirected"], "the node's sums stay");
}

#[test]
fn a_pod_without_a_row_is_told_as_not_counted() {
    let node = Node::new();
    let a = Pod::add(&node, "a");
    // As a version does that knows nothing of rows.
    change_row(&node, "delete", a.index);
    assert_eq!(a.told(&node), Value::Null);
    let output = node.run(node.command(env!("CARGO_BIN_EXE_weft")).args(["pod", "a"]), "");
    let text = String::from_utf8(output.stdout).unwrap();
    assert!(text.contains("redirected      not counted"), "{text}");
    let (report, code) = node.reconcile(&[]);
    assert_eq!((&report["counters"], code), (&json!([]), 0));
    assert!(node.cni("DEL", "a", &conf()).status.success());
    node.assert_empty();
}

#[test]
fn counters_of_links_that_are_gone_are_removed() {
    let node = Node::new();
    let a = Pod::add(&node, "a");
    let b = Pod::add(&node, "b");
    change_row(&node, "update", 4711);
    let kept = row(&node, &a);
    let (would, _) = node.reconcile(&["--dry-run"]);
    assert_eq!(node.map_dump("pod_counters").len(), 3, "--dry-run changed something");
    let (did, code) = node.reconcile(&[]);
    for report in [would, did] {
        assert_eq!((&report["counters"], &report["kept"], code), (&json!([4711]), &json!(2), 0));
    }
    assert_eq!(node.map_dump("pod_counters").len(), 2);
    assert_eq!(row(&node, &a).0[0], kept.0[0]);
    // A pod whose namespace has gone, and a store that is lost while its pod lives.
    node.remove_pod("b");
    crate::common::wait_until("the namespace is gone", || node.links().len() == 1);
    assert_eq!(node.reconcile(&[]).0["freed"].as_array().unwrap().len(), 1);
    assert_eq!(node.map_dump("pod_counters").len(), 1, "{}", b.name);
    std::fs::remove_dir_all(node.run_dir().join("store")).unwrap();
    let (report, _) = node.reconcile(&[]);
    assert_eq!(report["foreign"].as_array().unwrap().len(), 1, "{report}");
    assert_eq!(report["counters"], json!([]), "its pod may live");
    assert_eq!(node.map_dump("pod_counters").len(), 1);
    node.remove_pod("a");
}
