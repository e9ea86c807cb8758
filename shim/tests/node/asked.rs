//! Addresses that are asked for by name, in every place where that can be said, with `ip -j` as the witness.

use crate::common::{Answer, Node, conf, pings, wait_until};
use serde_json::{Value, json};

/// Calls ADD with `CNI_ARGS` and with changes of the configuration.
fn add(node: &Node, pod: &str, args: &str, changes: &[(&str, Value)]) -> Answer {
    let netns = node.dir.path().join(format!("netns-{pod}"));
    if !netns.exists() {
        node.pod(pod);
    }
    let mut conf = conf();
    for (key, value) in changes {
        conf[*key] = value.clone();
    }
    node.cni_with("ADD", pod, &conf.to_string(), |command| {
        command.env("CNI_NETNS", netns).env("CNI_ARGS", args);
    })
}

/// Both ends are for the kernel what the result says; the MAC address of the pod's end.
fn is_as_reported(node: &Node, pod: &str, answer: &Answer) -> String {
    let [host_end, pod_end] = answer.json["interfaces"].as_array().unwrap().as_slice() else { panic!() };
    let inside = node.ip_in_pod(pod, &["addr", "show", "eth0"])[0].clone();
    assert_eq!(inside["address"], pod_end["mac"], "{pod}");
    let local = |address: &Value| format!("{}/{}", address["local"].as_str().unwrap(), address["prefixlen"]);
    let addresses: Vec<String> = inside["addr_info"].as_array().unwrap().iter().map(local).collect();
    let reported: Vec<&str> =
        answer.json["ips"].as_array().unwrap().iter().map(|ip| ip["address"].as_str().unwrap()).collect();
    assert_eq!(addresses, reported, "{pod}");
    let host_link = host_end["name"].as_str().unwrap();
    assert_eq!(node.ip(&["link", "show", host_link])[0]["address"], host_end["mac"], "{pod}");
    let neighbours = node.ip(&["-4", "neigh", "show", "dev", host_link]);
    assert_eq!(neighbours[0]["dst"], answer.addresses()[0], "{pod}");
    assert_eq!(neighbours[0]["lladdr"], pod_end["mac"], "{pod}");
    let mut with_result = conf();
    with_result["prevResult"] = answer.json.clone();
    assert_eq!(node.cni("CHECK", pod, &with_result).json, Value::Null, "{pod}");
    inside["address"].as_str().unwrap().to_owned()
}

fn annotations(ips: &str, mac: &str) -> Value {
    json!({ "io.kubernetes.cri.pod-annotations": { "weft.dev/ips": ips, "weft.dev/mac": mac, "other": "x" } })
}

#[test]
fn every_place_is_heard_and_the_first_one_counts() {
    let node = Node::new();
    let mac = |n: u8| format!("02:aa:00:00:00:{n:02x}");
    let runtime = json!({ "ips": ["10.88.0.11/24", "fd00:88::11/64"], "mac": mac(0x11) });
    let cni_args = json!({ "cni": { "ips": ["10.88.0.12"], "mac": mac(0x12) } });
    let env = format!("IgnoreUnknown=1;IP=10.88.0.13/24,fd00:88::13/64;MAC={}", mac(0x13));
    let of_pods = annotations("10.88.0.14, fd00:88::14", &mac(0x14));
    let mut all = of_pods.clone();
    for (key, value) in runtime.as_object().unwrap() {
        all[key] = value.clone();
    }
    type Case<'a> = (&'a str, &'a str, Vec<(&'a str, Value)>, [&'a str; 2], u8);
    let cases: [Case; 5] = [
        ("annotation", "", vec![("runtimeConfig", of_pods.clone())], ["10.88.0.14", "fd00:88::14"], 0x14),
        ("env", &env, vec![("runtimeConfig", of_pods.clone())], ["10.88.0.13", "fd00:88::13"], 0x13),
        // IPv6 is not named there, so it is chosen.
        (
            "args",
            &env,
            vec![("runtimeConfig", of_pods), ("args", cni_args.clone())],
            ["10.88.0.12", "fd00:88::2"],
            0x12,
        ),
        (
            "runtime",
            &env,
            vec![("runtimeConfig", all), ("args", cni_args)],
            ["10.88.0.11", "fd00:88::11"],
            0x11,
        ),
        (
            "containerd",
            "",
            vec![("runtimeConfig", json!({ "io.kubernetes.cri.pod-annotations": null, "ips": null }))],
            ["10.88.0.2", "fd00:88::3"],
            0,
        ),
    ];
    for (pod, env, changes, [v4, v6], number) in &cases {
        let answer = add(&node, pod, env, changes);
        assert!(answer.status.success(), "{pod}: {}", answer.json);
        assert_eq!(answer.addresses(), [*v4, *v6], "{pod}");
        let found = is_as_reported(&node, pod, &answer);
        if *number != 0 {
            assert_eq!(found, mac(*number), "{pod}");
        }
    }
    // The programs check the sender's MAC address too, so they know the one that was asked for.
    for (from, to) in [("annotation", "10.88.0.11"), ("runtime", "fd00:88::14"), ("env", "10.88.0.2")] {
        assert!(pings(&node.pod_ns(from), to), "{from} to {to}");
    }
    assert_eq!(node.weft(&["status", "-o", "json"])["counters"]["dropped"]["packets"], 0);
    for (pod, ..) in &cases {
        assert!(node.cni("DEL", pod, &conf()).status.success());
    }
    node.assert_empty();
}

