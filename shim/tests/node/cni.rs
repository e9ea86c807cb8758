//! The CNI plugin as a runtime calls it: the built binary, real namespaces, and `ip`, `ping` and `bpftool` as
//! witnesses.

use std::process::Command;

use crate::common::{Node, conf, ip_in, pings, run_in, wait_until};
use serde_json::{Value, json};
use weft_ipam::{Owner, Store};

const KUBERNETES: &str =
    "IgnoreUnknown=1;K8S_POD_NAMESPACE=default;K8S_POD_NAME=web;K8S_POD_INFRA_CONTAINER_ID=a;K8S_POD_UID=u1";

#[test]
fn add_gives_a_pod_its_network_and_del_takes_it() {
    let node = Node::new();
    let (a, b) = (node.add("a").addresses(), node.add("b").addresses());
    assert_eq!(a, ["10.88.0.2", "fd00:88::2"]);
    assert_eq!(b, ["10.88.0.3", "fd00:88::3"]);
    for address in &b {
        assert!(pings(&node.pod_ns("a"), address), "a to b at {address}");
        assert!(pings(&node.host, address), "host to b at {address}");
    }
    for address in ["192.0.2.10", "2001:db8::10"] {
        assert!(pings(&node.pod_ns("a"), address), "a to host at {address}");
    }
    let redirected = node.weft(&["status", "-o", "json"])["counters"]["redirected"]["packets"].as_u64();
    assert_eq!(redirected, Some(4), "an echo request and its reply of each family");
    for pod in ["a", "b"] {
        assert!(node.cni("DEL", pod, &conf()).status.success());
        let links = node.ip_in_pod(pod, &["link", "show"]);
        assert_eq!(links.as_array().unwrap().len(), 1, "only lo is left in {pod}: {links}");
    }
    node.assert_empty();
}

#[test]
fn the_kernel_has_what_the_result_says() {
    let node = Node::new();
    let result = node.add("a").json;
    let [host_end, pod_end] = result["interfaces"].as_array().unwrap().as_slice() else { panic!("{result}") };
    let inside = node.ip_in_pod("a", &["-d", "addr", "show", "eth0"])[0].clone();
    assert_eq!(inside["address"], pod_end["mac"]);
    assert_eq!(inside["mtu"], 1450);
    assert_eq!(inside["operstate"], "UP");
    let addresses = inside["addr_info"].as_array().unwrap();
    let locals: Vec<_> =
        addresses.iter().map(|a| (a["local"].as_str().unwrap(), a["prefixlen"].as_u64().unwrap())).collect();
    assert_eq!(locals, [("10.88.0.2", 32), ("fd00:88::2", 128)]);
    assert!(
        addresses.iter().all(|address| address["tentative"].is_null()),
        "no duplicate address detection: {inside}"
    );
    let outside = node.ip(&["-d", "link", "show", host_end["name"].as_str().unwrap()])[0].clone();
    assert_eq!(outside["address"], host_end["mac"]);
    assert_eq!(outside["mtu"], 1450);
    assert_eq!(node.routes(), ["10.88.0.2", "fd00:88::2"]);
    for (family, gateway) in [("-4", "169.254.1.1"), ("-6", "fe80::1")] {
        let neighbours = node.ip_in_pod("a", &[family, "neigh", "show", "dev", "eth0"]);
        assert_eq!(neighbours[0]["dst"], gateway);
        assert_eq!(neighbours[0]["lladdr"], host_end["mac"]);
        assert_eq!(neighbours[0]["state"], json!(["PERMANENT"]));
    }
    assert_eq!(
        result["ips"][0],
        json!({ "interface": 1, "address": "10.88.0.2/32", "gateway": "169.254.1.1" })
    );
    assert_eq!(
        result["routes"],
        json!([{ "dst": "0.0.0.0/0", "gw": "169.254.1.1" }, { "dst": "::/0", "gw": "fe80::1" }])
    );
    assert!(node.cni("DEL", "a", &conf()).status.success());
    node.assert_empty();
}

