//! When a cgroup has run out of memory.
//!
//! v1 rings an eventfd (memory cgroup documentation of the kernel, "OOM Control"). v2 changes `memory.events`, which
//! inotify(7) sees, and which also changes for lesser reasons: the counter decides.

use std::fs::{self, File};
use std::io;
use std::os::fd::{AsFd, AsRawFd, OwnedFd};
use std::path::Path;
use std::sync::atomic::{AtomicU64, Ordering};

use nix::sys::eventfd::{EfdFlags, EventFd};
use nix::sys::inotify::{AddWatchFlags, InitFlags, Inotify};
use tokio::io::Interest;
use tokio::io::unix::AsyncFd;

use super::cgroup::Cgroup;
use super::counters::field;

/// The out-of-memory kills of one cgroup, as far as they have been told. What the kernel does not tell is not told.
#[derive(Debug)]
pub(super) struct Kills {
    cgroup: Cgroup,
    /// v2 only: v1 rings for each.
    told: AtomicU64,
}

impl Kills {
    pub(super) fn of(cgroup: Cgroup) -> Kills {
        let told = match &cgroup {
            Cgroup::V1(_) => 0,
            Cgroup::V2(folder) => oom_kills(folder),
        };
        Kills { cgroup, told: told.into() }
    }

    /// Calls `tell` for each time, until the cgroup is gone.
    pub(super) async fn watch(&self, tell: impl Fn()) {
        let result = match &self.cgroup {
            Cgroup::V1(folders) => match folders.get("memory") {
                Some(folder) => watch_v1(folder, tell).await,
                None => return,
            },
            Cgroup::V2(folder) => self.watch_v2(folder, tell).await,
        };
        if let Err(err) = result {
            log::debug!("out-of-memory events of {:?}: {err}", self.cgroup);
        }
    }

    /// The same for what has not been told yet. v2 tells of a change 10 ms after the one before, from a work queue
    /// (`cgroup_file_notify` in the kernel's kernel/cgroup/cgroup.c): the end of a container overtakes it. The counter is
    /// ahead of the kill (`__oom_kill_process` in mm/oom_kill.c).
    pub(super) fn tell_last(&self, tell: impl Fn()) {
        if let Cgroup::V2(folder) = &self.cgroup {
            self.look(folder, tell);
        }
    }

    async fn watch_v2(&self, folder: &Path, tell: impl Fn()) -> io::Result<()> {
        let inotify = Inotify::init(InitFlags::IN_CLOEXEC | InitFlags::IN_NONBLOCK)?;
        inotify.add_watch(&folder.join("memory.events"), AddWatchFlags::IN_MODIFY)?;
        let ready = readable(inotify.as_fd().try_clone_to_owned()?)?;
        loop {
            let mut guard = ready.readable().await?;
            if let Ok(events) = guard.try_io(|_| inotify.read_events().map_err(io::Error::from)) {
                // IN_IGNORED comes when the file goes with its cgroup.
                if events?.iter().any(|event| event.mask.contains(AddWatchFlags::IN_IGNORED)) {
                    return Ok(());
                }
                self.look(folder, &tell);
            }
        }
    }

    fn look(&self, folder: &Path, tell: impl Fn()) {
        let now = oom_kills(folder);
        // A cgroup that is gone has none.
        if now > self.told.fetch_max(now, Ordering::Relaxed) {
            tell();
        }
    }
}

async fn watch_v1(folder: &Path, told: impl Fn()) -> io::Result<()> {
    let event = EventFd::from_value_and_flags(0, EfdFlags::EFD_CLOEXEC | EfdFlags::EFD_NONBLOCK)?;
    let control = File::open(folder.join("memory.oom_control"))?;
    let register = format!("{} {}", event.as_fd().as_raw_fd(), control.as_raw_fd());
    fs::write(folder.join("cgroup.event_control"), register)?;
    drop(control);
    let ready = readable(event.into())?;
    loop {
        let mut guard = ready.readable().await?;
        if let Ok(rung) = guard.try_io(|fd| nix::unistd::read(fd, &mut [0; 8]).map_err(io::Error::from)) {
            rung?;
            // The removal of the cgroup rings too.
            if !folder.exists() {
                return Ok(());
            }
            told();
        }
    }
}

fn oom_kills(folder: &Path) -> u64 {
    let text = fs::read_to_string(folder.join("memory.events")).unwrap_or_default();
    field(&text, "oom_kill")
}

fn readable(fd: OwnedFd) -> io::Result<AsyncFd<OwnedFd>> {
    super::stdio::register(fd, Interest::READABLE)
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::sync::atomic::AtomicU32;
    use std::time::Duration;

    /// The kernel modifies `memory.events`; here the test does. Only an `oom_kill` more counts.
    #[tokio::test]
    async fn v2_tells_each_new_kill_and_ends_with_the_file() {
        let dir = tempfile::tempdir().unwrap();
        let file = dir.path().join("memory.events");
        fs::write(&file, "oom 0\noom_kill 0\n").unwrap();
        let kills = Kills::of(Cgroup::V2(dir.path().to_owned()));
        let told = AtomicU32::new(0);
        let count = || {
            told.fetch_add(1, Ordering::Relaxed);
        };
        let change = async {
            for (text, want) in
                [("oom 1\noom_kill 0\n", 0), ("oom 1\noom_kill 1\n", 1), ("oom 1\noom_kill 3\n", 2)]
            {
                fs::write(&file, text).unwrap();
                for _ in 0..20 {
                    tokio::time::sleep(Duration::from_millis(5)).await;
                }
                assert_eq!(told.load(Ordering::Relaxed), want, "{text}");
            }
            fs::remove_file(&file).unwrap();
        };
        let both = async { tokio::join!(kills.watch_v2(dir.path(), count), change).0 };
        tokio::time::timeout(Duration::from_secs(10), both).await.unwrap().unwrap();
    }

    #[test]
    fn v2_tells_at_the_end_what_inotify_has_not_told() {
        let dir = tempfile::tempdir().unwrap();
        let file = dir.path().join("memory.events");
        fs::write(&file, "oom 1\noom_kill 1\n").unwrap();
        let kills = Kills::of(Cgroup::V2(dir.path().to_owned()));
        let told = AtomicU32::new(0);
        let tell = || {
            kills.tell_last(|| {
                told.fetch_add(1, Ordering::Relaxed);
            });
        };
        tell();
        assert_eq!(told.load(Ordering::Relaxed), 0, "it was so before");
        fs::write(&file, "oom 2\noom_kill 2\n").unwrap();
        tell();
        tell();
        assert_eq!(told.load(Ordering::Relaxed), 1, "once");
        fs::remove_file(&file).unwrap();
        tell();
        assert_eq!(told.load(Ordering::Relaxed), 1, "the cgroup is gone");
    }
}
