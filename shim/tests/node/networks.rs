//! Networks of every shape, more than one on a node, and more than one of a pod.

use std::process::Stdio;

use crate::common::{Answer, Node, conf, ip_in, pings};
use serde_json::{Value, json};

/// A network of this name and these subnets.
fn network(name: &str, subnets: &[&str]) -> Value {
    let mut conf = conf();
    conf["name"] = name.into();
    conf["ranges"] = subnets.iter().map(|subnet| json!({ "subnet": subnet })).collect();
    conf
}

/// Calls the plugin for one interface of a pod that has been made.
fn call(node: &Node, verb: &str, pod: &str, interface: &str, conf: &Value) -> Answer {
    let netns = node.dir.path().join(format!("netns-{pod}"));
    let answer = node.cni_with(verb, pod, &conf.to_string(), |command| {
        command.env("CNI_NETNS", netns).env("CNI_IFNAME", interface);
    });
    assert!(answer.status.success(), "{verb} {pod} {interface}: {}", answer.json);
    answer
}

fn add(node: &Node, pod: &str, interface: &str, conf: &Value) -> Answer {
    if !node.dir.path().join(format!("netns-{pod}")).exists() {
        node.pod(pod);
    }
    call(node, "ADD", pod, interface, conf)
}

/// CHECK with the result of ADD.
fn check(node: &Node, pod: &str, interface: &str, conf: &Value, added: &Answer) {
    let mut with_result = conf.clone();
    with_result["prevResult"] = added.json.clone();
    call(node, "CHECK", pod, interface, &with_result);
}

/// Destination and link of a pod's routes, of the main table, without those that the kernel makes of addresses.
fn routes(node: &Node, pod: &str, family: &str) -> Vec<(String, String)> {
    let routes = node.ip_in_pod(pod, &[family, "route"]);
    let one = |route: &Value| {
        (route["dst"].as_str().unwrap().to_owned(), route["dev"].as_str().unwrap().to_owned())
    };
    let made = routes.as_array().unwrap().iter().filter(|route| route["protocol"] != "kernel");
    let mut all: Vec<_> = made.map(one).collect();
    all.sort();
    all
}

fn dropped(node: &Node) -> Value {
    node.weft(&["status", "-o", "json"])["counters"]["dropped"]["packets"].clone()
}

#[test]
fn a_full_range_spills_into_the_next_of_its_family() {
    let node = Node::new();
    let conf = network("spills", &["10.88.0.0/30", "fd00:88::/126", "10.88.1.0/29", "fd00:88:1::/64"]);
    let mut got = Vec::new();
    for n in 0..4 {
        got.push(add(&node, &format!("p{n}"), "eth0", &conf).addresses());
    }
    assert_eq!(
        got,
        [
            ["10.88.0.2", "fd00:88::2"],
            ["10.88.1.2", "fd00:88::3"],
            ["10.88.1.3", "fd00:88:1::2"],
            ["10.88.1.4", "fd00:88:1::3"]
        ]
    );
    for address in got.iter().flatten() {
        assert!(pings(&node.pod_ns("p0"), address) && pings(&node.host, address), "{address}");
    }
    node.weft(&["cleanup"]);
}

#[test]
fn ranges_of_every_size_serve_pods() {
    let node = Node::new();
    let sizes = [
        ("10.88.0.0/30", "10.88.0.2"),
        ("10.89.0.0/24", "10.89.0.2"),
        ("10.90.0.0/16", "10.90.0.2"),
        ("11.0.0.0/8", "11.0.0.2"),
        ("fd00:88::/126", "fd00:88::2"),
        ("fd00:89::/64", "fd00:89::2"),
        ("fc00::/8", "fc00::2"),
    ];
    for (n, (subnet, address)) in sizes.iter().enumerate() {
        let conf = network(&format!("n{n}"), &[subnet]);
        assert_eq!(add(&node, &format!("p{n}"), "eth0", &conf).addresses(), [*address], "{subnet}");
        assert!(pings(&node.host, address), "{subnet}");
    }
    node.weft(&["cleanup"]);
}

#[test]
fn ipv6_alone() {
    let node = Node::new();
    let conf = network("six", &["fd00:88::/64"]);
    let a = add(&node, "a", "eth0", &conf);
    let b = add(&node, "b", "eth0", &conf);
    assert_eq!((a.addresses(), b.addresses()), (vec!["fd00:88::2".into()], vec!["fd00:88::3".into()]));
    assert_eq!(a.json["routes"], json!([{ "dst": "::/0", "gw": "fe80::1" }]));
    assert!(pings(&node.pod_ns("a"), "fd00:88::3") && pings(&node.pod_ns("a"), "2001:db8::10"));
    let inside = node.ip_in_pod("a", &["addr", "show", "eth0"]);
    assert_eq!(inside[0]["addr_info"].as_array().unwrap().len(), 1, "{inside}");
    assert_eq!(routes(&node, "a", "-4"), []);
    check(&node, "a", "eth0", &conf, &a);
    for pod in ["a", "b"] {
        call(&node, "DEL", pod, "eth0", &conf);
    }
    node.assert_empty();
}

