//! What was lost, or left by the dead, and mended: as a watch tells it, and as the metrics count it.

use std::os::fd::OwnedFd;
use std::os::unix::net::{UnixListener, UnixStream};
use std::process::Command;

use nix::sys::signal::Signal;
use serde_json::json;
use weft_shim::api::network::NodeStatusRequest;
use weft_shim::api::network::watch_response::Kind;

use crate::api::{Serve, client};
use crate::common::{Node, conf, wait_until};
use crate::network::{Watch, block_on, connect, end, soon, spawn};
use crate::ports::{add, elements, with_ports};
use crate::reconcile::{break_pins, dies};
use crate::serve::{check_format, get, value};

fn with_port(number: u16) -> serde_json::Value {
    with_ports(json!([{ "hostPort": number, "containerPort": 80, "protocol": "tcp" }]))
}

fn nft(node: &Node, args: &[&str]) {
    assert!(node.run(Command::new("nft").args(args), "").status.success(), "{args:?}");
}

/// A shim for the pod `name`; nobody repairs the table here.
pub(crate) fn shim(node: &Node, name: &str) -> (std::process::Child, std::path::PathBuf) {
    let socket = node.dir.path().join("shim.sock");
    let listener = UnixListener::bind(&socket).unwrap();
    let mut command = node.command(env!("CARGO_BIN_EXE_containerd-shim-weft-v1"));
    command.args(["-namespace", "k8s.io", "-id", name, "-address", "/nowhere"]).current_dir(node.dir.path());
    (spawn(node, command.stdin(std::process::Stdio::from(OwnedFd::from(listener)))), socket)
}

#[test]
fn a_watch_tells_of_repairs_by_weft_serve() {
    let node = Node::new();
    add(&node, "a", &with_port(8080));
    let _serve = Serve::start(&node, &[]);
    block_on(async {
        let client = client(&node).await;
        let mut watch = Watch::start(&client).await;
        watch.must_begin_with(&["a"]).await;
        for loss in [
            &["flush", "ruleset"][..],
            &["delete", "table", "inet", "weft"],
            &["flush", "chain", "inet", "weft", "ports"],
        ] {
            nft(&node, loss);
            assert_eq!(watch.next().await, (Kind::REPAIRED, String::new()), "{loss:?}");
            assert_eq!(elements(&node, "ports4"), 1);
        }
        // What weft itself removes is no loss.
        add(&node, "b", &with_port(8090));
        assert_eq!(watch.next().await, (Kind::ATTACHED, "b".into()));
        assert!(node.cni("DEL", "b", &conf()).status.success());
        assert_eq!(watch.next().await, (Kind::DETACHED, "b".into()));
        assert!(node.cni("DEL", "a", &conf()).status.success());
        assert_eq!(watch.next().await, (Kind::DETACHED, "a".into()));
        assert_eq!(client.node_status(soon(), &NodeStatusRequest::new()).await.unwrap().table_repairs, 3);
    });
    node.assert_empty();
}

/// A shim repairs nothing: what it tells, other processes have done.
#[test]
fn a_watch_tells_of_repairs_by_add_and_reconcile() {
    let node = Node::new();
    add(&node, "a", &with_port(8080));
    let (process, socket) = shim(&node, "a");
    block_on(async {
        let client = connect(&socket).await;
        let mut watch = Watch::start(&client).await;
        watch.must_begin_with(&["a"]).await;
        nft(&node, &["flush", "ruleset"]);
        add(&node, "b", &with_port(8090));
        assert_eq!(watch.next().await, (Kind::REPAIRED, String::new()), "by ADD");
        assert_eq!(elements(&node, "ports4"), 2);
        // Another network's exceptions are another chain, and no repair.
        let mut other = with_port(8091);
        other["masqueradeExcept"] = json!(["198.51.100.0/24"]);
        add(&node, "c", &other);
        assert!(node.cni("DEL", "c", &conf()).status.success());
        assert_eq!(
            node.weft(&["reconcile", "-o", "json"])["nat_repaired"],
            false,
            "an empty chain is no damage"
        );
        nft(&node, &["delete", "table", "inet", "weft"]);
        assert_eq!(node.weft(&["reconcile", "--dry-run", "-o", "json"])["nat_repaired"], true);
        assert_eq!(node.weft(&["reconcile", "-o", "json"])["nat_repaired"], true);
        assert_eq!(watch.next().await, (Kind::REPAIRED, String::new()), "by reconcile");
        assert_eq!(elements(&node, "ports4"), 2);
        dies(&node, &["a"]);
        assert_eq!(node.reconcile(&[]).0["freed"][0]["container"], "a");
        assert_eq!(watch.next().await, (Kind::DETACHED, "a".into()), "a dead pod that reconcile freed");
    });
    end(process, Signal::SIGKILL);
    assert!(node.cni("DEL", "b", &conf()).status.success());
    node.assert_empty();
}

