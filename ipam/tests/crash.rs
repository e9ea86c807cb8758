//! `kill -9` at any instant: no address twice, none lost, and a store that opens.
#![expect(clippy::unwrap_used, reason = "a test that cannot go on panics")]

mod processes;
mod support;

use std::collections::BTreeSet;
use std::fs;
use std::net::IpAddr;
use std::os::unix::fs::MetadataExt;
use std::path::Path;
use std::process::{Child, Command};
use std::time::{Duration, Instant};

use nix::sys::signal::{Signal, kill};
use nix::unistd::Pid;
use processes::{spawn, worker};
use support::{audit, folder, lease, owner, range, release};
use weft_ipam::{Error, Range, Store};

const KILLS: usize = 250;
/// At once; fewer than the addresses of a family, so that a worker is never turned away.
const WORKERS: usize = 6;

fn main() {
    processes::run(
        &[
            ("a_store_survives_the_death_of_its_users", a_store_survives_the_death_of_its_users),
            (
                "an_opener_that_dies_costs_the_next_one_nothing",
                an_opener_that_dies_costs_the_next_one_nothing,
            ),
        ],
        &[("live", live), ("attach", attach)],
    );
}

fn ranges() -> [Range; 2] {
    [range("10.0.0.0/28"), range("fd00::/124")]
}

/// Lives on the store as pods do, until it is killed.
fn live(arguments: &[String]) {
    let [dir, name] = arguments else { panic!("{arguments:?}") };
    let own = owner(name);
    loop {
        let store = Store::open(Path::new(dir)).unwrap();
        let mut txn = store.write().unwrap();
        let addresses: Vec<String> = txn
            .reserve("net", &ranges(), &own)
            .unwrap()
            .iter()
            .map(|lease| lease.address.to_string())
            .collect();
        txn.put_record(&own, addresses.join(" ").as_bytes()).unwrap();
        txn.commit().unwrap();
        let store = Store::open(Path::new(dir)).unwrap();
        let mut txn = store.write().unwrap();
        txn.release(&own).unwrap();
        txn.delete_record(&own).unwrap();
        txn.commit().unwrap();
    }
}

/// xorshift64 (Marsaglia, 2003): the same instants in every run, as far as instants can be the same.
struct Random(u64);

impl Random {
    fn below(&mut self, limit: u64) -> u64 {
        self.0 ^= self.0 << 13;
        self.0 ^= self.0 >> 7;
        self.0 ^= self.0 << 17;
        self.0 % limit
    }
}

fn a_store_survives_the_death_of_its_users() {
    let dir = folder();
    let mut random = Random(0x5eed);
    let start = |slot: usize| spawn(worker("live").arg(dir.path()).arg(slot.to_string()));
    let mut children: Vec<Child> = (0..WORKERS).map(start).collect();
    for kill in 0..KILLS {
        // From the middle of exec to many transactions later.
        pause(Duration::from_micros(random.below(12_000)));
        let slot = usize::try_from(random.below(WORKERS as u64)).unwrap();
        let status = {
            children[slot].kill().unwrap();
            children[slot].wait().unwrap()
        };
        assert_eq!(status.code(), None, "worker {slot} ended by itself: {status}");
        if kill % 10 == 0 {
            whole(dir.path());
        }
        children[slot] = start(slot);
    }
    for mut child in children {
        child.kill().unwrap();
        child.wait().unwrap();
    }
    whole(dir.path());
    audit(dir.path());
    nothing_is_lost(dir.path());
    audit(dir.path());
}

fn pause(time: Duration) {
    let end = Instant::now() + time;
    while let Some(rest) = end.checked_duration_since(Instant::now()) {
        std::thread::park_timeout(rest);
    }
}

