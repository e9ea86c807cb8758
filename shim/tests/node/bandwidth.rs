//! Bandwidth limits, measured with TCP and UDP between pods, and between a pod and a namespace beyond the uplink. `tc` and
//! `ip` are the witnesses.

use std::io::{Read, Write};
use std::net::{IpAddr, SocketAddr, TcpListener, TcpStream, UdpSocket};
use std::process::Command;
use std::time::{Duration, Instant};

use serde_json::{Value, json};
use weft_netns::NetNs;

use crate::common::{Node, OUTSIDE, UPLINK, conf, ip_in, pings, run_in, slowness, wait_until};

/// Bits per second. A burst is 75 ms of it, so the bucket makes up for a machine that stands still that long; at 40 Mbit/s it was 7.5,
/// and on a busy machine a limit that was a tenth too high measured as the right one.
pub(crate) const RATE: u64 = 4_000_000;

/// Bits: less than one segment of TCP, which a sender leaves uncut up to 64 KiB.
pub(crate) const BURST: u64 = 300_000;
/// Of the fixture's configuration.
pub(crate) const MTU: u64 = 1450;

/// The configuration with limits as containerd passes them.
fn limited(limits: Value) -> Value {
    let mut conf = conf();
    conf["runtimeConfig"] = json!({ "bandwidth": limits });
    conf
}

fn ingress() -> Value {
    limited(json!({ "IngressRate": RATE, "IngressBurst": BURST, "EgressRate": 0, "EgressBurst": 0 }))
}

fn egress() -> Value {
    limited(json!({ "IngressRate": 0, "IngressBurst": 0, "EgressRate": RATE, "EgressBurst": BURST }))
}

/// Attaches a new pod, and returns the whole answer.
fn add(node: &Node, name: &str, conf: &Value) -> Value {
    node.pod(name);
    let answer = node.cni("ADD", name, conf);
    assert!(answer.status.success(), "ADD {name}: {}", answer.json);
    answer.json
}

fn del(node: &Node, names: &[&str]) {
    for name in names {
        assert!(node.cni("DEL", name, &conf()).status.success(), "DEL {name}");
        assert_eq!(node.ip_in_pod(name, &["link", "show"]).as_array().unwrap().len(), 1, "only lo in {name}");
    }
    assert_eq!(node.ip(&["-d", "link", "show", "type", "ifb"]), json!([]));
    node.assert_empty();
}

/// `tc -j`, in the namespace that plays the host.
pub(crate) fn tc(node: &Node, args: &str) -> Value {
    let output = run_in(&node.host, Command::new("tc").arg("-j").args(args.split(' ')), "");
    assert!(output.status.success(), "tc {args}: {}", String::from_utf8_lossy(&output.stderr));
    serde_json::from_slice(&output.stdout).unwrap()
}

/// A namespace beyond the uplink that knows the way to the pods.
fn outside(node: &Node) -> NetNs {
    let path = node.pod("outside");
    node.ip(&["link", "set", OUTSIDE, "netns", path.to_str().unwrap()]);
    let outside = node.pod_ns("outside");
    for args in [
        "addr add 192.0.2.1/24 dev outside",
        "addr add 2001:db8::1/64 dev outside nodad",
        "link set outside up",
        "route add 10.88.0.0/24 via 192.0.2.10",
        "-6 route add fd00:88::/64 via 2001:db8::10",
    ] {
        ip_in(&outside, &args.split(' ').collect::<Vec<_>>());
    }
    outside
}

/// What a receiver saw: after how long it had how many bytes of payload.
#[derive(Default)]
pub(crate) struct Seen(Vec<(Duration, u64)>);

impl Seen {
    fn add(&mut self, since: Instant, bytes: usize) {
        let before = self.0.last().map_or(0, |(_, total)| *total);
        self.0.push((since.elapsed(), before + bytes as u64));
    }

    /// Bits per second once twice the burst and the queue have passed, at the start of which nothing is limited.
    pub(crate) fn rate(&self) -> f64 {
        let steady = (2 * BURST + RATE / 4) / 8;
        let first = self.0.iter().find(|(_, total)| *total > steady).unwrap();
        let last = self.0.last().unwrap();
        (last.1 - first.1) as f64 * 8.0 / (last.0 - first.0).as_secs_f64()
    }
}

