//! Restarts of containerd: which calls they meet, and how a call is made that may meet one.

use std::process::Command;
use std::sync::RwLock;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::thread;
use std::time::Duration;

use nix::sys::signal::Signal;
use weft_conformance::{Dice, Node, try_run};

use crate::Arm;

/// Odd while containerd is away, even while it is there.
#[derive(Default)]
pub(crate) struct Outage {
    epoch: AtomicU64,
    calls: AtomicU64,
    /// Read while a pod is made: a half made pod of a killed containerd is lost to its client, who has no id of it to remove it by.
    birth: RwLock<()>,
}

/// After how many calls of a round containerd is to end, and how.
pub(crate) fn plan(dice: &mut Dice) -> (u64, Signal) {
    let signal = [Signal::SIGKILL, Signal::SIGTERM][dice.below(2)];
    (40 + dice.below(120) as u64, signal)
}

/// Why an episode does not go on.
#[derive(Debug)]
pub(crate) struct End;

impl Outage {
    /// Restarts containerd when `after` calls have been made since now.
    pub(crate) fn strike(&self, node: &Node, after: u64, signal: Signal, is_over: &AtomicBool) {
        let start = self.calls.load(Ordering::Relaxed);
        while self.calls.load(Ordering::Relaxed) < start + after {
            if is_over.load(Ordering::Relaxed) {
                return;
            }
            thread::park_timeout(Duration::from_millis(5));
        }
        let _no_birth = self.birth.write().expect("nobody panics with it");
        self.epoch.fetch_add(1, Ordering::SeqCst);
        node.restart_containerd(signal);
        self.epoch.fetch_add(1, Ordering::SeqCst);
    }

    /// Another number after each death of containerd.
    pub(crate) fn epoch(&self) -> u64 {
        self.epoch.load(Ordering::SeqCst)
    }

    fn there(&self) -> u64 {
        loop {
            match self.epoch() {
                even if even.is_multiple_of(2) => return even,
                _ => thread::park_timeout(Duration::from_millis(20)),
            }
        }
    }
}

impl Arm<'_> {
    /// A call that must succeed, unless containerd goes away meanwhile.
    pub(crate) fn once<T>(&self, kind: &'static str, work: impl Fn() -> Result<T, String>) -> Result<T, End> {
        self.attempt(kind, 1, work)
    }

    /// A call that must succeed, and is made again when containerd went away meanwhile.
    pub(crate) fn repeat<T>(
        &self,
        kind: &'static str,
        work: impl Fn() -> Result<T, String>,
    ) -> Result<T, End> {
        self.attempt(kind, 20, work)
    }

    /// A call that containerd's death must not meet.
    pub(crate) fn undisturbed<T>(
        &self,
        kind: &'static str,
        work: impl Fn() -> Result<T, String>,
    ) -> Result<T, End> {
        let _birth = self.outage.birth.read().expect("nobody panics with it");
        self.once(kind, work)
    }

    fn attempt<T>(
        &self,
        kind: &'static str,
        times: usize,
        work: impl Fn() -> Result<T, String>,
    ) -> Result<T, End> {
        for _ in 0..times {
            let before = self.outage.there();
            let done = work();
            self.outage.calls.fetch_add(1, Ordering::Relaxed);
            match done {
                Ok(value) => {
                    self.tally.succeeded(kind);
                    return Ok(value);
                }
                Err(_) if self.outage.epoch() != before => self.tally.interrupted(kind),
                Err(why) => {
                    self.tally.failed(kind, why);
                    return Err(End);
                }
            }
        }
        Err(End)
    }

    pub(crate) fn crictl(&self, words: &[&str]) -> Result<String, String> {
        try_run(&mut self.node.crictl_command(words))
    }

    pub(crate) fn run(&self, mut command: Command) -> Result<String, String> {
        try_run(&mut command)
    }
}

/// What must fail, and say `word` of why.
pub(crate) fn refused(done: Result<String, String>, word: &str) -> Result<String, String> {
    match done {
        Ok(said) => Err(format!("succeeds, and says {said}")),
        Err(why) if why.contains(word) => Ok(why),
        Err(why) => Err(format!("says nothing of {word:?}: {why}")),
    }
}
