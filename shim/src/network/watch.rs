//! What changes, told as it happens, whichever process of weft changes it.
//!
//! Every change is a commit to the store, and every commit a write to its file: inotify(7) tells of it, so the pod path pays
//! nothing and nobody polls. LMDB publishes a commit by its meta page and a number in shared memory after that
//! (`mdb_txn_commit` in mdb.c), so whoever is woken by the write might read just before the number; the rows are
//! therefore read under the write lock, which the writer gives up after both.

use std::collections::BTreeMap;
use std::io;
use std::os::fd::{AsFd, OwnedFd};
use std::path::Path;
use std::sync::{Arc, Mutex, PoisonError, Weak};
use std::time::Duration;

use nix::sys::inotify::{AddWatchFlags, InitFlags, Inotify};
use tokio::io::Interest;
use tokio::io::unix::AsyncFd;
use tokio::sync::watch;
use tokio::time::{Instant, sleep_until, timeout};
use ttrpc::Code;
use ttrpc::r#async::ServerStreamSender;
use weft_ipam::Owner;

use super::Scope;
use super::answer::attachment;
use super::error::refused;
use super::list::matches;
use crate::config::Config;
use crate::error::status;
use crate::pod;
use crate::proto::network as api;
use crate::proto::network::watch_response::Kind;
use crate::record::Record;
use crate::state::Ledger;

/// How long at most nothing is told. A client that went away is noticed when it is told something.
const ALIVE: Duration = Duration::from_secs(30);
/// The store's folder in `run_dir`.
const STORE: &str = "store";
/// The file of the store that commits are written to.
const DATA: &str = "data.mdb";

/// Commits to the store, as something to wait for.
pub(crate) struct Commits {
    inotify: Inotify,
    /// The same descriptor, for the event loop.
    ready: AsyncFd<OwnedFd>,
}

impl Commits {
    /// From now on. The store is made if there is none.
    ///
    /// # Errors
    /// What the kernel answers; the limit of `/proc/sys/fs/inotify/max_user_instances` for one.
    pub(crate) fn watch(config: &Config) -> io::Result<Commits> {
        let inotify = Inotify::init(InitFlags::IN_CLOEXEC | InitFlags::IN_NONBLOCK)?;
        let events = AddWatchFlags::IN_MODIFY
            | AddWatchFlags::IN_DELETE
            | AddWatchFlags::IN_DELETE_SELF
            | AddWatchFlags::IN_MOVE_SELF
            | AddWatchFlags::IN_ONLYDIR;
        inotify.add_watch(&config.run_dir.join(STORE), events)?;
        let fd = inotify.as_fd().try_clone_to_owned()?;
        // SAFETY: the descriptor is the value's own and open as long as the value; nobody exchanges it.
        let ready = unsafe { AsyncFd::register_with_interest(fd, Interest::READABLE) }?;
        Ok(Commits { inotify, ready })
    }

    /// Waits for the next one. Several may be one.
    ///
    /// # Errors
    /// `NotFound` if the store has been removed.
    pub(crate) async fn next(&self) -> io::Result<()> {
        loop {
            let mut ready = self.ready.readable().await?;
            let events = match self.inotify.read_events() {
                Err(nix::errno::Errno::EAGAIN) => {
                    ready.clear_ready();
                    continue;
                }
                events => events?,
            };
            let is_data = |name: &Option<std::ffi::OsString>| {
                name.as_deref().is_some_and(|name| Path::new(name) == Path::new(DATA))
            };
            let gone =
                AddWatchFlags::IN_DELETE_SELF | AddWatchFlags::IN_MOVE_SELF | AddWatchFlags::IN_IGNORED;
            if events.iter().any(|event| {
                event.mask.intersects(gone)
                    || event.mask.contains(AddWatchFlags::IN_DELETE) && is_data(&event.name)
            }) {
                return Err(io::ErrorKind::NotFound.into());
            }
            // An overflow of the queue has no name, and may have been anything.
            let changed = |mask: AddWatchFlags| {
                mask.intersects(AddWatchFlags::IN_MODIFY | AddWatchFlags::IN_Q_OVERFLOW)
            };
            if events
                .iter()
                .any(|event| changed(event.mask) && (event.name.is_none() || is_data(&event.name)))
            {
                return Ok(());
            }
        }
    }
}