#[test]
fn every_spoken_version_gets_its_own_shape() {
    let node = Node::new();
    for version in ["0.3.0", "0.3.1", "0.4.0", "1.0.0", "1.1.0"] {
        let pod = format!("p{version}");
        node.pod(&pod);
        let mut conf = conf();
        conf["cniVersion"] = version.into();
        let result = node.cni("ADD", &pod, &conf).json;
        assert_eq!(result["cniVersion"], version);
        let family = if version.starts_with('0') { json!(["4", "6"]) } else { json!([null, null]) };
        assert_eq!(json!([result["ips"][0]["version"], result["ips"][1]["version"]]), family, "{version}");
        conf["prevResult"] = result;
        assert_eq!(node.cni("CHECK", &pod, &conf).json, Value::Null, "{version}");
        assert!(node.cni("DEL", &pod, &conf).status.success());
    }
    let versions = node.cni_with("VERSION", "", r#"{"cniVersion":"1.0.0"}"#, |_| {}).json;
    let all = ["0.1.0", "0.2.0", "0.3.0", "0.3.1", "0.4.0", "1.0.0", "1.1.0"];
    assert_eq!(versions, json!({ "cniVersion": "1.0.0", "supportedVersions": all }));
    node.assert_empty();
}

/// What has no version is of 0.1.0.
#[test]
fn the_oldest_versions_have_an_address_of_each_family() {
    let node = Node::new();
    for (version, stated) in [("0.1.0", json!("0.1.0")), ("0.1.0", Value::Null), ("0.2.0", json!("0.2.0"))] {
        let mut conf = conf();
        conf["cniVersion"] = stated;
        node.pod("old");
        let answer = node.cni("ADD", "old", &conf);
        assert!(answer.status.success(), "{}", answer.json);
        let family = |ip: &str, gateway: &str, all: &str| {
            let routes = json!([{ "dst": all, "gw": gateway }]);
            json!({ "ip": ip, "gateway": gateway, "routes": routes })
        };
        let ip = |key: &str| answer.json[key]["ip"].as_str().unwrap().to_owned();
        assert_eq!(
            answer.json,
            json!({
                "cniVersion": version, "dns": {},
                "ip4": family(&ip("ip4"), "169.254.1.1", "0.0.0.0/0"), "ip6": family(&ip("ip6"), "fe80::1", "::/0"),
            })
        );
        assert!(ip("ip4").starts_with("10.88.0.") && ip("ip6").ends_with("/128"), "{}", answer.json);
        assert!(node.cni("DEL", "old", &conf).status.success());
        node.remove_pod("old");
    }
    node.assert_empty();
}

#[test]
fn routes_of_the_configuration_take_the_place_of_the_default_route() {
    let node = Node::new();
    for (routes, told) in [
        (
            json!([{ "dst": "192.0.2.0/24" }, { "dst": "2001:db8::1/64", "gw": "fd00:88::1" }]),
            ["192.0.2.0/24", "2001:db8::/64"],
        ),
        (json!([{ "dst": "0.0.0.0/0" }, { "dst": "::/0" }, { "dst": "10.0.0.0/8" }]), ["0.0.0.0/0", "::/0"]),
        (json!([]), ["0.0.0.0/0", "::/0"]),
        (Value::Null, ["0.0.0.0/0", "::/0"]),
    ] {
        let mut conf = conf();
        conf["routes"] = routes;
        node.pod("a");
        let result = node.cni("ADD", "a", &conf).json;
        let destinations: Vec<_> =
            result["routes"].as_array().unwrap().iter().map(|route| &route["dst"]).collect();
        assert_eq!(destinations, told);
        for (family, destination) in [("-4", told[0]), ("-6", told[1])] {
            let shown = if destination.ends_with("/0") { "default" } else { destination };
            let routes = node.ip_in_pod("a", &[family, "route", "show", "exact", destination]);
            assert_eq!(routes[0]["dst"], shown, "{routes}");
        }
        assert!(pings(&node.pod_ns("a"), "192.0.2.10") && pings(&node.pod_ns("a"), "2001:db8::10"));
        let elsewhere =
            run_in(&node.pod_ns("a"), Command::new("ip").args(["route", "get", "198.51.100.1"]), "");
        assert_eq!(elsewhere.status.success(), told[0] == "0.0.0.0/0");
        assert!(pings(&node.host, result["ips"][0]["address"].as_str().unwrap().trim_end_matches("/32")));
        conf["prevResult"] = result;
        assert_eq!(node.cni("CHECK", "a", &conf).json, Value::Null);
        assert!(node.cni("DEL", "a", &conf).status.success());
        node.remove_pod("a");
    }
    node.assert_empty();
}

#[test]
fn add_again_returns_the_same_answer() {
    let node = Node::new();
    let first = node.add("a");
    let again = node.cni("ADD", "a", &conf());
    assert_eq!(again.json, first.json);
    assert_eq!(node.links().len(), 1);
    node.cni("DEL", "a", &conf());
    node.assert_empty();
}

/// A namespace that was made anew under a known id, after a crash of the runtime: the old one's record is in the way.
#[test]
fn add_into_another_namespace_of_the_same_id_starts_over() {
    let node = Node::new();
    let first = node.add("a");
    node.remove_pod("a");
    node.pod("a");
    let again = node.cni("ADD", "a", &conf());
    assert!(again.status.success(), "{}", again.json);
    assert_eq!(again.addresses(), first.addresses());
    assert!(pings(&node.host, &first.addresses()[0]));
    node.cni("DEL", "a", &conf());
    node.assert_empty();
}

#[test]
fn del_succeeds_for_the_unknown_without_a_namespace_and_twice() {
    let node = Node::new();
    assert!(node.cni("DEL", "nobody", &conf()).status.success());
    node.add("a");
    node.remove_pod("a");
    for _ in 0..2 {
        assert_eq!(node.cni("DEL", "a", &conf()).json, Value::Null);
    }
    node.assert_empty();
}

#[test]
fn del_for_a_cri_runtime_leaves_the_links_to_the_namespace() {
    let node = Node::new();
    let netns = node.pod("a");
    let call = |verb: &str| {
        node.cni_with(verb, "a", &conf().to_string(), |command| {
            command.env("CNI_NETNS", &netns).env("CNI_ARGS", KUBERNETES);
        })
    };
    assert!(call("ADD").status.success());
    let pods = node.weft(&["pods", "-o", "json"]);
    assert_eq!(pods[0]["pod"], json!({ "namespace": "default", "name": "web", "uid": "u1" }));
    assert!(call("DEL").status.success());
    assert_eq!(node.routes(), [""; 0]);
    assert_eq!(node.links().len(), 1, "nobody waited for the links");
    assert!(call("ADD").status.success(), "and they are not in the way of a new attach");
    assert!(call("DEL").status.success());
    node.remove_pod("a");
    node.assert_empty();
}

#[test]
fn check_names_what_is_not_as_it_was_made() {
    let node = Node::new();
    let mut with_result = conf();
    with_result["prevResult"] = node.add("a").json;
    let host_end = with_result["prevResult"]["interfaces"][0]["name"].as_str().unwrap().to_owned();
    assert_eq!(node.cni("CHECK", "a", &with_result).json, Value::Null);
    let pod = node.pod_ns("a");
    let broken = |wanted: &str| {
        let (code, text) = node.cni("CHECK", "a", &with_result).error();
        assert_eq!(code, 103, "{text}");
        assert!(text.contains(wanted), "{wanted} in {text}");
    };
    let tc = |args: &str| {
        assert!(run_in(&node.host, Command::new("tc").args(args.split(' ')), "").status.success())
    };
    tc(&format!("filter del dev {host_end} ingress"));
    broken(&format!("the program on link {host_end} is missing"));
    node.ip(&["-6", "route", "del", "fd00:88::2"]);
    broken("route to fd00:88::2 on the host is missing");
    ip_in(&pod, &["route", "del", "default"]);
    broken("route 0.0.0.0/0 in the pod is missing");
    ip_in(&pod, &["addr", "del", "10.88.0.2/32", "dev", "eth0"]);
    broken("address 10.88.0.2 in the pod is missing");
    ip_in(&pod, &["link", "set", "eth0", "down"]);
    broken("state of link eth0: got down, want up");
    node.ip(&["link", "del", &host_end]);
    broken(&format!("link {host_end} is missing"));
    assert!(node.cni("DEL", "a", &conf()).status.success());
    assert_eq!(node.cni("CHECK", "a", &with_result).error().0, 3);
    node.assert_empty();
}

#[test]
fn gc_detaches_what_the_runtime_does_not_know() {
    let node = Node::new();
    for pod in ["a", "b"] {
        node.add(pod);
    }
    let mut other = conf();
    other["name"] = "other".into();
    node.pod("c");
    assert!(node.cni("ADD", "c", &other).status.success());
    let mut gc = conf();
    assert_eq!(node.cni("GC", "-", &gc).error().0, 7, "without the list, nothing is removed");
    gc["cni.dev/valid-attachments"] = json!([{ "containerID": "b", "ifname": "eth0" }]);
    assert_eq!(node.cni("GC", "-", &gc).json, Value::Null);
    let left: Vec<_> = node
        .weft(&["pods", "-o", "json"])
        .as_array()
        .unwrap()
        .iter()
        .map(|pod| pod["container"].clone())
        .collect();
    assert_eq!(left, ["b", "c"], "the other network is not this one's");
    for pod in ["b", "c"] {
        node.cni("DEL", pod, &conf());
    }
    node.assert_empty();
}

#[test]
fn a_full_range_is_an_error_that_leaves_nothing() {
    let node = Node::new();
    let mut small = conf();
    small["ranges"] = json!([{ "subnet": "10.88.0.0/30" }]);
    for pod in ["a", "b"] {
        node.pod(pod);
    }
    assert_eq!(node.cni("STATUS", "-", &small).json, Value::Null);
    assert!(node.cni("ADD", "a", &small).status.success());
    let (code, text) = node.cni("ADD", "b", &small).error();
    assert_eq!(code, 100, "{text}");
    assert!(text.contains("network test"), "{text}");
    assert_eq!(node.ip_in_pod("b", &["link", "show"]).as_array().unwrap().len(), 1, "only lo in b");
    let (code, text) = node.cni("STATUS", "-", &small).error();
    assert_eq!((code, text.as_str()), (50, "network test: every IPv4 address is in use: "));
    assert!(node.cni("DEL", "b", &small).status.success());
    assert!(node.cni("DEL", "a", &small).status.success());
    assert!(node.cni("ADD", "b", &small).status.success(), "the address is free again");
    node.cni("DEL", "b", &small);
    node.assert_empty();
}

#[test]
#[expect(clippy::too_many_lines, reason = "one table")]
fn bad_input_gets_a_clear_error_and_leaves_nothing() {
    let node = Node::new();
    let netns = node.pod("a").into_os_string().into_string().unwrap();
    let file = node.dir.path().join("plain");
    std::fs::write(&file, "").unwrap();
    let file = file.to_str().unwrap();
    let good = conf().to_string();
    let with = |key: &str, value: Value| {
        let mut conf = conf();
        conf[key] = value;
        conf.to_string()
    };
    let ranges = |range: Value| with("ranges", json!([range]));
    type Case<'a> = (&'a str, String, &'a [(&'a str, &'a str)], u64, &'a str);
    let cases: &[Case] = &[
        ("broken json", "{".into(), &[], 6, "parse the network configuration: EOF"),
        ("a missing name", with("name", Value::Null), &[], 7, "name is missing"),
        ("an unknown version", with("cniVersion", json!("9.9.9")), &[], 1, "\"9.9.9\" is not supported"),
        ("no ranges", with("ranges", json!([])), &[], 7, "no [network.test]"),
        (
            "a range that is none",
            ranges(json!({ "subnet": "10.0.0.0" })),
            &[],
            6,
            "network configuration: ranges[0].subnet: invalid IP address syntax",
        ),
        (
            "an unknown key in a range",
            ranges(json!({ "subnet": "10.0.0.0/24", "rangeBegin": "10.0.0.5" })),
            &[],
            6,
            "rangeBegin",
        ),
        (
            "a start outside",
            ranges(json!({ "subnet": "10.0.0.0/24", "rangeStart": "10.1.0.5" })),
            &[],
            7,
            "10.1.0.5",
        ),
        (
            "a host port",
            with("runtimeConfig", json!({ "portMappings": [{ "HostPort": 80, "ContainerPort": 70000 }] })),
            &[],
            7,
            "containerPort is 70000",
        ),
        ("no command", good.clone(), &[("CNI_COMMAND", "")], 4, "CNI_COMMAND is missing"),
        ("an unknown command", good.clone(), &[("CNI_COMMAND", "ATTACH")], 4, "\"ATTACH\""),
        ("no container", good.clone(), &[("CNI_CONTAINERID", "")], 4, "CNI_CONTAINERID is missing"),
        ("a path as container", good.clone(), &[("CNI_CONTAINERID", "../a")], 4, "CNI_CONTAINERID"),
        ("16 bytes of interface", good.clone(), &[("CNI_IFNAME", "abcdefghijklmnop")], 4, "abcdefghijklmnop"),
        ("an interface with a slash", good.clone(), &[("CNI_IFNAME", "eth/0")], 4, "eth/0"),
        ("no namespace", good.clone(), &[("CNI_NETNS", "")], 4, "CNI_NETNS is missing"),
        ("an absent namespace", good.clone(), &[("CNI_NETNS", "/run/netns/absent")], 4, "/run/netns/absent"),
        ("a file as namespace", good.clone(), &[("CNI_NETNS", file)], 4, "plain"),
        ("a mount namespace", good.clone(), &[("CNI_NETNS", "/proc/self/ns/mnt")], 4, "/proc/self/ns/mnt"),
        ("a store that is a file", good.clone(), &[("WEFT_RUN_DIR", file)], 101, "plain/store"),
        (
            "a configuration that is absent",
            good.clone(),
            &[("WEFT_CONFIG", "/absent.toml")],
            104,
            "/absent.toml",
        ),
    ];
    for (what, conf, env, code, text) in cases {
        let answer = node.cni_with("ADD", "a", conf, |command| {
            command.env("CNI_NETNS", &netns).envs(env.iter().copied());
        });
        let (found, message) = answer.error();
        assert_eq!(found, *code, "{what}: {message}");
        assert!(message.contains(text), "{what}: {text} in {message}");
        node.assert_empty();
        let links = node.ip_in_pod("a", &["link", "show"]);
        assert_eq!(links.as_array().unwrap().len(), 1, "{what}: only lo in the pod");
    }
}