/// Looks while others live on: leases and records are written together, so they are seen together.
fn whole(dir: &Path) {
    let store = Store::open(dir).unwrap();
    let txn = store.read().unwrap();
    let leases = txn.leases().unwrap();
    let distinct: BTreeSet<IpAddr> = leases.iter().map(|lease| lease.address).collect();
    assert_eq!(distinct.len(), leases.len(), "an address has two owners: {leases:?}");
    for (owner, bytes) in txn.records().unwrap() {
        let held: Vec<String> = leases
            .iter()
            .filter(|lease| lease.owner == owner)
            .map(|lease| lease.address.to_string())
            .collect();
        assert_eq!(held.join(" ").as_bytes(), bytes);
    }
    for usage in txn.usage(&ranges()).unwrap() {
        assert_eq!(usage.used * 2, leases.len() as u128);
    }
}

/// Every address that is not leased can be.
fn nothing_is_lost(dir: &Path) {
    let store = Store::open(dir).unwrap();
    for slot in 0..WORKERS {
        release(&store, &owner(slot));
    }
    for range in ranges() {
        let mut all = BTreeSet::new();
        loop {
            match lease(
                &store,
                std::slice::from_ref(&range),
                &owner(format!("{}-{}", range.subnet(), all.len())),
            ) {
                Ok(addresses) => assert!(all.insert(addresses[0])),
                Err(Error::Exhausted { .. }) => break,
                Err(err) => panic!("{err:?}"),
            }
        }
        assert_eq!(all.len() as u128, range.capacity());
    }
}

fn attach(arguments: &[String]) {
    let [dir, name] = arguments else { panic!("{arguments:?}") };
    lease(&Store::open(Path::new(dir)).unwrap(), &ranges(), &owner(name)).unwrap();
}

/// The first opener rebuilds LMDB's lock file, and dies when it holds it exclusively with the transaction number at
/// 0; another one waits meanwhile. On LMDB's locks alone the other goes on with the number 0, and its commit
/// takes the place of one that was acknowledged: every second number of earlier commits shows it.
fn an_opener_that_dies_costs_the_next_one_nothing() {
    for earlier in [3, 4] {
        let dir = folder();
        for number in 0..earlier {
            lease(&Store::open(dir.path()).unwrap(), &ranges(), &owner(number)).unwrap();
        }
        let lock_file = fs::metadata(dir.path().join("lock.mdb")).unwrap().ino();
        let attach = |name: &str| {
            let mut command = worker("attach");
            command.arg(dir.path()).arg(name);
            command
        };
        // LMDB asks for the file system's type after it has rebuilt the lock file, and before it sets the number.
        let stop = ["-qq", "-o", "/dev/null", "-e", "trace=fstatfs", "-e", "inject=fstatfs:delay_enter=30s"];
        let dying = attach("dying");
        let mut strace = spawn(
            Command::new("strace").args(stop).arg("--").arg(dying.get_program()).args(dying.get_args()),
        );
        let first = locker(|line| {
            line.contains("POSIX") && line.contains("WRITE") && line.contains(&format!(":{lock_file} 0 0"))
        });
        let mut second = spawn(&mut attach("second"));
        let pid = format!(" {} ", second.id());
        locker(|line| line.contains("->") && line.contains(&pid));
        kill(first, Signal::SIGKILL).unwrap();
        // It would sit the delay out.
        strace.kill().unwrap();
        strace.wait().unwrap();
        assert!(second.wait().unwrap().success());
        assert_eq!(audit(dir.path()).len(), 2 * (earlier + 1));
    }
}

/// Waits for a line of /proc/locks, and returns the process that it is about.
fn locker(wanted: impl Fn(&str) -> bool) -> Pid {
    let deadline = Instant::now() + Duration::from_secs(20);
    loop {
        let locks = fs::read_to_string("/proc/locks").unwrap();
        if let Some(line) = locks.lines().find(|line| wanted(line)) {
            let after = line.split_whitespace().skip_while(|word| !matches!(*word, "READ" | "WRITE"));
            return Pid::from_raw(after.skip(1).map(str::parse).next().unwrap().unwrap());
        }
        assert!(Instant::now() < deadline, "{locks}");
        pause(Duration::from_millis(1));
    }
}