/// The commits for all watches of a process: the kernel gives a user 128 inotify instances for everything on the node
/// (`/proc/sys/fs/inotify/max_user_instances`), and a client that went away is noticed only by [`ALIVE`].
#[derive(Default)]
pub(super) struct Hub(Mutex<Weak<watch::Sender<()>>>);

impl Hub {
    /// Tells of every commit from now on; its end is that of the store. Runs as long as somebody listens.
    fn subscribe(&self, config: &Config) -> io::Result<watch::Receiver<()>> {
        let mut current = self.0.lock().unwrap_or_else(PoisonError::into_inner);
        if let Some(sender) = current.upgrade() {
            return Ok(sender.subscribe());
        }
        let commits = Commits::watch(config)?;
        let (sender, receiver) = watch::channel(());
        let sender = Arc::new(sender);
        *current = Arc::downgrade(&sender);
        tokio::spawn(async move {
            loop {
                tokio::select! {
                    committed = commits.next() => match committed {
                        Ok(()) => sender.send_replace(()),
                        Err(_) => return,
                    },
                    () = sender.closed() => return,
                }
            }
        });
        Ok(receiver)
    }
}

/// What is known of each attached interface: the bytes of its record, and the record.
type Known = BTreeMap<Owner, (Vec<u8>, Record)>;

/// Tells until the client goes or its deadline passes.
pub(super) async fn tell(
    config: &Config,
    hub: &Hub,
    scope: &Scope,
    filter: &api::Filter,
    timeout_nano: i64,
    events: &ServerStreamSender<api::WatchResponse>,
) -> ttrpc::Result<()> {
    let deadline = u64::try_from(timeout_nano).ok().filter(|nanoseconds| *nanoseconds > 0);
    let Some(deadline) = deadline else {
        return follow(config, hub, scope, filter, events).await;
    };
    let done = timeout(Duration::from_nanos(deadline), follow(config, hub, scope, filter, events)).await;
    done.unwrap_or_else(|_| Err(ttrpc::error::get_rpc_status(Code::DEADLINE_EXCEEDED, "timeout")))
}

async fn follow(
    config: &Config,
    hub: &Hub,
    scope: &Scope,
    filter: &api::Filter,
    events: &ServerStreamSender<api::WatchResponse>,
) -> ttrpc::Result<()> {
    drop(Ledger::open(config).map_err(refused)?);
    let mut commits = hub.subscribe(config).map_err(|err| status(Code::INTERNAL, &err))?;
    let mut known = Known::new();
    let mut first = true;
    let mut repairs = 0;
    loop {
        let ledger = Ledger::open_existing(config).map_err(refused)?.ok_or_else(removed)?;
        let now = ledger.settled().map_err(refused)?;
        // A folder that is removed and made anew would otherwise stay the old one here.
        drop(ledger);
        let is_repaired = now.repairs > std::mem::replace(&mut repairs, now.repairs);
        let seen = |record: &Record| scope.sees(&record.container) && matches(filter, record);
        for (kind, record) in changes(&mut known, now.records, seen).map_err(refused)? {
            let kind = if first { Kind::PRESENT } else { kind };
            events.send(&event(kind, Some(record))).await?;
        }
        if std::mem::take(&mut first) {
            events.send(&event(Kind::SYNCED, None)).await?;
        } else if is_repaired {
            events.send(&event(Kind::REPAIRED, None)).await?;
        }
        let mut silent_since = Instant::now();
        loop {
            tokio::select! {
                committed = commits.changed() => match committed {
                    Ok(()) => break,
                    Err(_) => return Err(removed()),
                },
                () = sleep_until(silent_since + ALIVE) => {
                    events.send(&event(Kind::ALIVE, None)).await?;
                    silent_since = Instant::now();
                }
            }
        }
    }
}

