//! Everything of weft is killed, and containerd, while two pods and the world beyond the uplink exchange TCP and UDP: no byte and
//! no datagram is lost, and no connection is reset.

#![expect(clippy::expect_used, reason = "a test that cannot go on panics")]

use std::net::SocketAddr;
use std::process::Stdio;
use std::thread;
use std::time::Duration;

use nix::sys::signal::{Signal, kill};
use serde_json::Value;
use weft_conformance::{
    Background, ContainerSpec, Exchange, Node, Pod, PodSpec, Protocol, Server, Subject, image, run, try_run,
    wait_until,
};

const EXCHANGE: &str = env!("CARGO_BIN_EXE_exchange");
/// Of each stream and each flow: five hundred a second.
const PAUSE: Duration = Duration::from_millis(2);
const SERVED: u16 = 7000;
const HOST_PORT: u16 = 30_080;
const SOON: Duration = Duration::from_secs(20);

/// Resets of either family.
const RESETS: &str = "(tcp[tcpflags] & tcp-rst != 0) or (ip6[6] = 6 and ip6[53] & 4 != 0)";

fn at(address: &str, port: u16) -> SocketAddr {
    SocketAddr::new(address.parse().expect("an address"), port)
}

/// All ways that there are, both families, TCP and UDP.
fn exchanges(node: &Node, pods: &[Pod<'_>; 2]) -> Vec<Exchange> {
    let [one, other] = pods;
    let mut exchanges = Vec::new();
    for kind in ["tcp", "udp"] {
        let mut start = |client, to| exchanges.push(Exchange::start(client, kind, to, PAUSE));
        for (from, to) in [(one, other), (other, one)] {
            to.ips().into_iter().for_each(|ip| start(from.command(EXCHANGE), SocketAddr::new(ip, SERVED)));
        }
        for (beyond, host) in [("192.0.2.1", "192.0.2.10"), ("2001:db8::1", "2001:db8::10")] {
            // Masqueraded; by the port of the host from outside, from the other pod and from the host itself.
            start(one.command(EXCHANGE), at(beyond, SERVED));
            start(node.world(EXCHANGE), at(host, HOST_PORT));
            start(one.command(EXCHANGE), at(host, HOST_PORT));
            start(node.command(EXCHANGE), at(host, HOST_PORT));
        }
    }
    exchanges
}

/// Processes of weft's, as the test sees them.
fn of_weft(node: &Node) -> Vec<(nix::unistd::Pid, String)> {
    let mut processes = node.processes();
    processes.retain(|(_, line)| {
        let program = line.split(' ').next().unwrap_or_default();
        ["weft", "containerd-shim-weft-v1"].iter().any(|name| program.rsplit('/').next() == Some(name))
    });
    processes
}

fn counter(node: &Node, way: &str) -> u64 {
    let status = run(node.command("weft").args(["status", "-o", "json"]));
    let status: Value = serde_json::from_str(&status).expect("weft prints JSON");
    status["counters"][way]["packets"].as_u64().expect("a number")
}

/// What `tcpdump` sees of resets where it was started.
struct Resets(Background);

impl Resets {
    fn watch(mut command: std::process::Command) -> Self {
        command.args(["-n", "-l", "-i", "any", RESETS]).stdout(Stdio::piped()).stderr(Stdio::null());
        Self(Background::start(&mut command))
    }

    fn seen(mut self) -> String {
        kill(self.0.pid(), Signal::SIGTERM).expect("end tcpdump");
        let mut pipe = self.0.child().stdout.take().expect("stdout is piped");
        let said = std::io::read_to_string(&mut pipe).expect("read what tcpdump says");
        said.trim().to_owned()
    }
}

/// A connection that is refused is reset: of both families tcpdump sees it.
fn assert_resets_are_seen(node: &Node) {
    for host in ["192.0.2.10", "2001:db8::10"] {
        let mut tcpdump = node.command("tcpdump");
        tcpdump.args(["-n", "-i", "any", "-c", "1", RESETS]).stdout(Stdio::null()).stderr(Stdio::null());
        let mut tcpdump = Background::start(&mut tcpdump);
        wait_until(SOON, "tcpdump sees a reset", || {
            let to = at(host, 9).to_string();
            try_run(node.world(EXCHANGE).args(["tcp", &to, "1000"])).expect_err("nobody listens there");
            tcpdump.has_ended()
        });
    }
}

fn pods(node: &Node) -> [Pod<'_>; 2] {
    let ports = PodSpec::new("b").host_port(Protocol::Tcp, HOST_PORT, SERVED);
    [node.run_pod(&PodSpec::new("a")), node.run_pod(&ports.host_port(Protocol::Udp, HOST_PORT, SERVED))]
}

#[test]
fn nothing_is_lost_when_everything_of_weft_is_killed() {
    let node = Node::start(Subject::Weft);
    assert_resets_are_seen(&node);
    let pods = pods(&node);
    for pod in &pods {
        pod.run(&ContainerSpec::new("main", image::BUSYBOX));
    }
    let servers = [
        Server::start(EXCHANGE, SERVED, |program| pods[0].command(program)),
        Server::start(EXCHANGE, SERVED, |program| pods[1].command(program)),
        Server::start(EXCHANGE, SERVED, |program| node.world(program)),
    ];
    let tcpdumps = [
        node.command("tcpdump"),
        node.world("tcpdump"),
        pods[0].command("tcpdump"),
        pods[1].command("tcpdump"),
    ];
    let resets = tcpdumps.map(Resets::watch);
    let redirected = counter(&node, "redirected");
    let exchanges = exchanges(&node, &pods);
    let while_they_go_on = || thread::park_timeout(Duration::from_secs(1));
    while_they_go_on();

    // First what comes back: `weft serve`, and containerd, which finds its shims again.
    let serve = Background::start(node.command("weft").arg("serve"));
    wait_until(SOON, "weft serves", || node.path(node.dir().join("weft/weft.sock")).exists());
    while_they_go_on();
    serve.end(Signal::SIGKILL);
    node.restart_containerd(Signal::SIGKILL);
    assert_eq!(pods.each_ref().map(Pod::state), ["SANDBOX_READY", "SANDBOX_READY"]);
    while_they_go_on();

    // Then everything, and nobody who could make anything anew.
    kill_everything(&node);
    while_they_go_on();

    // An ADD that dies, one that does not, and a reconcile: none of them is these pods' business.
    killed_add(&node);
    run(node.command("weft").args(["reconcile", "-o", "json"]));
    assert_eq!(
        run(node.command("weft").args(["pods"])).lines().count(),
        3,
        "a line above those of the two pods"
    );
    while_they_go_on();

    let mut faults = Vec::new();
    let mut sent = 0;
    for exchange in exchanges {
        match exchange.end() {
            Ok(exchanged) => sent += exchanged.sent,
            Err(why) => faults.push(why),
        }
    }
    faults.extend(resets.map(Resets::seen).into_iter().filter(|seen| !seen.is_empty()));
    assert_eq!(faults, [""; 0]);
    assert!(sent > 10_000, "{sent} blocks and datagrams are not many");
    assert!(counter(&node, "redirected") > redirected + 1000, "pod to pod took the fast path");
    drop(servers);
    node.start_containerd();
    for pod in pods {
        node.crictl(&["rmp", "--force", pod.id()]);
    }
    node.finish();
}

/// containerd, the shims of the pods and `weft serve`.
fn kill_everything(node: &Node) {
    let serve = Background::start(node.command("weft").arg("serve"));
    wait_until(SOON, "weft serves", || of_weft(node).iter().any(|(_, line)| line.ends_with(" serve")));
    node.stop_containerd(Signal::SIGKILL);
    let killed = of_weft(node);
    let shims = killed.iter().filter(|(_, line)| line.contains("containerd-shim")).count();
    assert!(shims >= 2 && killed.len() > shims, "{killed:?}");
    for (pid, line) in &killed {
        kill(*pid, Signal::SIGKILL).unwrap_or_else(|err| panic!("kill {line}: {err}"));
    }
    drop(serve);
    wait_until(SOON, "all of weft is dead", || of_weft(node).is_empty());
}

/// The plugin, killed at some instant of its ADD, ten times over; DEL after each.
fn killed_add(node: &Node) {
    run(node.command("ip").args(["netns", "add", "c"]));
    for milliseconds in 1..=10 {
        let plugin = node.dir().join("cni/bin/weft");
        let call = |verb: &str, mut command: std::process::Command| {
            command
                .env("CNI_COMMAND", verb)
                .env("CNI_CONTAINERID", "c")
                .env("CNI_IFNAME", "eth0")
                .env("CNI_NETNS", "/run/netns/c")
                .env("CNI_PATH", "/")
                .stdin(Stdio::piped())
                .stdout(Stdio::null());
            let mut child = command.spawn().expect("run nsenter(1)");
            let conf = r#"{"cniVersion":"1.1.0","name":"weft","type":"weft","ranges":[{"subnet":"10.88.0.0/16"}],
                "runtimeConfig":{"portMappings":[{"hostPort":30081,"containerPort":80,"protocol":"udp"}]}}"#;
            let mut stdin = child.stdin.take().expect("stdin is piped");
            // One that is killed may not read it.
            drop(std::io::Write::write_all(&mut stdin, conf.as_bytes()));
            drop(stdin);
            child.wait().expect("wait for a child").success()
        };
        let mut add = node.command("timeout");
        add.args(["-s", "KILL", &format!("0.{milliseconds:03}")]).arg(&plugin);
        call("ADD", add);
        assert!(call("DEL", node.command(&plugin)), "DEL after {milliseconds} ms");
    }
    run(node.command("ip").args(["netns", "del", "c"]));
}
