//! `weft status`: the node on one screen.

use std::io::Write;

use serde_json::{Map, Value, json};

use super::args::Format;
use super::show::{line, print_json, table};
use super::{Error, Node};
use crate::proto::network as api;

pub(super) async fn print(node: &Node<'_>, format: Format, out: &mut impl Write) -> Result<(), Error> {
    let status = node.status().await?;
    match format {
        Format::Json => print_json(out, &as_json(&status)),
        Format::Table => as_table(&status, out),
    }
}

fn as_json(status: &api::NodeStatusResponse) -> Value {
    let mut json = json!({
        "weft": status.version,
        "loaded": status.counters.is_some(),
        "data_path": status.data_path,
        "attached": status.attached,
        "attaching": status.attaching,
        "ranges": ranges_json(&status.ranges),
    });
    if !status.data_path_reason.is_empty() {
        json["data_path_reason"] = status.data_path_reason.clone().into();
    }
    if let Some(counters) = status.counters.as_ref() {
        json["version"] = status.program_version.into();
        json["layout"] = status.layout_version.into();
        json["mode"] = status.program_mode.clone().into();
        json["counters"] = counters_json(counters);
    }
    json
}

/// Of the node or of one pod.
pub(super) fn counters_json(counters: &api::DataPathCounters) -> Value {
    let count = |count: &api::Count| json!({ "packets": count.packets, "bytes": count.bytes });
    let ways = ways(counters).into_iter().map(|(way, counted)| (way.to_owned(), count(counted)));
    let mut json = Value::Object(ways.collect::<Map<_, _>>());
    if !counters.drops.is_empty() {
        let drops = counters.drops.iter().map(|drop| (drop.reason.clone(), drop.packets.into()));
        json["drops"] = Value::Object(drops.collect());
    }
    json
}

/// Numbers as text: a /64 has more addresses than JSON's numbers can hold.
pub(super) fn ranges_json(ranges: &[api::RangeStatus]) -> Value {
    let range = |range: &api::RangeStatus| {
        json!({
            "network": range.network, "first": range.first, "last": range.last, "total": range.total,
            "used": range.used, "cooling": range.cooling, "free": range.free,
        })
    };
    ranges.iter().map(range).collect()
}

pub(super) fn ways(counters: &api::DataPathCounters) -> [(&'static str, &api::Count); 4] {
    [
        ("redirected", &counters.redirected),
        ("passed", &counters.passed),
        ("returned", &counters.returned),
        ("dropped", &counters.dropped),
    ]
}

fn as_table(status: &api::NodeStatusResponse, out: &mut impl Write) -> Result<(), Error> {
    line(out, &format!("weft:      {}", status.version))?;
    let programs = match status.program_version {
        0 => "not loaded".to_owned(),
        version => format!("version {version}, {}", status.program_mode),
    };
    line(out, &format!("programs:  {programs}"))?;
    let why = match status.data_path_reason.as_str() {
        "" => String::new(),
        reason => format!(" ({reason})"),
    };
    line(out, &format!("data path: {}{why}", status.data_path))?;
    line(out, &format!("pods:      {} attached, {} attaching", status.attached, status.attaching))?;
    if let Some(counters) = status.counters.as_ref() {
        line(out, "")?;
        let header = ["WAY", "PACKETS", "BYTES"].map(str::to_owned);
        let rows = ways(counters)
            .map(|(way, count)| [way.to_owned(), count.packets.to_string(), count.bytes.to_string()]);
        table(out, std::iter::once(header).chain(rows).collect())?;
        drops_table(counters, out)?;
    }
    if !status.ranges.is_empty() {
        line(out, "")?;
        ranges_table(&status.ranges, out)?;
    }
    Ok(())
}

/// One line a reason that packets were dropped for.
fn drops_table(counters: &api::DataPathCounters, out: &mut impl Write) -> Result<(), Error> {
    let rows: Vec<_> = counters
        .drops
        .iter()
        .filter(|drop| drop.packets > 0)
        .map(|drop| [drop.reason.clone(), drop.packets.to_string()])
        .collect();
    if rows.is_empty() {
        return Ok(());
    }
    line(out, "")?;
    table(out, std::iter::once(["DROPPED FOR", "PACKETS"].map(str::to_owned)).chain(rows).collect())
}

/// One line a range.
pub(super) fn ranges_table(ranges: &[api::RangeStatus], out: &mut impl Write) -> Result<(), Error> {
    let header = ["NETWORK", "FIRST", "LAST", "TOTAL", "USED", "COOLING", "FREE"].map(str::to_owned);
    let rows = ranges.iter().map(|range| {
        let network = if range.network.is_empty() { "-" } else { &range.network };
        let cells =
            [network, &range.first, &range.last, &range.total, &range.used, &range.cooling, &range.free];
        cells.map(str::to_owned)
    });
    table(out, std::iter::once(header).chain(rows).collect())
}
