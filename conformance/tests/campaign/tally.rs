//! What was done and what became of it, counted.

use std::collections::BTreeMap;
use std::fmt;
use std::sync::{Mutex, MutexGuard};

/// How much of what failed calls said is kept.
const KEPT: usize = 4;

#[derive(Default)]
struct Kind {
    count: usize,
    said: Vec<String>,
}

/// Counters by name.
#[derive(Default)]
pub(crate) struct Tally(Mutex<BTreeMap<String, Kind>>);

impl Tally {
    pub(crate) fn add(&self, what: &str, count: usize) {
        self.kinds().entry(what.to_owned()).or_default().count += count;
    }

    pub(crate) fn of(&self, what: &str) -> usize {
        self.kinds().get(what).map_or(0, |kind| kind.count)
    }

    /// One more, and why: the last line that is not empty.
    pub(crate) fn failed(&self, what: &str, why: &str) {
        let mut kinds = self.kinds();
        let kind = kinds.entry(what.to_owned()).or_default();
        kind.count += 1;
        let last = why.lines().map(str::trim).rfind(|line| !line.is_empty()).unwrap_or_default();
        let last: String = last.chars().take(700).collect();
        if kind.said.len() < KEPT && !kind.said.contains(&last) {
            kind.said.push(last);
        }
    }

    fn kinds(&self) -> MutexGuard<'_, BTreeMap<String, Kind>> {
        self.0.lock().expect("nobody panics with it")
    }
}

impl fmt::Display for Tally {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        for (what, kind) in self.kinds().iter() {
            writeln!(f, "{:7} {what}", kind.count)?;
            for said in &kind.said {
                writeln!(f, "            {said}")?;
            }
        }
        Ok(())
    }
}
