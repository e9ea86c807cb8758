//! What an address costs, for `make bench`: `lease FOLDER` serves requests from stdin with the store in that folder, each a line, and answers each
//! with a line of JSON. conformance/tools/leases is the same program for host-local's store. Times are in microseconds.
//!
//! | request | what is done | answer |
//! |---|---|---|
//! | `fill COUNT` | so many pods lease an address of each family | `[COUNT]` |
//! | `pairs COUNT` | a pod leases and releases an address of each family, so many times | of each time, how long it took |
//! | `opened COUNT` | the same, but the store is opened for every lease and every release, and closed after it | the same |
//! | `during MS` | `pairs` for so many milliseconds | `[TIMES]` |
//! | `openings COUNT START EVERY` | at START, and every EVERY from then on: the store is opened and an address of each family leased, and released in the middle of the time. START is since the epoch, in ns, EVERY in ns | of each time, how long it took |
//!
//! By hand: `echo 'pairs 1000' | cargo run --release -p weft-ipam --example lease -- /run/try`.
#![expect(clippy::unwrap_used, clippy::print_stdout, reason = "a bench prints, and stops at the first error")]

use std::hash::{DefaultHasher, Hash, Hasher};
use std::io::stdin;
use std::path::PathBuf;
use std::thread::park_timeout;
use std::time::{Duration, Instant, SystemTime, UNIX_EPOCH};

use dlmalloc::GlobalDlmalloc;
use weft_ipam::{Owner, Range, RangeSpec, Store};

/// The plugin's allocator, with a lock of its own.
#[global_allocator]
static HEAP: GlobalDlmalloc = GlobalDlmalloc;

const NETWORK: &str = "net";

fn main() {
    let [dir] = std::env::args_os().skip(1).map(PathBuf::from).collect::<Vec<_>>().try_into().unwrap();
    // Every process that uses the folder at the same time is another pod.
    let bench = Bench { dir, ranges: ranges(), owner: owner(&format!("bench{}", std::process::id())) };
    for line in stdin().lines() {
        let line = line.unwrap();
        let (verb, numbers) = line.split_once(' ').unwrap();
        let numbers: Vec<u64> = numbers.split(' ').map(|number| number.parse().unwrap()).collect();
        let answer = match (verb, &numbers[..]) {
            ("fill", [count]) => bench.fill(*count),
            ("pairs", [count]) => bench.pairs(*count),
            ("opened", [count]) => (0..*count).map(|_| micros(|| bench.opened())).collect(),
            ("during", [ms]) => bench.during(Duration::from_millis(*ms)),
            ("openings", [count, start, every]) => bench.openings(*count, *start, *every),
            _ => panic!("{line}: no such request"),
        };
        let answer: Vec<String> = answer.iter().map(f64::to_string).collect();
        println!("[{}]", answer.join(","));
    }
}

fn ranges() -> [Range; 2] {
    // Wide enough that every address has cooled down when its turn comes.
    ["10.0.0.0/8", "fd00::/64"].map(|subnet| {
        let subnet = subnet.parse().unwrap();
        Range::new(RangeSpec { subnet, start: None, end: None, gateway: None, exclude: Vec::new() }).unwrap()
    })
}

/// As containerd makes them: 64 digits that have nothing in common with those of the next one.
fn owner(name: &str) -> Owner {
    let digits = |part| {
        let mut hasher = DefaultHasher::new();
        (name, part).hash(&mut hasher);
        format!("{:016x}", hasher.finish())
    };
    Owner::new(&[0, 1, 2, 3].map(digits).concat(), "eth0").unwrap()
}

struct Bench {
    dir: PathBuf,
    ranges: [Range; 2],
    owner: Owner,
}

impl Bench {
    fn open(&self) -> Store {
        Store::open(&self.dir).unwrap()
    }

    fn fill(&self, count: u64) -> Vec<f64> {
        let store = self.open();
        for number in 0..count {
            self.lease(&store, &owner(&number.to_string()));
        }
        vec![count as f64]
    }

    fn pairs(&self, count: u64) -> Vec<f64> {
        let store = self.open();
        (0..count).map(|_| micros(|| self.pair(&store))).collect()
    }

    fn during(&self, time: Duration) -> Vec<f64> {
        let (store, start, mut times) = (self.open(), Instant::now(), 0.0);
        while start.elapsed() < time {
            self.pair(&store);
            times += 1.0;
        }
        vec![times]
    }

    fn openings(&self, count: u64, start: u64, every: u64) -> Vec<f64> {
        let opening = |number| {
            let at = start + number * every;
            wait_until(at);
            let took = micros(|| self.lease(&self.open(), &self.owner));
            // When the others have leased.
            wait_until(at + every / 2);
            self.release(&self.open());
            took
        };
        (0..count).map(opening).collect()
    }

    fn opened(&self) {
        self.lease(&self.open(), &self.owner);
        self.release(&self.open());
    }

    fn pair(&self, store: &Store) {
        self.lease(store, &self.owner);
        self.release(store);
    }

    fn lease(&self, store: &Store, owner: &Owner) {
        let mut txn = store.write().unwrap();
        txn.reserve(NETWORK, &self.ranges, owner).unwrap();
        txn.commit().unwrap();
    }

    fn release(&self, store: &Store) {
        let mut txn = store.write().unwrap();
        txn.release(&self.owner).unwrap();
        txn.commit().unwrap();
    }
}

fn micros(what: impl FnOnce()) -> f64 {
    let start = Instant::now();
    what();
    start.elapsed().as_secs_f64() * 1e6
}

/// Nanoseconds since the epoch.
fn wait_until(moment: u64) {
    let moment = UNIX_EPOCH + Duration::from_nanos(moment);
    while let Ok(left) = moment.duration_since(SystemTime::now()) {
        park_timeout(left);
    }
}
