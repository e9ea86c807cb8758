//! What `weft pods`, `weft status` and `weft version` print.

use std::io::Write;

use serde_json::{Value, json};
use weft_hooks::{Count, FastPath};

use super::{Error, Format};
use crate::config::Config;
use crate::fast_path;
use crate::record::{DataPath, Record, State};
use crate::state::Ledger;

/// One line an attachment.
pub(super) fn pods(config: &Config, format: Format, out: &mut impl Write) -> Result<(), Error> {
    let records = Ledger::open(config)?.records()?;
    if format == Format::Json {
        return print_json(out, &json!(records));
    }
    let header = ["POD", "INTERFACE", "ADDRESSES", "DATA PATH", "LINK", "CONTAINER"].map(str::to_owned);
    let rows = records.iter().map(row);
    table(out, std::iter::once(header).chain(rows).collect())
}

fn row(record: &Record) -> [String; 6] {
    let addresses: Vec<String> = record.addresses.iter().map(ToString::to_string).collect();
    let pod = match (record.pod.namespace.as_str(), record.pod.name.as_str()) {
        (_, "") => "-".to_owned(),
        (namespace, name) => format!("{namespace}/{name}"),
    };
    let path = match (record.state, record.data_path) {
        _ if record.tombstone.is_some() => "detaching",
        (State::Attaching, _) => "attaching",
        (State::Detaching, _) => "detaching",
        (_, DataPath::Redirect) => "redirect",
        (_, DataPath::Routing) => "routing",
    };
    let container = record.container.chars().take(13).collect();
    [pod, record.interface.clone(), addresses.join(","), path.to_owned(), record.host_link.clone(), container]
}

/// Program versions and counters; a node without programs is a state, not an error.
pub(super) fn status(config: &Config, format: Format, out: &mut impl Write) -> Result<(), Error> {
    let (Some(versions), Some(fast_path)) = (FastPath::status(&config.bpf_dir)?, fast_path::open(config)?)
    else {
        return match format {
            Format::Json => print_json(out, &json!({ "loaded": false })),
            Format::Table => writeln!(out, "programs: not loaded").map_err(Error::Print),
        };
    };
    let counters = fast_path.counters()?;
    let ways = [
        ("redirected", &counters.redirected),
        ("passed", &counters.passed),
        ("returned", &counters.returned),
        ("dropped", &counters.dropped),
    ];
    if format == Format::Json {
        let ways: serde_json::Map<String, Value> =
            ways.into_iter().map(|(way, counter)| (way.to_owned(), counter_json(counter))).collect();
        return print_json(
            out,
            &json!({ "loaded": true, "version": versions.program, "mode": versions.mode.to_string(), "counters": ways }),
        );
    }
    writeln!(out, "programs: version {}, {}", versions.program, versions.mode).map_err(Error::Print)?;
    let header = ["WAY", "PACKETS", "BYTES"].map(str::to_owned);
    let rows =
        ways.map(|(way, counter)| [way.to_owned(), counter.packets.to_string(), counter.bytes.to_string()]);
    table(out, std::iter::once(header).chain(rows).collect())
}

fn counter_json(counter: &Count) -> Value {
    json!({ "packets": counter.packets, "bytes": counter.bytes })
}

pub(super) fn version(format: Format, out: &mut impl Write) -> Result<(), Error> {
    let version = env!("CARGO_PKG_VERSION");
    match format {
        Format::Json => print_json(out, &json!({ "version": version })),
        Format::Table => writeln!(out, "weft {version}").map_err(Error::Print),
    }
}

pub(super) fn print_json(out: &mut impl Write, value: &Value) -> Result<(), Error> {
    writeln!(out, "{value}").map_err(Error::Print)
}

/// Columns as wide as their widest cell, two spaces apart.
pub(super) fn table<const N: usize>(out: &mut impl Write, rows: Vec<[String; N]>) -> Result<(), Error> {
    let width = |column: usize| rows.iter().map(|row| row[column].len()).max().unwrap_or(0);
    let widths: [usize; N] = std::array::from_fn(width);
    for row in &rows {
        let cells = row.iter().zip(widths).map(|(cell, width)| format!("{cell:width$}"));
        let line = cells.collect::<Vec<_>>().join("  ");
        writeln!(out, "{}", line.trim_end()).map_err(Error::Print)?;
    }
    Ok(())
}
