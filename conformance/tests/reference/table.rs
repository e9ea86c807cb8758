//! The text of `docs/conformance.md`. Nothing in it changes from run to run.

use std::fmt::Write;
use std::path::Path;

use crate::Outcome;
use crate::rows::{Expect, NOT_FOR_PODS, Row};

/// From what was measured; the reasons are the rows'.
pub(crate) fn of(rows: &[&Row], reference: &[Outcome], weft: &[Outcome]) -> String {
    let had = |outcomes: &[Outcome]| outcomes.iter().filter(|outcome| outcome.is_ok()).count();
    let mut text = format!(
        "# weft beside the CNI reference plugins\n\nWritten by `make conformance-table`: each row is tried on both, by packets between namespaces, in one \
         run; `make test` fails when\na row comes out otherwise. The reference is bridge, host-local, portmap and bandwidth of \
         containernetworking/plugins {},\nwith the plugins named in the row behind them. A \"no\" is tried as well: it must fail.\n\n\
         Of {} rows the reference has {}, weft {}.\n",
        version(),
        rows.len(),
        had(reference),
        had(weft)
    );
    let mut topic = "";
    for (at, row) in rows.iter().enumerate() {
        if row.topic != topic {
            topic = row.topic;
            write!(text, "\n## {topic}\n\n| | reference | weft |\n|---|---|---|\n").unwrap();
        }
        let [theirs, ours] = [(&reference[at], row.reference), (&weft[at], row.weft)].map(cell);
        writeln!(text, "| {} | {theirs} | {ours} |", row.what).unwrap();
    }
    text.push_str("\n## Not for pods of weft\n\n| the reference has | why weft does not |\n|---|---|\n");
    for (what, why) in NOT_FOR_PODS {
        writeln!(text, "| {what} | {why} |").unwrap();
    }
    text
}

fn cell((outcome, expected): (&Outcome, Expect)) -> String {
    match (outcome, expected) {
        (Ok(()), _) => "yes".into(),
        (Err(_), Expect::Lacks(why, _)) => format!("no: {why}"),
        (Err(_), Expect::Has) => "no".into(),
    }
}

/// That of the plugins in conformance/tools/go.mod.
fn version() -> String {
    let file = Path::new(env!("CARGO_MANIFEST_DIR")).join("tools/go.mod");
    let text = std::fs::read_to_string(file).unwrap();
    let line = text.lines().find(|line| line.trim().starts_with("github.com/containernetworking/plugins v"));
    line.unwrap().split_whitespace().nth(1).unwrap().to_owned()
}
