//! What was found dead, lost or broken on the node, and mended.

use super::Page;
use crate::proto::network as api;
use crate::tally::{Event, Events};

/// The counts since the boot, and what waits for the next reconcile.
pub(super) fn upkeep(page: &mut Page, events: &Events, status: &api::NodeStatusResponse) {
    let name = "weft_reconciles_total";
    page.head(name, "Reconciles, by what was looked at; gc is CNI's.", "counter");
    for (scope, event) in [
        ("node", Event::ReconciledNode),
        ("network", Event::ReconciledNetwork),
        ("gc", Event::CollectedGarbage),
    ] {
        page.sample(name, &[("scope", scope)], &events.of(event).to_string());
    }
    let name = "weft_leaked_objects_removed_total";
    page.head(name, "What dead pods and lost records had left, removed by reconciles.", "counter");
    for (kind, event) in
        [("attachment", Event::FreedAttachment), ("link", Event::FreedLink), ("map_entry", Event::FreedEntry)]
    {
        page.sample(name, &[("kind", kind)], &events.of(event).to_string());
    }
    for (name, help, value) in [
        (
            "weft_reconcile_errors_total",
            "Things that a reconcile could not look at, or not remove.",
            events.of(Event::NotReconciled),
        ),
        (
            "weft_detach_errors_total",
            "Detaches that left something for the next reconcile.",
            events.of(Event::Tombstone),
        ),
        (
            "weft_table_repairs_total",
            "How often the table of host ports and masquerade was made anew.",
            status.table_repairs,
        ),
    ] {
        page.head(name, help, "counter");
        page.sample(name, &[], &value.to_string());
    }
    let tombstones = status.tombstones.to_string();
    page.gauge("weft_tombstones", "Attachments whose detach failed.", &[(&[], &tombstones)]);
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::tally;

    #[test]
    fn every_count_has_its_sample() {
        let dir = tempfile::tempdir().unwrap();
        let counts = [
            (Event::ReconciledNode, 1),
            (Event::ReconciledNetwork, 2),
            (Event::CollectedGarbage, 3),
            (Event::NotReconciled, 4),
            (Event::FreedAttachment, 5),
            (Event::FreedLink, 6),
            (Event::FreedEntry, 7),
            (Event::Tombstone, 8),
        ];
        tally::add(dir.path(), &counts).unwrap();
        let mut page = Page::default();
        let status = api::NodeStatusResponse { tombstones: 9, table_repairs: 10, ..Default::default() };
        upkeep(&mut page, &tally::events(dir.path()).unwrap(), &status);
        for line in [
            "weft_reconciles_total{scope=\"node\"} 1",
            "weft_reconciles_total{scope=\"network\"} 2",
            "weft_reconciles_total{scope=\"gc\"} 3",
            "weft_reconcile_errors_total 4",
            "weft_leaked_objects_removed_total{kind=\"attachment\"} 5",
            "weft_leaked_objects_removed_total{kind=\"link\"} 6",
            "weft_leaked_objects_removed_total{kind=\"map_entry\"} 7",
            "weft_detach_errors_total 8",
            "weft_tombstones 9",
            "weft_table_repairs_total 10",
        ] {
            assert!(page.0.lines().any(|found| found == line), "{line} in {}", page.0);
        }
    }
}
