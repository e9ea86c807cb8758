//! A record, and what the programs count, as the protocol tells them.

use weft_hooks::{Count, Counters};

use crate::bandwidth::{Bandwidth, Limit};
use crate::proto::network as api;
use crate::record::{DataPath, HostPort, Masquerade, Names, Protocol, Record, State};
use crate::routes::{gateways, pod_routes};

/// One record.
pub(super) fn attachment(record: Record) -> api::Attachment {
    // A record that was read can be written; were it otherwise, the fields still tell it.
    let text = serde_json::to_string(&record).unwrap_or_default();
    let (state, routes) = (state(&record), routes(&record));
    let limiter_link = record.bandwidth.egress.as_ref().map(|_| Names::derived(&record).ifb);
    api::Attachment {
        container_id: record.container,
        interface: record.interface,
        network: record.network,
        state: state.into(),
        addresses: record.addresses.iter().map(ToString::to_string).collect(),
        netns_path: record.netns.path.to_string_lossy().into_owned(),
        netns_device: record.netns.dev,
        netns_inode: record.netns.inode,
        host_link: record.host_link,
        host_index: record.host_index,
        mac: record.mac,
        host_mac: record.host_mac,
        mtu: record.mtu,
        data_path: match record.data_path {
            DataPath::Redirect => api::DataPath::REDIRECT,
            DataPath::Routing => api::DataPath::ROUTING,
        }
        .into(),
        data_path_reason: record.data_path_reason.unwrap_or_default(),
        pod_namespace: record.pod.namespace,
        pod_name: record.pod.name,
        pod_uid: record.pod.uid,
        labels: record.pod.labels.into_iter().collect(),
        record: text,
        ports: record.ports.iter().map(host_port).collect(),
        bandwidth: bandwidth(&record.bandwidth).into(),
        hidden: record.masquerade.as_ref().map(hidden).into(),
        routes,
        limiter_link: limiter_link.unwrap_or_default(),
        detach_error: record.tombstone.unwrap_or_default(),
        ..Default::default()
    }
}

/// What became of packets, of the node or of one pod.
pub(super) fn data_path_counters(counters: &Counters) -> api::DataPathCounters {
    let count =
        |Count { packets, bytes }: Count| Some(api::Count { packets, bytes, ..Default::default() }).into();
    let drops = counters.drops.iter().flat_map(|drops| drops.iter());
    api::DataPathCounters {
        redirected: count(counters.redirected),
        passed: count(counters.passed),
        returned: count(counters.returned),
        dropped: count(counters.dropped),
        drops: drops
            .map(|(why, packets)| api::Drop { reason: why.as_str().into(), packets, ..Default::default() })
            .collect(),
        ..Default::default()
    }
}

/// How far it came.
pub(super) fn state(record: &Record) -> api::State {
    match record.state {
        _ if record.tombstone.is_some() => api::State::DETACHING,
        State::Attaching => api::State::ATTACHING,
        State::Attached => api::State::ATTACHED,
        State::Detaching => api::State::DETACHING,
    }
}

pub(super) fn protocol(protocol: Protocol) -> api::Protocol {
    match protocol {
        Protocol::Tcp => api::Protocol::TCP,
        Protocol::Udp => api::Protocol::UDP,
        Protocol::Sctp => api::Protocol::SCTP,
    }
}

fn host_port(port: &HostPort) -> api::HostPort {
    api::HostPort {
        protocol: protocol(port.protocol).into(),
        host_port: port.host_port.into(),
        container_port: port.pod_port.into(),
        host_ip: port.host_ip.map(|at| at.to_string()).unwrap_or_default(),
        ..Default::default()
    }
}

fn bandwidth(bandwidth: &Bandwidth) -> Option<api::Bandwidth> {
    let limit = |limit: &Option<Limit>| {
        let limit = limit.as_ref();
        let told = |limit: &Limit| api::Limit {
            rate: limit.rate,
            burst: limit.burst.unwrap_or_default(),
            ..Default::default()
        };
        limit.map(told).into()
    };
    (!bandwidth.is_unlimited()).then(|| api::Bandwidth {
        ingress: limit(&bandwidth.ingress),
        egress: limit(&bandwidth.egress),
        ..Default::default()
    })
}

fn hidden(masquerade: &Masquerade) -> api::Hidden {
    api::Hidden {
        addresses: masquerade.addresses.iter().map(ToString::to_string).collect(),
        except: masquerade.except.iter().map(ToString::to_string).collect(),
        ..Default::default()
    }
}

fn routes(record: &Record) -> Vec<api::Route> {
    let of_family = |gateway| pod_routes(record, gateway, 0).into_iter();
    let told = |route: weft_netns::Route| {
        route.via.map(|via| api::Route {
            destination: format!("{}/{}", route.destination, route.prefix),
            gateway: via.to_string(),
            ..Default::default()
        })
    };
    gateways(record).flat_map(of_family).filter_map(told).collect()
}
