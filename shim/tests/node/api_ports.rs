//! Ports: those that lead to pods, page by page, and whether the kernel has them. `nft` changes the table behind weft's back.

use std::process::Command;

use nix::sys::signal::Signal;
use serde_json::{Value, json};
use ttrpc::Code;
use weft_shim::api::network::port::State;
use weft_shim::api::network::{self, AttachRequest, Filter, Port, PortsRequest, Protocol};
use weft_shim::api::network_ttrpc::PodNetworkClient;

use crate::api::{Serve, attach, client, detach};
use crate::api_attach::port;
use crate::api_repairs::shim;
use crate::common::{Node, conf};
use crate::network::{block_on, code, connect, end, soon};
use crate::ports::{add, with_ports};

/// Number, address and state of each, by pages of `size`.
async fn ports(client: &PodNetworkClient, filter: Filter, size: u32) -> Vec<Port> {
    let mut request = PortsRequest { filter: Some(filter).into(), page_size: size, ..Default::default() };
    let mut all = Vec::new();
    loop {
        let page = client.ports(soon(), &request).await.unwrap();
        assert!(size == 0 || page.ports.len() <= usize::try_from(size).unwrap());
        all.extend(page.ports);
        if page.next_page_token.is_empty() {
            return all;
        }
        request.page_token = page.next_page_token;
    }
}

fn short(ports: &[Port]) -> Vec<(u32, &str, &str)> {
    ports.iter().map(|port| (port.host_port, port.host_ip.as_str(), port.address.as_str())).collect()
}

#[test]
fn pages_and_filters_tell_each_port_once() {
    let node = Node::new();
    let _serve = Serve::start(&node, &[]);
    block_on(async {
        let client = client(&node).await;
        let tcp = |number: u32, at: &str| port(Protocol::TCP, number, number + 1, at);
        for (name, ports) in [
            ("a", vec![tcp(8080, ""), tcp(443, "192.0.2.10")]),
            ("b", vec![tcp(443, "2001:db8::10"), port(Protocol::UDP, 53, 53, "0.0.0.0")]),
            ("c", vec![]),
        ] {
            let request = AttachRequest { ports, ..attach(&node, name, name) };
            client.attach(soon(), &request).await.unwrap();
        }
        let all = ports(&client, Filter::new(), 0).await;
        let wanted = [
            (53, "0.0.0.0", "10.88.0.3"),
            (443, "192.0.2.10", "10.88.0.2"),
            (443, "2001:db8::10", "fd00:88::3"),
            (8080, "", "10.88.0.2"),
            (8080, "", "fd00:88::2"),
        ];
        assert_eq!(short(&all), wanted);
        for size in 1..7 {
            assert_eq!(ports(&client, Filter::new(), size).await, all, "{size} at a time");
        }
        let dns = &all[0];
        let facts = (dns.protocol.unwrap(), dns.container_port, dns.state.unwrap(), dns.host_ip_absent);
        assert_eq!(facts, (Protocol::UDP, 53, State::PUBLISHED, false));
        let names = [&dns.container_id, &dns.interface, &dns.network, &dns.pod_namespace, &dns.pod_name];
        assert_eq!(names.map(String::as_str), ["b", "eth0", "test", "default", "b-pod"]);
        assert_eq!(dns.attachment_state.unwrap(), network::State::ATTACHED);
        let labelled = Filter { labels: [("app".to_owned(), "a".to_owned())].into(), ..Default::default() };
        assert_eq!(short(&ports(&client, labelled, 0).await).len(), 3);
        let named =
            Filter { pod_name: "b-pod".into(), pod_namespace: "default".into(), ..Default::default() };
        assert_eq!(ports(&client, named, 1).await.len(), 2);
        let elsewhere = Filter { network: "other".into(), ..Default::default() };
        assert_eq!(ports(&client, elsewhere, 0).await, []);
        let request = PortsRequest { page_token: "nonsense".into(), ..Default::default() };
        assert_eq!(code(client.ports(soon(), &request).await).0, Code::INVALID_ARGUMENT);
        for name in ["a", "b", "c"] {
            client.detach(soon(), &detach(name)).await.unwrap();
        }
        assert_eq!(ports(&client, Filter::new(), 0).await, []);
    });
    node.assert_empty();
}