/// Sends by TCP as fast as it goes for `time`, and returns what came.
fn tcp(from: &NetNs, to: &NetNs, address: IpAddr, time: Duration) -> Seen {
    let listener = to.run(|| TcpListener::bind((address, 0)).unwrap()).unwrap();
    let target = listener.local_addr().unwrap();
    std::thread::scope(|scope| {
        scope.spawn(|| from.run(|| send_tcp(target, time)).unwrap());
        let (mut stream, _) = listener.accept().unwrap();
        stream.set_read_timeout(Some(Duration::from_secs(10))).unwrap();
        let (mut seen, mut buffer, start) = (Seen::default(), vec![0; 1 << 16], Instant::now());
        loop {
            match stream.read(&mut buffer) {
                Ok(0) => return seen,
                Ok(bytes) if start.elapsed() < time => seen.add(start, bytes),
                // What was queued at the end comes with the sender's last retransmissions.
                Ok(_) => {}
                // With a timeout it is not restarted (signal(7)).
                Err(err) => assert_eq!(err.kind(), std::io::ErrorKind::Interrupted, "{err}"),
            }
        }
    })
}

fn send_tcp(target: SocketAddr, time: Duration) {
    let mut stream = TcpStream::connect_timeout(&target, Duration::from_secs(5)).unwrap();
    let (bytes, start) = (vec![0; 1 << 16], Instant::now());
    while start.elapsed() < time {
        stream.write_all(&bytes).unwrap();
    }
}

/// Sends datagrams at up to three times the rate for `time`, and returns what came.
pub(crate) fn udp(from: &NetNs, to: &NetNs, address: IpAddr, size: usize, time: Duration) -> Seen {
    let receiver = to.run(|| UdpSocket::bind((address, 0)).unwrap()).unwrap();
    receiver.set_read_timeout(Some(Duration::from_millis(500))).unwrap();
    let target = receiver.local_addr().unwrap();
    std::thread::scope(|scope| {
        let sender = scope.spawn(|| from.run(|| send_udp(target, size, time)).unwrap());
        let (mut seen, mut buffer, start) = (Seen::default(), vec![0; 1 << 16], Instant::now());
        while start.elapsed() < time {
            match receiver.recv(&mut buffer) {
                Ok(bytes) => seen.add(start, bytes),
                // With a timeout it is not restarted (signal(7)).
                Err(err) if err.kind() == std::io::ErrorKind::Interrupted => {}
                Err(err) => assert_eq!(err.kind(), std::io::ErrorKind::WouldBlock, "{err}"),
            }
        }
        sender.join().unwrap();
        seen
    })
}

fn send_udp(target: SocketAddr, size: usize, time: Duration) {
    let bound: SocketAddr = if target.is_ipv4() { "0.0.0.0:0" } else { "[::]:0" }.parse().unwrap();
    let socket = UdpSocket::bind(bound).unwrap();
    let (bytes, start, mut sent) = (vec![0; size], Instant::now(), 0.0);
    while start.elapsed() < time {
        if sent > start.elapsed().as_secs_f64() * 3.0 * RATE as f64 / 8.0 {
            std::thread::park_timeout(Duration::from_millis(1));
            continue;
        }
        socket.send_to(&bytes, target).unwrap();
        sent += size as f64;
    }
}

/// `seen` is the rate of the payload; the limit counts the headers of IP and above too, `header` bytes a packet. The part by
/// which it is off.
fn deviation(seen: f64, header: u64) -> f64 {
    seen * MTU as f64 / (MTU - header) as f64 / RATE as f64 - 1.0
}

/// What `measure` sees is what is allowed. A machine that is busy with something else keeps a sender from its rate, for a moment or for
/// half a minute, and a receiver that begins late finds in its socket what came before: what is not as it should be is measured again.
#[track_caller]
fn assert_limited(what: &str, header: u64, measure: impl Fn(Duration) -> Seen) {
    let time = Duration::from_secs(if slowness() > 1 { 6 } else { 3 });
    let mut seen = Vec::new();
    for _ in 0..15 {
        let off = deviation(measure(time).rate(), header);
        seen.push(off);
        if off.abs() < 0.05 {
            return;
        }
    }
    panic!("{what}: off by {seen:?} of the rate");
}

