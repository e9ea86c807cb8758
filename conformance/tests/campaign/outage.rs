//! containerd comes and goes, and forgets what it had half done.

use std::collections::BTreeMap;
use std::fs;
use std::path::PathBuf;
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Mutex, RwLock};
use std::thread;
use std::time::{Duration, Instant};

use nix::sys::signal::Signal;
use weft_conformance::{run, try_run};

use crate::{Campaign, PATIENCE};

/// Whether containerd is there, and whose pods it has.
#[derive(Default)]
pub(crate) struct Outage {
    is_away: AtomicBool,
    /// Read while a pod is asked for.
    births: RwLock<()>,
    /// Pods that a client knows of, by id, with their namespaces.
    known: Mutex<BTreeMap<String, Option<PathBuf>>>,
}

impl Outage {
    fn wait(&self) {
        while self.is_away.load(Ordering::SeqCst) {
            thread::park_timeout(Duration::from_millis(20));
        }
    }

    /// The client knows the pod, and will ask for its end.
    pub(crate) fn knows(&self, id: &str, namespace: Option<PathBuf>) {
        self.known.lock().expect("nobody panics with it").insert(id.to_owned(), namespace);
    }

    /// CRI has said that the pod is gone.
    pub(crate) fn forgets(&self, id: &str) {
        self.known.lock().expect("nobody panics with it").remove(id);
    }

    /// Makes a call by which a client gets to know of a pod.
    pub(crate) fn birth<T>(&self, work: impl FnOnce() -> T) -> T {
        self.wait();
        let _birth = self.births.read().expect("nobody panics with it");
        work()
    }
}

impl Campaign<'_> {
    /// Kills containerd and starts it again; then does what the kubelet does with pods that it does not know.
    pub(crate) fn restart_containerd(&self) {
        self.outage.is_away.store(true, Ordering::SeqCst);
        self.node.restart_containerd(Signal::SIGKILL);
        self.outage.is_away.store(false, Ordering::SeqCst);
        self.clear_away();
    }

    /// Removes the pods that no client knows of. containerd makes a namespace before it writes down whose it is, so one that is
    /// killed in between never removes it (nor would an administrator find it in any list): that is done here.
    pub(crate) fn clear_away(&self) {
        let _no_birth = self.outage.births.write().expect("nobody panics with it");
        let known = self.outage.known.lock().expect("nobody panics with it").clone();
        let listed = self.repeat("list the pods", || self.crictl(&["pods", "--quiet", "--no-trunc"]));
        for id in listed.unwrap_or_default().lines().filter(|id| !known.contains_key(*id)) {
            self.tally.add("pods that only containerd knew", 1);
            self.node.leaves_no(id);
            self.remove(id);
        }
        for entry in fs::read_dir(self.node.pod_namespaces()).into_iter().flatten().flatten() {
            let path = entry.path();
            if !known.values().flatten().any(|namespace| *namespace == path) {
                self.tally.add("namespaces that nobody knew", 1);
                // containerd may just be at it.
                drop(try_run(self.node.command("umount").arg(&path)));
                run(self.node.command("rm").arg("-f").arg(&path));
            }
        }
    }

    /// Stops and removes a pod as the kubelet does: again and again.
    pub(crate) fn remove(&self, id: &str) {
        for verb in ["stopp", "rmp"] {
            self.repeat(verb, || match self.crictl(&[verb, id]) {
                Err(why) if why.contains("not found") || why.contains("NotFound") => Ok(why),
                done => done,
            });
        }
        self.outage.forgets(id);
    }

    /// A call that succeeds at last.
    pub(crate) fn repeat<T>(&self, what: &str, work: impl Fn() -> Result<T, String>) -> Option<T> {
        let end = Instant::now() + PATIENCE;
        loop {
            self.outage.wait();
            match work() {
                Ok(value) => return Some(value),
                Err(why) if Instant::now() > end => {
                    self.register.fault(format!("{what} never succeeds: {why}"));
                    return None;
                }
                Err(why) => self.tally.failed(&format!("{what}: repeated"), &why),
            }
            thread::park_timeout(Duration::from_millis(100));
        }
    }

    pub(crate) fn crictl(&self, words: &[&str]) -> Result<String, String> {
        try_run(&mut self.node.crictl_command(words))
    }
}
