//! The store: one LMDB environment in a folder, shared by any number of processes of one PID namespace.
//!
//! **Crash rule.** LMDB writes changed pages to places that no committed state uses and switches to them by one
//! write of the meta page, so a process that dies leaves the last commit; the write lock is a robust mutex, which
//! the next writer inherits (lmdb.h, "Caveats"). The folder belongs on a tmpfs: there a sync costs nothing, and the
//! files end with the boot, as everything that they tell of. Elsewhere the store is as safe, and slow.
//!
//! **Opening is one at a time.** The first process to open an environment rebuilds its lock file. One that is
//! killed while it does so, with another one waiting, leaves the other with a transaction number of 0, or with a
//! mutex that is not shared (`mdb_env_setup_locks` up to `mdb_env_share_locks` in mdb.c): the other's commit then
//! replaces one that was acknowledged (tests/crash.rs shows it). So opening happens under flock(2) of the folder. The kernel frees the record locks of a
//! dying process, which LMDB goes by, before its flocks (`filp_close` and `__fput` in fs/): whoever gets the flock
//! of a process that died finds LMDB's lock free too and rebuilds the file.
//!
//! **Writers queue** at a lock of the kernel: `turn.rs`.
//!
//! **Format.** Rows are drawn in `row.rs`. The meta row names the format and the boot: rows of another boot are
//! wiped under the write lock, a newer format is refused and left alone.

use std::fs::{self, DirBuilder, File, OpenOptions};
use std::io;
use std::marker::PhantomData;
use std::net::IpAddr;
use std::ops::Bound;
use std::os::unix::fs::{DirBuilderExt, OpenOptionsExt};
use std::path::Path;
use std::sync::{Arc, Mutex, PoisonError, Weak};
use std::time::Duration;

use heed::types::Bytes;
use heed::{CommitOrAbort, Database, Env, EnvOpenOptions, MdbError, RoTxn, RwTxn, WithoutTls};
use nix::fcntl::OFlag;

use crate::error::Error;
use crate::lease::{Lease, Owner};
use crate::row::{META, Meta, Table, decode_leases};
use crate::turn::{Turn, Writers};

/// How long a freed address rests while there are others. By then kube-proxy and resolvers on other nodes have dropped
/// the pod that had it, and what nobody answered has left conntrack there: a flow of UDP after 30 s, a connection that a
/// client still tries to make after 120 (`nf_conntrack_udp_timeout` and `nf_conntrack_tcp_timeout_syn_sent`).
/// Until then its packets go where the address is, whoever has it.
pub const COOL_DOWN: Duration = Duration::from_secs(120);

/// Address space, not memory: the file grows as rows come. 60,000 leases with a 1 KiB record each take 0.16 GiB.
pub(crate) const MAP_SIZE: usize = 1 << 30;
/// Processes that may read at the same instant; 64 bytes each in the lock file.
const MAX_READERS: u32 = 1024;
/// The format that this program writes.
const FORMAT: u16 = 1;
pub(crate) const BOOT_ID: &str = "/proc/sys/kernel/random/boot_id";

/// Leases and records of this boot.
///
/// Stores that one process opens on the same folder share one environment, as LMDB requires; it is closed with the
/// last of them. A child of fork(2) must not use its parent's.
#[derive(Debug, Clone)]
pub struct Store {
    environment: Arc<Environment>,
    boot: Arc<[u8]>,
    pub(crate) cool_down: Duration,
}

#[derive(Debug)]
struct Environment {
    env: Env<WithoutTls>,
    rows: Rows,
    writers: Writers,
}

pub(crate) type Rows = Database<'static, Bytes, Bytes>;

/// The environments that this process has open. Held while one is opened, so that there are never two on one folder.
static OPEN: Mutex<Vec<Weak<Environment>>> = Mutex::new(Vec::new());

impl Store {
    /// Opens the store in the folder `dir`, which is made with mode 0700 if it is missing.
    ///
    /// # Errors
    /// [`Error::Folder`] and [`Error::Open`] if the folder cannot be used, [`Error::NewerFormat`].
    pub fn open(dir: &Path) -> Result<Store, Error> {
        let lock = open_folder(dir).map_err(|source| Error::Folder { path: dir.into(), source })?;
        Store::open_in(dir, &lock)
    }

