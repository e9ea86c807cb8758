//! TCP between two pods of a node: weft beside both ends in one pod over its loopback, the reference's bridge, and weft without its
//! eBPF programs. Every node masquerades and has a pod with a thousand host ports.

use serde_json::Value;
use weft_conformance::{Node, Pod, PodSpec, Protocol, run};

use crate::report::Table;
use crate::traffic::{self, Arm, Figure, Place, Traffic, Wanted, bytes_per_cpu};
use crate::{Nodes, end, weft_node};

/// Measurements of every kind per arm.
const ROUNDS: usize = 15;
const PORTS: u16 = 1000;

/// Beside loopback, bridge and routed. Connections are few: each leaves a port of the client's that cannot be used again for a second.
const KINDS: [Traffic; 3] = [
    Traffic {
        arguments: ["rr", "--seconds", "0.5"],
        figures: &[
            Figure {
                what: "request/response (1/s)",
                read: |answer| answer["per_second"].as_f64(),
                wanted: &[Wanted::Least(0.97), Wanted::Least(1.2), Wanted::Nothing],
            },
            Figure {
                what: "its 99th percentile (µs)",
                read: |answer| answer["p99_us"].as_f64(),
                wanted: &[Wanted::Most(1.1), Wanted::Nothing, Wanted::Nothing],
            },
        ],
    },
    Traffic {
        arguments: ["crr", "--count", "3000"],
        figures: &[Figure {
            what: "connect/request/response (1/s)",
            read: |answer| answer["per_second"].as_f64(),
            wanted: &[Wanted::Least(0.95), Wanted::Least(1.6), Wanted::Nothing],
        }],
    },
    Traffic {
        arguments: ["stream", "--seconds", "0.5"],
        figures: &[
            Figure {
                what: "one stream (Gbit/s)",
                read: |answer| answer["gbit_per_second"].as_f64(),
                wanted: &[Wanted::Least(0.9), Wanted::Least(1.3), Wanted::Nothing],
            },
            Figure {
                what: "its GB per second of a CPU",
                read: bytes_per_cpu,
                wanted: &[Wanted::Least(0.9), Wanted::Least(1.3), Wanted::Nothing],
            },
        ],
    },
];

pub(crate) fn measure(nodes: &Nodes) -> Table {
    let stack = weft_node(&[("WEFT_FAST_PATH", "false")]);
    let all = [&nodes.weft, &nodes.reference, &stack];
    let ports = all.map(|node| node.run_pod(&with_ports()));
    let pods = all.map(Pair::run);
    let redirected_before = [&nodes.weft, &stack].map(redirected);
    let [weft, bridge, routed] = pods.each_ref();
    let loopback = Arm::start("loopback", place(&weft.client), &place(&weft.client), "127.0.0.1".to_owned());
    let arms = [weft.arm("weft"), loopback, bridge.arm("bridge"), routed.arm("routed")];
    let measured = traffic::measure(&arms, &KINDS, ROUNDS);
    let redirected_after = [&nodes.weft, &stack].map(redirected);
    assert!(redirected_after[0] > redirected_before[0], "packets took the fast path where there is one");
    assert_eq!(redirected_after[1], redirected_before[1], "no packet took a fast path that is switched off");
    let text = format!(
        "Over IPv4; medians of {ROUNDS} rounds, in each of which every arm is measured once, and the median of the rounds' ratios. The \
         server is pinned to a processor, the client to another or to the same. Each node masquerades, and has a pod with {PORTS} host \
         ports. Loopback: both ends in one pod. Routed: weft with `fast_path = false`, a routed veth without eBPF. The time of a CPU \
         is what client, server and ksoftirqd have used, softirqs included."
    );
    let table = traffic::table("TCP", text, &arms, &KINDS, &measured);
    drop(arms);
    pods.into_iter().flat_map(|pair| [pair.client, pair.server]).chain(ports).for_each(end);
    stack.finish();
    table
}

/// A pod that is not spoken to: its ports are there.
fn with_ports() -> PodSpec {
    (0..PORTS).fold(PodSpec::new("ports"), |spec, port| spec.host_port(Protocol::Tcp, 20_000 + port, 80))
}

/// Two pods of a node.
struct Pair<'n> {
    client: Pod<'n>,
    server: Pod<'n>,
}

impl<'n> Pair<'n> {
    fn run(node: &'n Node) -> Self {
        Self {
            client: node.run_pod(&PodSpec::new("tcp-client")),
            server: node.run_pod(&PodSpec::new("tcp-server")),
        }
    }

    fn arm(&self, name: &'static str) -> Arm<'_> {
        Arm::start(name, place(&self.client), &place(&self.server), self.server.ipv4().to_string())
    }
}

pub(crate) fn place<'p>(pod: &'p Pod<'_>) -> Place<'p> {
    Box::new(|program| pod.command(program))
}

/// Packets that went straight from one pod into another; none where nothing counts them.
fn redirected(node: &Node) -> u64 {
    let status = run(node.command("weft").args(["status", "-o", "json"]));
    let status: Value = serde_json::from_str(&status).expect("weft prints JSON");
    status["counters"]["redirected"]["packets"].as_u64().unwrap_or_default()
}