fn removed() -> ttrpc::Error {
    ttrpc::error::get_rpc_status(Code::UNAVAILABLE, "the store has been removed")
}

fn event(kind: Kind, record: Option<Record>) -> api::WatchResponse {
    api::WatchResponse { kind: kind.into(), attachment: record.map(attachment).into(), ..Default::default() }
}

/// What is to be told of the rows, and from now on is known. An attach is told when it has come to its end.
fn changes(
    known: &mut Known,
    rows: Vec<(Owner, Vec<u8>)>,
    seen: impl Fn(&Record) -> bool,
) -> Result<Vec<(Kind, Record)>, pod::Error> {
    let mut told = Vec::new();
    let mut now = Known::new();
    for (owner, bytes) in rows {
        if let Some((_, record)) = known.get(&owner).filter(|(old, _)| *old == bytes) {
            now.insert(owner, (bytes, record.clone()));
            continue;
        }
        let record = Record::decode(&owner, &bytes)?;
        if !record.is_attached() || !seen(&record) {
            continue;
        }
        match known.get(&owner) {
            Some((_, old)) if old.identity() == record.identity() => {
                told.push((Kind::CHANGED, record.clone()))
            }
            old => {
                told.extend(old.map(|(_, old)| (Kind::DETACHED, old.clone())));
                told.push((Kind::ATTACHED, record.clone()));
            }
        }
        now.insert(owner, (bytes, record));
    }
    let gone = known.iter().filter(|(owner, _)| !now.contains_key(*owner));
    told.extend(gone.map(|(_, (_, old))| (Kind::DETACHED, old.clone())));
    *known = now;
    Ok(told)
}

#[cfg(test)]
mod tests {
    use super::*;
    use serde_json::{Value, json};

    fn row(container: &str, change: impl FnOnce(&mut Value)) -> (Owner, Vec<u8>) {
        let mut record = json!({
            "version": 1, "state": "attached", "container": container, "interface": "eth0", "network": "n",
            "netns": { "path": "/run/netns/a", "dev": 1, "inode": 2 }, "addresses": [], "host_link": "weft0",
            "host_index": 1, "mac": "", "host_mac": "", "mtu": 1500, "data_path": "redirect",
        });
        change(&mut record);
        (Owner::new(container, "eth0").unwrap(), record.to_string().into_bytes())
    }

    fn told(known: &mut Known, rows: Vec<(Owner, Vec<u8>)>) -> Vec<(Kind, String)> {
        let changes = changes(known, rows, |record| record.container != "hidden").unwrap();
        changes.into_iter().map(|(kind, record)| (kind, record.container)).collect()
    }

    #[test]
    fn each_change_is_told_once() {
        let mut known = Known::new();
        let attaching = || row("b", |record| record["state"] = "attaching".into());
        assert_eq!(
            told(&mut known, vec![row("a", |_| {}), attaching(), row("hidden", |_| {})]),
            [(Kind::ATTACHED, "a".into())]
        );
        assert_eq!(
            told(&mut known, vec![row("a", |_| {}), row("b", |_| {})]),
            [(Kind::ATTACHED, "b".into())]
        );
        assert_eq!(told(&mut known, vec![row("a", |_| {}), row("b", |_| {})]), []);
        let other_mtu = row("a", |record| record["mtu"] = 1400.into());
        assert_eq!(told(&mut known, vec![other_mtu, row("b", |_| {})]), [(Kind::CHANGED, "a".into())]);
        assert_eq!(
            told(&mut known, vec![row("b", |record| record["netns"]["inode"] = 3.into())]),
            [(Kind::DETACHED, "b".into()), (Kind::ATTACHED, "b".into()), (Kind::DETACHED, "a".into())]
        );
        assert_eq!(told(&mut known, vec![attaching()]), [(Kind::DETACHED, "b".into())]);
    }
}