    /// The same for a folder that is there; `None` if it is not, or goes meanwhile. For whoever looks on: it makes nothing.
    ///
    /// # Errors
    /// As of [`Store::open`].
    pub fn open_existing(dir: &Path) -> Result<Option<Store>, Error> {
        let is_absent = |err: &io::Error| err.kind() == io::ErrorKind::NotFound;
        match look_into(dir) {
            Err(err) if is_absent(&err) => Ok(None),
            Err(source) => Err(Error::Folder { path: dir.into(), source }),
            Ok(lock) => match Store::open_in(dir, &lock) {
                Err(Error::Folder { source, .. }) if is_absent(&source) => Ok(None),
                Err(Error::Open { source: heed::Error::Io(source), .. }) if is_absent(&source) => Ok(None),
                store => store.map(Some),
            },
        }
    }

    fn open_in(dir: &Path, lock: &File) -> Result<Store, Error> {
        let folder = |source| Error::Folder { path: dir.into(), source };
        let boot = fs::read(BOOT_ID).map_err(Error::BootId)?;
        let path = fs::canonicalize(dir).map_err(folder)?;
        let environment = environment(&path, lock)?;
        let store = Store { environment, boot: boot.trim_ascii_end().into(), cool_down: COOL_DOWN };
        let txn = store.begin()?;
        let current = store.is_current(&txn)?;
        drop(txn);
        if !current {
            store.write()?.commit()?;
        }
        Ok(store)
    }

    /// The same store with another cool-down than [`COOL_DOWN`].
    #[must_use]
    pub fn with_cool_down(self, cool_down: Duration) -> Store {
        Store { cool_down, ..self }
    }

    /// Begins a transaction that sees the last commit, and no later one; it blocks nobody and is blocked by nobody.
    ///
    /// # Errors
    /// [`Error::NewerFormat`] if a newer version took the store over, [`Error::Transaction`].
    pub fn read(&self) -> Result<ReadTxn<'_>, Error> {
        let txn = self.begin()?;
        // Of this boot it is since `open`; a newer version may have come in between.
        self.is_current(&txn)?;
        Ok(ReadTxn { txn: Source::Own(txn), store: self })
    }

    /// Begins the one transaction that may change the store, and waits for it while another one lives, be it in
    /// another process or in this thread.
    ///
    /// # Errors
    /// As of [`Store::read`].
    pub fn write(&self) -> Result<WriteTxn<'_>, Error> {
        let turn = self.environment.writers.turn()?;
        let mut txn = self.environment.env.write_txn().map_err(failed("begin a transaction"))?;
        if !self.is_current(&txn)? {
            self.rows().clear(&mut txn).map_err(failed("wipe the rows of another boot"))?;
            let meta = Meta { format: FORMAT, boot: &self.boot }.encode();
            self.rows().put(&mut txn, META, &meta).map_err(failed("write"))?;
        }
        Ok(WriteTxn { txn, store: self, early: Vec::new(), thread: PhantomData, _turn: turn })
    }

    fn begin(&self) -> Result<RoTxn<'_, WithoutTls>, Error> {
        self.environment.env.read_txn().map_err(failed("begin a transaction"))
    }

    /// Whether the rows are of this boot.
    fn is_current(&self, txn: &RoTxn<'_>) -> Result<bool, Error> {
        let Some(value) = self.rows().get(txn, META).map_err(failed("read"))? else { return Ok(false) };
        let meta = Meta::decode(value)?;
        match meta.format {
            FORMAT => Ok(meta.boot == &*self.boot),
            0 => Err(Table::Meta.damaged(META)),
            found => {
                let path = self.environment.env.path().into();
                Err(Error::NewerFormat { path, found, known: FORMAT })
            }
        }
    }

    pub(crate) fn rows(&self) -> &Rows {
        &self.environment.rows
    }
}

/// Opens the folder itself, whose flock guards the opening.
fn open_folder(dir: &Path) -> io::Result<File> {
    match look_into(dir) {
        Err(err) if err.kind() == io::ErrorKind::NotFound => {
            DirBuilder::new().recursive(true).mode(0o700).create(dir)?;
            look_into(dir)
        }
        result => result,
    }
}

fn look_into(dir: &Path) -> io::Result<File> {
    OpenOptions::new().read(true).custom_flags(OFlag::O_DIRECTORY.bits()).open(dir)
}

