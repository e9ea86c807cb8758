//! Two pods that nobody touches, and the world beyond the uplink.

use std::net::SocketAddr;
use std::time::Duration;

use weft_conformance::{Exchange, Node, Pod, PodSpec, Protocol, Server};

use crate::observer::{Living, Register};

const EXCHANGE: &str = env!("CARGO_BIN_EXE_exchange");
/// Of one stream or flow: hundred a second are enough to notice a loss.
const PAUSE: Duration = Duration::from_millis(10);
/// Of the host's, and of the pod's behind it.
const PORT: (u16, u16) = (30_000, 80);
/// Where the world answers.
const BEYOND: u16 = 9000;

/// They, and who answers in them.
pub(crate) struct Residents<'n> {
    node: &'n Node,
    pods: [Pod<'n>; 2],
    servers: Vec<Server>,
}

impl<'n> Residents<'n> {
    pub(crate) fn start(node: &'n Node, register: &Register) -> Self {
        let ports = PodSpec::new("r1").host_port(Protocol::Tcp, PORT.0, PORT.1);
        let ports = ports.host_port(Protocol::Udp, PORT.0, PORT.1);
        let pods = [node.run_pod(&PodSpec::new("r0")), node.run_pod(&ports)];
        for (pod, port) in pods.iter().zip([None, Some(PORT.0)]) {
            let living =
                Living { addresses: pod.ips(), port, host_end: None, name: format!("resident {}", pod.id()) };
            register.enter_resident(pod.id(), living);
        }
        let servers = vec![
            Server::start(EXCHANGE, PORT.1, |program| pods[1].command(program)),
            Server::start(EXCHANGE, BEYOND, |program| node.world(program)),
        ];
        Self { node, pods, servers }
    }

    pub(crate) fn ids(&self) -> [&str; 2] {
        [self.pods[0].id(), self.pods[1].id()]
    }

    pub(crate) fn pods(&self) -> &[Pod<'n>] {
        &self.pods
    }

    pub(crate) fn addresses(&self) -> usize {
        4
    }

    /// Pod to pod, out, and in by the port of the host; of both families, by TCP and by UDP.
    pub(crate) fn exchange(&self) -> Vec<Exchange> {
        let [one, other] = &self.pods;
        let at = |address: &str, port| SocketAddr::new(address.parse().expect("an address"), port);
        let mut exchanges = Vec::new();
        for kind in ["tcp", "udp"] {
            for address in other.ips() {
                let to = SocketAddr::new(address, PORT.1);
                exchanges.push(Exchange::start(one.command(EXCHANGE), kind, to, PAUSE));
            }
            for [beyond, host] in [["192.0.2.1", "192.0.2.10"], ["2001:db8::1", "2001:db8::10"]] {
                let out = one.command(EXCHANGE);
                exchanges.push(Exchange::start(out, kind, at(beyond, BEYOND), PAUSE));
                let within = self.node.world(EXCHANGE);
                exchanges.push(Exchange::start(within, kind, at(host, PORT.0), PAUSE));
            }
        }
        exchanges
    }

    pub(crate) fn end(self) {
        drop(self.servers);
    }
}
