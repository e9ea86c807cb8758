//! Attach in full: all that CNI ADD can be asked for, asked over ttrpc, and shown by packets, `ip`, `tc` and `nft`.

use std::process::Command;
use std::time::Duration;

use serde_json::json;
use ttrpc::Code;
use weft_shim::api::network::masquerade::Mode;
use weft_shim::api::network::{
    AttachRequest, Attachment, Bandwidth, CheckRequest, Destinations, HostPort, Limit, Masquerade, Protocol,
    Range, Route,
};

use crate::api::{Serve, attach, client, detach, range};
use crate::bandwidth::{BURST, MTU, RATE, tc};
use crate::common::{Node, wait_until};
use crate::network::{block_on, code, soon};
use crate::ports::{BEYOND, HOST, at, elements, outside, socket, tcp, udp};

pub(crate) fn port(protocol: Protocol, host_port: u32, container_port: u32, host_ip: &str) -> HostPort {
    let host_ip = host_ip.to_owned();
    HostPort { protocol: protocol.into(), host_port, container_port, host_ip, ..Default::default() }
}

fn limit(rate: u64, burst: u64) -> protobuf::MessageField<Limit> {
    Some(Limit { rate, burst, ..Default::default() }).into()
}

fn hide(mode: Mode, except: &[&str]) -> protobuf::MessageField<Masquerade> {
    let subnets = except.iter().map(|text| (*text).to_owned()).collect();
    let except = Some(Destinations { subnets, ..Default::default() }).into();
    Some(Masquerade { mode: mode.into(), except, ..Default::default() }).into()
}

fn strings<const N: usize>(texts: [&str; N]) -> Vec<String> {
    texts.map(str::to_owned).into()
}

/// A pod with all of it.
fn everything(node: &Node, name: &str) -> AttachRequest {
    let bandwidth =
        Bandwidth { ingress: limit(RATE, BURST), egress: limit(2 * RATE, 0), ..Default::default() };
    AttachRequest {
        ports: vec![
            port(Protocol::PROTOCOL_UNSPECIFIED, 8080, 80, ""),
            port(Protocol::UDP, 8053, 53, HOST[0]),
            port(Protocol::SCTP, 9000, 9000, "::"),
            port(Protocol::TCP, 8080, 80, ""),
            port(Protocol::TCP, 0, 81, ""),
        ],
        bandwidth: Some(bandwidth).into(),
        addresses: strings(["10.88.0.77/24", "fd00:88::77"]),
        mac: "02:00:00:00:00:77".into(),
        masquerade: hide(Mode::ON, &["198.51.100.0/24"]),
        ..attach(node, name, "web")
    }
}

#[test]
fn a_client_asks_for_all_that_cni_can_be_asked_for() {
    let node = Node::new();
    let _serve = Serve::start(&node, &[]);
    let beyond = outside(&node);
    node.ip_in_pod("outside", &["addr", "add", "198.51.100.1/32", "dev", "lo"]);
    node.ip(&["route", "add", "198.51.100.1/32", "via", BEYOND[0]]);
    block_on(async {
        let client = client(&node).await;
        let whole = everything(&node, "a");
        let made = client.attach(soon(), &whole).await.unwrap().attachment.unwrap();
        assert_told(&made);
        assert_eq!(client.attach(soon(), &whole).await.unwrap().attachment.unwrap(), made, "again");
        let open = AttachRequest { masquerade: hide(Mode::OFF, &[]), ..attach(&node, "open", "web") };
        let open = client.attach(soon(), &open).await.unwrap().attachment.unwrap();
        assert!(open.hidden.is_none() && open.bandwidth.is_none() && open.ports.is_empty(), "{open}");
        let check = CheckRequest { container_id: "a".into(), ..Default::default() };
        assert_eq!(client.check(soon(), &check).await.unwrap().deviations, [""; 0]);
        assert_in_the_kernel(&node, &made);
        let (a, other) = (node.pod_ns("a"), node.pod_ns("open"));
        for family in [0, 1] {
            let from = Some(BEYOND[family].parse().unwrap());
            assert_eq!(tcp(&beyond, at(HOST[family], 8080), &a, 80), from, "the host port");
            let hidden = Some(HOST[family].parse().unwrap());
            assert_eq!(tcp(&a, at(BEYOND[family], 7000), &beyond, 7000), hidden, "behind the host");
            let own = Some(open.addresses[family].parse().unwrap());
            assert_eq!(tcp(&other, at(BEYOND[family], 7000), &beyond, 7000), own, "not hidden");
        }
        let seen = tcp(&a, at("198.51.100.1", 7000), &beyond, 7000);
        assert_eq!(seen, Some("10.88.0.77".parse().unwrap()), "the exception");
        let asking = socket(&beyond, true);
        assert_eq!(udp(&asking, at(HOST[0], 8053), &a, 53), Some(BEYOND[0].parse().unwrap()));
        let (address, payload) = ("10.88.0.77".parse().unwrap(), usize::try_from(MTU - 28).unwrap());
        let seen = crate::bandwidth::udp(&other, &a, address, payload, Duration::from_secs(2));
        // How exact it is, `bandwidth.rs` shows; without a limit it would be three times as much.
        let rate = seen.rate() * MTU as f64 / (MTU - 28) as f64 / RATE as f64;
        assert!(rate > 0.5 && rate < 1.5, "{rate} of the limit");
        let mut flush = Command::new("nft");
        assert!(node.run(flush.args(["flush", "ruleset"]), "").status.success());
        wait_until("the port is back", || elements(&node, "ports4") == 1);
        for name in ["a", "open"] {
            client.detach(soon(), &detach(name)).await.unwrap();
        }
    });
    assert_eq!(node.ip(&["-d", "link", "show", "type", "ifb"]), json!([]));
    for set in ["ports4", "ports4_at", "ports6", "hairpin4"] {
        assert_eq!(elements(&node, set), 0, "{set}");
    }
    node.assert_empty();
}

