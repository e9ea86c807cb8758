//! The kill campaign: pods made and removed at eight at a time, half of them through containerd and half by the CNI plugin alone,
//! while `kill -9` ends the plugin, shims, `weft serve` and containerd at random instants. Of few addresses, so that they are used
//! again at once.
//!
//! No two pods that live have an address or a port of the host in common, all the time; pods that nobody touches exchange TCP and
//! UDP without a loss; and one reconcile after the last pod nothing is left.
//!
//! `WEFT_CAMPAIGN_SEED` repeats one: the same pods and the same kills, between which the machine decides. `WEFT_CAMPAIGN_PODS` says
//! how many pods a round has, `WEFT_CAMPAIGN_ROUNDS` how many rounds: each ends with a reconcile and a look at what is left.
//! `WEFT_CAMPAIGN_LOG` is where the log of containerd is kept if that is not good.

#![expect(clippy::expect_used, reason = "a test that cannot go on panics")]

mod direct;
mod killer;
mod observer;
mod outage;
mod residents;
mod tally;
mod through_cri;

use std::collections::BTreeSet;
use std::env;
use std::fs;
use std::os::unix::net::UnixStream;
use std::sync::Mutex;
use std::sync::atomic::{AtomicBool, AtomicU64, AtomicUsize, Ordering};
use std::thread;
use std::time::{Duration, Instant};

use nix::sys::signal::Signal;
use serde_json::{Value, json};
use weft_conformance::{Dice, Node, NodeSpec, Subject, run, try_run, wait_until, weft_conflist};

use killer::Killer;
use observer::Register;
use outage::Outage;
use residents::Residents;
use tally::Tally;

/// Pods that are made or removed at the same time.
const AT_A_TIME: usize = 8;
/// How long anything may take that a client repeats, and what is on its way out: a shim that nobody is connected to ends after
/// 15 seconds.
const PATIENCE: Duration = Duration::from_secs(90);

/// A node under fire.
struct Campaign<'n> {
    node: &'n Node,
    seed: u64,
    register: Register,
    outage: Outage,
    tally: Tally,
    /// Pods of the round.
    begun: AtomicUsize,
    /// What a call of the plugin takes, in microseconds.
    call_us: AtomicU64,
}

/// What a pod is to be.
#[derive(Debug, Clone)]
struct Wish {
    /// Unique on the node.
    name: String,
    /// Who makes it: one of [`AT_A_TIME`].
    worker: usize,
    /// A port of the host, TCP and UDP; the worker's own.
    port: Option<u16>,
    /// Of the worker's own, in a range that others are given addresses of.
    address: Option<String>,
    limited: bool,
}

impl Wish {
    fn new(dice: &mut Dice, number: u64, worker: usize) -> Self {
        Self {
            name: format!("p{number}"),
            worker,
            port: (dice.below(3) == 0).then(|| 31_000 + worker as u16),
            address: (dice.below(6) == 0).then(|| format!("10.88.1.{}", 2 + worker)),
            limited: dice.below(3) == 0,
        }
    }
}

#[test]
fn kills_leak_nothing_and_harm_nobody_else() {
    let seed = setting("WEFT_CAMPAIGN_SEED", u64::from(std::process::id()));
    let (rounds, pods) = (setting("WEFT_CAMPAIGN_ROUNDS", 1), setting("WEFT_CAMPAIGN_PODS", 100));
    say(&format!("WEFT_CAMPAIGN_SEED={seed}, {rounds} rounds of {pods} pods"));
    let spec = NodeSpec { conflist: Some(conflist()), ..NodeSpec::new(Subject::Weft) };
    let node = Node::start_with(spec);
    let campaign = Campaign {
        node: &node,
        seed,
        register: Register::default(),
        outage: Outage::default(),
        tally: Tally::default(),
        begun: AtomicUsize::new(0),
        call_us: AtomicU64::new(10_000),
    };
    let residents = Residents::start(&node, &campaign.register);
    residents.pods().iter().for_each(|pod| campaign.outage.knows(pod.id(), Some(pod.netns().to_owned())));
    let expected: BTreeSet<String> = node.leaks().into_iter().collect();
    let mut faults = Vec::new();
    for round in 0..rounds {
        let started = Instant::now();
        let exchanges = residents.exchange();
        campaign.round(round * pods..(round + 1) * pods);
        let took = started.elapsed();
        faults.extend(campaign.settle(&residents));
        faults.extend(exchanges.into_iter().filter_map(|exchange| exchange.end().err()));
        faults.extend(campaign.register.faults());
        faults.extend(campaign.left(&residents, &expected));
        say(&format!("round {round}, {took:?}:\n{}", campaign.tally));
        if let Some(path) = env::var_os("WEFT_CAMPAIGN_LOG").filter(|_| !faults.is_empty()) {
            fs::write(path, node.containerd_log()).expect("keep the log of containerd");
        }
        assert_eq!(faults, [""; 0], "seed {seed}, round {round}");
    }
    residents.end();
    node.finish();
}

fn setting(name: &str, default: u64) -> u64 {
    env::var(name).map_or(default, |value| value.parse().expect("a number"))
}

#[expect(clippy::print_stdout, reason = "what was done, and by which seed, is what a campaign is read for")]
fn say(text: &str) {
    println!("{text}");
}

