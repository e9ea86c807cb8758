//! How many calls of each kind were made, and which failed.

use std::collections::BTreeMap;
use std::fmt::Write;
use std::sync::{Mutex, MutexGuard};

/// How much of what failed calls said is kept.
const KEPT: usize = 3;

#[derive(Default)]
struct Kind {
    succeeded: u64,
    failed: u64,
    interrupted: u64,
    said: Vec<String>,
}

/// The calls of one subject.
#[derive(Default)]
pub(crate) struct Tally(Mutex<BTreeMap<&'static str, Kind>>);

impl Tally {
    pub(crate) fn succeeded(&self, kind: &'static str) {
        self.kinds().entry(kind).or_default().succeeded += 1;
    }

    /// containerd went away meanwhile.
    pub(crate) fn interrupted(&self, kind: &'static str) {
        self.kinds().entry(kind).or_default().interrupted += 1;
    }

    pub(crate) fn failed(&self, kind: &'static str, why: String) {
        let mut kinds = self.kinds();
        let kind = kinds.entry(kind).or_default();
        kind.failed += 1;
        if kind.said.len() < KEPT {
            kind.said.push(why);
        }
    }

    /// Calls whose name begins with `word` and that containerd did not live to answer.
    pub(crate) fn lost(&self, word: &str) -> usize {
        let kinds = self.kinds();
        let lost = kinds.iter().filter(|(name, _)| name.starts_with(word)).map(|(_, kind)| kind.interrupted);
        lost.sum::<u64>() as usize
    }

    fn kinds(&self) -> MutexGuard<'_, BTreeMap<&'static str, Kind>> {
        self.0.lock().expect("nobody panics with it")
    }
}

/// Kinds of calls that failed under weft and never under the reference, with what they said.
pub(crate) fn worse(weft: &Tally, reference: &Tally) -> Vec<String> {
    let reference = reference.kinds();
    let fails = |kind: &&str| reference.get(*kind).is_some_and(|kind| kind.failed > 0);
    let weft = weft.kinds();
    let worse = weft.iter().filter(|(name, kind)| kind.failed > 0 && !fails(name));
    worse.map(|(name, kind)| format!("{name}: {} failed:\n{}", kind.failed, kind.said.join("\n"))).collect()
}

/// All kinds, and what failed calls said.
pub(crate) fn table(weft: &Tally, reference: &Tally) -> String {
    let [weft, reference] = [weft, reference].map(Tally::kinds);
    let mut text = format!("{:36}{:>24}{:>24}\n", "succeeded, failed, interrupted", "weft", "reference");
    for (name, kind) in weft.iter() {
        let cell = |kind: &Kind| format!("{}, {}, {}", kind.succeeded, kind.failed, kind.interrupted);
        let other = reference.get(name).map(cell).unwrap_or_default();
        writeln!(text, "{name:36}{:>24}{other:>24}", cell(kind)).expect("a string takes everything");
    }
    for (who, kinds) in [("weft", &weft), ("the reference", &reference)] {
        for (name, kind) in kinds.iter().filter(|(_, kind)| kind.failed > 0) {
            writeln!(text, "{who}: {name}:\n{}", kind.said.join("\n")).expect("a string takes everything");
        }
    }
    text
}