/// The answer has a field for all of it.
fn assert_told(made: &Attachment) {
    assert_eq!(made.addresses, ["10.88.0.77", "fd00:88::77"]);
    assert_eq!((made.mac.as_str(), made.detach_error.as_str()), ("02:00:00:00:00:77", ""));
    let ports = [
        port(Protocol::TCP, 8080, 80, ""),
        port(Protocol::UDP, 8053, 53, HOST[0]),
        port(Protocol::SCTP, 9000, 9000, "::"),
    ];
    assert_eq!(made.ports, ports, "each once, and none of host port 0");
    let (ingress, egress) =
        (made.bandwidth.ingress.as_ref().unwrap(), made.bandwidth.egress.as_ref().unwrap());
    assert_eq!((ingress.rate, ingress.burst, egress.rate, egress.burst), (RATE, BURST, 2 * RATE, 0));
    assert_eq!(made.hidden.addresses, made.addresses);
    for net in ["10.88.0.0/24", "fd00:88::/64", "198.51.100.0/24", "224.0.0.0/4"] {
        assert!(made.hidden.except.contains(&net.to_owned()), "{net} in {:?}", made.hidden.except);
    }
    let route = |destination: &str, gateway: &str| Route {
        destination: destination.into(),
        gateway: gateway.into(),
        ..Default::default()
    };
    assert_eq!(made.routes, [route("0.0.0.0/0", "169.254.1.1"), route("::/0", "fe80::1")]);
}

/// `ip`, `tc` and `nft` have it too.
fn assert_in_the_kernel(node: &Node, made: &Attachment) {
    let inside = node.ip_in_pod("a", &["addr", "show", "eth0"])[0].clone();
    assert_eq!(inside["address"], made.mac);
    let addresses = inside["addr_info"].as_array().unwrap();
    for address in &made.addresses {
        assert!(addresses.iter().any(|info| info["local"] == *address), "{address} in {inside}");
    }
    for link in [&made.host_link, &made.limiter_link] {
        let told = tc(node, &format!("qdisc show dev {link}"));
        assert!(told.as_array().unwrap().iter().any(|qdisc| qdisc["kind"] == "tbf"), "{link}: {told}");
    }
    let counts = ["ports4", "ports4_at", "ports6", "hidden4_", "hidden6_"].map(|set| elements(node, set));
    assert_eq!(counts, [1, 1, 2, 1, 1]);
}

/// As a second volume of the same name is to the storage interface CSI: the first one stays, and the client hears of it.
#[test]
fn an_attach_that_asks_for_something_else_is_told_what_differs() {
    let node = Node::new();
    let _serve = Serve::start(&node, &[]);
    block_on(async {
        let client = client(&node).await;
        let whole = everything(&node, "a");
        let made = client.attach(soon(), &whole).await.unwrap().attachment.unwrap();
        let less = Bandwidth { ingress: limit(RATE, BURST), ..Default::default() };
        for (request, differing) in [
            (AttachRequest { ports: whole.ports[1..].into(), ..whole.clone() }, None),
            (AttachRequest { ports: whole.ports[..1].into(), ..whole.clone() }, Some("ports")),
            (AttachRequest { bandwidth: Some(less).into(), ..whole.clone() }, Some("bandwidth")),
            (AttachRequest { bandwidth: None.into(), mtu: 1400, ..whole.clone() }, Some("mtu, bandwidth")),
            (AttachRequest { addresses: strings(["10.88.0.78"]), ..whole.clone() }, Some("addresses")),
            (AttachRequest { addresses: strings(["fd00:88::77"]), ..whole.clone() }, None),
            (AttachRequest { mac: "02:00:00:00:00:78".into(), ..whole.clone() }, Some("mac")),
            (AttachRequest { mac: String::new(), mtu: 0, ..whole.clone() }, None),
            (AttachRequest { masquerade: hide(Mode::ON, &[]), ..whole.clone() }, Some("masquerade")),
            (AttachRequest { masquerade: hide(Mode::OFF, &[]), ..whole.clone() }, Some("masquerade")),
            (AttachRequest { masquerade: None.into(), ..whole.clone() }, None),
            (
                AttachRequest { ranges: vec![range("10.88.0.0/24")], ..whole.clone() },
                Some("ranges, masquerade"),
            ),
            (AttachRequest { labels: Default::default(), ..whole.clone() }, Some("labels")),
            (AttachRequest { pod_name: "other".into(), ..whole.clone() }, Some("pod_name")),
            (AttachRequest { network: "other".into(), ..whole.clone() }, Some("network")),
        ] {
            let answer = client.attach(soon(), &request).await;
            let Some(differing) = differing else {
                assert_eq!(answer.unwrap().attachment.unwrap(), made, "{request}");
                continue;
            };
            let wanted = format!("interface eth0 of container a is attached already, with other {differing}");
            assert_eq!(code(answer), (Code::ALREADY_EXISTS, wanted));
        }
        client.detach(soon(), &detach("a")).await.unwrap();
        let other = AttachRequest { ports: Vec::new(), mac: String::new(), ..whole };
        assert_ne!(client.attach(soon(), &other).await.unwrap().attachment.unwrap().mac, made.mac);
        client.detach(soon(), &detach("a")).await.unwrap();
    });
    node.assert_empty();
}

