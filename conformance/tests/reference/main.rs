//! Every behaviour that the CNI project's reference chain has for pods, tried on it and on weft in one run, by packets between
//! namespaces. What comes out is `docs/conformance.md`; a run that measures anything else than that file says fails.
//!
//! An expected difference is tried like everything else: a behaviour that one side is said to lack must fail there.
//! `WEFT_CONFORMANCE=write` (`make conformance-table`) writes the file; `WEFT_CONFORMANCE_ONLY` tries the rows that have these words.
//! Needs root.

#![expect(clippy::unwrap_used, clippy::expect_used, reason = "a test that cannot go on panics")]

mod behaviours;
mod rows;
mod sctp;
mod site;
mod space;
mod table;
mod traffic;
mod wish;

use std::panic::{AssertUnwindSafe, catch_unwind};
use std::path::Path;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::thread;

use rows::{Expect, ROWS, Row};
use site::Site;
use weft_conformance::Subject;

/// What became of one behaviour on one subject: why it is not there.
type Outcome = Result<(), String>;

fn try_on(subject: Subject, row: &Row) -> Outcome {
    let site = Site::new(subject);
    catch_unwind(AssertUnwindSafe(|| (row.run)(&site))).map_err(|panic| {
        let text = panic.downcast_ref::<String>().cloned();
        text.or_else(|| panic.downcast_ref::<&str>().map(|text| (*text).to_owned())).unwrap_or_default()
    })
}

/// How many rows are tried at once on each subject; most of the time is spent waiting.
const WORKERS: usize = 3;

/// All rows on one subject, each on a node of its own.
fn try_all(subject: Subject, rows: &[&Row]) -> Vec<Outcome> {
    let next = AtomicUsize::new(0);
    let work = || {
        let mut done = Vec::new();
        while let Some((at, row)) =
            Some(next.fetch_add(1, Ordering::Relaxed)).and_then(|at| Some((at, rows.get(at)?)))
        {
            done.push((at, try_on(subject, row)));
        }
        done
    };
    let mut outcomes = thread::scope(|scope| {
        let workers = [(); WORKERS].map(|()| scope.spawn(work));
        workers.into_iter().flat_map(|worker| worker.join().unwrap()).collect::<Vec<_>>()
    });
    outcomes.sort_by_key(|(at, _)| *at);
    outcomes.into_iter().map(|(_, outcome)| outcome).collect()
}

fn deviations(subject: Subject, rows: &[&Row], outcomes: &[Outcome]) -> Vec<String> {
    let mut wrong = Vec::new();
    for (row, outcome) in rows.iter().zip(outcomes) {
        let expected = if subject == Subject::Weft { row.weft } else { row.reference };
        match (expected, outcome) {
            (Expect::Has, Err(why)) => wrong.push(format!("{subject:?} lacks: {}: {why}", row.what)),
            (Expect::Lacks(..), Ok(())) => wrong.push(format!("{subject:?} has it after all: {}", row.what)),
            (Expect::Lacks(_, sign), Err(why)) if !why.contains(sign) => {
                wrong.push(format!("{subject:?} lacks, and not for want of it: {}: {why}", row.what));
            }
            _ => {}
        }
    }
    wrong
}

#[test]
fn weft_has_every_behaviour_of_the_reference_chain() {
    let only = std::env::var("WEFT_CONFORMANCE_ONLY").unwrap_or_default();
    let rows: Vec<&Row> =
        ROWS.iter().filter(|row| row.what.contains(&only) || row.topic.contains(&only)).collect();
    assert!(!rows.is_empty(), "no row has {only:?} in its name");
    let subjects = [Subject::Reference, Subject::Weft];
    let [reference, weft] = thread::scope(|scope| {
        let runs = subjects.map(|subject| {
            scope.spawn({
                let rows = &rows;
                move || try_all(subject, rows)
            })
        });
        runs.map(|run| run.join().unwrap())
    });
    let mut wrong = deviations(Subject::Reference, &rows, &reference);
    wrong.extend(deviations(Subject::Weft, &rows, &weft));
    assert!(wrong.is_empty(), "{} of {} rows:\n{}", wrong.len(), rows.len(), wrong.join("\n"));
    if !only.is_empty() {
        return;
    }
    let file = Path::new(env!("CARGO_MANIFEST_DIR")).join("../docs/conformance.md");
    let text = table::of(&rows, &reference, &weft);
    if std::env::var_os("WEFT_CONFORMANCE").is_some_and(|word| word == "write") {
        std::fs::write(&file, &text).unwrap();
    }
    let committed = std::fs::read_to_string(&file).unwrap_or_default();
    assert_eq!(
        committed, text,
        "docs/conformance.md differs from what was measured: run `make conformance-table`"
    );
}