/// What another plugin would keep out of a pod must not come in because weft does not know the word.
#[test]
fn a_key_that_narrows_who_may_come_is_refused_and_takes_no_pod_down() {
    let node = Node::new();
    node.add("a");
    node.pod("b");
    for (key, value, text) in [
        ("conditionsV4", json!(["-s", "192.0.2.1"]), "conditionsV4 is portmap's: chain it behind weft"),
        ("conditionsV6", json!(["ip6", "saddr", "::1"]), "conditionsV6 is portmap's: chain it behind weft"),
        ("portIsolation", json!(true), "portIsolation is not served"),
    ] {
        let mut narrow = conf();
        narrow[key] = value;
        for (verb, pod) in [("ADD", "b"), ("STATUS", "")] {
            let (code, message) = node.cni(verb, pod, &narrow).error();
            assert_eq!(code, 7, "{verb}: {message}");
            assert!(message.contains(text), "{verb}: {text} in {message}");
        }
        assert!(node.cni("DEL", "b", &narrow).status.success(), "DEL after the ADD that failed");
    }
    let mut harmless = conf();
    harmless["conditionsV4"] = json!([]);
    harmless["hairpinMode"] = true.into();
    assert!(node.cni("ADD", "b", &harmless).status.success());
    let mut narrow = conf();
    narrow["vlan"] = 7.into();
    for pod in ["a", "b"] {
        assert!(node.cni("DEL", pod, &narrow).status.success(), "DEL of {pod}");
    }
    node.assert_empty();
}

