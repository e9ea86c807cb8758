//! When a cgroup has run out of memory.
//!
//! v1 rings an eventfd (memory cgroup documentation of the kernel, "OOM Control"). v2 changes `memory.events`, which
//! inotify(7) sees, and which also changes for lesser reasons: the counter decides.

use std::fs::{self, File};
use std::io;
use std::os::fd::{AsFd, AsRawFd, OwnedFd};
use std::path::Path;

use nix::sys::eventfd::{EfdFlags, EventFd};
use nix::sys::inotify::{AddWatchFlags, InitFlags, Inotify};
use tokio::io::Interest;
use tokio::io::unix::AsyncFd;

use super::cgroup::Cgroup;
use super::counters::field;

/// Calls `told` for each time, until the cgroup is gone. What the kernel does not tell is not told.
pub(super) async fn watch(cgroup: &Cgroup, told: impl Fn()) {
    let result = match cgroup {
        Cgroup::V1(folders) => match folders.get("memory") {
            Some(folder) => watch_v1(folder, told).await,
            None => return,
        },
        Cgroup::V2(folder) => watch_v2(folder, told).await,
    };
    if let Err(err) = result {
        log::debug!("out-of-memory events of {cgroup:?}: {err}");
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

async fn watch_v2(folder: &Path, told: impl Fn()) -> io::Result<()> {
    let inotify = Inotify::init(InitFlags::IN_CLOEXEC | InitFlags::IN_NONBLOCK)?;
    inotify.add_watch(&folder.join("memory.events"), AddWatchFlags::IN_MODIFY)?;
    let ready = readable(inotify.as_fd().try_clone_to_owned()?)?;
    let mut killed = oom_kills(folder);
    loop {
        let mut guard = ready.readable().await?;
        if let Ok(events) = guard.try_io(|_| inotify.read_events().map_err(io::Error::from)) {
            // IN_IGNORED comes when the file goes with its cgroup.
            if events?.iter().any(|event| event.mask.contains(AddWatchFlags::IN_IGNORED)) {
                return Ok(());
            }
            let now = oom_kills(folder);
            if now > killed {
                told();
            }
            killed = now;
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
    use std::sync::atomic::{AtomicU32, Ordering};
    use std::time::Duration;

    /// The kernel modifies `memory.events`; here the test does. Only an `oom_kill` more counts.
    #[tokio::test]
    async fn v2_tells_each_new_kill_and_ends_with_the_file() {
        let dir = tempfile::tempdir().unwrap();
        let file = dir.path().join("memory.events");
        fs::write(&file, "oom 0\noom_kill 0\n").unwrap();
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
        let both = async { tokio::join!(watch_v2(dir.path(), count), change).0 };
        tokio::time::timeout(Duration::from_secs(10), both).await.unwrap().unwrap();
    }
}