#[test]
fn networks_of_any_name_share_a_node() {
    let node = Node::new();
    let names = ["a", "Netz_2", "kube.prod-1", "default"];
    for (n, name) in names.iter().enumerate() {
        let conf = network(name, &[&format!("10.88.{n}.0/30"), &format!("fd00:88:a{n}::/64")]);
        let added = add(&node, name, "eth0", &conf);
        assert_eq!(added.addresses(), [format!("10.88.{n}.2"), format!("fd00:88:a{n}::2")]);
        // A full network says nothing of the others.
        let full = node.cni("STATUS", "-", &conf).error();
        assert_eq!(full.0, 50, "{full:?}");
    }
    for from in names {
        for to in 0..names.len() {
            assert!(pings(&node.pod_ns(from), &format!("10.88.{to}.2")), "{from} to {to}");
            assert!(pings(&node.pod_ns(from), &format!("fd00:88:a{to}::2")), "{from} to {to}");
        }
    }
    for name in names {
        call(&node, "DEL", name, "eth0", &network(name, &["10.99.0.0/24"]));
    }
    node.assert_empty();
}

/// What Multus does, and what a runtime does that attaches all networks at once: either interface may come first.
#[test]
fn the_second_interface_leaves_the_first_its_routes() {
    for order in [["eth0", "net1"], ["net1", "eth0"]] {
        let node = Node::new();
        let (a, b) = (
            network("a", &["10.88.0.0/24", "fd00:88::/64"]),
            network("b", &["10.88.1.0/24", "fd00:88:1::/64"]),
        );
        let conf_of = |interface: &str| if interface == "eth0" { &a } else { &b };
        let added = order.map(|interface| add(&node, "pod", interface, conf_of(interface)));
        let other_a = add(&node, "a", "eth0", &a).addresses();
        let other_b = add(&node, "b", "eth0", &b).addresses();
        for (family, gateway, subnet) in
            [("-4", "169.254.1.1", "10.88.1.0/24"), ("-6", "fe80::1", "fd00:88:1::/64")]
        {
            let wanted = [(gateway, "eth0"), ("default", "eth0"), (subnet, "net1")]
                .map(|(to, dev)| (to.to_owned(), dev.to_owned()));
            let mut wanted = wanted.to_vec();
            wanted.sort();
            assert_eq!(routes(&node, "pod", family), wanted, "{order:?}");
        }
        let pod = node.pod_ns("pod");
        for address in other_a.iter().chain(&other_b) {
            assert!(pings(&pod, address), "{order:?}: to {address}");
        }
        for address in added.iter().flat_map(Answer::addresses) {
            for from in ["a", "b"] {
                assert!(pings(&node.pod_ns(from), &address), "{order:?}: {from} to {address}");
            }
            // The host is in neither network: the answer would leave by the default route if its source did not matter.
            assert!(pings(&node.host, &address), "{order:?}: host to {address}");
        }
        assert_eq!(dropped(&node), 0, "{order:?}: every source address left by its own interface");
        for (interface, added) in order.iter().zip(&added) {
            check(&node, "pod", interface, conf_of(interface), added);
        }
        call(&node, "DEL", "pod", "net1", &b);
        assert!(pings(&pod, &other_a[0]) && pings(&pod, "192.0.2.10"), "{order:?}: the first works on");
        for name in ["pod", "a", "b"] {
            call(&node, "DEL", name, "eth0", conf_of("eth0"));
        }
        node.assert_empty();
    }
}

#[test]
fn the_result_of_a_second_interface_says_its_routes() {
    let node = Node::new();
    let b = network("b", &["10.88.1.0/24", "10.88.2.0/24", "fd00:88:1::/64"]);
    add(&node, "pod", "eth0", &network("a", &["10.88.0.0/24"]));
    let second = add(&node, "pod", "net1", &b);
    // There is no default route of IPv6 yet.
    assert_eq!(
        second.json["routes"],
        json!([
            { "dst": "10.88.1.0/24", "gw": "169.254.1.1" },
            { "dst": "10.88.2.0/24", "gw": "169.254.1.1" },
            { "dst": "fd00:88:1::/64", "gw": "fe80::1" },
            { "dst": "::/0", "gw": "fe80::1" },
        ])
    );
    assert!(pings(&node.pod_ns("pod"), "192.0.2.10"), "by eth0");
    assert!(pings(&node.pod_ns("pod"), "2001:db8::10"), "by net1");
    let mut with_result = b.clone();
    with_result["prevResult"] = second.json.clone();
    ip_in(&node.pod_ns("pod"), &["-4", "rule", "del", "pref", "32000"]);
    let netns = node.dir.path().join("netns-pod");
    let answer = node.cni_with("CHECK", "pod", &with_result.to_string(), |command| {
        command.env("CNI_NETNS", netns).env("CNI_IFNAME", "net1");
    });
    let (code, text) = answer.error();
    assert!(code == 103 && text.contains("route from 10.88.1.2 in the pod is missing"), "{text}");
    node.weft(&["cleanup"]);
}

