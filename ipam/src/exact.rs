//! Addresses that were asked for by name.

use std::net::IpAddr;

use crate::allocator::{Pick, Set};
use crate::error::Error;
use crate::range::{Family, Range, bits};
use crate::row::{Address, Pool, Table};
use crate::store::ReadTxn;

/// Whether the addresses may be leased at all, whoever has them now.
pub(crate) fn check(
    network: &str,
    ranges: &[Range],
    sets: &[Set<'_>],
    wanted: &[IpAddr],
) -> Result<(), Error> {
    for (index, &address) in wanted.iter().enumerate() {
        if let Some(set) = sets.iter().find(|set| set.contains(&address)) {
            match wanted.iter().take(index).find(|one| set.contains(one)) {
                Some(&one) => return Err(Error::TwoOfSet { family: set.family, one, other: address }),
                None => continue,
            }
        }
        return Err(match ranges.iter().find(|range| range.subnet().contains(&address)) {
            Some(range) => Error::Unleasable { address, subnet: range.subnet(), why: range.refusal(address) },
            None => Error::Elsewhere { address, network: network.into() },
        });
    }
    Ok(())
}

impl ReadTxn<'_> {
    /// Finds the address in the one of its family's pools that has it.
    pub(crate) fn pick_this(&self, network: &str, pools: Vec<Pool>, address: IpAddr) -> Result<Pick, Error> {
        let (family, ip) = (Family::of(address), bits(address));
        let pool = pools.into_iter().find(|pool| pool.span.contains(ip));
        let pool = pool.ok_or_else(|| Error::Elsewhere { address, network: network.into() })?;
        match self.address(family, ip)? {
            None => Ok(Pick { pool, ip, freed: None }),
            Some(Address::Leased(owner)) => Err(Error::Taken { address, owner }),
            Some(Address::Freed(at)) => Ok(Pick { freed: Some(self.sequence(&pool, ip, at)?), pool, ip }),
        }
    }

    /// The number of an address among the freed ones, which are in the order of their freeing.
    fn sequence(&self, pool: &Pool, ip: u128, at: u64) -> Result<u64, Error> {
        let (mut low, mut high) = (pool.head, pool.tail);
        while low < high {
            let middle = low + (high - low) / 2;
            if self.freed(pool, middle)?.at < at {
                low = middle + 1;
            } else {
                high = middle;
            }
        }
        for seq in low..pool.tail {
            if self.freed(pool, seq)?.ip == ip {
                return Ok(seq);
            }
        }
        Err(Table::Pool.damaged(&pool.key()))
    }
}
