//! The ports of the host that lead to pods, and whether the kernel has them.

use std::net::IpAddr;

use super::answer;
use super::list::{PAGE, UnknownToken, matches};
use crate::nat::{self, Published, Table};
use crate::pod;
use crate::proto::network as api;
use crate::proto::network::port::State;
use crate::record::{HostPort, Record};

/// Some ports, each with one address that it leads to, and where the rest begins.
#[derive(Debug)]
pub(crate) struct Page<'a> {
    ports: Vec<Port<'a>>,
    /// Empty: there are no more.
    pub(crate) next: String,
}

#[derive(Debug)]
struct Port<'a> {
    port: HostPort,
    address: IpAddr,
    record: &'a Record,
}

/// What ports are ordered by. An address is one pod's, so no two have the same.
type Key = (u16, u8, Option<IpAddr>, IpAddr, u16);

/// The next page of the ports of `records`. As in a list of attachments, what comes and goes between two pages moves nothing.
///
/// # Errors
/// [`UnknownToken`].
pub(crate) fn page<'a>(
    records: &'a [Record],
    filter: &api::Filter,
    size: u32,
    token: &str,
) -> Result<Page<'a>, UnknownToken> {
    let size = usize::try_from(size).ok().filter(|size| (1..=PAGE).contains(size)).unwrap_or(PAGE);
    let behind = match token {
        "" => None,
        token => Some(read(token).ok_or_else(|| UnknownToken(token.to_owned()))?),
    };
    let all = records.iter().filter(|record| matches(filter, record));
    let all =
        all.flat_map(|record| nat::ends(record).map(move |(port, address)| Port { port, address, record }));
    let mut ports: Vec<Port<'_>> =
        all.filter(|port| behind.as_ref().is_none_or(|behind| port.key() > *behind)).collect();
    ports.sort_by_key(Port::key);
    let more = ports.len() > size;
    ports.truncate(size);
    let next = ports.last().filter(|_| more).map(|port| write(&port.key())).unwrap_or_default();
    Ok(Page { ports, next })
}

impl Port<'_> {
    fn key(&self) -> Key {
        let HostPort { protocol, host_port, pod_port, host_ip } = self.port;
        (host_port, protocol.number(), host_ip, self.address, pod_port)
    }
}

fn write((host_port, protocol, host_ip, address, pod_port): &Key) -> String {
    let host_ip = host_ip.map(|at| at.to_string()).unwrap_or_default();
    format!("{host_port}/{protocol}/{host_ip}/{address}/{pod_port}")
}

fn read(token: &str) -> Option<Key> {
    let parts: Vec<&str> = token.split('/').collect();
    let [host_port, protocol, host_ip, address, pod_port] = parts.try_into().ok()?;
    let host_ip = if host_ip.is_empty() { None } else { Some(host_ip.parse().ok()?) };
    Some((
        host_port.parse().ok()?,
        protocol.parse().ok()?,
        host_ip,
        address.parse().ok()?,
        pod_port.parse().ok()?,
    ))
}

impl Page<'_> {
    /// Asks the kernel for each: 10 µs a port, however many others there are. Called in the node's network namespace.
    ///
    /// # Errors
    /// The kernel's.
    pub(crate) fn tell(&self) -> Result<Vec<api::Port>, pod::Error> {
        let table = Table::open()?;
        self.ports.iter().map(|port| port.tell(&table)).collect()
    }
}

impl Port<'_> {
    fn tell(&self, table: &Table) -> Result<api::Port, pod::Error> {
        let Port { port, address, record } = self;
        let state = match table.published(port, *address)? {
            Published::Yes => State::PUBLISHED,
            Published::No => State::MISSING,
            Published::Elsewhere => State::ELSEWHERE,
        };
        Ok(api::Port {
            protocol: answer::protocol(port.protocol).into(),
            host_port: port.host_port.into(),
            host_ip: port.host_ip.map(|at| at.to_string()).unwrap_or_default(),
            address: address.to_string(),
            container_port: port.pod_port.into(),
            state: state.into(),
            host_ip_absent: nat::is_absent(port),
            container_id: record.container.clone(),
            interface: record.interface.clone(),
            network: record.network.clone(),
            pod_namespace: record.pod.namespace.clone(),
            pod_name: record.pod.name.clone(),
            pod_uid: record.pod.uid.clone(),
            attachment_state: answer::state(record).into(),
            ..Default::default()
        })
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use serde_json::json;

    fn record(container: &str, addresses: &[&str], ports: serde_json::Value) -> Record {
        serde_json::from_value(json!({
            "version": 1, "state": "attached", "container": container, "interface": "eth0", "network": "n",
            "netns": { "path": "/run/netns/a", "dev": 1, "inode": 2 }, "addresses": addresses, "host_link": "weft0",
            "host_index": 1, "mac": "", "host_mac": "", "mtu": 1500, "data_path": "redirect", "ports": ports,
            "pod": { "namespace": "ns", "name": container, "uid": "" },
        }))
        .unwrap()
    }

    fn all() -> Vec<Record> {
        let port = |protocol: &str, number: u16| json!({ "protocol": protocol, "host_port": number, "pod_port": 80 });
        let at = |at: &str| json!({ "protocol": "tcp", "host_port": 80, "pod_port": 80, "host_ip": at });
        vec![
            record(
                "a",
                &["10.0.0.2", "fd00::2"],
                json!([port("tcp", 8080), port("udp", 53), at("192.0.2.1")]),
            ),
            record("b", &["10.0.0.3"], json!([port("tcp", 53), at("192.0.2.2")])),
            record("c", &["10.0.0.4"], json!([])),
        ]
    }

    #[test]
    fn pages_of_any_size_tell_each_port_once_in_the_order_of_their_numbers() {
        let records = all();
        let wanted = [
            "53/6//10.0.0.3/80",
            "53/17//10.0.0.2/80",
            "53/17//fd00::2/80",
            "80/6/192.0.2.1/10.0.0.2/80",
            "80/6/192.0.2.2/10.0.0.3/80",
            "8080/6//10.0.0.2/80",
            "8080/6//fd00::2/80",
        ];
        for size in 0..9 {
            let (mut seen, mut token) = (Vec::new(), String::new());
            loop {
                let page = page(&records, &api::Filter::new(), size, &token).unwrap();
                seen.extend(page.ports.iter().map(|port| write(&port.key())));
                token = page.next;
                if token.is_empty() {
                    break;
                }
            }
            assert_eq!(seen, wanted, "{size} at a time");
        }
    }

    #[test]
    fn a_filter_is_that_of_the_attachments() {
        let filter = api::Filter { pod_name: "b".into(), ..Default::default() };
        assert_eq!(page(&all(), &filter, 0, "").unwrap().ports.len(), 2);
    }

    #[test]
    fn a_token_that_was_not_given_out_is_an_error() {
        for token in ["x", "1/6//10.0.0.2", "1/6/x/10.0.0.2/80", "70000/6//10.0.0.2/80", "1/6//10.0.0.2/80/1"]
        {
            assert!(page(&all(), &api::Filter::new(), 0, token).is_err(), "{token}");
        }
    }
}