#[test]
fn an_interface_of_another_name_that_is_alone_reaches_everything() {
    let node = Node::new();
    let conf = network("a", &["10.88.0.0/24", "fd00:88::/64"]);
    let alone = add(&node, "pod", "net1", &conf);
    for address in ["192.0.2.10", "2001:db8::10"] {
        assert!(pings(&node.pod_ns("pod"), address), "{address}");
    }
    check(&node, "pod", "net1", &conf, &alone);
    call(&node, "DEL", "pod", "net1", &conf);
    // And once more in the same namespace, where the rules of the first attach are left.
    add(&node, "pod", "net1", &conf);
    assert!(pings(&node.pod_ns("pod"), "192.0.2.10"));
    call(&node, "DEL", "pod", "net1", &conf);
    node.assert_empty();
}

/// go-cni attaches the networks of a pod in parallel.
#[test]
fn two_interfaces_attached_at_once_both_work() {
    let node = Node::new();
    let (a, b) =
        (network("a", &["10.88.0.0/24", "fd00:88::/64"]), network("b", &["10.88.1.0/24", "fd00:88:1::/64"]));
    let others = [add(&node, "a", "eth0", &a).addresses(), add(&node, "b", "eth0", &b).addresses()];
    for turn in 0..12 {
        let netns = node.pod("pod");
        let adds = [("eth0", &a), ("net1", &b)].map(|(interface, conf)| {
            let input = node.dir.path().join(interface);
            std::fs::write(&input, conf.to_string()).unwrap();
            let mut command = node.command(env!("CARGO_BIN_EXE_weft-cni"));
            command.env("CNI_COMMAND", "ADD").env("CNI_CONTAINERID", "pod").env("CNI_IFNAME", interface);
            command.env("CNI_NETNS", &netns).env("CNI_PATH", "/").stdout(Stdio::piped());
            command.stdin(std::fs::File::open(&input).unwrap());
            node.host.run(|| command.spawn().unwrap()).unwrap()
        });
        let mut own = Vec::new();
        for add in adds {
            let output = add.wait_with_output().unwrap();
            let json: Value = serde_json::from_slice(&output.stdout).unwrap();
            assert!(output.status.success(), "{turn}: {json}");
            own.extend(Answer { status: output.status, json }.addresses());
        }
        let pod = node.pod_ns("pod");
        for other in others.iter().flatten() {
            assert!(pings(&pod, other), "{turn}: to {other}");
        }
        for (own, from) in own.iter().flat_map(|own| [(own, "a"), (own, "b")]) {
            assert!(pings(&node.pod_ns(from), own) && pings(&node.host, own), "{turn}: {from} to {own}");
        }
        for (interface, conf) in [("eth0", &a), ("net1", &b)] {
            call(&node, "DEL", "pod", interface, conf);
        }
        node.remove_pod("pod");
    }
    assert_eq!(dropped(&node), 0);
    node.weft(&["cleanup"]);
}

/// The pod's first interface is another plugin's: its routes stay, and its addresses leave by it.
#[test]
fn a_second_interface_beside_one_of_another_plugin() {
    let node = Node::new();
    let netns = node.pod("pod");
    let pod = node.pod_ns("pod");
    node.ip(&["link", "add", "foreign", "type", "veth", "peer", "name", "peer"]);
    node.ip(&["link", "set", "peer", "netns", netns.to_str().unwrap()]);
    for args in [
        "link set peer name eth0",
        "link set eth0 up",
        "addr add 203.0.113.2/24 dev eth0",
        "route add default via 203.0.113.1",
    ] {
        ip_in(&pod, &args.split(' ').collect::<Vec<_>>());
    }
    for args in ["link set foreign up", "addr add 203.0.113.1/24 dev foreign"] {
        node.ip(&args.split(' ').collect::<Vec<_>>());
    }
    let b = network("b", &["10.88.1.0/24"]);
    let own = add(&node, "pod", "net1", &b).addresses()[0].clone();
    let other = add(&node, "b", "eth0", &b).addresses()[0].clone();
    assert!(pings(&pod, &other) && pings(&node.pod_ns("b"), &own) && pings(&node.host, &own));
    assert!(pings(&node.pod_ns("b"), "203.0.113.2"), "the answer leaves by the other plugin's interface");
    assert_eq!(
        routes(&node, "pod", "-4"),
        [("10.88.1.0/24", "net1"), ("default", "eth0")].map(|(to, dev)| (to.into(), dev.into()))
    );
    assert_eq!(dropped(&node), 0);
    call(&node, "DEL", "pod", "net1", &b);
    assert!(pings(&pod, "203.0.113.1"));
    assert_eq!(routes(&node, "pod", "-4"), [("default".into(), "eth0".into())]);
    call(&node, "DEL", "b", "eth0", &b);
    node.ip(&["link", "del", "foreign"]);
    node.assert_empty();
}
