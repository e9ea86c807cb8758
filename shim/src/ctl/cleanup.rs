//! `weft cleanup`: nothing of weft is left.

use std::io;

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
    let names =
        ["store", "programs.lock", "pods.lock", turn::FILE, "weft.sock", "weft.new", crate::cni::tally::FILE];
    for path in names.iter().chain(&reconcile::FILES).map(|name| config.run_dir.join(name)) {
        let removed =
            if path.is_dir() { std::fs::remove_dir_all(&path) } else { std::fs::remove_file(&path) };
        match removed {
            Err(source) if source.kind() != io::ErrorKind::NotFound => {
                return Err(Error::Remove { path, source });
            }
            _ => {}
        }
    }
    Ok(())
}
