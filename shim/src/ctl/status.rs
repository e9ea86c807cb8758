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
        let ways = ways(counters).into_iter();
        let count = |count: &api::Count| json!({ "packets": count.packets, "bytes": count.bytes });
        json["counters"] =
            Value::Object(ways.map(|(way, counted)| (way.to_owned(), count(counted))).collect::<Map<_, _>>());
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

fn ways(counters: &api::DataPathCounters) -> [(&'static str, &api::Count); 4] {
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
    }
    if !status.ranges.is_empty() {
        line(out, "")?;
        ranges_table(&status.ranges, out)?;
    }
    Ok(())
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