#[test]
fn a_foreign_interface_is_not_touched() {
    let node = Node::new();
    node.pod("a");
    ip_in(&node.pod_ns("a"), &["link", "add", "eth0", "type", "veth", "peer", "name", "eth1"]);
    let (code, text) = node.cni("ADD", "a", &conf()).error();
    assert_eq!(code, 102, "{text}");
    assert!(text.contains("interface eth0 exists already"), "{text}");
    assert_eq!(node.ip_in_pod("a", &["link", "show", "eth0"])[0]["link"], "eth1");
    node.assert_empty();
}

#[test]
fn a_record_of_a_newer_version_is_left_alone() {
    let node = Node::new();
    let owner = Owner::new("a", "eth0").unwrap();
    node.pod("a");
    let record = br#"{"version":2}"#;
    {
        let store = Store::open(&node.run_dir().join("store")).unwrap();
        let mut txn = store.write().unwrap();
        txn.put_record(&owner, record).unwrap();
        txn.commit().unwrap();
    }
    for verb in ["ADD", "DEL"] {
        let (code, text) = node.cni(verb, "a", &conf()).error();
        assert_eq!(code, 101, "{text}");
        assert!(text.contains("record of a eth0 has format 2, this version knows up to 1"), "{text}");
    }
    let store = Store::open(&node.run_dir().join("store")).unwrap();
    assert_eq!(store.read().unwrap().record(&owner).unwrap(), Some(&record[..]));
    assert_eq!(node.links(), [""; 0]);
}