/// 20 bytes, and 12 of timestamps.
const TCP_HEADER: u64 = 32;

/// Both protocols in both families from one namespace to another.
fn all_ways(what: &str, from: &NetNs, to: &NetNs, addresses: &[&str]) {
    for address in addresses {
        let address: IpAddr = address.parse().unwrap();
        let header = if address.is_ipv4() { 20 } else { 40 };
        let send = |time| tcp(from, to, address, time);
        assert_limited(&format!("{what} at {address}, tcp"), header + TCP_HEADER, send);
        let payload = (MTU - header - 8) as usize;
        let send = |time| udp(from, to, address, payload, time);
        assert_limited(&format!("{what} at {address}, udp"), header + 8, send);
    }
}

#[test]
fn what_a_pod_receives_is_limited() {
    let node = Node::new();
    let outside = outside(&node);
    add(&node, "a", &conf());
    add(&node, "b", &ingress());
    let (a, b) = (node.pod_ns("a"), node.pod_ns("b"));
    let addresses = ["10.88.0.3", "fd00:88::3"];
    all_ways("pod to pod", &a, &b, &addresses);
    all_ways("outside to pod", &outside, &b, &addresses[..1]);
    del(&node, &["a", "b"]);
}

#[test]
fn what_a_pod_sends_is_limited() {
    let node = Node::new();
    let outside = outside(&node);
    add(&node, "a", &egress());
    add(&node, "b", &conf());
    let (a, b) = (node.pod_ns("a"), node.pod_ns("b"));
    all_ways("pod to pod", &a, &b, &["10.88.0.3", "fd00:88::3"]);
    all_ways("pod to outside", &a, &outside, &["192.0.2.1"]);
    del(&node, &["a", "b"]);
}

/// fq paces the sockets of a node and its pods: each packet bears the time when it may leave.
#[test]
#[ignore = "not every kernel has fq: conformance/vm boots some that have"]
fn limits_hold_where_fq_paces() {
    let node = Node::new();
    let outside = outside(&node);
    for (pod, conf) in [("a", egress()), ("b", ingress()), ("c", conf())] {
        add(&node, pod, &conf);
    }
    let [a, b, c] = ["a", "b", "c"].map(|pod| node.pod_ns(pod));
    let tc = |netns: &NetNs, args: &str| {
        let output = run_in(netns, Command::new("tc").args(args.split(' ')), "");
        assert!(output.status.success(), "tc {args}: {}", String::from_utf8_lossy(&output.stderr));
        output.stdout
    };
    for (netns, link) in [(&a, "eth0"), (&b, "eth0"), (&c, "eth0"), (&outside, OUTSIDE), (&node.host, UPLINK)]
    {
        tc(netns, &format!("qdisc replace dev {link} root fq"));
    }
    for (what, from, to, address) in [
        ("a pod sends to a pod", &a, &c, "10.88.0.4"),
        ("a pod sends outside", &a, &outside, "192.0.2.1"),
        ("a pod receives from a pod", &c, &b, "10.88.0.3"),
        ("a pod receives from outside", &outside, &b, "10.88.0.3"),
    ] {
        let send = |time| tcp(from, to, address.parse().unwrap(), time);
        assert_limited(what, 20 + TCP_HEADER, send);
    }
    for (netns, link) in [(&a, "eth0"), (&c, "eth0"), (&node.host, UPLINK)] {
        let told: Value =
            serde_json::from_slice(&tc(netns, &format!("-s -j qdisc show dev {link}"))).unwrap();
        let fq = told.as_array().unwrap().iter().find(|qdisc| qdisc["kind"] == "fq").unwrap();
        assert!(fq["packets"].as_u64().unwrap() > 100, "it carried them: {told}");
    }
    del(&node, &["a", "b", "c"]);
}

/// Kubernetes' annotations have no burst, and containerd fills in the largest number: the limit is felt at once.
#[test]
fn an_annotation_has_no_burst() {
    let node = Node::new();
    let largest = u64::from(u32::MAX);
    let both = json!({
        "IngressRate": RATE, "IngressBurst": largest, "EgressRate": RATE, "EgressBurst": largest,
    });
    for pod in ["a", "b"] {
        add(&node, pod, &limited(both.clone()));
    }
    let (a, b) = (node.pod_ns("a"), node.pod_ns("b"));
    all_ways("pod to pod", &a, &b, &["10.88.0.3"]);
    del(&node, &["a", "b"]);
}

