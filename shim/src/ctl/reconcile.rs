//! `weft reconcile`: what pods that are gone have left is removed, or with `--dry-run` told.

use std::io::Write;

use serde_json::json;

use super::args::Format;
use super::{Error, show};
use crate::config::Config;
use crate::journal;
use crate::reconcile::{self, Gone, Report};

/// One line for each thing that was found. What could not be removed is an error, after all the rest is done.
pub(super) fn run(config: &Config, dry_run: bool, format: Format, out: &mut impl Write) -> Result<(), Error> {
    journal::open_inherited();
    let report = reconcile::node(config, dry_run)?;
    match format {
        Format::Json => show::print_json(out, &json!(report))?,
        Format::Table => print(&report, out)?,
    }
    let left = report.left();
    if left.is_empty() { Ok(()) } else { Err(Error::Left(left)) }
}

fn print(report: &Report, out: &mut impl Write) -> Result<(), Error> {
    let rows = rows(report);
    if !rows.is_empty() {
        let header = ["FOUND", "NAME", "ADDRESSES", "WHY"].map(str::to_owned);
        show::table(out, std::iter::once(header).chain(rows).collect())?;
    }
    let end = if report.dry_run { "; nothing was changed" } else { "" };
    writeln!(out, "{} attachments kept{end}", report.kept).map_err(Error::Print)
}

fn rows(report: &Report) -> Vec<[String; 4]> {
    let row = |found: &str, name: &str, addresses: &str, why: &str| {
        [found, name, addresses, why].map(str::to_owned)
    };
    let gone = |found: &str, gone: &Gone| {
        let addresses: Vec<String> = gone.addresses.iter().map(ToString::to_string).collect();
        row(found, &format!("{} {}", gone.container, gone.interface), &addresses.join(","), &gone.why)
    };
    let freed = report.freed.iter().map(|one| gone("dead", one));
    let links = report.links.iter().map(|link| row("link", link, "-", "it has no record and no routes"));
    let entries =
        report.entries.iter().map(|address| row("entry", "-", &address.to_string(), "it has no record"));
    let counters = report
        .counters
        .iter()
        .map(|index| row("counters", &format!("link {index}"), "-", "it has no record"));
    let foreign = report
        .foreign
        .iter()
        .map(|link| row("foreign", link, "-", "it is of another store, or its record is lost: left alone"));
    let nat = report.nat_repaired.then(|| row("table", "inet weft", "-", "it was not as the records say"));
    let adopted =
        report.adopted.iter().map(|pod| row("changed", pod, "-", "its MAC address was set behind weft"));
    let tombstones = report.tombstones.iter().map(|one| gone("tombstone", one));
    let failed = report.failed.iter().map(|what| row("failed", "-", "-", what));
    freed
        .chain(links)
        .chain(entries)
        .chain(counters)
        .chain(foreign)
        .chain(nat)
        .chain(adopted)
        .chain(tombstones)
        .chain(failed)
        .collect()
}
