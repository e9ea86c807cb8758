//! The soak: pods and containers made, used, killed and removed at four at a time, with a restart of containerd in every round and
//! now and then a killed shim. Round by round weft and the reference do the very same, so that a call may fail only if it fails there.
//!
//! `WEFT_SOAK_SECONDS` says how long (180), `WEFT_SOAK_SEED` which order of things (1). What is asked at the end: no kind of call
//! failed that did not fail under the reference; nothing was left after any round; and two pods that have lived all the time, with
//! hundreds of execs, hold no more memory, descriptors or threads than after the first round.

#![expect(clippy::expect_used, reason = "a test that cannot go on panics")]

mod census;
mod deck;
mod episode;
mod outage;
mod tally;

use std::collections::BTreeSet;
use std::env;
use std::sync::Mutex;
use std::sync::atomic::{AtomicBool, Ordering};
use std::thread;
use std::time::{Duration, Instant};

use weft_conformance::{Container, ContainerSpec, Dice, Node, PodSpec, Subject, image};

use census::Census;
use deck::deck;
use episode::Worker;
use outage::Outage;
use tally::Tally;

/// Workers on a node.
const AT_A_TIME: usize = 4;
/// The first round warms up, and a slope needs some more.
const LEAST_ROUNDS: u64 = 4;
/// How long what is on its way out may take, for weft, and for the reference, of which it is only told: containerd itself waits
/// ten seconds before it looks again for a lost shim's containers.
const GONE: [Duration; 2] = [Duration::from_secs(60), Duration::from_secs(20)];

/// A pod that lives as long as the soak, and its container.
struct Resident<'n> {
    pod: String,
    container: Container<'n>,
    census: Census,
}

/// One subject.
struct Arm<'n> {
    node: &'n Node,
    outage: Outage,
    tally: Tally,
    residents: Vec<Resident<'n>>,
    /// What the residents leave on the node while they live.
    expected: BTreeSet<String>,
}

#[test]
fn a_mixed_load_fails_no_call_and_leaves_nothing() {
    let (seconds, seed) = (setting("WEFT_SOAK_SECONDS", 180), setting("WEFT_SOAK_SEED", 1));
    let nodes = [Subject::Weft, Subject::Reference].map(Node::start);
    let mut arms = nodes.each_ref().map(Arm::start);
    let end = Instant::now() + Duration::from_secs(seconds);
    let mut round = 0;
    while round < LEAST_ROUNDS || Instant::now() < end {
        // The other way round every second time: neither always follows the other.
        let turn = usize::from(!round.is_multiple_of(2));
        for arm in [turn, 1 - turn] {
            arms[arm].round(seed, round);
        }
        round += 1;
    }
    let [weft, reference] = &arms;
    say(&format!("{round} rounds of seed {seed}\n{}", tally::table(&weft.tally, &reference.tally)));
    let held: Vec<String> = weft.residents.iter().map(|resident| resident.census.to_string()).collect();
    let of_reference = reference.residents.iter().map(|resident| resident.census.to_string());
    say(&format!("weft {}\nreference {}", held.join("; "), of_reference.collect::<Vec<_>>().join("; ")));
    let lost = weft.tally.lost("exec");
    let mut faults = tally::worse(&weft.tally, &reference.tally);
    faults.extend(weft.residents.iter().flat_map(|resident| resident.census.growth(lost)));
    assert_eq!(faults, [""; 0], "seed {seed}");
    drop(arms);
    let [weft, _] = nodes;
    // The reference has left sockets of killed shims behind, and said so.
    weft.finish();
}

fn setting(name: &str, default: u64) -> u64 {
    env::var(name).map_or(default, |value| value.parse().expect("a number"))
}

#[expect(clippy::print_stdout, reason = "what was done and what it cost is what a soak is read for")]
fn say(text: &str) {
    println!("{text}");
}

impl<'n> Arm<'n> {
    fn start(node: &'n Node) -> Self {
        let residents = ["r0", "r1"].map(|name| {
            let pod = node.run_pod(&PodSpec::new(name));
            let container = pod.run(&ContainerSpec::new("main", image::BUSYBOX));
            Resident { pod: pod.id().to_owned(), container, census: Census::default() }
        });
        let expected = node.leaks().into_iter().collect();
        Self {
            node,
            outage: Outage::default(),
            tally: Tally::default(),
            residents: residents.into(),
            expected,
        }
    }