/// The environment of a folder: the one that is open, or a new one.
fn environment(path: &Path, folder: &File) -> Result<Arc<Environment>, Error> {
    let mut open = OPEN.lock().unwrap_or_else(PoisonError::into_inner);
    open.retain(|known| known.strong_count() > 0);
    let mut known = open.iter().filter_map(Weak::upgrade);
    if let Some(environment) = known.find(|known| known.env.path() == path) {
        return Ok(environment);
    }
    folder.lock().map_err(|source| Error::Folder { path: path.into(), source })?;
    let failed = |source| Error::Open { path: path.into(), source };
    let env = match open_environment(path) {
        // Its last user is in another thread and just dropping it.
        Err(heed::Error::EnvAlreadyOpened) => {
            if let Some(closing) = heed::env_closing_event(path) {
                closing.wait();
            }
            open_environment(path)
        }
        result => result,
    };
    let env = env.map_err(failed)?;
    // Whoever waits goes on while this one comes to its rows.
    folder.unlock().map_err(|source| Error::Folder { path: path.into(), source })?;
    // Readers that were killed would keep the pages of their snapshot from being used again.
    env.clear_stale_readers().map_err(failed)?;
    let rows = unnamed(&env).map_err(failed)?;
    let environment = Arc::new(Environment { env, rows, writers: Writers::open(path)? });
    open.push(Arc::downgrade(&environment));
    Ok(environment)
}

/// The crate's one door to unsafe code.
#[expect(
    unsafe_code,
    reason = "a memory map is as good as its file: heed cannot promise it, the caller has to"
)]
fn open_environment(path: &Path) -> Result<Env<WithoutTls>, heed::Error> {
    let mut options = EnvOpenOptions::new().read_txn_without_tls();
    options.map_size(MAP_SIZE).max_readers(MAX_READERS);
    // SAFETY: the files under the map are changed by LMDB only: the folder is root's (mode 0700, files 0600) and
    // used for nothing else, locking is on, and the map is read-only (no MDB_WRITEMAP), so that no stray write of
    // this process reaches it. LMDB never shrinks the file, so no mapped page that it uses lies behind its end.
    unsafe { options.open(path) }
}

/// The tree without a name; it is there from the start.
fn unnamed(env: &Env<WithoutTls>) -> Result<Rows, heed::Error> {
    let txn = env.read_txn()?;
    let rows = env.open_databases_and_commit(txn, |opener, txn| {
        Ok::<_, heed::Error>(CommitOrAbort::<_, ()>::Commit(opener.open_database(txn, None)?))
    })?;
    rows.commit().flatten().ok_or(heed::Error::Mdb(MdbError::NotFound))
}

/// Names the step that went wrong; a full map is an error of its own.
pub(crate) fn failed(step: &'static str) -> impl Fn(heed::Error) -> Error {
    move |source| match source {
        heed::Error::Mdb(MdbError::MapFull) => Error::Full,
        source => Error::Transaction { step, source },
    }
}

/// A view of the store that does not change.
pub struct ReadTxn<'s> {
    txn: Source<'s>,
    pub(crate) store: &'s Store,
}

enum Source<'s> {
    Own(RoTxn<'s, WithoutTls>),
    Of(&'s RwTxn<'s>),
}

/// An owner and the bytes of their record.
type Record<'t> = (Owner, &'t [u8]);
/// Key and value.
type Row<'t> = Result<(&'t [u8], &'t [u8]), Error>;

