//! Plugins of the reference behind either subject: what they do to the pod, and that its network still works.

use serde_json::{Value, json};

use super::ports::mapping;
use crate::site::{BEYOND, HOST, Pod, Site};
use crate::space::Space;
use crate::traffic::{at, pings, socket, tcp, udp};
use crate::wish::Wish;

fn behind(plugin: Value) -> Wish {
    Wish { behind: vec![plugin], ..Wish::default() }
}

fn works(site: &Site, pod: &Pod<'_>) {
    let other = site.add(&Wish::default());
    let ends = [pod, &other].map(|pod| (&pod.space, pod.addresses()));
    reach(&site.host, &site.outside, ends);
    other.del();
    pod.del();
}

/// Host, outside, and two pods with their addresses of both families: the first is reached, and reaches.
pub(crate) fn reach(host: &Space, outside: &Space, pods: [(&Space, Vec<String>); 2]) {
    let [(pod, own), (other, others)] = pods;
    for family in [0, 1] {
        let address = &own[family];
        assert!(tcp(host, at(address, 80), pod, 80).is_some(), "host to {address}");
        assert!(tcp(other, at(address, 80), pod, 80).is_some(), "pod to {address}");
        assert!(tcp(pod, at(&others[family], 80), other, 80).is_some(), "to a pod");
        assert!(tcp(pod, at(BEYOND[family], 80), outside, 80).is_some(), "to the outside");
    }
}

fn tuned(site: &Site, tuning: Value) -> Pod<'_> {
    let mut plugin = json!({ "type": "tuning" });
    for (key, value) in tuning.as_object().unwrap() {
        plugin[key] = value.clone();
    }
    site.add(&behind(plugin))
}

pub(crate) fn a_plugin_behind_gets_the_result(site: &Site) {
    let plain = site.add(&Wish::default());
    let pod = tuned(site, json!({}));
    for key in ["ips", "routes", "interfaces", "dns"] {
        let count = |pod: &Pod<'_>| pod.result[key].as_array().map(Vec::len);
        assert_eq!(count(&pod), count(&plain), "{key} of {}", pod.result);
    }
    assert_eq!(pod.check(), Ok(()));
    works(site, &pod);
    plain.del();
}

pub(crate) fn tuning_sysctl(site: &Site) {
    let pod = tuned(
        site,
        json!({ "sysctl": { "net.core.somaxconn": "511", "net.ipv4.conf.IFNAME.arp_filter": "1" } }),
    );
    assert_eq!(pod.space.must("cat /proc/sys/net/core/somaxconn"), "511\n");
    assert_eq!(pod.space.must("cat /proc/sys/net/ipv4/conf/eth0/arp_filter"), "1\n");
    works(site, &pod);
}

pub(crate) fn tuning_mtu(site: &Site) {
    let pod = tuned(site, json!({ "mtu": 1300 }));
    assert_eq!(pod.link()["mtu"], 1300);
    works(site, &pod);
}

pub(crate) fn tuning_flags(site: &Site) {
    let pod = tuned(site, json!({ "promisc": true, "allmulti": true, "txQLen": 77 }));
    let link = pod.link();
    assert_eq!(
        (&link["promiscuity"], &link["allmulti"], &link["txqlen"]),
        (&json!(1), &json!(1), &json!(77))
    );
    works(site, &pod);
}

/// What the pod sends from its address goes by a table of its own. What has no address yet has no route any more: `sbr` is made for
/// interfaces beside the first.
pub(crate) fn sbr(site: &Site) {
    let pod = site.add(&behind(json!({ "type": "sbr" })));
    let rules = pod.space.ip("rule show");
    let own = rules.as_array().unwrap().iter().any(|rule| rule["src"] == pod.address());
    assert!(own, "a rule for its address: {rules}");
    let other = site.add(&Wish::default());
    let address = pod.address();
    assert!(tcp(&site.host, at(&address, 80), &pod.space, 80).is_some(), "from the host");
    assert!(tcp(&other.space, at(&address, 80), &pod.space, 80).is_some(), "from a pod");
    for target in [&other.address(), BEYOND[0]] {
        pod.space.must(&format!("ping -n -c 1 -W 2 -I {address} {target}"));
    }
    other.del();
    pod.del();
}

/// Host ports of the reference's plugin, behind either.
pub(crate) fn portmap(site: &Site, backend: &str) {
    let plugin = json!({ "type": "portmap", "backend": backend,
        "runtimeConfig": { "portMappings": [mapping("tcp", 8080, 80, ""), mapping("udp", 8053, 53, "")] } });
    let pod = site.add(&behind(plugin));
    let other = site.add(&Wish::default());
    for (client, target) in [
        (&site.outside, HOST[0]),
        (&site.host, HOST[0]),
        (&site.host, "127.0.0.1"),
        (&other.space, HOST[0]),
        (&pod.space, HOST[0]),
        (&site.outside, HOST[1]),
        (&other.space, HOST[1]),
        (&pod.space, HOST[1]),
    ] {
        let target = at(target, 8080);
        assert!(tcp(client, target, &pod.space, 80).is_some(), "to {target}");
    }
    assert!(udp(&socket(&other.space, true), at(HOST[0], 8053), &pod.space, 53).is_some());
    assert_eq!(pod.check(), Ok(()));
    other.del();
    pod.del();
    assert_eq!(tcp(&site.outside, at(HOST[0], 8080), &pod.space, 80), None, "after DEL");
}

