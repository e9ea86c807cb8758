//! The programs of 200 pods replaced while each of these exchanges datagrams with another: how many are lost, and how long it takes.
//!
//! `weft init` replaces them when the node's configuration asks for another way between pods (`redirect_peer`): it loads programs of that
//! way and puts them in the place of the others, as it does when a newer weft finds those of an older one. When each link gets its own is
//! told by the kernel, to whom `tc monitor` listens.

use std::fs::{self, File};
use std::net::SocketAddr;
use std::path::Path;
use std::process::{Command, Stdio};
use std::time::{Duration, Instant};

use nix::sys::signal::Signal;
use weft_conformance::{Background, Exchange, Node, Server, run, wait_until};

use crate::on_node::OnNode;
use crate::report::{Estimate, Samples, Table, Verdict};
use crate::traffic::beside;
use crate::{Nodes, scale, weft_node};

const PODS: usize = 200;
/// Of each exchange; there are half as many as pods.
const PAUSE: Duration = Duration::from_millis(20);
const PORT: u16 = 7000;
/// Replacements, an even number: the way between pods is in the end as it was.
const ROUNDS: usize = 10;
/// From the first filter that is replaced to the last.
const MOST: f64 = 20.0;

pub(crate) fn measure(_: &Nodes) -> Table {
    let node = weft_node(&[]);
    let mut pods = OnNode::start(&node, scale::ON_NODE, &[]);
    pods.ask::<[f64; 1]>(&format!("fill {PODS}"));
    let exchange = beside("exchange");
    let exchange = exchange.to_str().expect("a path in UTF-8");
    let (mut servers, mut exchanges) = (Vec::new(), Vec::new());
    for pair in 1..=PODS / 2 {
        let (client, server) = (2 * pair - 1, 2 * pair);
        servers.push(Server::start(exchange, PORT, |program| inside(&node, server, program)));
        let to = SocketAddr::new(address(&node, server).parse().expect("an address"), PORT);
        exchanges.push(Exchange::start(inside(&node, client, exchange), "udp", to, PAUSE));
    }
    let (mut links, mut whole) = (Samples::default(), Samples::default());
    for round in 0..ROUNDS {
        let (links_took, all_took) = replace(&node, round % 2 == 1);
        links.push(links_took);
        whole.push(all_took);
    }
    let ended: Vec<_> = exchanges.into_iter().map(Exchange::end).collect();
    drop(servers);
    pods.ask::<[f64; 1]>("empty 0");
    pods.end();
    node.finish();
    table(&links, &whole, &ended)
}

fn table(links: &Samples, whole: &Samples, ended: &[Result<weft_conformance::Exchanged, String>]) -> Table {
    let sent: u64 = ended.iter().flatten().map(|exchanged| exchanged.sent).sum();
    let lossy: Vec<&String> = ended.iter().filter_map(|ended| ended.as_ref().err()).collect();
    let text = format!(
        "The programs at both sides of {PODS} links replaced {ROUNDS} times by `weft init`, while {} pods send a datagram each {} ms to as \
         many others, which send it back. From the first filter that is replaced to the last, as the kernel tells `tc monitor`; and all of \
         `weft init`, which loads and verifies the programs first.",
        PODS / 2,
        PAUSE.as_millis(),
    );
    let mut table = Table::new("Replace", text, &["programs of 200 pods", "weft", "expected", "reached"]);
    let lost = if lossy.is_empty() { format!("0 of {sent}") } else { format!("{lossy:?}") };
    let cells = |what: &str, value: String| vec![what.to_owned(), value];
    let verdict =
        Verdict { figure: lost.clone(), expected: "0".to_owned(), reached: lossy.is_empty().into() };
    table.judged(cells("datagrams and answers lost", lost), Some(verdict));
    let took = |samples: &Samples| format!("{:.1} ({:.1})", samples.median(), samples.p90());
    let median = Estimate::of([links], |[links]| links.median());
    let verdict = Verdict::of(median, format!("≤ {MOST}"), median.most(MOST));
    table.judged(cells("replaced (ms: median (90th percentile))", took(links)), Some(verdict));
    table.judged(cells("`weft init`, loading included (the same)", took(whole)), None);
    table
}

/// The milliseconds between the first filter that was replaced and the last, and those of all of `weft init`.
fn replace(node: &Node, redirect_peer: bool) -> (f64, f64) {
    let log = node.dir().join("filters");
    let mut monitor = node.command("tc");
    monitor.args(["-tshort", "monitor"]).stdin(Stdio::null());
    monitor.stdout(File::create(&log).expect("make a file on the node"));
    let monitor = Background::start(&mut monitor);
    wait_until(Duration::from_secs(10), "tc listens", || listens(node));
    let start = Instant::now();
    run(node.command("weft").env("WEFT_REDIRECT_PEER", redirect_peer.to_string()).arg("init"));
    let took = start.elapsed().as_secs_f64() * 1e3;
    let mut times = Vec::new();
    wait_until(Duration::from_secs(10), "the kernel tells of every filter", || {
        times = told(&log);
        times.len() >= 2 * PODS
    });
    assert_eq!(times.len(), 2 * PODS, "each is replaced once");
    monitor.end(Signal::SIGTERM);
    // Midnight may lie between.
    (1e3 * (times[times.len() - 1] - times[0]).rem_euclid(86_400.0), took)
}

/// Whether anybody on the node has joined route netlink's (protocol 0) group of filters (RTMGRP_TC), by `proc_net(5)`.
fn listens(node: &Node) -> bool {
    let sockets = run(node.command("cat").arg("/proc/net/netlink"));
    sockets.lines().any(|line| {
        let words: Vec<&str> = line.split_whitespace().collect();
        words.get(1) == Some(&"0") && words.get(3) == Some(&"00000008")
    })
}

/// Seconds of the day in which filters were replaced: `[2026-11-21T17:46:18.774067] filter dev … weft/to_pod …`.
fn told(log: &Path) -> Vec<f64> {
    let text = fs::read_to_string(log).expect("read what tc tells");
    let replaced = text.lines().filter(|line| line.contains("] filter ") && line.contains(" weft/"));
    replaced
        .map(|line| {
            let time = line.split(['T', ']']).nth(1).expect("a time");
            time.split(':').fold(0.0, |sum, part| sum * 60.0 + part.parse::<f64>().expect("a number"))
        })
        .collect()
}

/// A program in one of the pods, which are namespaces that are numbered from 1.
fn inside(node: &Node, pod: usize, program: &str) -> Command {
    let mut command = node.command("nsenter");
    command.arg(format!("--net=/run/netns/bench{pod}")).arg(program);
    command
}

/// The IPv4 address of a pod.
fn address(node: &Node, pod: usize) -> String {
    let shown = run(inside(node, pod, "ip").args(["-4", "-oneline", "address", "show", "eth0"]));
    let address = shown.split_whitespace().nth(3).and_then(|word| word.split('/').next());
    address.expect("a pod has an address").to_owned()
}
