//! What went over the links of pods, and what became of what they sent.

use weft_hooks::PodCounters;
use weft_netns::{NetNs, Netlink, Traffic};

use super::Error;
use super::answer::data_path_counters;
use crate::config::Config;
use crate::fast_path;
use crate::proto::network as api;
use crate::record::Record;

/// The links are asked inside each pod, one after the other: what the fast path hands over comes in at the pod's end, and the host's end does not count
/// it (`skb_do_redirect` in net/core/filter.c, `veth_get_stats64` in drivers/net/veth.c).
///
/// # Errors
/// The first that the kernel does not answer.
pub(crate) fn of_all(config: &Config, records: &[Record]) -> Result<Vec<api::Stats>, Error> {
    let counters = PodCounters::open(&config.bpf_dir)?;
    let mut all = Vec::with_capacity(records.len());
    for record in records {
        all.push(of(record, counters.as_ref())?);
    }
    Ok(all)
}

fn of(record: &Record, rows: Option<&PodCounters>) -> Result<api::Stats, Error> {
    // A namespace that is gone, or another one at its path, has no counters of this pod.
    let netns = NetNs::open(&record.netns.path).ok().filter(|netns| netns.identity() == record.identity());
    let counters = match netns {
        Some(netns) => Netlink::open_in(&netns)?.link_counters(&record.interface.parse()?)?,
        None => None,
    };
    let data_path = match rows.filter(|_| fast_path::is_hooked(record)) {
        Some(rows) => rows.of(record.host_index)?,
        None => None,
    };
    Ok(api::Stats {
        container_id: record.container.clone(),
        interface: record.interface.clone(),
        received: counters.map(|counters| traffic(counters.received)).into(),
        sent: counters.map(|counters| traffic(counters.sent)).into(),
        pod_namespace: record.pod.namespace.clone(),
        pod_name: record.pod.name.clone(),
        data_path: data_path.as_ref().map(data_path_counters).into(),
        ..Default::default()
    })
}

fn traffic(traffic: Traffic) -> api::Traffic {
    let Traffic { packets, bytes, dropped, errors } = traffic;
    api::Traffic { packets, bytes, dropped, errors, ..Default::default() }
}
