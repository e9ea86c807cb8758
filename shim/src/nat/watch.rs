//! Keeps the table `inet weft` while somebody flushes rulesets.

use weft_netns::Changes;

use super::{TABLE, kernel, repair};
use crate::config::Config;
use crate::error::chain;
use crate::pod;
use crate::state::Ledger;

/// Repairs the table now, and each time that something of it is deleted, for ever.
///
/// # Errors
/// Nobody can be listened to. A repair that fails is told to the log, and the next loss is another try.
pub(crate) async fn keep(config: &Config) -> Result<(), pod::Error> {
    // Before the first look: what is lost after it is heard of.
    let mut changes = Changes::listen().map_err(kernel("listen to nftables"))?;
    loop {
        // Without a store there is nothing to repair by, and `weft cleanup` wants none made.
        match Ledger::open_existing(config)
            .and_then(|ledger| ledger.map_or(Ok(false), |ledger| repair(&ledger)))
        {
            Ok(false) => {}
            Ok(true) => log::warn!("table inet {TABLE} was not as the records say: it is repaired"),
            Err(err) => log::error!("{}", chain(&err)),
        }
        changes.loss(TABLE).await.map_err(kernel("listen to nftables"))?;
    }
}