impl ReadTxn<'_> {
    pub(crate) fn txn(&self) -> &RoTxn<'_, WithoutTls> {
        match &self.txn {
            Source::Own(txn) => txn,
            Source::Of(txn) => txn,
        }
    }

    /// All leases, in the order of their owners.
    ///
    /// # Errors
    /// [`Error::Transaction`], [`Error::Damaged`].
    pub fn leases(&self) -> Result<Vec<Lease>, Error> {
        let rows = self.rows_under(&[Table::Lease as u8])?;
        let leases: Vec<_> = rows
            .map(|row| row.and_then(|(key, value)| decode_leases(key, value)))
            .collect::<Result<_, _>>()?;
        Ok(leases.concat())
    }

    /// The bytes that were last put for the owner.
    ///
    /// # Errors
    /// [`Error::Transaction`].
    pub fn record(&self, owner: &Owner) -> Result<Option<&[u8]>, Error> {
        self.get(&Table::Record.of_owner(owner))
    }

    /// All records, in the order of their owners.
    ///
    /// # Errors
    /// As of [`ReadTxn::leases`].
    pub fn records(&self) -> Result<Vec<Record<'_>>, Error> {
        self.records_under(&[Table::Record as u8])
    }

    /// The records of all interfaces of one container.
    ///
    /// # Errors
    /// As of [`ReadTxn::leases`].
    pub fn records_of(&self, container: &str) -> Result<Vec<Record<'_>>, Error> {
        self.records_under(&Table::Record.of_container(container))
    }

    fn records_under(&self, prefix: &[u8]) -> Result<Vec<Record<'_>>, Error> {
        let rows = self.rows_under(prefix)?;
        rows.map(|row| row.and_then(|(key, bytes)| Ok((Table::Record.owner(key)?, bytes)))).collect()
    }

    pub(crate) fn get(&self, key: &[u8]) -> Result<Option<&[u8]>, Error> {
        self.store.rows().get(self.txn(), key).map_err(failed("read"))
    }

    /// The rows whose keys begin with the prefix.
    pub(crate) fn rows_under(&self, prefix: &[u8]) -> Result<impl Iterator<Item = Row<'_>>, Error> {
        let rows = self.store.rows().prefix_iter(self.txn(), prefix).map_err(failed("read"))?;
        Ok(rows.map(|row| row.map_err(failed("read"))))
    }
}

/// A change of the store: whole after [`WriteTxn::commit`], and never happened if it is dropped before, as it has to
/// be after [`Error::Damaged`], [`Error::Full`] and [`Error::Transaction`].
///
/// It cannot leave its thread: the write lock is a robust mutex, which only its locker can unlock
/// (pthread_mutexattr_setrobust(3)).
pub struct WriteTxn<'s> {
    pub(crate) txn: RwTxn<'s>,
    pub(crate) store: &'s Store,
    pub(crate) early: Vec<IpAddr>,
    thread: PhantomData<*const ()>,
    /// Dropped last.
    _turn: Turn<'s>,
}

impl WriteTxn<'_> {
    /// What the store looks like from inside the transaction.
    #[must_use]
    pub fn reader(&self) -> ReadTxn<'_> {
        ReadTxn { txn: Source::Of(&self.txn), store: self.store }
    }

    /// The addresses that the transaction has leased before they had cooled down: packets for whoever had them may still
    /// be on their way, and connections remembered.
    #[must_use]
    pub fn early(&self) -> &[IpAddr] {
        &self.early
    }

    /// Keeps the bytes for the owner, in place of what was kept.
    ///
    /// # Errors
    /// [`Error::Full`], [`Error::Transaction`].
    pub fn put_record(&mut self, owner: &Owner, record: &[u8]) -> Result<(), Error> {
        self.put(&Table::Record.of_owner(owner), record)
    }

    /// Drops the owner's record; `false` if there was none.
    ///
    /// # Errors
    /// [`Error::Full`], [`Error::Transaction`].
    pub fn delete_record(&mut self, owner: &Owner) -> Result<bool, Error> {
        self.delete(&Table::Record.of_owner(owner))
    }

    /// Makes the change visible to everyone.
    ///
    /// # Errors
    /// [`Error::Full`], [`Error::Transaction`]: nothing has changed.
    pub fn commit(self) -> Result<(), Error> {
        self.txn.commit().map_err(failed("commit"))
    }

    pub(crate) fn put(&mut self, key: &[u8], value: &[u8]) -> Result<(), Error> {
        self.store.rows().put(&mut self.txn, key, value).map_err(failed("write"))
    }

    /// Deletes the rows whose keys lie between the two, and these.
    pub(crate) fn delete_between(&mut self, from: &[u8], to: &[u8]) -> Result<(), Error> {
        let between = (Bound::Included(from), Bound::Included(to));
        self.store.rows().delete_range(&mut self.txn, &between).map(drop).map_err(failed("write"))
    }

    pub(crate) fn delete(&mut self, key: &[u8]) -> Result<bool, Error> {
        self.store.rows().delete(&mut self.txn, key).map_err(failed("write"))
    }
}
