//! A MAC address that was set behind weft's back, as the reference plugin `tuning` does: what is lost, and how it comes back.

use serde_json::{Value, json};

use crate::common::{Node, conf, pings};

const MAC: &str = "02:00:00:00:00:42";

/// What of the pod's network works: both families, from the host, to and from another pod.
fn reached(node: &Node, pod: &[String], other: &[String]) -> Vec<bool> {
    let (a, b) = (node.pod_ns("a"), node.pod_ns("b"));
    let each = pod.iter().zip(other);
    each.flat_map(|(own, other)| [pings(&node.host, own), pings(&b, own), pings(&a, other)]).collect()
}

#[test]
fn reconcile_takes_over_a_mac_address_that_was_set_behind_weft() {
    let node = Node::new();
    let answer = node.add("a");
    let (own, other) = (answer.addresses(), node.add("b").addresses());
    let mut with_result = conf();
    with_result["prevResult"] = answer.json;
    let own_mac = node.ip_in_pod("a", &["link", "show", "eth0"])[0]["address"].as_str().unwrap().to_owned();
    // Another address, and the same once more.
    for mac in [MAC, MAC, &own_mac] {
        node.ip_in_pod("a", &["link", "set", "eth0", "address", mac]);
        assert!(!pings(&node.host, &own[0]), "the pod does not find its gateway");
        assert_eq!(node.cni("CHECK", "a", &with_result).error().0, 103);
        for (args, changed) in [(&["--dry-run"][..], 1), (&[], 1), (&[], 0)] {
            let (report, code) = node.reconcile(args);
            assert_eq!((report["adopted"].as_array().unwrap().len(), code), (changed, 0), "{report}");
        }
        assert_eq!(reached(&node, &own, &other), [true; 6]);
        assert_eq!(node.cni("CHECK", "a", &with_result).json, Value::Null);
        let pods = node.weft(&["pods", "-o", "json"]);
        assert_eq!(pods[0]["mac"], mac, "{pods}");
    }
    for pod in ["a", "b"] {
        assert!(node.cni("DEL", pod, &conf()).status.success());
    }
    node.assert_empty();
}

/// A pod may take its own end down, or away; that is no change of an address, and reconcile leaves it alone.
#[test]
fn reconcile_leaves_a_link_alone_that_is_down_or_gone() {
    let node = Node::new();
    for (pod, harm) in
        [("a", &["link", "set", "eth0", "down"][..]), ("b", &["link", "set", "eth0", "down", "name", "eth9"])]
    {
        node.add(pod);
        node.ip_in_pod(pod, harm);
    }
    let (report, code) = node.reconcile(&[]);
    assert_eq!((&report["adopted"], &report["kept"], code), (&json!([]), &json!(2), 0), "{report}");
    for pod in ["a", "b"] {
        assert!(node.cni("DEL", pod, &conf()).status.success());
    }
    node.assert_empty();
}
