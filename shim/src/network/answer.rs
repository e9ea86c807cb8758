//! A record, and what the programs count, as the protocol tells them.

use weft_hooks::{Count, Counters};

use crate::proto::network as api;
use crate::record::{DataPath, Record, State};

/// One record.
pub(super) fn attachment(record: Record) -> api::Attachment {
    // A record that was read can be written; were it otherwise, the fields still tell it.
    let text = serde_json::to_string(&record).unwrap_or_default();
    api::Attachment {
        container_id: record.container,
        interface: record.interface,
        network: record.network,
        state: match record.state {
            _ if record.tombstone.is_some() => api::State::DETACHING,
            State::Attaching => api::State::ATTACHING,
            State::Attached => api::State::ATTACHED,
            State::Detaching => api::State::DETACHING,
        }
        .into(),
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