fn nft(node: &Node, args: &str) {
    let done = node.run(Command::new("nft").args(args.split(' ')), "");
    assert!(done.status.success(), "{args}: {}", String::from_utf8_lossy(&done.stderr));
}

/// Number and state of each, as `weft ports` tells it.
fn states(node: &Node) -> Vec<(u64, String)> {
    let told = node.weft(&["ports", "-o", "json"]);
    let told = told.as_array().unwrap().iter();
    told.map(|port| (port["host_port"].as_u64().unwrap(), port["state"].as_str().unwrap().into())).collect()
}

fn table(node: &Node) -> String {
    let output = node.run(node.command(env!("CARGO_BIN_EXE_weft")).arg("ports"), "");
    String::from_utf8(output.stdout).unwrap()
}

/// Two pods, one of which has a port at an address that the node lacks.
fn two_pods(node: &Node) {
    let mapping = |number: u16, at: &str| json!({ "hostPort": number, "containerPort": 80, "hostIP": at });
    let of_a = json!([mapping(81, ""), mapping(82, "0.0.0.0"), mapping(83, "198.51.100.9")]);
    add(node, "a", &with_ports(of_a));
    add(node, "b", &with_ports(json!([mapping(90, "0.0.0.0")])));
}

fn del(node: &Node) {
    for name in ["a", "b"] {
        assert!(node.cni("DEL", name, &conf()).status.success());
    }
    node.assert_empty();
}

#[test]
fn the_kernel_says_whether_a_port_is_published() {
    let node = Node::new();
    two_pods(&node);
    nft(&node, "delete element inet weft ports4 { tcp . 81 }");
    nft(&node, "delete element inet weft ports4 { tcp . 82 }");
    nft(&node, "add element inet weft ports4 { tcp . 82 : 10.88.0.3 . 80 }");
    let (process, socket) = shim(&node, "a");
    let wanted = [
        (81, "10.88.0.2", State::MISSING, false),
        (81, "fd00:88::2", State::PUBLISHED, false),
        (82, "10.88.0.2", State::ELSEWHERE, false),
        (83, "10.88.0.2", State::PUBLISHED, true),
    ];
    block_on(async {
        let all = ports(&connect(&socket).await, Filter::new(), 2).await;
        let told: Vec<_> = all
            .iter()
            .map(|port| (port.host_port, port.address.as_str(), port.state.unwrap(), port.host_ip_absent))
            .collect();
        assert_eq!(told, wanted, "of its own pod only");
    });
    end(process, Signal::SIGKILL);
    let wanted = [(81, "missing"), (82, "elsewhere"), (83, "published"), (90, "published")];
    assert_eq!(states(&node), wanted.map(|(number, state)| (number, state.to_owned())));
    let table = table(&node);
    for line in
        ["10.88.0.2:80,[fd00:88::2]:80  missing", "10.88.0.2:80                  waits for its address"]
    {
        assert!(table.contains(line), "{line} in {table}");
    }
    del(&node);
}

#[test]
fn a_port_that_is_lost_is_seen_by_check_and_by_whoever_asks_whichever_way() {
    let node = Node::new();
    two_pods(&node);
    node.ip(&["addr", "add", "198.51.100.9/32", "dev", "lo"]);
    assert!(!table(&node).contains("waits"), "{}", table(&node));
    let before = node.weft(&["ports", "-o", "json"]);
    assert!(states(&node).iter().all(|(_, state)| state == "published"), "{before}");
    let serve = Serve::start(&node, &[]);
    assert_eq!(node.weft(&["ports", "-o", "json"]), before, "the same over the API");
    drop(serve);
    let mut check = with_ports(json!([]));
    check["prevResult"] = json!({ "ips": [{ "address": "10.88.0.2/32" }, { "address": "fd00:88::2/128" }] });
    assert_eq!(node.cni("CHECK", "a", &check).json, Value::Null);
    nft(&node, "delete table inet weft");
    assert!(states(&node).iter().all(|(_, state)| state == "missing"));
    let (code, text) = node.cni("CHECK", "a", &check).error();
    assert_eq!(code, 103, "{text}");
    assert!(text.contains("a rule of chain guard in the table inet weft is missing"), "{text}");
    assert_eq!(node.weft(&["reconcile", "-o", "json"])["nat_repaired"], true);
    assert_eq!(node.cni("CHECK", "a", &check).json, Value::Null);
    assert_eq!(node.weft(&["ports", "-o", "json"]), before);
    del(&node);
}