/// 2 MB at once, then 1 MB a second.
#[test]
fn a_burst_passes_at_the_speed_of_the_wire() {
    let node = Node::new();
    let limits = json!({ "ingressRate": 8_000_000, "ingressBurst": 16_000_000 });
    add(&node, "a", &conf());
    add(&node, "b", &limited(limits));
    let (a, b) = (node.pod_ns("a"), node.pod_ns("b"));
    let seen = tcp(&a, &b, "10.88.0.3".parse().unwrap(), Duration::from_secs(2)).0;
    let burst = seen.iter().find(|(_, total)| *total > 1_800_000).unwrap();
    assert!(burst.0 < Duration::from_millis(900), "{burst:?}: a second less than without a burst");
    let (_, total) = seen.last().unwrap();
    // A burst and two seconds of the rate; the headers are in neither.
    assert!((3_400_000..4_200_000).contains(total), "{total} bytes in two seconds");
    del(&node, &["a", "b"]);
}

#[test]
fn a_pod_without_a_limit_is_not_slowed() {
    let node = Node::new();
    add(
        &node,
        "limited",
        &limited(json!({
            "ingressRate": RATE, "ingressBurst": BURST, "egressRate": RATE, "egressBurst": BURST,
        })),
    );
    for pod in ["a", "b"] {
        add(&node, pod, &conf());
    }
    let (a, b) = (node.pod_ns("a"), node.pod_ns("b"));
    let seen = tcp(&a, &b, "10.88.0.4".parse().unwrap(), Duration::from_secs(1));
    assert!(seen.rate() > 40.0 * RATE as f64, "{} bit/s", seen.rate());
    let redirected =
        node.weft(&["status", "-o", "json"])["counters"]["redirected"]["bytes"].as_u64().unwrap();
    assert!(redirected > 10_000_000, "by the fast path: {redirected}");
    del(&node, &["limited", "a", "b"]);
}

#[test]
fn the_kernel_has_what_was_asked_for_and_detach_takes_it() {
    let node = Node::new();
    let conf = limited(json!({
        "ingressRate": 14_500_000, "ingressBurst": 8_000_000, "egressRate": 29_000_000, "egressBurst": 16_000_000,
    }));
    let answer = add(&node, "a", &conf);
    let [host_end, _, ifb] = answer["interfaces"].as_array().unwrap().as_slice() else { panic!("{answer}") };
    let (host_end, ifb) = (host_end["name"].as_str().unwrap(), ifb["name"].as_str().unwrap());
    let links = node.ip(&["-d", "link", "show", ifb]);
    assert_eq!(links[0]["linkinfo"]["info_kind"], "ifb");
    assert_eq!(links[0]["inet6_addr_gen_mode"], "none", "it says nothing of its own");
    // 14 bytes of Ethernet header a packet of 1450 are not the pod's.
    for (link, rate, burst) in [(host_end, 1_830_000, 1_000_000), (ifb, 3_660_000, 2_000_000)] {
        let told = tc(&node, &format!("qdisc show dev {link}"));
        let bucket = told.as_array().unwrap().iter().find(|qdisc| qdisc["kind"] == "tbf").unwrap();
        assert_eq!((&bucket["root"], &bucket["options"]["rate"]), (&true.into(), &rate.into()), "{told}");
        let off = bucket["options"]["burst"].as_u64().unwrap().abs_diff(burst);
        assert!(off < 100, "rounded to ticks: {told}");
    }
    let pods = node.weft(&["pods", "-o", "json"]);
    assert_eq!(pods[0]["bandwidth"]["egress"], json!({ "rate": 29_000_000, "burst": 16_000_000 }));
    assert_eq!(
        (&pods[0]["data_path"], &pods[0]["data_path_reason"]),
        (&"routing".into(), &"bandwidth limit".into())
    );
    assert!(pings(&node.host, "10.88.0.2") && pings(&node.pod_ns("a"), "192.0.2.10"));
    assert_eq!(node.cni("ADD", "a", &conf).json, answer, "the same answer again");
    del(&node, &["a"]);
}

