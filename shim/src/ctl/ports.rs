//! `weft ports`: the ports of the node that lead to pods.

use std::io::Write;
use std::net::{IpAddr, SocketAddr};

use serde_json::{Value, json};

use super::args::Format;
use super::{Error, Node, show};
use crate::proto::network as api;
use crate::record::{HostPort, Record};

/// One line a port, in the order of their numbers.
pub(super) async fn print(node: &Node<'_>, format: Format, out: &mut impl Write) -> Result<(), Error> {
    let records = node.records(&api::Filter::default()).await?;
    let mut ports: Vec<(HostPort, &Record)> =
        records.iter().flat_map(|record| record.ports.iter().map(move |port| (*port, record))).collect();
    ports.sort_by_key(|(port, _)| (port.host_port, port.protocol.number(), port.host_ip));
    if format == Format::Json {
        return show::print_json(out, &ports.iter().map(|(port, record)| told(port, record)).collect());
    }
    let header = ["PORT", "PROTOCOL", "ADDRESS", "POD", "TO"].map(str::to_owned);
    let rows = ports.iter().map(|(port, record)| {
        let to: Vec<String> = ends(port, record).map(|end| end.to_string()).collect();
        let at = port.host_ip.map_or_else(|| "any".to_owned(), |at| at.to_string());
        let pod = show::pod_name(record);
        [port.host_port.to_string(), port.protocol.name().to_owned(), at, pod, to.join(",")]
    });
    show::table(out, std::iter::once(header).chain(rows).collect())
}

fn told(port: &HostPort, record: &Record) -> Value {
    json!({
        "protocol": port.protocol.name(),
        "host_port": port.host_port,
        "host_ip": port.host_ip,
        "container": record.container,
        "pod": record.pod,
        "to": ends(port, record).collect::<Vec<_>>(),
    })
}

/// Where the port leads: addresses of its own family only.
fn ends(port: &HostPort, record: &Record) -> impl Iterator<Item = SocketAddr> {
    let HostPort { host_ip, pod_port, .. } = *port;
    let serves = move |address: &&IpAddr| host_ip.is_none_or(|at| at.is_ipv4() == address.is_ipv4());
    record.addresses.iter().filter(serves).map(move |address| SocketAddr::new(*address, pod_port))
}
