//! Pods that containerd runs, each subject with its own shim: what has to be right before anything runs in a pod, and may be wrong
//! between the plugins and then.

use std::time::Duration;

use serde_json::{Value, json};
use weft_conformance::{Node, NodeSpec, Pod, PodSpec, wait_until};

use super::chained::reach;
use crate::site::{Site, own_interface};
use crate::space::Space;
use crate::wish::Wish;

/// The subject's chain in a file. What containerd has no word for stands there as a runtime that has it gives it: libcni leaves
/// `runtimeConfig` alone where it has nothing to give.
fn conflist(site: &Site, wish: &Wish) -> Value {
    let plugin = |mut plugin: Value| {
        wish.give_capabilities(&mut plugin);
        plugin
    };
    let plugins: Vec<Value> = wish.chain(site).into_iter().map(plugin).collect();
    json!({ "cniVersion": wish.version, "name": wish.network, "plugins": plugins })
}

/// From now on, pods of the node have this network.
fn replace_network(node: &Node, conflist: &Value) {
    // Renamed in its folder: containerd looks again when a name goes, and not when one comes.
    let dir = node.dir().join("cni/net.d");
    std::fs::write(dir.join("new"), conflist.to_string()).unwrap();
    std::fs::rename(dir.join("new"), dir.join("10-pods.conflist")).unwrap();
    wait_until(Duration::from_secs(10), "containerd has read the network", || {
        node.crictl(&["info"]).contains("tuning")
    });
}

/// The pod's own entry among the interfaces of the result, as libcni keeps it for DEL.
fn reported(node: &Node, wish: &Wish, pod: &Pod<'_>) -> Value {
    let file = format!("/var/lib/cni/results/{}-{}-{}", wish.network, pod.id(), wish.interface);
    let kept: Value = serde_json::from_slice(&std::fs::read(node.path(file)).unwrap()).unwrap();
    own_interface(&kept["result"])
}

/// A pod whose MAC address is `mac` by `wish`, beside one that has the network without plugins behind.
fn has_its_mac_and_works(site: &Site, wish: &Wish, mac: &str) {
    let plain = Some(conflist(site, &Wish::default()));
    let node = Node::start_with(NodeSpec { conflist: plain, ..NodeSpec::new(site.subject) });
    let other = node.run_pod(&PodSpec::new("other"));
    replace_network(&node, &conflist(site, wish));
    let pod = node.run_pod(&PodSpec::new("pod"));
    assert_eq!(reported(&node, wish, &pod)["mac"], mac, "the result says it");
    let [inside, others] = [&pod, &other].map(|pod| Space::at(node.path(pod.netns())));
    assert_eq!(inside.ip("link show eth0")[0]["address"], mac);
    let [host, outside] = ["/proc/1/ns/net", "/run/netns/world"].map(|path| Space::at(node.path(path)));
    host.settle();
    let addresses = |pod: &Pod<'_>| [pod.ipv4(), pod.ipv6()].map(|address| address.to_string()).to_vec();
    reach(&host, &outside, [(&inside, addresses(&pod)), (&others, addresses(&other))]);
    node.finish();
}

/// `tuning` alone is asked for a MAC address: the first plugin has not heard of it.
pub(crate) fn tuning_mac(site: &Site) {
    let plugin = json!({ "type": "tuning", "mac": "02:00:00:00:00:42" });
    let wish = Wish { behind: vec![plugin], ..Wish::default() };
    has_its_mac_and_works(site, &wish, "02:00:00:00:00:42");
}

/// Both plugins have the capability.
pub(crate) fn tuning_mac_by_capability(site: &Site) {
    let plugin = json!({ "type": "tuning", "capabilities": { "mac": true } });
    let runtime = json!({ "mac": "02:00:00:00:00:43" });
    let wish = Wish { behind: vec![plugin], runtime, ..Wish::default() };
    has_its_mac_and_works(site, &wish, "02:00:00:00:00:43");
}
