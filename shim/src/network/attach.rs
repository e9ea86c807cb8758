//! What Attach asks for, checked: the same [`pod::Request`] that CNI ADD makes of its configuration.

use std::collections::BTreeSet;
use std::net::IpAddr;

use ipnet::IpNet;
use weft_ipam::Owner;
use weft_netns::LinkName;

use crate::asked::{self, Asked};
use crate::bandwidth::Bandwidth;
use crate::cni;
use crate::cni::bandwidth::{UNSTATED, checked};
use crate::config::{self, Config};
use crate::nat;
use crate::pod;
use crate::proto::network as api;
use crate::proto::network::masquerade::Mode;
use crate::record::{HostPort, PodName, Protocol, Record};

/// What is wrong with a request.
#[derive(Debug, thiserror::Error)]
pub(super) enum Error {
    #[error("netns_path is empty")]
    NoNamespace,
    #[error("network is empty")]
    NoNetwork,
    #[error("interface")]
    Interface(#[source] weft_netns::Error),
    #[error("{field} {text:?} is no {want}")]
    Address { field: &'static str, text: String, want: &'static str },
    #[error("network {name:?}")]
    Network { name: String, source: Box<cni::Failure> },
    #[error("{field} {problem}")]
    Field { field: &'static str, problem: String },
    #[error("addresses that are asked for")]
    Asked(#[from] asked::Error),
}

/// Checks the request.
pub(super) fn request(
    config: &Config,
    owner: Owner,
    request: api::AttachRequest,
) -> Result<pod::Request, Error> {
    owner.interface().parse::<LinkName>().map_err(Error::Interface)?;
    if request.netns_path.is_empty() {
        return Err(Error::NoNamespace);
    }
    if request.network.is_empty() {
        return Err(Error::NoNetwork);
    }
    let mut network = config.network.get(&request.network).cloned().unwrap_or_default();
    if !request.ranges.is_empty() {
        network.ranges = request.ranges.iter().map(range).collect::<Result<_, _>>()?;
    }
    if request.mtu != 0 {
        network.mtu = Some(request.mtu);
    }
    hide(request.masquerade.as_ref(), &mut network)?;
    let network = cni::network(&request.network, &network)
        .map_err(|source| Error::Network { name: request.network, source: Box::new(source) })?;
    let pod = PodName {
        namespace: request.pod_namespace,
        name: request.pod_name,
        uid: request.pod_uid,
        labels: request.labels.into_iter().collect(),
    };
    Ok(pod::Request {
        owner,
        netns: request.netns_path.into(),
        network,
        pod,
        asked: Asked::first_of(
            vec![("addresses", request.addresses)],
            vec![("mac", Some(request.mac).filter(|mac| !mac.is_empty()))],
        )?,
        bandwidth: bandwidth(request.bandwidth.as_ref())?,
        ports: ports(&request.ports)?,
    })
}

/// The host ports, each once.
fn ports(asked: &[api::HostPort]) -> Result<Vec<HostPort>, Error> {
    let mut ports = Vec::new();
    for port in asked {
        let port = host_port(port)?;
        ports.extend(port.filter(|port| !ports.contains(port)));
    }
    Ok(ports)
}

/// `None` for a container's port that is published nowhere (host port 0).
fn host_port(port: &api::HostPort) -> Result<Option<HostPort>, Error> {
    let wrong = |field, problem| Error::Field { field, problem };
    let number = |field, value: u32| {
        u16::try_from(value).map_err(|_range| wrong(field, format!("is {value}, want a number up to 65535")))
    };
    let protocol = match port.protocol.enum_value() {
        Ok(api::Protocol::PROTOCOL_UNSPECIFIED | api::Protocol::TCP) => Protocol::Tcp,
        Ok(api::Protocol::UDP) => Protocol::Udp,
        Ok(api::Protocol::SCTP) => Protocol::Sctp,
        Err(number) => return Err(wrong("ports.protocol", format!("is {number}, want TCP, UDP or SCTP"))),
    };
    let host_ip = match port.host_ip.as_str() {
        "" => None,
        text => Some(parse::<IpAddr>("ports.host_ip", text, "address")?.to_canonical()),
    };
    let host_port = number("ports.host_port", port.host_port)?;
    let pod_port = number("ports.container_port", port.container_port)?;
    if host_port == 0 {
        return Ok(None);
    }
    if pod_port == 0 {
        return Err(wrong("ports.container_port", format!("of host port {host_port} is 0")));
    }
    Ok(Some(HostPort { protocol, host_port, pod_port, host_ip }))
}

fn bandwidth(asked: Option<&api::Bandwidth>) -> Result<Bandwidth, Error> {
    let Some(asked) = asked else { return Ok(Bandwidth::default()) };
    let limit = |limit: Option<&api::Limit>, rate_name, burst_name| {
        let Some(limit) = limit else { return Ok(None) };
        // CNI has no way to say nothing about a burst, and takes the largest number for it.
        let burst = if limit.burst == 0 && limit.rate != 0 { UNSTATED[0] } else { limit.burst };
        let checked = checked((rate_name, limit.rate), (burst_name, burst));
        checked.map_err(|(field, problem)| Error::Field { field, problem })
    };
    Ok(Bandwidth {
        ingress: limit(asked.ingress.as_ref(), "bandwidth.ingress.rate", "bandwidth.ingress.burst")?,
        egress: limit(asked.egress.as_ref(), "bandwidth.egress.rate", "bandwidth.egress.burst")?,
    })
}

/// Changes the configuration's network as the request wants.
fn hide(asked: Option<&api::Masquerade>, network: &mut config::Network) -> Result<(), Error> {
    let Some(asked) = asked else { return Ok(()) };
    match asked.mode.enum_value() {
        Ok(Mode::MODE_UNSPECIFIED) => {}
        Ok(Mode::ON) => network.masquerade = Some(true),
        Ok(Mode::OFF) => network.masquerade = Some(false),
        Err(number) => {
            let problem = format!("is {number}, want ON or OFF");
            return Err(Error::Field { field: "masquerade.mode", problem });
        }
    }
    if let Some(except) = asked.except.as_ref() {
        let subnet = |text: &String| parse::<IpNet>("masquerade.except", text, "subnet in CIDR form");
        network.masquerade_except = except.subnets.iter().map(subnet).collect::<Result<_, _>>()?;
    }
    Ok(())
}

/// Whether the interface that is attached is what was asked for; it is if it has just been attached.
pub(super) fn as_asked(leaves: Leaves, request: &pod::Request, record: &Record) -> Result<(), Otherwise> {
    let fields = differences(leaves, request, record);
    if fields.is_empty() {
        return Ok(());
    }
    Err(Otherwise { owner: request.owner.clone(), fields: fields.join(", ") })
}

/// An interface that is attached, and not as the request wants it: what a client hears of a second pod that it has given the first
/// one's id.
#[derive(Debug, thiserror::Error)]
#[error("interface {} of container {} is attached already, with other {fields}", .owner.interface(), .owner.container())]
pub(super) struct Otherwise {
    owner: Owner,
    fields: String,
}

/// What of an attached interface is not as the request wants it. What the request leaves to the node is as it is.
fn differences(leaves: Leaves, request: &pod::Request, record: &Record) -> Vec<&'static str> {
    let same_ports = request.ports.len() == record.ports.len()
        && request.ports.iter().all(|port| record.ports.contains(port));
    let ranges = &request.network.ranges;
    let within = |address: &IpAddr| ranges.iter().any(|range| range.subnet().contains(address));
    let sets: BTreeSet<_> = ranges.iter().map(|range| (range.family(), range.set())).collect();
    let same_ranges = record.addresses.iter().all(within) && record.addresses.len() == sets.len();
    let hidden = nat::masquerade(&request.network, &record.addresses);
    [
        ("network", request.network.name == record.network),
        ("ranges", leaves.ranges || same_ranges),
        ("mtu", leaves.mtu || request.network.mtu == Some(record.mtu)),
        ("masquerade", leaves.masquerade || hidden == record.masquerade),
        ("addresses", request.asked.ips.iter().all(|address| record.addresses.contains(address))),
        ("mac", request.asked.mac.is_none_or(|mac| mac.to_string() == record.mac)),
        ("ports", same_ports),
        ("bandwidth", request.bandwidth == record.bandwidth),
        ("pod_namespace", request.pod.namespace == record.pod.namespace),
        ("pod_name", request.pod.name == record.pod.name),
        ("pod_uid", request.pod.uid == record.pod.uid),
        ("labels", request.pod.labels == record.pod.labels),
    ]
    .into_iter()
    .filter(|(_, same)| !same)
    .map(|(field, _)| field)
    .collect()
}

/// What a request leaves to the node's configuration.
#[derive(Debug, Clone, Copy)]
pub(super) struct Leaves {
    ranges: bool,
    mtu: bool,
    masquerade: bool,
}

impl Leaves {
    pub(super) fn of(request: &api::AttachRequest) -> Leaves {
        Leaves {
            ranges: request.ranges.is_empty(),
            mtu: request.mtu == 0,
            masquerade: request.masquerade.is_none(),
        }
    }
}

fn range(range: &api::Range) -> Result<config::Range, Error> {
    let optional = |field, text: &str| match text {
        "" => Ok(None),
        text => parse::<IpAddr>(field, text, "address").map(Some),
    };
    let block = |field, text: &str| parse::<IpNet>(field, text, "subnet in CIDR form");
    Ok(config::Range {
        subnet: block("subnet", &range.subnet)?,
        start: optional("start", &range.start)?,
        end: optional("end", &range.end)?,
        gateway: optional("gateway", &range.gateway)?,
        exclude: range.exclude.iter().map(|text| block("exclude", text)).collect::<Result<_, _>>()?,
        set: u8::try_from(range.set).map_err(|_large| Error::Field {
            field: "ranges.set",
            problem: format!("is {}, want at most 255", range.set),
        })?,
    })
}

/// What the parser says adds nothing to what was wanted.
fn parse<T: std::str::FromStr>(field: &'static str, text: &str, want: &'static str) -> Result<T, Error> {
    text.parse().ok().ok_or_else(|| Error::Address { field, text: text.to_owned(), want })
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::error::chain;

    fn good() -> api::AttachRequest {
        api::AttachRequest {
            netns_path: "/run/netns/a".into(),
            network: "n".into(),
            ranges: vec![api::Range { subnet: "10.1.0.0/24".into(), ..Default::default() }],
            ..Default::default()
        }
    }

    fn asked(request: api::AttachRequest) -> Result<pod::Request, String> {
        let owner = Owner::new("c", "eth0").unwrap();
        super::request(&Config::default(), owner, request).map_err(|err| chain(&err))
    }

    #[test]
    fn a_request_is_what_cni_would_have_asked() {
        let labels = [("app".to_owned(), "web".to_owned())].into();
        let request = asked(api::AttachRequest { mtu: 1400, labels, ..good() }).unwrap();
        assert_eq!((request.network.name.as_str(), request.network.mtu), ("n", Some(1400)));
        assert_eq!(request.network.ranges[0].subnet(), "10.1.0.0/24".parse().unwrap());
        assert_eq!(request.pod.labels["app"], "web");
    }

    #[test]
    fn the_nodes_networks_serve_a_request_without_ranges() {
        let mut config = Config::default();
        let owner = || Owner::new("c", "eth0").unwrap();
        let bare = || api::AttachRequest { ranges: Vec::new(), ..good() };
        let err = super::request(&config, owner(), bare()).unwrap_err();
        assert!(chain(&err).contains("no [network.n]"), "{}", chain(&err));
        let range = serde_json::from_str(r#"{"subnet":"10.1.0.0/24"}"#).unwrap();
        config.network.insert(
            "n".into(),
            config::Network { ranges: vec![range], mtu: Some(1300), ..Default::default() },
        );
        assert_eq!(super::request(&config, owner(), bare()).unwrap().network.mtu, Some(1300));
    }

    #[test]
    fn what_is_wrong_is_named() {
        let range = |change: fn(&mut api::Range)| {
            let mut request = good();
            change(&mut request.ranges[0]);
            request
        };
        for (request, wanted) in [
            (api::AttachRequest { netns_path: String::new(), ..good() }, "netns_path is empty"),
            (api::AttachRequest { network: String::new(), ..good() }, "network is empty"),
            (range(|range| range.subnet = "10.1".into()), "subnet \"10.1\" is no subnet in CIDR form"),
            (range(|range| range.start = "x".into()), "start \"x\" is no address"),
            (range(|range| range.end = "10.9.0.1".into()), "10.9.0.1"),
            (range(|range| range.set = 256), "ranges.set is 256, want at most 255"),
        ] {
            let text = asked(request).unwrap_err();
            assert!(text.contains(wanted), "{wanted} in {text}");
        }
    }

    #[test]
    fn ports_limits_and_addresses_are_those_of_cni() {
        let port = |protocol: api::Protocol, host_port, host_ip: &str| api::HostPort {
            protocol: protocol.into(),
            host_port,
            container_port: 80,
            host_ip: host_ip.into(),
            ..Default::default()
        };
        let limit = |rate, burst| Some(api::Limit { rate, burst, ..Default::default() }).into();
        let bandwidth = api::Bandwidth { ingress: limit(8000, 0), egress: limit(0, 0), ..Default::default() };
        let request = asked(api::AttachRequest {
            ports: vec![
                port(api::Protocol::UDP, 53, "::ffff:192.0.2.1"),
                port(api::Protocol::PROTOCOL_UNSPECIFIED, 0, ""),
                port(api::Protocol::PROTOCOL_UNSPECIFIED, 80, ""),
                port(api::Protocol::TCP, 80, ""),
            ],
            bandwidth: Some(bandwidth).into(),
            addresses: vec!["10.1.0.7/24".into()],
            mac: "02:00:00:00:00:07".into(),
            ..good()
        })
        .unwrap();
        let wanted = |protocol, host_port, host_ip| HostPort { protocol, host_port, pod_port: 80, host_ip };
        let at = "192.0.2.1".parse().ok();
        assert_eq!(request.ports, [wanted(Protocol::Udp, 53, at), wanted(Protocol::Tcp, 80, None)]);
        let ingress = request.bandwidth.ingress.unwrap();
        assert_eq!((ingress.rate, ingress.burst, request.bandwidth.egress), (8000, None, None));
        assert_eq!(request.asked.ips, ["10.1.0.7".parse::<IpAddr>().unwrap()]);
        assert_eq!(request.asked.mac, Some("02:00:00:00:00:07".parse().unwrap()));
    }

    #[test]
    fn masquerade_is_the_configurations_unless_it_is_said() {
        let except = || vec!["198.51.100.0/24".parse().unwrap()];
        let hidden = |mode: Mode, subnets: Option<Vec<String>>| {
            let subnets = subnets.map(|subnets| api::Destinations { subnets, ..Default::default() });
            let asked = api::Masquerade { mode: mode.into(), except: subnets.into(), ..Default::default() };
            let mut network =
                config::Network { masquerade: Some(true), masquerade_except: except(), ..Default::default() };
            hide(Some(&asked), &mut network).unwrap();
            (network.masquerade, network.masquerade_except)
        };
        assert_eq!(hidden(Mode::MODE_UNSPECIFIED, None), (Some(true), except()));
        assert_eq!(hidden(Mode::OFF, None), (Some(false), except()));
        assert_eq!(hidden(Mode::ON, Some(vec![])), (Some(true), vec![]));
        let other = "203.0.113.0/24".to_owned();
        assert_eq!(hidden(Mode::ON, Some(vec![other.clone()])).1, [other.parse().unwrap()]);
    }
}
