//! `weft cleanup`: nothing of weft is left.

use std::io;
use std::path::Path;

use weft_hooks::FastPath;

use super::Error;
use crate::config::Config;
use crate::pod::{self, DetachError, Links};
use crate::state::Ledger;
use crate::{nat, reconcile, turn};

/// Pods first, so that no program is taken from under one; then the table and the programs; the store last, for until then it is
/// what a second attempt works from.
pub(super) async fn run(config: &Config) -> Result<(), Error> {
    let mut errors = Vec::new();
    for record in Ledger::open(config)?.records()? {
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
    let names = [
        "store.gone",
        "programs.lock",
        "pods.lock",
        turn::FILE,
        "weft.sock",
        "weft.new",
        crate::cni::tally::FILE,
    ];
    names.iter().chain(&reconcile::FILES).try_for_each(|name| remove(&config.run_dir.join(name)))
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
