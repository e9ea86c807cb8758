//! A network namespace of the test: made, pinned and entered on threads that end, and gone on drop.

#![expect(clippy::disallowed_methods, reason = "this file makes and enters the namespaces of the test")]

use std::fs::File;
use std::io::Write;
use std::panic::resume_unwind;
use std::path::{Path, PathBuf};
use std::process::{Command, Output, Stdio};
use std::thread;
use std::time::Duration;

use nix::mount::{MntFlags, MsFlags, mount, umount2};
use nix::sched::{CloneFlags, setns, unshare};
use serde_json::Value;

/// A namespace, found at a path.
pub(crate) struct Space {
    path: PathBuf,
    _pin: Option<Pin>,
}

/// What keeps a namespace at its path, as containerd pins those of its pods.
struct Pin(PathBuf);

impl Space {
    /// One that somebody else has made.
    pub(crate) fn at(path: PathBuf) -> Space {
        Space { path, _pin: None }
    }

    pub(crate) fn create(path: PathBuf) -> Space {
        File::create_new(&path).unwrap();
        on_a_thread(|| {
            unshare(CloneFlags::CLONE_NEWNET).unwrap();
            let own = Some("/proc/thread-self/ns/net");
            mount(own, &path, None::<&str>, MsFlags::MS_BIND, None::<&str>).unwrap();
        });
        Space { path: path.clone(), _pin: Some(Pin(path)) }
    }

    pub(crate) fn path(&self) -> &Path {
        &self.path
    }

    /// Runs inside; sockets that are made there stay there.
    pub(crate) fn run<T: Send>(&self, f: impl FnOnce() -> T + Send) -> T {
        let namespace = File::open(&self.path).unwrap();
        on_a_thread(move || {
            setns(namespace, CloneFlags::CLONE_NEWNET).unwrap();
            f()
        })
    }

    /// Runs a program inside until it ends.
    pub(crate) fn exec(&self, command: &mut Command, input: &[u8]) -> Output {
        self.run(|| {
            let command = command.stdin(Stdio::piped()).stdout(Stdio::piped()).stderr(Stdio::piped());
            let mut child = command.spawn().unwrap_or_else(|err| panic!("{command:?}: {err}"));
            // A program that reads nothing closes it early.
            drop(child.stdin.take().unwrap().write_all(input));
            child.wait_with_output().unwrap()
        })
    }

    /// A command line that must succeed; what it printed.
    pub(crate) fn must(&self, line: &str) -> String {
        let mut words = line.split(' ');
        let output = self.exec(Command::new(words.next().unwrap()).args(words), b"");
        assert!(output.status.success(), "{line}: {}", String::from_utf8_lossy(&output.stderr));
        String::from_utf8(output.stdout).unwrap()
    }

    /// Rules for `nft -f`.
    pub(crate) fn nft(&self, rules: &str) {
        let output = self.exec(Command::new("nft").args(["-f", "-"]), rules.as_bytes());
        assert!(output.status.success(), "{rules}: {}", String::from_utf8_lossy(&output.stderr));
    }

    /// What `ip -j` says.
    pub(crate) fn ip(&self, arguments: &str) -> Value {
        serde_json::from_str(&self.must(&format!("ip -d -j {arguments}"))).unwrap_or(Value::Null)
    }

    /// Waits for duplicate address detection.
    pub(crate) fn settle(&self) {
        weft_conformance::wait_until(Duration::from_secs(10), "all addresses are usable", || {
            self.ip("-6 addr show tentative").as_array().unwrap().iter().all(|link| link["ifname"].is_null())
        });
    }
}

impl Drop for Pin {
    fn drop(&mut self) {
        umount2(&self.0, MntFlags::MNT_DETACH).unwrap();
        std::fs::remove_file(&self.0).unwrap();
    }
}

fn on_a_thread<T: Send>(f: impl FnOnce() -> T + Send) -> T {
    thread::scope(|scope| scope.spawn(f).join().unwrap_or_else(|panic| resume_unwind(panic)))
}
