//! `weft ports`: the ports of the node that lead to pods, and whether the kernel has them.

use std::io::Write;
use std::net::{IpAddr, SocketAddr};

use serde_json::{Value, json};

use super::args::Format;
use super::{Error, Node, show};
use crate::proto::network as api;
use crate::proto::network::port::State;
use crate::record::PodName;

/// One line a port, in the order of their numbers.
pub(super) async fn print(node: &Node<'_>, format: Format, out: &mut impl Write) -> Result<(), Error> {
    let told = node.ports().await?;
    let ports: Vec<&[api::Port]> = told.chunk_by(is_one_port).collect();
    if format == Format::Json {
        return show::print_json(out, &ports.into_iter().filter_map(as_json).collect());
    }
    let header = ["PORT", "PROTOCOL", "ADDRESS", "POD", "TO", "STATE"].map(str::to_owned);
    let rows = ports.into_iter().filter_map(row);
    show::table(out, std::iter::once(header).chain(rows).collect())
}

/// A port that leads to both addresses of a pod is told twice, and is one to people.
fn is_one_port(a: &api::Port, b: &api::Port) -> bool {
    let key = |port: &api::Port| {
        let api::Port { protocol, host_port, container_port, .. } = *port;
        let names = [&port.host_ip, &port.container_id, &port.interface].map(Clone::clone);
        (protocol, host_port, container_port, names)
    };
    key(a) == key(b)
}

fn row(port: &[api::Port]) -> Option<[String; 6]> {
    let one = port.first()?;
    let at = if one.host_ip.is_empty() { "any" } else { &one.host_ip };
    let [namespace, name] = [&one.pod_namespace, &one.pod_name].map(Clone::clone);
    let pod = show::pod_name(&PodName { namespace, name, ..PodName::default() });
    let state = match state(port) {
        "published" if one.host_ip_absent => "waits for its address",
        state => state,
    };
    let cells = [&one.host_port.to_string(), protocol(one), at, &pod, &ends(port).join(","), state];
    Some(cells.map(str::to_owned))
}

fn as_json(port: &[api::Port]) -> Option<Value> {
    let one = port.first()?;
    let host_ip = Some(&one.host_ip).filter(|at| !at.is_empty());
    Some(json!({
        "protocol": protocol(one),
        "host_port": one.host_port,
        "host_ip": host_ip,
        "container": one.container_id,
        "interface": one.interface,
        "pod": { "namespace": one.pod_namespace, "name": one.pod_name, "uid": one.pod_uid },
        "to": ends(port),
        "state": state(port),
        "host_ip_absent": one.host_ip_absent,
    }))
}

fn protocol(port: &api::Port) -> &'static str {
    match port.protocol.enum_value_or_default() {
        api::Protocol::UDP => "udp",
        api::Protocol::SCTP => "sctp",
        api::Protocol::TCP | api::Protocol::PROTOCOL_UNSPECIFIED => "tcp",
    }
}

/// The worst of all that the port leads to.
fn state(port: &[api::Port]) -> &'static str {
    let has = |state: State| port.iter().any(|end| end.state == state.into());
    match () {
        () if has(State::ELSEWHERE) => "elsewhere",
        () if has(State::MISSING) => "missing",
        () => "published",
    }
}

/// Where the port leads.
fn ends(port: &[api::Port]) -> Vec<String> {
    let end = |end: &api::Port| {
        let port = u16::try_from(end.container_port).ok();
        let both = end.address.parse::<IpAddr>().ok().zip(port);
        both.map_or_else(|| end.address.clone(), |(address, port)| SocketAddr::new(address, port).to_string())
    };
    port.iter().map(end).collect()
}
