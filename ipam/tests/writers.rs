//! Writers wait at a lock of the kernel's, which no death of another writer can make them miss.

use std::fs;
use std::sync::mpsc::channel;
use std::time::{Duration, Instant};

use nix::unistd::gettid;
use weft_ipam::Store;

/// Number of the system call that a thread waits in.
fn waits_in(thread: i32) -> Option<i64> {
    let text = fs::read_to_string(format!("/proc/self/task/{thread}/syscall")).ok()?;
    text.split(' ').next()?.parse().ok()
}

#[test]
fn a_writer_of_another_process_waits_for_a_flock() {
    let dir = tempfile::tempdir().unwrap();
    let store = Store::open(dir.path()).unwrap();
    // As another process has it: another opening of the file.
    let other = fs::File::open(dir.path().join("writers.lock")).unwrap();
    other.lock().unwrap();
    let (say, hear) = channel();
    std::thread::scope(|scope| {
        let waiting = scope.spawn(|| {
            say.send(gettid().as_raw()).unwrap();
            let mut txn = store.write().unwrap();
            txn.count("a").unwrap();
            txn.commit().unwrap();
        });
        let thread = hear.recv().unwrap();
        let deadline = Instant::now() + Duration::from_secs(10);
        while waits_in(thread) != Some(nix::libc::SYS_flock) {
            assert!(Instant::now() < deadline, "it waits in {:?}", waits_in(thread));
            std::thread::park_timeout(Duration::from_millis(5));
        }
        assert!(!waiting.is_finished());
        other.unlock().unwrap();
        waiting.join().unwrap();
    });
    assert_eq!(store.read().unwrap().counted("a").unwrap(), 1);
    // Held as long as the transaction, and given back with it, whole or not.
    let txn = store.write().unwrap();
    assert!(other.try_lock().is_err());
    drop(txn);
    other.try_lock().unwrap();
}