/// Annotations are the pod's, and `eth0` is what Kubernetes knows of it.
#[test]
fn annotations_speak_of_eth0_only() {
    let node = Node::new();
    let netns = node.pod("a");
    let mut asked = conf();
    asked["runtimeConfig"] = annotations("10.88.0.50", "02:aa:00:00:00:50");
    let answer = node.cni_with("ADD", "a", &asked.to_string(), |command| {
        command.env("CNI_NETNS", netns).env("CNI_IFNAME", "net1");
    });
    assert_eq!(answer.addresses()[0], "10.88.0.2");
    node.weft(&["cleanup"]);
}

#[test]
fn an_address_that_cannot_be_had_is_refused_by_name_and_nothing_is_left() {
    let node = Node::new();
    let ranges = json!([
        { "subnet": "10.88.0.0/24", "rangeEnd": "10.88.0.100", "exclude": ["10.88.0.32/28"] },
        { "subnet": "fd00:88::/64" },
    ]);
    let holder = add(&node, "holder", "IP=10.88.0.9", &[("ranges", ranges.clone())]);
    assert_eq!(holder.addresses()[0], "10.88.0.9");
    let one = |ip: &str| json!({ "ips": [ip] });
    let mac = |mac: &str| json!({ "mac": mac });
    for (runtime, code, text) in [
        (one("10.99.0.1"), 7, "lease an address: address 10.99.0.1 is in no range of network test"),
        (one("10.88.0.1"), 7, "10.88.0.1 of subnet 10.88.0.0/24 cannot be leased: it is the gateway"),
        (one("10.88.0.40"), 7, "10.88.0.40 of subnet 10.88.0.0/24 cannot be leased: it is excluded"),
        (one("10.88.0.101"), 7, "it is outside of the first and the last address to lease"),
        (one("10.88.0.0"), 7, "it is outside of the first and the last address to lease"),
        (one("fd00:99::1"), 7, "address fd00:99::1 is in no range of network test"),
        (one("10.88.0.9"), 100, "address 10.88.0.9 is leased to interface eth0 of container holder"),
        (json!({ "ips": ["10.88.0.3", "10.88.0.4"] }), 7, "addresses 10.88.0.3 and 10.88.0.4 are both IPv4"),
        (
            one("10.88.0"),
            7,
            "runtimeConfig.ips: \"10.88.0\" is no IP address, with or without a prefix length",
        ),
        (json!({ "ips": "10.88.0.3" }), 6, "invalid type: string"),
        (mac("02:00"), 7, "runtimeConfig.mac: mac address \"02:00\": want six bytes in hexadecimal"),
        (mac("01:00:5e:00:00:01"), 7, "runtimeConfig.mac: 01:00:5e:00:00:01 is a group's address"),
        (mac("00:00:00:00:00:00"), 7, "runtimeConfig.mac: 00:00:00:00:00:00 is all zeroes"),
        (annotations("web", ""), 7, "annotation weft.dev/ips: \"web\" is no IP address"),
        (annotations("", "x"), 7, "annotation weft.dev/mac: mac address \"x\""),
    ] {
        let answer = add(&node, "a", "", &[("ranges", ranges.clone()), ("runtimeConfig", runtime.clone())]);
        let (found, message) = answer.error();
        assert_eq!(found, code, "{runtime}: {message}");
        assert!(message.contains(text), "{runtime}: {text} in {message}");
        assert_eq!(node.ip_in_pod("a", &["link", "show"]).as_array().unwrap().len(), 1, "{runtime}");
        assert_eq!(node.weft(&["pods", "-o", "json"]).as_array().unwrap().len(), 1, "{runtime}");
    }
    for (args, text) in
        [("IP=10.88", "IP in CNI_ARGS: \"10.88\""), ("MAC=x", "MAC in CNI_ARGS: mac address \"x\"")]
    {
        let (code, message) = add(&node, "a", args, &[]).error();
        assert!(code == 7 && message.contains(text), "{message}");
    }
    node.cni("DEL", "holder", &conf());
    node.assert_empty();
}

#[test]
fn a_cooling_address_and_one_of_a_dead_pod_can_be_had() {
    let node = Node::new();
    let asked = [("runtimeConfig", json!({ "ips": ["10.88.0.77", "fd00:88::77"] }))];
    let wanted = ["10.88.0.77", "fd00:88::77"];
    assert_eq!(add(&node, "a", "", &asked).addresses(), wanted);
    assert!(node.cni("DEL", "a", &conf()).status.success());
    assert_eq!(add(&node, "b", "", &asked).addresses(), wanted, "warm");
    let (code, text) = add(&node, "c", "", &asked).error();
    assert_eq!(code, 100, "{text}");
    assert!(text.contains("address 10.88.0.77 is leased to interface eth0 of container b"), "{text}");
    node.remove_pod("b");
    wait_until("the namespace is gone", || node.links().is_empty());
    // The same name comes back on the node after a crash; the look for dead pods happens once a second at most.
    wait_until("it is time to look again", || add(&node, "c", "", &asked).status.success());
    let answer = add(&node, "c", "", &asked);
    assert_eq!(answer.addresses(), wanted);
    assert!(pings(&node.host, "10.88.0.77"));
    node.cni("DEL", "c", &conf());
    node.assert_empty();
}

/// A new namespace of the same id, which now asks for something else.
#[test]
fn an_owner_that_comes_back_gets_what_it_asks_for_now() {
    let node = Node::new();
    assert_eq!(add(&node, "a", "", &[]).addresses()[0], "10.88.0.2");
    node.remove_pod("a");
    wait_until("the namespace is gone", || node.links().is_empty());
    assert_eq!(add(&node, "a", "IP=10.88.0.60", &[]).addresses()[0], "10.88.0.60");
    assert!(pings(&node.host, "10.88.0.60"));
    assert_eq!(node.routes().len(), 2);
    node.cni("DEL", "a", &conf());
    node.assert_empty();
}
