//! What `weft pods` and `weft version` print, and how everything is printed.

use std::io::Write;

use serde_json::{Value, json};

use super::args::{Format, Pods};
use super::{Error, Node};
use crate::proto::network as api;
use crate::record::{DataPath, PodName, Record, State};

/// One line an attachment.
pub(super) async fn pods(
    node: &Node<'_>,
    pods: &Pods,
    format: Format,
    out: &mut impl Write,
) -> Result<(), Error> {
    let filter = api::Filter {
        pod_namespace: pods.namespace.clone().unwrap_or_default(),
        pod_name: pods.name.clone().unwrap_or_default(),
        network: pods.network.clone().unwrap_or_default(),
        labels: pods.label.iter().cloned().collect(),
        ..Default::default()
    };
    let records = node.records(&filter).await?;
    if format == Format::Json {
        return print_json(out, &json!(records));
    }
    let header = ["POD", "INTERFACE", "ADDRESSES", "DATA PATH", "LINK", "CONTAINER"];
    let more = ["NETWORK", "MTU", "MAC", "HOST MAC", "NAMESPACE"];
    let columns = if pods.wide { &[&header[..], &more].concat() } else { &header[..] };
    let header = columns.iter().map(|&column| column.to_owned()).collect();
    let rows = records.iter().map(|record| row(record, pods.wide));
    table(out, std::iter::once(header).chain(rows).collect())
}

fn row(record: &Record, wide: bool) -> Vec<String> {
    let container = if wide { record.container.clone() } else { record.container.chars().take(13).collect() };
    let mut row = vec![
        pod_name(&record.pod),
        record.interface.clone(),
        addresses(record),
        data_path(record).to_owned(),
        record.host_link.clone(),
        container,
    ];
    if wide {
        let netns = record.netns.path.display().to_string();
        let mtu = record.mtu.to_string();
        row.extend([record.network.clone(), mtu, record.mac.clone(), record.host_mac.clone(), netns]);
    }
    row
}

/// `-` where the runtime did not say.
pub(super) fn pod_name(pod: &PodName) -> String {
    if pod.is_known() { pod.to_string() } else { "-".to_owned() }
}

pub(super) fn addresses(record: &Record) -> String {
    record.addresses.iter().map(ToString::to_string).collect::<Vec<_>>().join(",")
}

pub(super) fn data_path(record: &Record) -> &'static str {
    match (record.state, record.data_path) {
        _ if record.tombstone.is_some() => "detaching",
        (State::Attaching, _) => "attaching",
        (State::Detaching, _) => "detaching",
        (_, DataPath::Redirect) => "redirect",
        (_, DataPath::Routing) => "routing",
    }
}

pub(super) fn version(format: Format, out: &mut impl Write) -> Result<(), Error> {
    let version = env!("CARGO_PKG_VERSION");
    match format {
        Format::Json => print_json(out, &json!({ "version": version })),
        Format::Table => line(out, &format!("weft {version}")),
    }
}

pub(super) fn line(out: &mut impl Write, text: &str) -> Result<(), Error> {
    writeln!(out, "{text}").map_err(Error::Print)
}

pub(super) fn print_json(out: &mut impl Write, value: &Value) -> Result<(), Error> {
    writeln!(out, "{value}").map_err(Error::Print)
}

/// Columns as wide as their widest cell, two spaces apart.
pub(super) fn table<R: AsRef<[String]>>(out: &mut impl Write, rows: Vec<R>) -> Result<(), Error> {
    let mut widths: Vec<usize> = Vec::new();
    for row in &rows {
        let row = row.as_ref();
        widths.resize(widths.len().max(row.len()), 0);
        for (width, cell) in widths.iter_mut().zip(row) {
            *width = (*width).max(cell.chars().count());
        }
    }
    for row in &rows {
        let cells = row.as_ref().iter().zip(&widths).map(|(cell, &width)| format!("{cell:width$}"));
        line(out, cells.collect::<Vec<_>>().join("  ").trim_end())?;
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn columns_stand_below_each_other() {
        let mut out = Vec::new();
        let rows = vec![["A", "B"], ["grün", "1"], ["x", ""]];
        let rows = rows.into_iter().map(|row| row.map(str::to_owned)).collect::<Vec<_>>();
        table(&mut out, rows).unwrap();
        assert_eq!(String::from_utf8(out).unwrap(), "A     B\ngrün  1\nx\n");
    }
}
