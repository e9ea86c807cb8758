//! What the shim of one pod holds, looked at after every round.

use std::fmt;
use std::fs;

use weft_conformance::Node;

/// One look.
#[derive(Debug, Clone, Copy)]
struct Held {
    rss_kb: u64,
    descriptors: usize,
    threads: u64,
}

/// All looks, in order; the first comes after a round that warms up.
#[derive(Default)]
pub(crate) struct Census(Vec<Held>);

/// A page here and there is no leak: what an allocator keeps depends on what came before.
const SLACK_KB: u64 = 96;
/// What a shim may keep of an exec that nobody deletes.
const LOST_KB: u64 = 4;

impl Census {
    pub(crate) fn take(&mut self, node: &Node, pod: &str) {
        let processes = fs::read_dir(node.path("/proc")).expect("list the node's /proc").flatten();
        let shim = processes.map(|entry| entry.path()).find(|process| {
            let line = fs::read_to_string(process.join("cmdline")).unwrap_or_default();
            line.contains("containerd-shim") && line.contains(pod)
        });
        let shim = shim.expect("the pod has a shim");
        let status = fs::read_to_string(shim.join("status")).expect("read the status of a shim");
        self.0.push(Held {
            rss_kb: field(&status, "VmRSS:"),
            descriptors: fs::read_dir(shim.join("fd")).expect("list the descriptors of a shim").count(),
            threads: field(&status, "Threads:"),
        });
    }

    /// What a shim holds at the end and did not hold after the first round. An exec whose containerd has died is never deleted by
    /// anybody, and what it wrote is kept for a reader: two fifos for each of the `lost`, as under the reference.
    pub(crate) fn growth(&self, lost: usize) -> Vec<String> {
        let (first, last) = (self.0[0], self.0[self.0.len() - 1]);
        let mut grown = Vec::new();
        if last.descriptors > first.descriptors + 2 * lost {
            grown.push(format!("descriptors: {self}"));
        }
        if last.threads > first.threads {
            grown.push(format!("threads: {self}"));
        }
        if last.rss_kb > first.rss_kb + SLACK_KB + LOST_KB * lost as u64 {
            grown.push(format!("memory: {self}"));
        }
        grown
    }
}

impl fmt::Display for Census {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let list = |of: &dyn Fn(&Held) -> String| self.0.iter().map(of).collect::<Vec<_>>().join(" ");
        let rss = list(&|held| held.rss_kb.to_string());
        let descriptors = list(&|held| held.descriptors.to_string());
        let threads = list(&|held| held.threads.to_string());
        write!(f, "rss in kB {rss}, descriptors {descriptors}, threads {threads}")
    }
}

fn field(text: &str, name: &str) -> u64 {
    let line = text.lines().find_map(|line| line.strip_prefix(name)).expect("the file has the field");
    line.split_whitespace().next().and_then(|value| value.parse().ok()).expect("a number")
}
