//! `weft cleanup`: nothing of weft is left.

use std::io;
use std::os::unix::net::UnixStream;
use std::path::Path;

use weft_hooks::FastPath;

use super::Error;
use crate::config::Config;
use crate::journal::Subject;
use crate::pod::{self, DetachError, Links};
use crate::record::Record;
use crate::state::Ledger;
use crate::{nat, reconcile, turn};

/// Pods first, so that no program is taken from under one; then the table and the programs; the store last, for until then it is
/// what a second attempt works from.
pub(super) async fn run(config: &Config, if_unused: bool) -> Result<(), Error> {
    let records = Ledger::open(config)?.records()?;
    if if_unused && !records.is_empty() {
        return Err(Error::InUse(names(&records)));
    }
    let mut errors = Vec::new();
    for record in records {
        if let Err(DetachError(more)) = pod::detach_all(config, &record.container, Links::Delete).await {
            errors.extend(more);
        }
    }
    if !errors.is_empty() {
        return Err(DetachError(errors).into());
    }
    nat::remove()?;
    FastPath::unload(&config.bpf_dir).map_err(Error::Unload)?;
    // Out of the way first, whole: a server that is just looking would make files in a folder that is being emptied.
    let [store, gone] = ["store", "store.gone"].map(|name| config.run_dir.join(name));
    remove(&gone)?;
    absent_is_fine(std::fs::rename(&store, &gone), &store)?;
    let names = ["store.gone", "programs.lock", "pods.lock", turn::FILE, "weft.new", crate::tally::FILE];
    names.iter().chain(&reconcile::FILES).try_for_each(|name| remove(&config.run_dir.join(name)))?;
    let socket = config.run_dir.join("weft.sock");
    if UnixStream::connect(&socket).is_err() { remove(&socket) } else { Ok(()) }
}

fn names(records: &[Record]) -> String {
    records.iter().map(|record| Subject::from(record).to_string()).collect::<Vec<_>>().join(", ")
}

fn remove(path: &Path) -> Result<(), Error> {
    let removed = if path.is_dir() { std::fs::remove_dir_all(path) } else { std::fs::remove_file(path) };
    absent_is_fine(removed, path)
}

fn absent_is_fine(done: io::Result<()>, path: &Path) -> Result<(), Error> {
    match done {
        Err(source) if source.kind() != io::ErrorKind::NotFound => {
            Err(Error::Remove { path: path.to_owned(), source })
        }
        _ => Ok(()),
    }
}