#[test]
fn check_finds_a_limit_that_is_gone() {
    let node = Node::new();
    let mut conf = limited(json!({
        "ingressRate": RATE, "ingressBurst": BURST, "egressRate": RATE, "egressBurst": BURST,
    }));
    let answer = add(&node, "a", &conf);
    let (host_end, ifb) = (answer["interfaces"][0]["name"].clone(), answer["interfaces"][2]["name"].clone());
    let (host_end, ifb) = (host_end.as_str().unwrap(), ifb.as_str().unwrap());
    conf["prevResult"] = answer;
    assert_eq!(node.cni("CHECK", "a", &conf).json, Value::Null);
    let broken = |wanted: &str| {
        let (code, text) = node.cni("CHECK", "a", &conf).error();
        assert_eq!(code, 103, "{text}");
        assert!(text.contains(wanted), "{wanted} in {text}");
    };
    let tc = |args: &str| {
        assert!(run_in(&node.host, Command::new("tc").args(args.split(' ')), "").status.success(), "{args}");
    };
    tc(&format!("filter del dev {host_end} egress"));
    broken(&format!("the program on link {host_end} is missing"));
    tc(&format!("filter del dev {host_end} ingress pref 65535"));
    broken(&format!("the way from link {host_end} through link {ifb} is missing"));
    tc(&format!("qdisc change dev {ifb} root tbf rate 1gbit burst 100kb latency 25ms"));
    broken(&format!("the limit on link {ifb} is missing"));
    node.ip(&["link", "del", ifb]);
    broken(&format!("link {ifb}, up is missing"));
    tc(&format!("qdisc del dev {host_end} root"));
    broken(&format!("the limit on link {host_end} is missing"));
    del(&node, &["a"]);
}

/// The pod is root in its namespace, and has the source check against it.
#[test]
fn a_pod_cannot_lift_its_limits() {
    let node = Node::new();
    let answer = add(&node, "a", &egress());
    let a = node.pod_ns("a");
    ip_in(&a, &["link", "set", "eth0", "txqueuelen", "5000"]);
    assert!(
        !run_in(&a, Command::new("tc").args(["qdisc", "del", "dev", "eth0", "root"]), "").status.success()
    );
    assert!(pings(&a, "192.0.2.10"));
    ip_in(&a, &["addr", "add", "10.99.0.1/32", "dev", "eth0"]);
    let spoofed = run_in(&a, Command::new("ping").args("-c 1 -W 1 -I 10.99.0.1 192.0.2.10".split(' ')), "");
    assert!(!spoofed.status.success());
    let dropped = node.weft(&["status", "-o", "json"])["counters"]["dropped"]["packets"].as_u64();
    assert_eq!(dropped, Some(1), "the check comes before the limit");
    // Without the ifb nothing passes: a limit is not lifted by an accident.
    node.ip(&["link", "del", answer["interfaces"][2]["name"].as_str().unwrap()]);
    assert!(!pings(&a, "192.0.2.10"));
    del(&node, &["a"]);
}

#[test]
fn a_cri_runtime_leaves_no_ifb_although_it_leaves_the_links() {
    let node = Node::new();
    let netns = node.pod("a");
    let call = |verb: &str| {
        node.cni_with(verb, "a", &egress().to_string(), |command| {
            command.env("CNI_NETNS", &netns).env("CNI_ARGS", "K8S_POD_INFRA_CONTAINER_ID=a");
        })
    };
    let answer = call("ADD");
    assert!(answer.status.success(), "{}", answer.json);
    assert!(call("DEL").status.success());
    assert_eq!(node.ip(&["-d", "link", "show", "type", "ifb"]), json!([]));
    assert_eq!(node.links().len(), 1, "nobody waited for the pair");
    node.remove_pod("a");
    node.assert_empty();
}