#[test]
fn what_cannot_be_asked_for_is_refused_by_the_name_of_its_field() {
    let node = Node::new();
    let _serve = Serve::start(&node, &[]);
    let v6_only: Vec<Range> = vec![range("fd00:88::/64")];
    block_on(async {
        let client = client(&node).await;
        let good = attach(&node, "a", "web");
        let ports = |port: HostPort| AttachRequest { ports: vec![port], ..good.clone() };
        let unknown =
            HostPort { protocol: protobuf::EnumOrUnknown::from_i32(9), ..port(Protocol::TCP, 1, 1, "") };
        let ingress = |rate, burst| AttachRequest {
            bandwidth: Some(Bandwidth { ingress: limit(rate, burst), ..Default::default() }).into(),
            ..good.clone()
        };
        let addresses = |text: &str| AttachRequest { addresses: strings([text]), ..good.clone() };
        let mac = |text: &str| AttachRequest { mac: text.into(), ..good.clone() };
        let far = AttachRequest { ranges: v6_only, ..ports(port(Protocol::TCP, 8080, 80, HOST[0])) };
        let except = AttachRequest { masquerade: hide(Mode::ON, &["198.51.100.0"]), ..good.clone() };
        for (request, text) in [
            (
                ports(port(Protocol::TCP, 70000, 80, "")),
                "ports.host_port is 70000, want a number up to 65535",
            ),
            (
                ports(port(Protocol::TCP, 80, 65536, "")),
                "ports.container_port is 65536, want a number up to 65535",
            ),
            (ports(port(Protocol::TCP, 80, 0, "")), "ports.container_port of host port 80 is 0"),
            (ports(port(Protocol::TCP, 80, 80, "here")), "ports.host_ip \"here\" is no address"),
            (ports(unknown), "ports.protocol is 9, want TCP, UDP or SCTP"),
            (
                far,
                "host port 192.0.2.10:8080/tcp is at an IPv4 address, and the pod has none to lead it to: its \
                   addresses are fd00:88::2",
            ),
            (ingress(0, 8), "bandwidth.ingress.burst is set, and bandwidth.ingress.rate is not"),
            (ingress(7, 8), "bandwidth.ingress.rate is 7 bits per second, want at least 8"),
            (ingress(8, 8 << 32), "bandwidth.ingress.burst is 34359738368 bits, want less than 4 GiB"),
            (addresses("here"), "addresses: \"here\" is no IP address"),
            (addresses("10.99.0.1"), "10.99.0.1"),
            (mac("x"), "mac: "),
            (mac("03:00:00:00:00:01"), "mac: 03:00:00:00:00:01 is a group's address"),
            (except, "masquerade.except \"198.51.100.0\" is no subnet in CIDR form"),
        ] {
            let (found, why) = code(client.attach(soon(), &request).await);
            assert_eq!(found, Code::INVALID_ARGUMENT, "{why}");
            assert!(why.contains(text), "{text} in {why}");
            node.assert_empty();
        }
        let web = AttachRequest { pod_name: "web".into(), ..ports(port(Protocol::TCP, 8080, 80, "")) };
        client.attach(soon(), &web).await.unwrap();
        let taken = AttachRequest { ports: web.ports.clone(), ..attach(&node, "b", "web") };
        let wanted = (Code::ALREADY_EXISTS, "host port 8080/tcp is taken by pod default/web".to_owned());
        assert_eq!(code(client.attach(soon(), &taken).await), wanted);
        let held = AttachRequest { addresses: strings(["fd00:88::2"]), ports: vec![], ..taken };
        let (found, why) = code(client.attach(soon(), &held).await);
        assert_eq!(found, Code::RESOURCE_EXHAUSTED, "{why}");
        assert_eq!(node.weft(&["pods", "-o", "json"]).as_array().unwrap().len(), 1);
        client.detach(soon(), &detach("a")).await.unwrap();
    });
    node.assert_empty();
}