/// What is installed, with few addresses.
fn conflist() -> Value {
    let mut conflist = weft_conflist();
    conflist["plugins"][0]["ranges"] =
        json!([{ "subnet": "10.88.0.0/27" }, { "subnet": "10.88.1.0/28" }, { "subnet": "fd00:88::/122" }]);
    conflist
}

impl Campaign<'_> {
    /// The pods of these numbers, and everything that happens to them.
    fn round(&self, numbers: std::ops::Range<u64>) {
        let is_over = AtomicBool::new(false);
        let killer = Mutex::new(Killer::start(self, numbers.start));
        let numbers = Mutex::new(numbers);
        let next = || numbers.lock().expect("no worker panics with the numbers").next();
        thread::scope(|scope| {
            let workers: Vec<_> = (0..AT_A_TIME)
                .map(|worker| {
                    scope.spawn(move || {
                        while let Some(number) = next() {
                            self.pod(number, worker);
                        }
                    })
                })
                .collect();
            let others = [
                scope.spawn(|| killer.lock().expect("nobody else has it").run(&is_over)),
                scope.spawn(|| self.register.watch(self.node, &is_over)),
            ];
            let ends: Vec<_> = workers.into_iter().map(thread::ScopedJoinHandle::join).collect();
            is_over.store(true, Ordering::Relaxed);
            let ends = ends.into_iter().chain(others.map(thread::ScopedJoinHandle::join));
            ends.for_each(|end| end.expect("nobody panics"));
        });
    }

    fn pod(&self, number: u64, worker: usize) {
        self.begun.fetch_add(1, Ordering::Relaxed);
        let mut dice = Dice::new(self.seed, number);
        let wish = Wish::new(&mut dice, number, worker);
        if dice.below(2) == 0 { self.through_cri(&wish, &mut dice) } else { self.direct(&wish, &mut dice) }
    }

    /// All pods have gone, as far as anybody can ask for it. One reconcile, and what it could not do.
    fn settle(&self, residents: &Residents<'_>) -> Vec<String> {
        // When it starts, containerd takes away what a `delete` that was killed has left of a dead shim.
        self.node.restart_containerd(Signal::SIGTERM);
        self.clear_away();
        wait_until(PATIENCE, "the shims of lost pods end, and the namespaces with them", || {
            let strangers = self.node.processes().into_iter().any(|(_, line)| {
                line.contains("containerd-shim") && !residents.ids().iter().any(|id| line.contains(id))
            });
            !strangers && veths(self.node) == residents.ids().len()
        });
        self.remove_sockets(residents);
        let report = run(self.node.command("weft").args(["reconcile", "-o", "json"]));
        let report: Value = serde_json::from_str(&report).expect("weft prints JSON");
        self.tally.add("freed by the one reconcile", report["freed"].as_array().map_or(0, Vec::len));
        let mut faults = Vec::new();
        for left in ["tombstones", "failed", "foreign"] {
            if report[left] != json!([]) {
                faults.push(format!("{left} after the reconcile: {}", report[left]));
            }
        }
        faults
    }

    /// A `start` that is killed between its socket and its daemon leaves a file in a folder of containerd's, and so does a daemon
    /// that is killed before containerd has heard of it: containerd takes back the bundle, and asks nobody.
    fn remove_sockets(&self, residents: &Residents<'_>) {
        let sockets = fs::read_dir(self.node.dir().join("s")).expect("list the sockets of shims").flatten();
        let dead = sockets.filter(|socket| UnixStream::connect(socket.path()).is_err());
        let removed = dead.map(|socket| fs::remove_file(socket.path()).expect("remove a socket")).count();
        assert!(
            removed <= self.tally.of("kills of shims"),
            "{removed} dead sockets, residents {:?}",
            residents.ids()
        );
        self.tally.add("sockets that nobody answers", removed);
    }

    /// What is there beside the residents, and not on its way out.
    fn left(&self, residents: &Residents<'_>, expected: &BTreeSet<String>) -> Vec<String> {
        let end = Instant::now() + PATIENCE / 3;
        loop {
            let left = self.left_now(residents, expected);
            if left.is_empty() || Instant::now() > end {
                return left;
            }
            thread::park_timeout(Duration::from_millis(500));
        }
    }

    fn left_now(&self, residents: &Residents<'_>, expected: &BTreeSet<String>) -> Vec<String> {
        let mut left: Vec<String> =
            self.node.leaks().into_iter().filter(|leak| !expected.contains(leak)).collect();
        let entries = map_entries(self.node);
        if entries != residents.addresses() {
            left.push(format!("{entries} map entries, want {}", residents.addresses()));
        }
        // Leases, records and map entries tell the same.
        left.extend(try_run(self.node.command("weft").args(["ipam", "check"])).err());
        left
    }
}

/// Host ends.
fn veths(node: &Node) -> usize {
    let links = run(node.command("ip").args(["-json", "link", "show", "type", "veth"]));
    let links: Value = serde_json::from_str(&links).expect("ip prints JSON");
    let names = links.as_array().expect("a list").iter().filter_map(|link| link["ifname"].as_str());
    names.filter(|name| name.starts_with("weft")).count()
}

/// Entries of the pinned map of pods, as another program sees them.
fn map_entries(node: &Node) -> usize {
    let map = node.dir().join("bpf/weft/pods");
    let dump = run(node.command("bpftool").args(["-j", "map", "dump", "pinned"]).arg(map));
    let dump: Value = serde_json::from_str(&dump).expect("bpftool prints JSON");
    dump.as_array().expect("a list").len()
}
