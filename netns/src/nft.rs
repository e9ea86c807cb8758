//! nftables tables of family `inet`, which holds IPv4 and IPv6: changed by transactions, looked up, listed.

pub(crate) mod batch;
pub(crate) mod closed;
mod expr;
mod loss;
pub(crate) mod set;
mod tick;

use std::collections::BTreeMap;

use netlink_packet_core::{NLM_F_ACK, NLM_F_DUMP};
use netlink_packet_netfilter::nftables::NfTablesMessage;
use netlink_packet_netfilter::{NetfilterHeader, NetfilterMessage, NetfilterProtoFamily};
use nix::libc;

use crate::netlink::errno;
use crate::raw::Raw;
use crate::{Error, Netfilter};

pub use batch::{Base, Batch, Hook, Kind};
pub use expr::{Direction, Expr, Family, Field, Slot};
pub(crate) use loss::is_loss;
pub use set::{Element, Set, Type};
pub use tick::await_tick;

/// `NFNL_SUBSYS_NFTABLES` (include/uapi/linux/netfilter/nfnetlink.h).
const SUBSYSTEM: u8 = 10;

impl Netfilter {
    /// Whether the table exists.
    ///
    /// # Errors
    /// [`Error::Netfilter`].
    pub fn has_table(&self, table: &str) -> Result<bool, Error> {
        let found = self.look(batch::get_table(table), NLM_F_ACK, || format!("look up table {table}"))?;
        Ok(!found.is_empty())
    }

    /// The number of the last transaction, of anybody's, in the namespace.
    ///
    /// # Errors
    /// [`Error::Netfilter`].
    pub fn generation(&self) -> Result<u32, Error> {
        let op = || "read the generation of nftables".to_owned();
        let found = self.look(batch::get_generation(), NLM_F_ACK, op)?;
        found
            .iter()
            .find_map(batch::generation_of)
            .ok_or_else(|| Error::Netfilter { op: op(), source: std::io::ErrorKind::InvalidData.into() })
    }

    /// The elements of a set; none if the set or the table is missing.
    ///
    /// # Errors
    /// [`Error::Netfilter`].
    pub fn elements(&self, table: &str, set: &str) -> Result<Vec<Element>, Error> {
        let op = || format!("list set {set} of table {table}");
        let found = self.look(set::get_elements(table, set), NLM_F_DUMP, op)?;
        Ok(found.into_iter().flat_map(|raw| set::elements_of(raw.attributes())).collect())
    }

    /// The element of a set with this key, if there is one.
    ///
    /// # Errors
    /// [`Error::Netfilter`].
    pub fn element(&self, table: &str, set: &str, key: &Element) -> Result<Option<Element>, Error> {
        let op = || format!("look up an element of set {set} of table {table}");
        let found = self.look(set::get_element(table, set, key), NLM_F_ACK, op)?;
        Ok(found.into_iter().flat_map(|raw| set::elements_of(raw.attributes())).next())
    }

    /// Whether the element of a set with this key is there, and does not expire.
    ///
    /// # Errors
    /// [`Error::Netfilter`].
    pub fn has_lasting(&self, table: &str, set: &str, key: &Element) -> Result<bool, Error> {
        let op = || format!("look up an element of set {set} of table {table}");
        let found = self.look(set::get_element(table, set, key), NLM_F_ACK, op)?;
        Ok(found.iter().any(|raw| !set::ends(raw.attributes())))
    }

    /// How many rules each chain has, in the order of their names.
    ///
    /// # Errors
    /// [`Error::Netfilter`].
    pub fn rules(&self, table: &str) -> Result<BTreeMap<String, usize>, Error> {
        let op = || format!("list the rules of table {table}");
        let mut counts = BTreeMap::new();
        for rule in self.look(batch::get_rules(table), NLM_F_DUMP, op)? {
            if let Some(chain) = batch::chain_of(&rule) {
                *counts.entry(chain).or_default() += 1;
            }
        }
        Ok(counts)
    }

    /// What is missing is no error, but nothing.
    fn look(&self, message: NfTablesMessage, flags: u16, op: impl Fn() -> String) -> Result<Vec<Raw>, Error> {
        match self.ask(inet(message), flags) {
            Err(err) if errno(&err) == Some(libc::ENOENT) => Ok(Vec::new()),
            found => found.map_err(|source| Error::Netfilter { op: op(), source }),
        }
    }
}

/// A message about family `inet`.
fn inet(message: NfTablesMessage) -> NetfilterMessage {
    NetfilterMessage::new(NetfilterHeader::new(NetfilterProtoFamily::Inet, 0, 0), message)
}
