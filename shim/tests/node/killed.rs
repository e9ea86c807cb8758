//! The CNI plugin killed at every step of ADD: the runtime's DEL leaves nothing, and a new ADD succeeds.

use std::os::unix::process::ExitStatusExt;

use serde_json::Value;

use crate::common::{Node, conf, pings, wait_until};

/// In the order in which ADD passes them.
pub(crate) const STEPS: [&str; 8] =
    ["leased", "forwarding", "veth", "limits", "fast-path", "routes", "published", "attached"];

pub(crate) fn killed_at(node: &Node, step: &str) {
    killed_with(node, step, &conf());
}

pub(crate) fn killed_with(node: &Node, step: &str, conf: &Value) {
    let netns = node.pod("a");
    let answer = node.cni_with("ADD", "a", &conf.to_string(), |command| {
        command.env("CNI_NETNS", netns).env("WEFT_FAILPOINT", step);
    });
    assert_eq!(answer.status.signal(), Some(9), "ADD passes {step}: {}", answer.json);
}

#[test]
fn del_after_a_kill_at_any_step_leaves_nothing() {
    let node = Node::new();
    for step in STEPS {
        killed_at(&node, step);
        assert!(node.cni("DEL", "a", &conf()).status.success(), "{step}");
        let links = node.ip_in_pod("a", &["link", "show"]);
        assert_eq!(links.as_array().unwrap().len(), 1, "{step}: only lo in the pod: {links}");
        node.remove_pod("a");
        node.assert_empty();
    }
}

#[test]
fn add_after_a_kill_at_any_step_attaches() {
    let node = Node::new();
    for step in STEPS {
        killed_at(&node, step);
        let answer = node.cni("ADD", "a", &conf());
        assert!(answer.status.success(), "{step}: {}", answer.json);
        assert!(pings(&node.host, &answer.addresses()[0]), "{step}");
        assert!(node.cni("DEL", "a", &conf()).status.success(), "{step}");
        node.remove_pod("a");
        node.assert_empty();
    }
}

/// Nobody calls DEL, the namespace goes: the next pod of the same id, or a GC, finds the rest.
#[test]
fn gc_after_a_kill_at_any_step_leaves_nothing() {
    let node = Node::new();
    let mut gc = conf();
    gc["cni.dev/valid-attachments"] = serde_json::json!([]);
    for step in STEPS {
        killed_at(&node, step);
        node.remove_pod("a");
        // The links are gone at once or a moment later: both must do.
        if step == "fast-path" {
            wait_until("the links are gone", || node.links().is_empty());
        }
        assert!(node.cni("GC", "-", &gc).status.success(), "{step}");
        node.assert_empty();
    }
}

/// The record does not know the link's index yet, and the kernel has taken the link: the map entries go nevertheless.
#[test]
fn a_pod_on_the_fast_path_whose_link_has_gone_leaves_it() {
    let node = Node::new();
    killed_at(&node, "fast-path");
    assert_eq!(node.map_entries(), 2);
    node.remove_pod("a");
    wait_until("the namespace is gone", || node.links().is_empty());
    assert!(node.cni("DEL", "a", &conf()).status.success());
    node.assert_empty();
}
