//! TCP between two pods of a node, by `netbench`: weft, weft without its eBPF programs, the reference's bridge, and for comparison
//! both ends in one pod over its loopback. All arms take turns, each measurement is short, and there are many of them.

use std::env;
use std::path::PathBuf;
use std::time::Duration;

use serde_json::Value;
use weft_conformance::{Background, Node, Pod, PodSpec, run, wait_until};

use crate::report::{Samples, Table};
use crate::{Nodes, end, weft_node};

/// Measurements of every kind per arm.
const ROUNDS: usize = 9;
const PORT: &str = "7000";
/// The server stays where it is; the client sits beside it or on another processor.
const SERVER_CPU: &str = "1";
const OTHER_CPU: &str = "0";

struct Kind {
    what: &'static str,
    /// What netbench is asked for, and the figure that is wanted of its answer.
    arguments: [&'static str; 3],
    figure: &'static str,
    client_cpu: &'static str,
    /// Of loopback.
    least: Option<f64>,
}

/// Connections are few: each leaves a port of the client's that cannot be used again for a minute.
const KINDS: [Kind; 6] = [
    Kind {
        what: "request/response, two CPUs (1/s)",
        arguments: ["rr", "--seconds", "1"],
        figure: "per_second",
        client_cpu: OTHER_CPU,
        least: Some(0.93),
    },
    Kind {
        what: "request/response, one CPU (1/s)",
        arguments: ["rr", "--seconds", "1"],
        figure: "per_second",
        client_cpu: SERVER_CPU,
        least: Some(0.93),
    },
    Kind {
        what: "connect/request/response, two CPUs (1/s)",
        arguments: ["crr", "--count", "3000"],
        figure: "per_second",
        client_cpu: OTHER_CPU,
        least: None,
    },
    Kind {
        what: "connect/request/response, one CPU (1/s)",
        arguments: ["crr", "--count", "3000"],
        figure: "per_second",
        client_cpu: SERVER_CPU,
        least: None,
    },
    Kind {
        what: "one stream, two CPUs (Gbit/s)",
        arguments: ["stream", "--seconds", "1"],
        figure: "gbit_per_second",
        client_cpu: OTHER_CPU,
        least: None,
    },
    Kind {
        what: "one stream, one CPU (Gbit/s)",
        arguments: ["stream", "--seconds", "1"],
        figure: "gbit_per_second",
        client_cpu: SERVER_CPU,
        least: None,
    },
];

/// A server, and the pod that its clients run in.
struct Arm<'n> {
    client: &'n Pod<'n>,
    address: String,
    server: Background,
}

pub(crate) fn measure(nodes: &Nodes) -> Table {
    let stack = weft_node(&[("WEFT_FAST_PATH", "false")]);
    let pods = [&nodes.weft, &stack, &nodes.reference].map(Pair::run);
    let redirected_before = [&nodes.weft, &stack].map(redirected);
    let [weft, routed, bridge] = pods.each_ref();
    let arms = [
        Arm::start(&weft.client, &weft.client, "127.0.0.1".to_owned()),
        weft.arm(),
        routed.arm(),
        bridge.arm(),
    ];
    let mut samples: [[Samples; 4]; KINDS.len()] = Default::default();
    for round in 0..ROUNDS {
        for (kind, samples) in KINDS.iter().zip(&mut samples) {
            for turn in 0..arms.len() {
                let arm = (round + turn) % arms.len();
                samples[arm].push(arms[arm].measure(kind));
            }
        }
    }
    let redirected_after = [&nodes.weft, &stack].map(redirected);
    assert!(redirected_after[0] > redirected_before[0], "packets took the fast path where there is one");
    assert_eq!(redirected_after[1], redirected_before[1], "no packet took a fast path that is switched off");
    for arm in arms {
        drop(arm.server);
    }
    for pair in pods {
        [pair.client, pair.server].into_iter().for_each(end);
    }
    stack.finish();
    table(&samples)
}

fn table(samples: &[[Samples; 4]; KINDS.len()]) -> Table {
    let text = format!(
        "Over IPv4; medians of {ROUNDS} measurements. The server is pinned to a processor, the client to another or to the same. \
         Loopback: both ends in one pod. Routed: weft with `fast_path = false`, a routed veth without eBPF."
    );
    let header = [
        "TCP between two pods",
        "loopback",
        "weft",
        "routed",
        "bridge",
        "routed / loopback",
        "bridge / loopback",
        "weft / bridge",
        "weft / loopback",
        "expected",
        "reached",
    ];
    let mut table = Table::new("TCP", text, &header);
    for (kind, samples) in KINDS.iter().zip(samples) {
        let [loopback, weft, routed, bridge] = samples.each_ref().map(Samples::median);
        let decimals = usize::from(kind.figure == "gbit_per_second");
        let mut cells = vec![kind.what.to_owned()];
        cells.extend([loopback, weft, routed, bridge].map(|value| format!("{value:.decimals$}")));
        cells
            .extend([routed / loopback, bridge / loopback, weft / bridge].map(|ratio| format!("{ratio:.2}")));
        table.row(cells, weft / loopback, kind.least);
    }
    table
}

/// Two pods of a node.
struct Pair<'n> {
    client: Pod<'n>,
    server: Pod<'n>,
}

impl<'n> Pair<'n> {
    fn run(node: &'n Node) -> Self {
        let client = node.run_pod(&PodSpec::new("tcp-client"));
        // Room for the ports that are waiting to be free again.
        let range = "echo 1024 65535 >/proc/sys/net/ipv4/ip_local_port_range";
        run(client.command("sh").args(["-c", range]));
        Self { client, server: node.run_pod(&PodSpec::new("tcp-server")) }
    }

    fn arm(&self) -> Arm<'_> {
        Arm::start(&self.client, &self.server, self.server.ipv4().to_string())
    }
}

impl<'n> Arm<'n> {
    fn start(client: &'n Pod<'n>, server: &Pod<'_>, address: String) -> Self {
        let at = ["server", "--addr", &address, "--port", PORT, "--cpu", SERVER_CPU];
        let process = Background::start(server.command(netbench()).args(at));
        wait_until(Duration::from_secs(10), "the server listens", || {
            run(server.command("ss").args(["-ltnH"])).contains(&format!("{address}:{PORT}"))
        });
        Self { client, address, server: process }
    }

    fn measure(&self, kind: &Kind) -> f64 {
        let mut command = self.client.command(netbench());
        command.arg("client").args(kind.arguments);
        command.args(["--addr", &self.address, "--port", PORT, "--cpu", kind.client_cpu]);
        let answer: Value = serde_json::from_str(&run(&mut command)).expect("netbench prints JSON");
        answer[kind.figure].as_f64().expect("netbench prints the figure")
    }
}

/// The program beside this one.
pub(crate) fn netbench() -> PathBuf {
    let path = env::current_exe().expect("the path of this program").with_file_name("netbench");
    assert!(path.exists(), "{} is not built: cargo build -p weft-conformance --bins", path.display());
    path
}

/// Packets that went straight from one pod into another; none where nothing counts them.
fn redirected(node: &Node) -> u64 {
    let status = run(node.command("weft").args(["status", "-o", "json"]));
    let status: Value = serde_json::from_str(&status).expect("weft prints JSON");
    status["counters"]["redirected"]["packets"].as_u64().unwrap_or_default()
}
