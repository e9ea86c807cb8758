//! What the processes of pods hold in memory, as the kernel tells it.

use std::collections::BTreeMap;
use std::fs;
use std::path::Path;
use std::time::{Duration, Instant};

use crate::node::Node;
use crate::wait::wait_until;

/// What does not change for so long has settled: what a call leaves behind is given back within a second.
const STILL: Duration = Duration::from_secs(2);
/// How long that may take.
const DEADLINE: Duration = Duration::from_secs(60);

/// A sum over processes. Kernel memory (namespaces, links, map entries, cgroups) is not in it.
#[derive(Debug, Default)]
pub struct Held {
    /// How many there are, by name.
    pub processes: BTreeMap<String, u32>,
    /// All their threads.
    pub threads: u64,
    /// In kB; a page that processes share counts in each by its share.
    pub pss_kb: u64,
    /// In kB: what would be free without them, but for pages of files.
    pub private_dirty_kb: u64,
}

impl Held {
    /// As [`Held::on`], once it has stayed the same for two seconds, but for a hundredth: some garbage collector is always at work.
    #[track_caller]
    pub fn settled(node: &Node, payload: &str) -> Self {
        let (mut first, mut since) = (Self::on(node, payload), Instant::now());
        let mut held = Self::default();
        wait_until(DEADLINE, "the memory of the pods settles", || {
            held = Self::on(node, payload);
            // Not PSS: others may begin and end to share the same pages.
            let moved = held.private_dirty_kb.abs_diff(first.private_dirty_kb) > first.private_dirty_kb / 100;
            if moved || held.processes != first.processes {
                (first, since) = (Self::on(node, payload), Instant::now());
            }
            since.elapsed() >= STILL
        });
        held
    }

    /// By all processes of the node but containerd and `payload`, the name of what runs in the containers.
    #[track_caller]
    pub fn on(node: &Node, payload: &str) -> Self {
        let mut held = Self::default();
        for entry in fs::read_dir(node.path("/proc")).expect("list the node's /proc").flatten() {
            let pid = entry.file_name().to_str().and_then(|name| name.parse::<u32>().ok());
            // Process 1 holds the node's namespaces.
            if pid.is_some_and(|pid| pid != 1) {
                held.count(&entry.path(), &["containerd", payload]);
            }
        }
        held
    }

    /// Counts a process, unless it ends meanwhile: a process that did so was not the pod's.
    fn count(&mut self, process: &Path, left_out: &[&str]) {
        let read = |name: &str| fs::read_to_string(process.join(name)).ok();
        let (Some(name), Some(status), Some(smaps)) = (read("comm"), read("status"), read("smaps_rollup"))
        else {
            return;
        };
        let name = name.trim();
        if left_out.contains(&name) {
            return;
        }
        *self.processes.entry(name.to_owned()).or_default() += 1;
        self.threads += field(&status, "Threads:");
        self.pss_kb += field(&smaps, "Pss:");
        self.private_dirty_kb += field(&smaps, "Private_Dirty:");
    }
}

fn field(text: &str, name: &str) -> u64 {
    let mut lines = text.lines().filter_map(|line| line.strip_prefix(name));
    let value =
        lines.next().and_then(|rest| rest.split_whitespace().next()).expect("a file of /proc has the field");
    value.parse().expect("a number")
}
