//! How often the CNI plugin was called, how that ended and how long it took, and what was found dead on the node: numbers that
//! outlive the process that counts.
//!
//! A file of 64-bit numbers in `run_dir`, mapped into memory and added to atomically: no lock, no transaction, 12 µs a call, and a
//! process that is killed leaves at most a call that is counted in part. Zeroes are a tally of nothing, so the file is made by whoever
//! counts first. Its name has the version of its layout:
//!
//! ```text
//! number 32 * operation + n, native byte order; operation 0 ADD, 1 DEL, 2 CHECK, 3 STATUS, 4 GC
//! n = 0 calls   1 failures   2 nanoseconds of all calls   3.. calls that took at most BUCKETS[n - 3]
//! number 160 + n: [`Event`] n. An older version leaves these zero.
//! ```

use std::fs::{File, OpenOptions};
use std::io;
use std::num::NonZeroUsize;
use std::os::unix::fs::OpenOptionsExt;
use std::path::Path;
use std::ptr::NonNull;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::Duration;

use nix::libc::c_void;
use nix::sys::mman::{MapFlags, ProtFlags, mmap, munmap};

/// In `run_dir`.
pub(crate) const FILE: &str = "tally-1";
/// The operations that are counted, in the order of the file.
pub(crate) const OPERATIONS: [&str; 5] = ["ADD", "DEL", "CHECK", "STATUS", "GC"];
/// Upper bounds in microseconds: those of containerd's own metrics (Prometheus' defaults, from 5 ms on), and finer below them, where
/// weft is.
pub(crate) const BUCKETS: [u64; 14] = [
    500, 1_000, 2_500, 5_000, 10_000, 25_000, 50_000, 100_000, 250_000, 500_000, 1_000_000, 2_500_000,
    5_000_000, 10_000_000,
];

const NUMBERS: usize = 32;
const CALLS: usize = 0;
const FAILURES: usize = 1;
const NANOSECONDS: usize = 2;
const FIRST_BUCKET: usize = 3;
/// One page, as the file is mapped.
const LEN: usize = 4096;

/// Behind the operations.
const EVENTS: usize = 5 * NUMBERS;

/// What happens beside the calls of the plugin, and is worth counting.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Event {
    /// A reconcile of the whole node.
    ReconciledNode = 0,
    /// Of one network that runs out of addresses.
    ReconciledNetwork = 1,
    /// What CNI GC asked for.
    CollectedGarbage = 2,
    /// Something that a reconcile could not look at or not remove.
    NotReconciled = 3,
    /// A dead pod's attachment that a reconcile detached.
    FreedAttachment = 8,
    /// A link without a record that a reconcile deleted.
    FreedLink = 9,
    /// A map entry without a record that a reconcile deleted.
    FreedEntry = 10,
    /// A detach, whoever asked for it, that left a tombstone.
    Tombstone = 16,
}

/// The counts of all events; zeroes if nothing was counted yet.
#[derive(Debug)]
pub(crate) struct Events(Option<Tally>);

impl Events {
    pub(crate) fn of(&self, event: Event) -> u64 {
        let counter = self.0.as_ref().and_then(|tally| tally.event(event));
        counter.map_or(0, |counter| counter.load(Ordering::Relaxed))
    }
}

/// The counts of one operation.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub(crate) struct Count {
    pub(crate) calls: u64,
    pub(crate) failures: u64,
    pub(crate) took: Duration,
    /// Calls that took at most as long as each of [`BUCKETS`].
    pub(crate) within: [u64; BUCKETS.len()],
}

/// The mapped file.
#[derive(Debug)]
struct Tally {
    page: NonNull<c_void>,
}

/// Counts one call of the operation with this number.
///
/// # Errors
/// If the file cannot be made or mapped: nothing is counted then.
pub(crate) fn count(run_dir: &Path, operation: usize, took: Duration, ok: bool) -> io::Result<()> {
    let tally = Tally::open(run_dir)?;
    let add = |number: usize, more: u64| {
        if let Some(counter) = tally.number(operation, number) {
            counter.fetch_add(more, Ordering::Relaxed);
        }
    };
    add(CALLS, 1);
    add(FAILURES, u64::from(!ok));
    add(NANOSECONDS, u64::try_from(took.as_nanos()).unwrap_or(u64::MAX));
    let took = u64::try_from(took.as_micros()).unwrap_or(u64::MAX);
    for (bucket, _) in BUCKETS.iter().enumerate().filter(|(_, bound)| took <= **bound) {
        add(FIRST_BUCKET + bucket, 1);
    }
    Ok(())
}

/// Counts so many of each event.
///
/// # Errors
/// As of [`count`].
pub(crate) fn add(run_dir: &Path, events: &[(Event, usize)]) -> io::Result<()> {
    let tally = Tally::open(run_dir)?;
    for (event, more) in events {
        if let Some(counter) = tally.event(*event) {
            counter.fetch_add(u64::try_from(*more).unwrap_or(u64::MAX), Ordering::Relaxed);
        }
    }
    Ok(())
}

/// What was counted of each event.
///
/// # Errors
/// As of [`read`].
pub(crate) fn events(run_dir: &Path) -> io::Result<Events> {
    Tally::existing(run_dir).map(Events)
}

