//! What the store tells of its ranges and leases.

use std::collections::BTreeMap;
use std::net::IpAddr;

use ipnet::IpNet;

use crate::allocator::now;
use crate::error::Error;
use crate::lease::Owner;
use crate::range::{Family, Range, Span, address};
use crate::row::{Address, Freed, Pool, Table};
use crate::store::ReadTxn;

/// How full a range is.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Usage {
    /// The subnet of the range.
    pub subnet: IpNet,
    /// Addresses that may be leased.
    pub total: u128,
    /// How many of them are leased; the others are free.
    pub used: u128,
    /// How many of the free ones were freed so recently that others are preferred.
    pub cooling: u128,
}

/// What ranges of one family and set have together.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Stock {
    /// Of the addresses.
    pub family: Family,
    /// Addresses that may be leased.
    pub total: u128,
    /// How many of them are leased.
    pub used: u128,
}

/// How full the addresses between two are, of which some has been leased since the boot: a range in use, whether or not the
/// configuration still has it.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Fill {
    /// The first address of the range.
    pub first: IpAddr,
    /// The last one.
    pub last: IpAddr,
    /// Addresses that may be leased.
    pub total: u128,
    /// How many of them are leased; the others are free.
    pub used: u128,
    /// How many of the free ones were freed so recently that others are preferred.
    pub cooling: u128,
}

impl ReadTxn<'_> {
    /// How full each of the ranges is, in the same order.
    ///
    /// # Errors
    /// [`Error::Transaction`], [`Error::Damaged`], [`Error::Clock`].
    pub fn usage(&self, ranges: &[Range]) -> Result<Vec<Usage>, Error> {
        let now = now()?;
        let warm = |freed: &Freed| !self.cooled(freed, now);
        let usage = |range: &Range| {
            let (used, cooling) = match self.pool(range.span())? {
                Some(pool) => (pool.leased, pool.tail - self.first_warm(&pool, now)?),
                None => {
                    let survey = self.survey(range.span())?;
                    (survey.leased, survey.freed.iter().filter(|freed| warm(freed)).count() as u64)
                }
            };
            let (used, cooling) = (used.into(), cooling.into());
            Ok(Usage { subnet: range.subnet(), total: range.capacity(), used, cooling })
        };
        ranges.iter().map(usage).collect()
    }

    /// How full the ranges of each family of each set are together: whether there is an address left.
    ///
    /// # Errors
    /// As of [`ReadTxn::usage`].
    pub fn stock(&self, ranges: &[Range]) -> Result<Vec<Stock>, Error> {
        let mut stocks: BTreeMap<(Family, u8), Stock> = BTreeMap::new();
        for (range, usage) in ranges.iter().zip(self.usage(ranges)?) {
            let family = range.family();
            let stock = stocks.entry((family, range.set())).or_insert(Stock { family, total: 0, used: 0 });
            stock.total = stock.total.saturating_add(usage.total);
            stock.used += usage.used;
        }
        Ok(stocks.into_values().collect())
    }

    /// How full every range is that was leased from since the boot, in the order of their addresses, IPv4 first.
    ///
    /// # Errors
    /// As of [`ReadTxn::usage`].
    pub fn fills(&self) -> Result<Vec<Fill>, Error> {
        let now = now()?;
        let fill = |pool: Pool| {
            let Span { family, first, last, .. } = pool.span;
            let at = |ip| address(family, ip).ok_or_else(|| Table::Pool.damaged(&pool.key()));
            Ok(Fill {
                first: at(first)?,
                last: at(last)?,
                total: pool.span.len(),
                used: pool.leased.into(),
                cooling: (pool.tail - self.first_warm(&pool, now)?).into(),
            })
        };
        self.pools(|_| true)?.into_iter().map(fill).collect()
    }

    /// Every leased address and whose it is, in their order, IPv4 first: the leases from the other end.
    ///
    /// # Errors
    /// [`Error::Transaction`], [`Error::Damaged`].
    pub fn holders(&self) -> Result<Vec<(IpAddr, Owner)>, Error> {
        let mut holders = Vec::new();
        for row in self.rows_under(&[Table::Address as u8])? {
            let (key, value) = row?;
            if let Address::Leased(owner) = Address::decode(key, value)? {
                holders.push((Address::at(key)?, owner));
            }
        }
        Ok(holders)
    }
}
