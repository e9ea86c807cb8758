//! A reconcile that an ADD asks for, because its network has no address left or soon will have none.
//!
//! One process of a node does it at a time, the others wait for it and then try again: the pods that a crash left behind
//! are looked at once, not once for each ADD of a burst. It is bounded in time, for a network may be full of living pods.

use std::fs::{self, File};
use std::io::{self, Write};
use std::path::Path;
use std::time::{Duration, SystemTime, UNIX_EPOCH};

use crate::config::Config;
use crate::error::chain;
use crate::nat;
use crate::pod::{Error, Network};
use crate::state::Ledger;
use crate::turn::Turn;

/// What a reconcile is asked for.
#[derive(Debug, Clone, Copy)]
struct Occasion {
    /// In `run_dir`: when the last one was, in nanoseconds of Unix time.
    file: &'static str,
    /// Between two of them, at least.
    apart: Duration,
}

/// An ADD found no address. A look at a pod that lives takes some 20 µs, so this is 1 % of a CPU at most with 500 pods;
/// and the kubelet asks again after a second or more.
const FULL: Occasion = Occasion { file: "reconciled.full", apart: Duration::from_secs(1) };
/// An ADD found 9 of 10 addresses leased.
const LOW: Occasion = Occasion { file: "reconciled.low", apart: Duration::from_secs(60) };
/// All that is written into `run_dir` here.
pub(crate) const FILES: [&str; 2] = [FULL.file, LOW.file];

/// Reconciles the network if it runs low, before an ADD takes one of its last addresses: what is freed now has time to
/// cool down. An ADD does not fail for it.
pub(crate) async fn when_low(config: &Config, ledger: &Ledger, network: &Network) {
    let reconciled = match is_low(ledger, network) {
        Ok(true) => reconcile(config, network, LOW).await,
        Ok(false) => Ok(()),
        Err(err) => Err(err),
    };
    told(network, reconciled);
}

/// Reconciles the network if `err` says that a dead pod may hold what an ADD needs: all addresses, or the one asked for.
/// `true` if it may help to try again; if not, what the ADD has to tell is `err`.
pub(crate) async fn when_full(config: &Config, network: &Network, err: &Error) -> bool {
    let is_wanting =
        matches!(err, Error::Lease(weft_ipam::Error::Exhausted { .. } | weft_ipam::Error::Taken { .. }));
    is_wanting && make_room(config, network).await
}

/// Detaches the pod that has the host port which `err` tells of, if it is dead. `true` if the port is free now.
pub(crate) fn when_taken(config: &Config, err: &Error) -> bool {
    let Error::Nat(nat::Error::Taken { holder, port, .. }) = err else { return false };
    match super::one(config, holder) {
        Ok(report) => !report.freed.is_empty(),
        Err(err) => {
            log::warn!("look whether the pod with host port {port} lives: {}", chain(&err));
            false
        }
    }
}

/// Reconciles a network that has no address left. `true` if there may be one now.
pub(crate) async fn make_room(config: &Config, network: &Network) -> bool {
    told(network, reconcile(config, network, FULL).await)
}

/// What goes wrong here goes wrong in `weft reconcile` too, which has nothing better to tell.
fn told(network: &Network, reconciled: Result<(), Error>) -> bool {
    if let Err(err) = &reconciled {
        log::warn!("reconcile network {}: {}", network.name, chain(err));
    }
    reconciled.is_ok()
}

fn is_low(ledger: &Ledger, network: &Network) -> Result<bool, Error> {
    let stocks = ledger.view()?.stock(&network.ranges).map_err(|source| ledger.failed(source))?;
    Ok(stocks.iter().any(|stock| nine_of_ten(stock.used, stock.total)))
}

/// In an order that cannot overflow; nothing is never much.
fn nine_of_ten(used: u128, total: u128) -> bool {
    used > 0 && used >= total / 10 * 9 + total % 10 * 9 / 10
}

async fn reconcile(config: &Config, network: &Network, occasion: Occasion) -> Result<(), Error> {
    let _turn = Turn::to_reconcile(config).await?;
    let path = config.run_dir.join(occasion.file);
    if is_due(&path, occasion.apart).map_err(|source| Error::Stamp { path, source })? {
        super::network(config, &network.name)?;
    }
    Ok(())
}

/// Whether the last time is as long ago; this is the new last time then.
fn is_due(path: &Path, apart: Duration) -> io::Result<bool> {
    let now = SystemTime::now().duration_since(UNIX_EPOCH).unwrap_or_default();
    let text = match fs::read_to_string(path) {
        Err(err) if err.kind() == io::ErrorKind::NotFound => String::new(),
        text => text?,
    };
    // Half a number, or a clock that was set back, does not keep the node from reconciling.
    let last = text.trim_end().parse().map(Duration::from_nanos);
    if last.is_ok_and(|last| last <= now && now - last < apart) {
        return Ok(false);
    }
    writeln!(File::create(path)?, "{}", now.as_nanos())?;
    Ok(true)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_network_is_low_when_nine_of_ten_addresses_are_leased() {
        for (used, total, low) in
            [(0, 1, false), (1, 1, true), (8, 10, false), (9, 10, true), (226, 253, false), (227, 253, true)]
        {
            assert_eq!(nine_of_ten(used, total), low, "{used} of {total}");
        }
        assert!(!nine_of_ten(u64::MAX.into(), u128::MAX - 1));
    }

    #[test]
    fn a_reconcile_is_due_once_in_a_while() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join(LOW.file);
        assert!(is_due(&path, LOW.apart).unwrap(), "never before");
        assert!(!is_due(&path, LOW.apart).unwrap(), "just now");
        assert!(is_due(&path, Duration::ZERO).unwrap());
        for text in ["", "17", "half a nu", "99999999999999999999999", "18446744073709551615"] {
            fs::write(&path, text).unwrap();
            assert!(
                is_due(&path, LOW.apart).unwrap(),
                "{text:?}: long ago, unreadable, or ahead of the clock"
            );
        }
    }
}
