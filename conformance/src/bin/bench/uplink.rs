//! TCP from a pod to a place outside of the node and back, over the node's uplink: weft beside a bare routed veth, which nobody filters,
//! translates or tracks, and the reference. As installed, both masquerade; weft is measured without that, too.

use std::path::Path;

use serde_json::json;
use weft_conformance::{Node, NodeSpec, PodSpec, Subject, run, weft_conflist};

use crate::report::Table;
use crate::tcp::place;
use crate::traffic::{self, Arm, Figure, Place, Traffic, Wanted};
use crate::{Nodes, end, start_weft};

/// Measurements of every kind per arm.
const ROUNDS: usize = 11;
/// The world beyond the uplink of a node.
const OUTSIDE: &str = "192.0.2.1";

/// Beside a routed veth, the reference, and weft without masquerade.
const KINDS: [Traffic; 2] = [
    Traffic {
        arguments: ["rr", "--seconds", "0.5"],
        figures: &[Figure {
            what: "request/response (1/s)",
            read: |answer| answer["per_second"].as_f64(),
            wanted: &[Wanted::Least(1.0), Wanted::Least(1.2), Wanted::Nothing],
        }],
    },
    Traffic {
        arguments: ["stream", "--seconds", "0.5"],
        figures: &[Figure {
            what: "one stream out (Gbit/s)",
            read: |answer| answer["gbit_per_second"].as_f64(),
            wanted: &[Wanted::Least(1.0), Wanted::Least(1.2), Wanted::Nothing],
        }],
    },
];

/// Three namespaces in a row, joined by two veth pairs; the one in the middle routes. They are nobody's pods.
const BARE: &str = "
set -eu
for name in bare-pod bare-router bare-world; do ip netns add $name; ip -n $name link set lo up; done
ip -n bare-router link add inner type veth peer name eth0 netns bare-pod
ip -n bare-router link add outer type veth peer name eth0 netns bare-world
ip -n bare-router address add 198.51.100.1/25 dev inner
ip -n bare-router address add 198.51.100.129/25 dev outer
ip -n bare-pod address add 198.51.100.2/25 dev eth0
ip -n bare-world address add 198.51.100.130/25 dev eth0
for link in inner outer; do ip -n bare-router link set $link up; done
for name in bare-pod bare-world; do ip -n $name link set eth0 up; done
ip -n bare-pod route add default via 198.51.100.1
ip -n bare-world route add default via 198.51.100.129
ip netns exec bare-router sh -c 'echo 1 >/proc/sys/net/ipv4/ip_forward'
";
const BARE_OUTSIDE: &str = "198.51.100.130";

pub(crate) fn measure(nodes: &Nodes) -> Table {
    let open = open_node();
    run(nodes.weft.command("sh").args(["-c", BARE]));
    let pods = [&nodes.weft, &nodes.reference, &open].map(|node| node.run_pod(&PodSpec::new("uplink")));
    let [weft, reference, own] = pods.each_ref();
    let beyond = |name, node, pod| Arm::start(name, place(pod), &world(node), OUTSIDE.to_owned());
    let bare = ["bare-pod", "bare-world"].map(|name| inside(&nodes.weft, name));
    let [bare_pod, bare_world] = bare;
    let arms = [
        beyond("weft", &nodes.weft, weft),
        Arm::start("routed veth", bare_pod, &bare_world, BARE_OUTSIDE.to_owned()),
        beyond("reference", &nodes.reference, reference),
        beyond("weft, no masquerade", &open, own),
    ];
    let measured = traffic::measure(&arms, &KINDS, ROUNDS);
    let text = format!(
        "Over IPv4; medians of {ROUNDS} rounds as above. The server is in a namespace beyond the node's uplink, a veth pair. Routed veth: \
         two pairs and a namespace in the middle that routes, without netfilter; weft and the reference translate each packet's \
         address, but for weft without masquerade."
    );
    let table = traffic::table("Uplink", text, &arms, &KINDS, &measured);
    drop(arms);
    let gone = "for name in bare-pod bare-router bare-world; do ip netns del $name; done";
    run(nodes.weft.command("sh").args(["-c", gone]));
    pods.into_iter().for_each(end);
    open.finish();
    table
}

/// A node of weft's whose pods are seen by their own addresses, to which the world knows the way.
fn open_node() -> Node {
    let mut network = weft_conflist();
    network["plugins"][0]["masquerade"] = json!(false);
    let node = start_weft(NodeSpec { conflist: Some(network), ..NodeSpec::new(Subject::Weft) }, &[]);
    run(node.world("ip").args(["route", "add", "10.88.0.0/16", "via", "192.0.2.10"]));
    node
}

fn world(node: &Node) -> Place<'_> {
    Box::new(|program: &Path| node.world(program))
}

/// A namespace of the node's that has a name.
fn inside<'n>(node: &'n Node, name: &'static str) -> Place<'n> {
    Box::new(move |program: &Path| {
        let mut command = node.command("nsenter");
        command.arg(format!("--net=/run/netns/{name}")).arg(program);
        command
    })
}