/// All counts, in the order of [`OPERATIONS`]; zeroes if nothing was counted yet.
///
/// # Errors
/// If the file is there and cannot be read.
pub(crate) fn read(run_dir: &Path) -> io::Result<[Count; OPERATIONS.len()]> {
    let Some(tally) = Tally::existing(run_dir)? else { return Ok(Default::default()) };
    let count = |operation| {
        let number = |number| {
            let counter = tally.number(operation, number);
            counter.map_or(0, |counter| counter.load(Ordering::Relaxed))
        };
        Count {
            calls: number(CALLS),
            failures: number(FAILURES),
            took: Duration::from_nanos(number(NANOSECONDS)),
            within: std::array::from_fn(|bucket| number(FIRST_BUCKET + bucket)),
        }
    };
    Ok(std::array::from_fn(count))
}

impl Tally {
    /// For those who only look.
    fn existing(run_dir: &Path) -> io::Result<Option<Tally>> {
        match OpenOptions::new().read(true).write(true).open(run_dir.join(FILE)) {
            Err(err) if err.kind() == io::ErrorKind::NotFound => Ok(None),
            file => Tally::map(&file?).map(Some),
        }
    }

    fn open(run_dir: &Path) -> io::Result<Tally> {
        let mut options = OpenOptions::new();
        let file = options.read(true).write(true).create(true).truncate(false).mode(0o600);
        Tally::map(&file.open(run_dir.join(FILE))?)
    }

    fn map(file: &File) -> io::Result<Tally> {
        // Behind the end of a file a mapping faults. Nobody shortens this one.
        if file.metadata()?.len() < LEN as u64 {
            file.set_len(LEN as u64)?;
        }
        let len = NonZeroUsize::new(LEN).ok_or(io::ErrorKind::InvalidInput)?;
        // SAFETY: the kernel chooses the place, so nothing of ours is mapped over.
        let page = unsafe {
            mmap(None, len, ProtFlags::PROT_READ | ProtFlags::PROT_WRITE, MapFlags::MAP_SHARED, file, 0)
        }?;
        Ok(Tally { page })
    }

    fn number(&self, operation: usize, number: usize) -> Option<&AtomicU64> {
        let is_there = operation < OPERATIONS.len() && number < NUMBERS;
        is_there.then(|| self.at(operation * NUMBERS + number)).flatten()
    }

    fn event(&self, event: Event) -> Option<&AtomicU64> {
        self.at(EVENTS + event as usize)
    }

    fn at(&self, at: usize) -> Option<&AtomicU64> {
        if at >= LEN / size_of::<u64>() {
            return None;
        }
        // SAFETY: `at` is within the page.
        let counter = unsafe { self.page.cast::<u64>().add(at) };
        // SAFETY: aligned, as the page is; mapped as long as the value that is borrowed; and of all processes that map it, each only
        // adds to it atomically.
        Some(unsafe { AtomicU64::from_ptr(counter.as_ptr()) })
    }
}

impl Drop for Tally {
    fn drop(&mut self) {
        // SAFETY: the page is the value's own, and every borrow of it has ended.
        let unmapped = unsafe { munmap(self.page, LEN) };
        debug_assert_eq!(unmapped, Ok(()));
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_is_counted_by_several_at_once_is_all_there() {
        let dir = tempfile::tempdir().unwrap();
        assert_eq!(read(dir.path()).unwrap(), [Count::default(); 5]);
        std::thread::scope(|scope| {
            for _ in 0..4 {
                scope.spawn(|| {
                    for turn in 0..100 {
                        count(dir.path(), 0, Duration::from_millis(2), turn % 4 != 0).unwrap();
                    }
                });
            }
        });
        count(dir.path(), 4, Duration::from_secs(60), true).unwrap();
        let counts = read(dir.path()).unwrap();
        let add = counts[0];
        assert_eq!((add.calls, add.failures, add.took), (400, 100, Duration::from_millis(800)));
        let mut within = [400; BUCKETS.len()];
        within[..2].fill(0);
        assert_eq!(add.within, within, "2 ms are more than 1 ms and not more than 2.5 ms");
        assert_eq!((counts[4].calls, counts[4].within), (1, [0; BUCKETS.len()]), "longer than any bound");
        assert_eq!(counts[1], Count::default());
        assert_eq!(std::fs::metadata(dir.path().join(FILE)).unwrap().len(), 4096);
    }

    #[test]
    fn looking_makes_no_file() {
        let dir = tempfile::tempdir().unwrap();
        assert_eq!(read(dir.path()).unwrap(), [Count::default(); 5]);
        assert_eq!(events(dir.path()).unwrap().of(Event::Tombstone), 0);
        assert_eq!(std::fs::read_dir(dir.path()).unwrap().count(), 0);
    }

    #[test]
    fn events_are_beside_the_operations() {
        let dir = tempfile::tempdir().unwrap();
        add(dir.path(), &[(Event::ReconciledNode, 1), (Event::FreedLink, 3), (Event::FreedEntry, 0)])
            .unwrap();
        add(dir.path(), &[(Event::FreedLink, 2)]).unwrap();
        let events = events(dir.path()).unwrap();
        let counted = [Event::ReconciledNode, Event::FreedLink, Event::FreedEntry, Event::Tombstone];
        assert_eq!(counted.map(|event| events.of(event)), [1, 5, 0, 0]);
        assert_eq!(read(dir.path()).unwrap(), [Count::default(); 5]);
    }
}
