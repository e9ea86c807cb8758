//! What a pod pays for its address: `cargo run --release -p weft-ipam --example bench [folder]`.
//!
//! Opens the store, reserves an address of each family with a record of 1 KiB, opens it again and releases, as a CNI
//! process does: alone with few and with many leases, then with eight processes at once. Microseconds.
#![expect(clippy::unwrap_used, clippy::print_stdout, reason = "a bench prints, and stops at the first error")]

use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};
use std::time::Instant;

use weft_ipam::{Owner, Range, RangeSpec, Store};

const TURNS: usize = 2000;
const PROCESSES: usize = 8;
const STEPS: [&str; 4] = ["open", "reserve + record + commit", "release + commit", "close"];

fn main() {
    let arguments: Vec<String> = std::env::args().skip(1).collect();
    if let [dir, name] = &arguments[..] {
        for turn in pods(Path::new(dir), name) {
            println!("{}", turn.map(|micros| micros.to_string()).join(" "));
        }
        return;
    }
    let parent = arguments.first().map_or_else(|| PathBuf::from("/dev/shm"), PathBuf::from);
    let dir = tempfile::tempdir_in(parent).unwrap();
    println!("{:28}{:>10}{:>10}{:>10}{:>10}", "", "p50", "p99", "p99.9", "max");
    for leases in [10, 60_000] {
        fill(dir.path(), leases);
        report(&format!("one process, {leases} leases"), &pods(dir.path(), "bench"));
        report(&format!("{PROCESSES} processes, {leases} leases"), &processes(dir.path()));
    }
    let size = std::fs::metadata(dir.path().join("data.mdb")).unwrap().len();
    println!("file of 60000 dual-stack leases with records: {} MiB", size >> 20);
}

fn ranges() -> [Range; 2] {
    ["10.0.0.0/16", "fd00::/64"].map(|subnet| {
        let subnet = subnet.parse().unwrap();
        Range::new(RangeSpec { subnet, start: None, end: None, gateway: None, exclude: Vec::new() }).unwrap()
    })
}

fn fill(dir: &Path, leases: usize) {
    let store = Store::open(dir).unwrap();
    let mut txn = store.write().unwrap();
    for number in 0..leases {
        let owner = Owner::new(&format!("{number:064}"), "eth0").unwrap();
        txn.reserve("net", &ranges(), &owner).unwrap();
        txn.put_record(&owner, &[b'r'; 1024]).unwrap();
    }
    txn.commit().unwrap();
}

/// Microseconds of each step of each turn.
fn pods(dir: &Path, name: &str) -> Vec<[u128; 4]> {
    let owner = Owner::new(&format!("{name:064}"), "eth0").unwrap();
    (0..TURNS).map(|_| pod(dir, &owner)).collect()
}

fn pod(dir: &Path, owner: &Owner) -> [u128; 4] {
    let begin = Instant::now();
    let store = Store::open(dir).unwrap();
    let open = begin.elapsed();
    let mut txn = store.write().unwrap();
    txn.reserve("net", &ranges(), owner).unwrap();
    txn.put_record(owner, &[b'r'; 1024]).unwrap();
    txn.commit().unwrap();
    let reserve = begin.elapsed();
    drop(store);
    let close = begin.elapsed();
    let store = Store::open(dir).unwrap();
    let again = begin.elapsed();
    let mut txn = store.write().unwrap();
    txn.release(owner).unwrap();
    txn.delete_record(owner).unwrap();
    txn.commit().unwrap();
    [open, reserve - open, begin.elapsed() - again, close - reserve].map(|time| time.as_micros())
}

fn processes(dir: &Path) -> Vec<[u128; 4]> {
    let start = |name: usize| {
        let mut command = Command::new(std::env::current_exe().unwrap());
        command.arg(dir).arg(name.to_string()).stdout(Stdio::piped()).spawn().unwrap()
    };
    let children: Vec<_> = (0..PROCESSES).map(start).collect();
    let outputs = children.into_iter().map(|child| child.wait_with_output().unwrap());
    let text: String = outputs.map(|output| String::from_utf8(output.stdout).unwrap()).collect();
    let numbers = |line: &str| line.split(' ').map(|number| number.parse().unwrap()).collect::<Vec<_>>();
    text.lines().map(|line| numbers(line).try_into().unwrap()).collect()
}

fn report(title: &str, turns: &[[u128; 4]]) {
    println!("{title}");
    for (index, step) in STEPS.iter().enumerate() {
        let mut times: Vec<u128> = turns.iter().map(|turn| turn[index]).collect();
        times.sort_unstable();
        let at = |share: f64| times[((times.len() - 1) as f64 * share) as usize];
        println!("  {step:26}{:>10}{:>10}{:>10}{:>10}", at(0.5), at(0.99), at(0.999), at(1.0));
    }
}