    /// One deck, dealt to the workers as they ask; then nothing must be left, and the residents are looked at.
    fn round(&mut self, seed: u64, round: u64) {
        let mut dice = Dice::new(seed, round);
        let cards = Mutex::new(deck(&mut dice).into_iter().enumerate());
        let next = || cards.lock().expect("no worker panics with the deck in its hand").next();
        let is_over = AtomicBool::new(false);
        let (after, signal) = outage::plan(&mut dice);
        let arm = &*self;
        thread::scope(|scope| {
            let workers: Vec<_> = (0..AT_A_TIME)
                .map(|_| {
                    scope.spawn(|| {
                        while let Some((number, card)) = next() {
                            let mut dice = Dice::new(seed ^ ((number as u64 + 1) << 32), round);
                            let (name, pids) = (format!("p{round}-{number}"), dice.below(2));
                            Worker { arm, name, pids, since: arm.outage.epoch() }.play(card, dice);
                        }
                    })
                })
                .collect();
            scope.spawn(|| arm.outage.strike(arm.node, after, signal, &is_over));
            scope.spawn(|| arm.poll(&is_over));
            let ends: Vec<_> = workers.into_iter().map(thread::ScopedJoinHandle::join).collect();
            is_over.store(true, Ordering::Relaxed);
            ends.into_iter().for_each(|end| end.expect("a worker does not panic"));
        });
        self.must_be_clean(round);
        for resident in &mut self.residents {
            resident.census.take(self.node, &resident.pod);
        }
    }

    /// What the kubelet asks all the time.
    fn poll(&self, is_over: &AtomicBool) {
        while !is_over.load(Ordering::Relaxed) {
            for (kind, words) in [
                ("list pods", &["pods", "--output", "json"][..]),
                ("list containers", &["ps", "--all", "--output", "json"]),
                ("stats of containers", &["stats", "--all", "--output", "json"]),
            ] {
                // A failure is in the tally.
                drop(self.repeat(kind, || self.crictl(words)));
            }
            drop(self.repeat("stats of pods", || self.stats_of_pods()));
            thread::park_timeout(Duration::from_millis(500));
        }
    }

    /// A pod may stop between containerd's look at its state and that at its network, which fails the list of all pods
    /// (`podSandboxStats` in internal/cri/server/sandbox_stats_linux.go of 2.4.2), whatever the runtime: that one is asked for again.
    fn stats_of_pods(&self) -> Result<String, String> {
        let ask = || self.crictl(&["statsp", "--output", "json"]);
        ask().or_else(|why| {
            if why.contains("unknown FS magic") || why.contains("failed to Statfs") {
                ask()
            } else {
                Err(why)
            }
        })
    }

    fn must_be_clean(&mut self, round: u64) {
        let is_reference = self.node.subject() == Subject::Reference;
        let end = Instant::now() + GONE[usize::from(is_reference)];
        let mut left = self.left();
        while !left.is_empty() && Instant::now() < end {
            thread::park_timeout(Duration::from_millis(200));
            left = self.left();
        }
        let text = format!("left behind after round {round}:\n  {}", left.join("\n  "));
        assert!(left.is_empty() || is_reference, "{text}");
        if is_reference && !left.is_empty() {
            say(&format!("reference: {text}"));
            self.expected.extend(left);
        }
    }

    fn left(&self) -> Vec<String> {
        let mut left = self.node.leaks();
        left.extend(self.of_containerd());
        left.retain(|leak| !self.expected.contains(leak) && !self.is_of_lost_exec(leak));
        left
    }

    /// A containerd that is killed during an exec never removes the fifos that it has made for it.
    fn is_of_lost_exec(&self, leak: &str) -> bool {
        let residents = self.residents.iter();
        residents
            .map(|resident| resident.container.id())
            .any(|id| leak.contains(&format!("/containers/{id}/io/")))
    }

    /// What containerd knows beside the residents: containers, tasks, pods.
    fn of_containerd(&self) -> Vec<String> {
        let known = |id: &str| {
            self.residents.iter().any(|resident| [&*resident.pod, resident.container.id()].contains(&id))
        };
        let mut found = Vec::new();
        for words in
            [&["containers", "list", "--quiet"][..], &["tasks", "list", "--quiet"], &["sandboxes", "list"]]
        {
            let text = weft_conformance::run(&mut self.node.ctr(words));
            let ids = text.lines().filter_map(|line| line.split_whitespace().next());
            let ids = ids.filter(|id| id.len() == 64 && !known(id));
            found.extend(ids.map(|id| format!("{} {id}", words[0])));
        }
        found
    }
}

/// Polls `condition`, less often than [`wait_until`] does: each look is a run of crictl.
fn holds_soon(condition: impl Fn() -> bool) -> bool {
    let end = Instant::now() + GONE[0];
    while !condition() {
        if Instant::now() > end {
            return false;
        }
        thread::park_timeout(Duration::from_millis(100));
    }
    true
}