/// A tombstone is detached for whoever watches, and is told once.
#[test]
fn a_detach_that_fails_is_a_detach_to_a_watch() {
    let node = Node::new();
    add(&node, "a", &conf());
    let _serve = Serve::start(&node, &[]);
    let mend = break_pins(&node);
    block_on(async {
        let client = client(&node).await;
        let mut watch = Watch::start(&client).await;
        watch.must_begin_with(&["a"]).await;
        assert!(node.cni("DEL", "a", &conf()).status.success());
        assert_eq!(watch.next().await, (Kind::DETACHED, "a".into()));
        assert_eq!(client.node_status(soon(), &NodeStatusRequest::new()).await.unwrap().tombstones, 1);
        mend();
        assert_eq!(node.reconcile(&[]).0["freed"][0]["container"], "a");
        add(&node, "b", &conf());
        assert_eq!(watch.next().await, (Kind::ATTACHED, "b".into()), "nothing more of a");
    });
    assert!(node.cni("DEL", "b", &conf()).status.success());
    node.assert_empty();
}

#[test]
fn metrics_count_what_was_mended() {
    let node = Node::new();
    for (name, number) in [("a", 8080), ("b", 8081), ("c", 8082)] {
        add(&node, name, &with_port(number));
    }
    let mend = break_pins(&node);
    assert!(node.cni("DEL", "a", &conf()).status.success());
    assert_eq!(node.reconcile(&[]).1, 1, "it fails again");
    mend();
    nft(&node, &["flush", "ruleset"]);
    dies(&node, &["b"]);
    for (args, freed) in [(&["--dry-run"][..], 2), (&[], 2), (&[], 0)] {
        assert_eq!(node.reconcile(args).0["freed"].as_array().unwrap().len(), freed, "{args:?}");
    }
    let mut gc = conf();
    gc["cni.dev/valid-attachments"] = json!([]);
    assert!(node.cni("GC", "", &gc).status.success());
    let socket = node.dir.path().join("metrics.sock");
    let _serve = Serve::start(&node, &["--metrics", &format!("unix:{}", socket.display())]);
    let page = || get(UnixStream::connect(&socket).unwrap(), "/metrics").1;
    check_format(&page());
    for (sample, wanted) in [
        ("weft_reconciles_total{scope=\"node\"}", 3.0),
        ("weft_reconciles_total{scope=\"network\"}", 0.0),
        ("weft_reconciles_total{scope=\"gc\"}", 1.0),
        ("weft_leaked_objects_removed_total{kind=\"attachment\"}", 3.0),
        ("weft_leaked_objects_removed_total{kind=\"link\"}", 0.0),
        ("weft_leaked_objects_removed_total{kind=\"map_entry\"}", 0.0),
        ("weft_detach_errors_total", 2.0),
        ("weft_tombstones", 0.0),
        ("weft_table_repairs_total", 1.0),
    ] {
        assert_eq!(value(&page(), sample), wanted, "{sample}");
    }
    assert!(value(&page(), "weft_reconcile_errors_total") >= 1.0);
    add(&node, "d", &with_port(8083));
    nft(&node, &["flush", "ruleset"]);
    wait_until("it is repaired", || elements(&node, "ports4") == 1);
    wait_until("it is counted", || value(&page(), "weft_table_repairs_total") == 2.0);
    assert!(node.cni("DEL", "d", &conf()).status.success());
    node.assert_empty();
}
