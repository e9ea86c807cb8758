//! Packets of IPv4 larger than 64 KiB (BIG TCP), where an administrator has the uplink take them.

use std::ffi::OsString;
use std::io::{Read, Write};
use std::net::{Ipv4Addr, TcpListener, TcpStream};
use std::process::{Child, Command, Stdio};
use std::thread;

use nix::sys::signal::{Signal, kill};
use nix::sys::socket::{setsockopt, sockopt::TcpCongestion};
use nix::unistd::Pid;
use serde_json::json;
use weft_netns::{Mac, NetNs, Netlink, PacketSizes, Veth};

use crate::common::{Node, OUTSIDE, UPLINK, ip_in};

const BIG: PacketSizes = PacketSizes { gso: 196_608, gro: 131_072 };
const WORLD: Ipv4Addr = Ipv4Addr::new(192, 0, 2, 1);
const MEBIBYTES: u32 = 8;

/// A network without an MTU of its own: a network that has one says how its links are to be.
fn add(node: &Node, name: &str) -> String {
    let ranges = json!([{ "subnet": "10.88.0.0/24" }]);
    let conf = json!({ "cniVersion": "1.1.0", "name": "test", "type": "weft", "ranges": ranges });
    node.pod(name);
    let netns = node.dir.path().join(format!("netns-{name}"));
    let answer = node.cni_with("ADD", name, &conf.to_string(), |command| {
        command.env("CNI_NETNS", netns);
    });
    assert!(answer.status.success(), "{}", answer.json);
    answer.json["interfaces"][0]["name"].as_str().unwrap().to_owned()
}

fn sizes(netns: &NetNs, link: &str) -> PacketSizes {
    let name = link.parse().unwrap();
    Netlink::open_in(netns).unwrap().link(&name).unwrap().unwrap().packets
}

/// An uplink that takes large packets in place of the node's, and what is beyond it. iproute2 6.1 cannot make one.
fn raise_uplink(node: &Node) -> NetNs {
    let world = NetNs::create().unwrap();
    node.ip(&["link", "del", UPLINK]);
    let veth = Veth {
        name: UPLINK.parse().unwrap(),
        mac: Mac::new([6, 0, 0, 0, 1, 1]),
        mtu: 1500,
        packets: BIG,
        peer_name: OUTSIDE.parse().unwrap(),
        peer_mac: Mac::new([6, 0, 0, 0, 1, 2]),
        peer_ns: &world,
    };
    Netlink::open_in(&node.host).unwrap().create_veth(&veth).unwrap();
    node.ip(&["address", "add", "192.0.2.10/24", "dev", UPLINK]);
    node.ip(&["link", "set", UPLINK, "up"]);
    node.ip(&["route", "add", "default", "via", "192.0.2.1"]);
    ip_in(&world, &["address", "add", "192.0.2.1/24", "dev", OUTSIDE]);
    ip_in(&world, &["link", "set", OUTSIDE, "up"]);
    world
}

/// Looks out for a packet larger than any uplink takes unasked, where what the uplink was given arrives.
fn watch(world: &NetNs) -> Child {
    let filter = ["-n", "-s", "96", "-i", OUTSIDE, "greater", "66000"];
    let spawn = || Command::new("tcpdump").args(filter).stdout(Stdio::null()).stderr(Stdio::piped()).spawn();
    let mut tcpdump = world.run(spawn).unwrap().unwrap();
    let (mut byte, mut said) = ([0; 1], Vec::new());
    while !said.ends_with(b"listening on") {
        tcpdump.stderr.as_mut().unwrap().read_exact(&mut byte).unwrap();
        said.extend(byte);
    }
    tcpdump
}

/// Sends from the pod to the world, which must get what was sent; whether a large packet was seen.
fn sends_large_packets(node: &Node, pod: &str, world: &NetNs) -> bool {
    let tcpdump = watch(world);
    let listener = world.run(|| TcpListener::bind((WORLD, 0))).unwrap().unwrap();
    let to = listener.local_addr().unwrap();
    let sent: Vec<u8> = (0..MEBIBYTES << 18).flat_map(u32::to_be_bytes).collect();
    let reader = thread::spawn(move || {
        let mut received = Vec::new();
        listener.accept().unwrap().0.read_to_end(&mut received).unwrap();
        received
    });
    let mut stream = node.pod_ns(pod).run(|| TcpStream::connect(to)).unwrap().unwrap();
    // Not the machine's choice: what is paced is sent in smaller pieces.
    setsockopt(&stream, TcpCongestion, &OsString::from("cubic")).unwrap();
    stream.write_all(&sent).unwrap();
    drop(stream);
    assert!(reader.join().unwrap() == sent, "what arrives is what was sent");
    kill(Pid::from_raw(i32::try_from(tcpdump.id()).unwrap()), Signal::SIGTERM).unwrap();
    let said = tcpdump.wait_with_output().unwrap().stderr;
    let said = String::from_utf8_lossy(&said);
    // Of those that the kernel has for it, tcpdump may not have read any yet.
    let counted = said.lines().find(|line| line.ends_with(" received by filter"));
    counted.and_then(|line| line.split(' ').next()).unwrap().parse::<u32>().unwrap() > 0
}

#[test]
fn a_pod_sends_packets_as_large_as_the_uplink_takes() {
    let node = Node::new();
    let usual = add(&node, "usual");
    let world = raise_uplink(&node);
    let big = add(&node, "big");
    let pod = node.pod_ns("usual");
    assert_eq!([sizes(&pod, "eth0"), sizes(&node.host, &usual)], [PacketSizes::default(); 2]);
    assert_eq!([sizes(&node.pod_ns("big"), "eth0"), sizes(&node.host, &big)], [BIG; 2]);
    assert!(sends_large_packets(&node, "big", &world));
    assert!(!sends_large_packets(&node, "usual", &world));

    // An uplink that takes less than it did gets frames: the kernel cuts what is too large. Of IPv4 too, where it is less than ever.
    node.ip(&["link", "set", UPLINK, "gso_max_size", "65535"]);
    assert!(!sends_large_packets(&node, "big", &world));
    node.remove_pod("big");
    node.remove_pod("usual");
}
