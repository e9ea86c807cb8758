//! The node as a whole: the step of the ladder, program versions, and how full the ranges are.

use std::net::IpAddr;

use weft_hooks::{Counters, FastPath, Mode, Versions};
use weft_ipam::Fill;

use super::Error;
use super::answer::data_path_counters;
use crate::cni;
use crate::config::Config;
use crate::error::chain;
use crate::fast_path;
use crate::proto::network as api;
use crate::record::Record;
use crate::state::Ledger;

/// Reads the pins, the store and the configuration, and changes none of them.
///
/// # Errors
/// If the store or the pins cannot be read; a node without programs is a state, not an error.
pub(crate) fn status(config: &Config) -> Result<api::NodeStatusResponse, Error> {
    let ledger = Ledger::open(config)?;
    let records = ledger.records()?;
    let attached = records.iter().filter(|record| record.is_attached()).count();
    let fills = ledger.view()?.fills().map_err(|source| ledger.failed(source))?;
    let mut answer = api::NodeStatusResponse {
        version: env!("CARGO_PKG_VERSION").into(),
        attached: number(attached),
        attaching: number(records.len() - attached),
        ranges: ranges(config, fills, &records),
        tombstones: number(records.iter().filter(|record| record.tombstone.is_some()).count()),
        table_repairs: ledger.repairs()?,
        ..Default::default()
    };
    data_path(config, &mut answer)?;
    Ok(answer)
}

fn number(count: usize) -> u32 {
    u32::try_from(count).unwrap_or(u32::MAX)
}

fn data_path(config: &Config, answer: &mut api::NodeStatusResponse) -> Result<(), Error> {
    answer.data_path = "routing".into();
    if !config.fast_path {
        answer.data_path_reason = "fast_path = false".into();
    }
    // Pins of another layout, or of a version that cannot be read, are not used for new pods.
    let versions = match FastPath::status(&config.bpf_dir) {
        Ok(versions) => versions,
        Err(err) => {
            answer.data_path_reason = chain(&err);
            return Ok(());
        }
    };
    let Some(versions) = versions else {
        if config.fast_path {
            answer.data_path_reason =
                "no programs are loaded: the first pod, or weft init, loads them".into();
        }
        return Ok(());
    };
    if config.fast_path {
        answer.data_path = versions.mode.to_string();
        answer.data_path_reason = match versions {
            Versions { mode: Mode::RedirectPeer, .. } => String::new(),
            Versions { forced: true, .. } => fast_path::NO_PEER.into(),
            Versions { .. } => "the kernel refused bpf_redirect_peer".into(),
        };
    }
    answer.program_version = versions.program;
    answer.layout_version = versions.layout;
    answer.program_mode = versions.mode.to_string();
    answer.counters = Some(data_path_counters(&Counters::read(&config.bpf_dir)?)).into();
    Ok(())
}

/// Those that were leased from, named by the configuration or else by whoever has an address of theirs; and those of the
/// configuration that nobody has leased from yet.
fn ranges(config: &Config, fills: Vec<Fill>, records: &[Record]) -> Vec<api::RangeStatus> {
    let mut configured = configured(config);
    let mut told: Vec<_> = fills
        .into_iter()
        .map(|fill| {
            let same = configured.iter().position(|known| (known.1, known.2) == (fill.first, fill.last));
            let network = same.map(|index| configured.swap_remove(index).0);
            range_status(&network.unwrap_or_else(|| holder(&fill, records)), &fill)
        })
        .collect();
    told.extend(configured.into_iter().map(|(network, first, last, total)| {
        range_status(&network, &Fill { first, last, total, used: 0, cooling: 0 })
    }));
    told
}

/// Network, first and last address, capacity. A range that is none is an error for who asks for it, not for who looks.
fn configured(config: &Config) -> Vec<(String, IpAddr, IpAddr, u128)> {
    let networks = config.network.iter().filter_map(|(name, network)| cni::network(name, network).ok());
    networks
        .flat_map(|network| {
            let ends =
                network.ranges.iter().map(|range| (range.ends(), range.capacity())).collect::<Vec<_>>();
            ends.into_iter().map(move |((first, last), total)| (network.name.clone(), first, last, total))
        })
        .collect()
}

fn holder(fill: &Fill, records: &[Record]) -> String {
    // Of two families, all of one are less than all of the other.
    let within = |address: &IpAddr| fill.first <= *address && *address <= fill.last;
    let found = records.iter().find(|record| record.addresses.iter().any(within));
    found.map(|record| record.network.clone()).unwrap_or_default()
}

fn range_status(network: &str, fill: &Fill) -> api::RangeStatus {
    api::RangeStatus {
        network: network.to_owned(),
        first: fill.first.to_string(),
        last: fill.last.to_string(),
        total: fill.total.to_string(),
        used: fill.used.to_string(),
        cooling: fill.cooling.to_string(),
        free: fill.total.saturating_sub(fill.used).to_string(),
        ..Default::default()
    }
}