pub(crate) fn portmap_by_iptables(site: &Site) {
    portmap(site, "iptables");
}

pub(crate) fn portmap_by_nftables(site: &Site) {
    portmap(site, "nftables");
}

/// Who may come is said in the words of the backend, for each family.
pub(crate) fn portmap_conditions(site: &Site) {
    for (backend, conditions) in [
        ("iptables", BEYOND.map(|address| json!(["-s", address]))),
        ("nftables", [("ip", BEYOND[0]), ("ip6", BEYOND[1])].map(|(ip, at)| json!([ip, "saddr", at]))),
    ] {
        let [v4, v6] = conditions;
        let plugin = json!({ "type": "portmap", "backend": backend, "capabilities": { "portMappings": true },
            "conditionsV4": v4, "conditionsV6": v6 });
        let runtime = json!({ "portMappings": [mapping("tcp", 8080, 80, "")] });
        let (pod, other) = (site.add(&Wish { runtime, ..behind(plugin) }), site.add(&Wish::default()));
        for family in [0, 1] {
            let target = at(HOST[family], 8080);
            let seen = tcp(&site.outside, target, &pod.space, 80).map(|client| client.to_string());
            assert_eq!(seen.as_deref(), Some(BEYOND[family]), "{backend}: who may come to {target}");
            for client in [&other.space, &site.host] {
                assert_eq!(tcp(client, target, &pod.space, 80), None, "{backend}: who may not, {target}");
            }
        }
        assert_eq!(pod.check(), Ok(()), "{backend}");
        other.del();
        pod.del();
        assert_eq!(tcp(&site.outside, at(HOST[0], 8080), &pod.space, 80), None, "{backend}: after DEL");
    }
}

/// A node whose administrator drops what is forwarded, as Docker does.
fn closed(site: &Site) {
    for program in ["iptables", "ip6tables"] {
        site.host.must(&format!("{program} -P FORWARD DROP"));
    }
}

pub(crate) fn firewall_opens_a_closed_node(site: &Site) {
    closed(site);
    let pod = site.add(&behind(json!({ "type": "firewall", "backend": "iptables" })));
    let other = site.add(&behind(json!({ "type": "firewall", "backend": "iptables" })));
    for family in [0, 1] {
        let address = &pod.addresses()[family];
        assert!(tcp(&pod.space, at(BEYOND[family], 80), &site.outside, 80).is_some(), "to the outside");
        assert!(tcp(&other.space, at(address, 80), &pod.space, 80).is_some(), "from a pod");
    }
    assert_eq!(pod.check(), Ok(()));
    pod.del();
    other.del();
    let left = site.host.must("iptables-save");
    assert!(!left.contains("10.88.0.2/32"), "{left}");
}

/// The same node without the plugin `firewall`.
pub(crate) fn a_closed_node_by_itself(site: &Site) {
    closed(site);
    let pod = site.add(&Wish::default());
    let reached = tcp(&pod.space, at(BEYOND[0], 80), &site.outside, 80);
    pod.del();
    assert!(reached.is_some());
}

/// Pods of a closed node still reach each other.
pub(crate) fn pods_of_a_closed_node(site: &Site) {
    closed(site);
    let (a, b) = (site.add(&Wish::default()), site.add(&Wish::default()));
    let reached = tcp(&a.space, at(&b.address(), 80), &b.space, 80);
    a.del();
    b.del();
    assert!(reached.is_some());
}

/// A chain that somebody else made drops for good what it drops, whatever an earlier one has accepted (nft(8), "drop").
pub(crate) fn firewall_against_nftables(site: &Site) {
    site.host.nft(
        "table inet other {\n chain forward {\n type filter hook forward priority 0; policy drop;\n }\n}",
    );
    let pod = site.add(&behind(json!({ "type": "firewall", "backend": "iptables" })));
    let reached = tcp(&pod.space, at(BEYOND[0], 80), &site.outside, 80);
    pod.del();
    assert!(reached.is_some());
}

/// Rules of a mesh inside the pod, as istio-cni makes them: all that comes and goes is redirected to a proxy.
pub(crate) fn a_mesh_proxy_in_the_pod(site: &Site) {
    let (client, server) = (site.add(&Wish::default()), site.add(&Wish::default()));
    let rules = "table inet mesh {
        chain inbound {
            type nat hook prerouting priority -100
            tcp dport { 80, 81 } redirect to :15006
        }
        chain outbound {
            type nat hook output priority -100
            oifname eth0 tcp dport 80 redirect to :15001
        }
    }";
    for pod in [&client, &server] {
        pod.space.nft(rules);
    }
    for family in [0, 1] {
        let address = &server.addresses()[family];
        // The outbound proxy of the client takes it,
        assert!(tcp(&client.space, at(address, 80), &client.space, 15001).is_some(), "outbound");
        // and what it sends itself, by another port than 80, is taken by the server's.
        let seen = tcp(&client.space, at(address, 81), &server.space, 15006);
        assert_eq!(seen.map(|ip| ip.to_string()), Some(client.addresses()[family].clone()), "inbound");
        assert!(tcp(&site.host, at(address, 80), &server.space, 15006).is_some(), "from the host");
        assert!(pings(&client.space, address), "the rest goes as ever");
    }
    client.del();
    server.del();
}