/// A pod always gets a network: where no program can be pinned, packets are routed.
#[test]
fn without_a_bpffs_pods_are_routed() {
    let node = Node::new();
    let bpf = node.dir.path().join("no-bpffs/weft");
    std::fs::write(node.dir.path().join("no-bpffs"), "").unwrap();
    for pod in ["a", "b"] {
        let netns = node.pod(pod);
        let answer = node.cni_with("ADD", pod, &conf().to_string(), |command| {
            command.env("CNI_NETNS", netns).env("WEFT_BPF_DIR", &bpf);
        });
        assert!(answer.status.success(), "{}", answer.json);
    }
    for address in ["10.88.0.3", "fd00:88::3"] {
        assert!(pings(&node.pod_ns("a"), address));
    }
    let pods = node.weft(&["pods", "-o", "json"]);
    assert_eq!(pods[0]["data_path"], "routing");
    assert!(pods[0]["data_path_reason"].as_str().unwrap().contains("no-bpffs"), "{pods}");
    for pod in ["a", "b"] {
        node.cni("DEL", pod, &conf());
    }
    node.assert_empty();
}

#[test]
fn many_at_once_get_different_addresses() {
    let node = Node::new();
    let names: Vec<String> = (0..24).map(|n| format!("p{n}")).collect();
    let netns: Vec<_> = names.iter().map(|name| node.pod(name)).collect();
    let input = node.dir.path().join("conf");
    std::fs::write(&input, conf().to_string()).unwrap();
    let children: Vec<_> = names
        .iter()
        .zip(&netns)
        .map(|(name, netns)| {
            let mut command = node.command(env!("CARGO_BIN_EXE_weft-cni"));
            command.env("CNI_COMMAND", "ADD").env("CNI_CONTAINERID", name).env("CNI_IFNAME", "eth0");
            command.env("CNI_NETNS", netns).env("CNI_PATH", "/").stdout(std::process::Stdio::piped());
            command.stdin(std::fs::File::open(&input).unwrap());
            node.host.run(|| command.spawn().unwrap()).unwrap()
        })
        .collect();
    let mut addresses: Vec<String> = Vec::new();
    for child in children {
        let output = child.wait_with_output().unwrap();
        let result: Value = serde_json::from_slice(&output.stdout).unwrap();
        assert!(output.status.success(), "{result}");
        addresses.extend(result["ips"].as_array().unwrap().iter().map(|ip| ip["address"].to_string()));
    }
    addresses.sort();
    addresses.dedup();
    assert_eq!(addresses.len(), 48);
    assert_eq!(node.map_entries(), 48);
    for name in &names {
        assert!(node.cni("DEL", name, &conf()).status.success());
    }
    node.assert_empty();
}

#[test]
fn cleanup_leaves_nothing() {
    let node = Node::new();
    node.add("a");
    let refused = node.run(node.command(env!("CARGO_BIN_EXE_weft")).args(["cleanup", "--if-unused"]), "");
    let said = String::from_utf8_lossy(&refused.stderr).into_owned();
    assert_eq!((refused.status.code(), node.links().len()), (Some(1), 1), "{said}");
    assert!(said.contains("attached, so nothing was changed: container a eth0"), "{said}");
    drop(std::os::unix::net::UnixListener::bind(node.run_dir().join("weft.sock")).unwrap());
    node.weft(&["cleanup"]);
    wait_until("the links are gone", || node.links().is_empty());
    assert_eq!(node.routes(), [""; 0]);
    let left = |dir: &std::path::Path| {
        std::fs::read_dir(dir).unwrap().map(|entry| entry.unwrap().path()).collect::<Vec<_>>()
    };
    assert!(!node.dir.path().join("bpf/weft").exists());
    assert_eq!(left(&node.run_dir()), [] as [std::path::PathBuf; 0]);
    node.weft(&["cleanup", "--if-unused"]);
}