/// The store was lost, with the pod or without.
#[test]
fn an_ifb_goes_when_its_pod_has_gone_and_no_record_tells_of_it() {
    let node = Node::new();
    add(&node, "a", &egress());
    let mut links = node.links();
    links.sort();
    let ifb = links[1].clone();
    // Of somebody else, but called like one of weft's.
    node.ip(&["link", "add", "wefts0123456789", "type", "ifb"]);
    std::fs::rename(node.run_dir(), node.dir.path().join("lost")).unwrap();
    let (report, code) = node.reconcile(&[]);
    assert_eq!((&report["links"], &report["foreign"], code), (&json!([]), &json!([links[0]]), 0), "{report}");
    node.remove_pod("a");
    wait_until("the pair is gone", || node.links().len() == 2);
    let (would, _) = node.reconcile(&["--dry-run"]);
    assert!(node.links().contains(&ifb), "--dry-run changed something");
    let (did, code) = node.reconcile(&[]);
    for report in [would, did] {
        assert_eq!((&report["links"], code), (&json!([ifb]), 0), "{report}");
    }
    assert_eq!(node.links(), ["wefts0123456789"]);
    node.ip(&["link", "del", "wefts0123456789"]);
    // A record that lives keeps its own.
    add(&node, "b", &egress());
    assert_eq!(node.reconcile(&[]).0["links"], json!([]));
    assert_eq!(node.links().len(), 2);
    assert!(node.cni("DEL", "b", &conf()).status.success());
}

#[test]
fn cleanup_takes_the_ifb() {
    let node = Node::new();
    add(&node, "a", &egress());
    assert_eq!(node.links().len(), 2);
    node.weft(&["cleanup"]);
    assert_eq!(node.ip(&["-d", "link", "show", "type", "ifb"]), json!([]));
}

#[test]
fn routed_pods_are_limited_too() {
    let node = Node::new();
    for (pod, conf) in [("a", egress()), ("b", conf())] {
        let netns = node.pod(pod);
        let answer = node.cni_with("ADD", pod, &conf.to_string(), |command| {
            command.env("CNI_NETNS", netns).env("WEFT_FAST_PATH", "false");
        });
        assert!(answer.status.success(), "{}", answer.json);
    }
    let (a, b) = (node.pod_ns("a"), node.pod_ns("b"));
    assert_limited("without the fast path, tcp", 20 + TCP_HEADER, |time| {
        tcp(&a, &b, "10.88.0.3".parse().unwrap(), time)
    });
    del(&node, &["a", "b"]);
}

#[test]
fn del_after_a_kill_within_the_limits_leaves_nothing() {
    let node = Node::new();
    for step in ["veth", "ifb", "limits", "fast-path"] {
        let netns = node.pod("a");
        node.cni_with("ADD", "a", &egress().to_string(), |command| {
            command.env("CNI_NETNS", netns).env("WEFT_FAILPOINT", step);
        });
        let links = node.links().len();
        assert_eq!(links, if step == "veth" { 1 } else { 2 }, "{step}: killed in between");
        if step == "ifb" {
            let again = node.cni("ADD", "a", &egress());
            assert!(again.status.success(), "{}", again.json);
        }
        del(&node, &["a"]);
        node.remove_pod("a");
    }
}

/// The store of an earlier life is gone, the ifb is not.
#[test]
fn an_ifb_that_no_record_knows_is_replaced() {
    let node = Node::new();
    let answer = add(&node, "a", &egress());
    let ifb = answer["interfaces"][2]["name"].as_str().unwrap().to_owned();
    del(&node, &["a"]);
    node.ip(&["link", "add", &ifb, "type", "ifb"]);
    let answer = node.cni("ADD", "a", &egress());
    assert!(answer.status.success(), "{}", answer.json);
    assert!(pings(&node.pod_ns("a"), "192.0.2.10"));
    del(&node, &["a"]);
}

#[test]
fn a_limit_that_cannot_be_is_an_error_that_leaves_nothing() {
    let node = Node::new();
    node.pod("a");
    for (limits, text) in [
        (json!({ "IngressRate": 1_000_000 }), "ingressRate is set, and ingressBurst is not"),
        (json!({ "egressRate": 1, "egressBurst": 1 }), "egressRate is 1 bits per second, want at least 8"),
        (json!({ "egressRate": "10M", "egressBurst": 1 }), "egressRate is \"10M\", want a whole number"),
    ] {
        let (code, found) = node.cni("ADD", "a", &limited(limits)).error();
        assert_eq!(code, 7, "{found}");
        assert!(found.contains(text), "{text} in {found}");
        del(&node, &["a"]);
    }
}
