//! The choice of the next address, and its return.
//!
//! Order: an address that was never leased; then the one that was freed first, once it has cooled down; then, only
//! when every range of the family has neither, the one that was freed first although it is warm. Each step is a
//! search by key: O(log n) in leased and in all addresses.
//!
//! What a range knows is kept in a pool, an index that is made from the address rows when a range is first used or
//! has changed, by one pass over the range's rows. A pool that shares addresses with the new one goes, so each
//! address is in one pool at most; two networks that use overlapping, different ranges in turn are correct, and pay
//! for that pass each time. Two networks with the same range share its pool: an address is unique on the node.

use std::collections::BTreeMap;
use std::net::IpAddr;
use std::ops::Bound;

use nix::time::{ClockId, clock_gettime};

use crate::error::Error;
use crate::exact;
use crate::lease::{Lease, Owner};
use crate::range::{Family, Range, Span, address, bits};
use crate::row::{Address, Freed, Pool, Table, decode_leases, encode_leases};
use crate::store::{ReadTxn, WriteTxn, failed};

/// Beyond so many free addresses with a past, a cooled one is taken before one that was never leased: otherwise
/// the store would grow by a row with every pod that a /64 ever had. Small ranges never get there.
const REMEMBERED: u64 = 4096;

/// How many addresses an interface may have. A row of leases could tell of 255; nobody has asked for more than a few, and each costs
/// a pod routes, neighbours and rows.
const MOST_ADDRESSES: usize = 16;

/// An address that was chosen, and the pool that it is in.
pub(crate) struct Pick {
    pub(crate) pool: Pool,
    pub(crate) ip: u128,
    /// Its number among the pool's freed addresses.
    pub(crate) freed: Option<u64>,
}

/// What the address rows say about a span.
pub(crate) struct Survey {
    pub(crate) leased: u64,
    /// In the order of freeing.
    pub(crate) freed: Vec<Freed>,
}

impl ReadTxn<'_> {
    pub(crate) fn cooled(&self, freed: &Freed, now: u64) -> bool {
        u128::from(now.saturating_sub(freed.at)) >= self.store.cool_down.as_nanos()
    }

    /// The sequence number of the first address that is still warm: they are sorted by the time of freeing.
    pub(crate) fn first_warm(&self, pool: &Pool, now: u64) -> Result<u64, Error> {
        let (mut low, mut high) = (pool.head, pool.tail);
        while low < high {
            let middle = low + (high - low) / 2;
            if self.cooled(&self.freed(pool, middle)?, now) {
                low = middle + 1;
            } else {
                high = middle;
            }
        }
        Ok(low)
    }

    pub(crate) fn freed(&self, pool: &Pool, seq: u64) -> Result<Freed, Error> {
        let key = pool.freed_key(seq);
        let value = self.get(&key)?;
        let freed = Freed::decode(&key, value.ok_or_else(|| Table::Freed.damaged(&key))?)?;
        if pool.span.contains(freed.ip) { Ok(freed) } else { Err(Table::Freed.damaged(&key)) }
    }

    /// The address that was freed first.
    fn first_freed(&self, pool: &Pool) -> Result<Option<Freed>, Error> {
        if pool.head == pool.tail { Ok(None) } else { self.freed(pool, pool.head).map(Some) }
    }

    pub(crate) fn address(&self, family: Family, ip: u128) -> Result<Option<Address>, Error> {
        let key = Table::Address.of_ip(family, ip);
        let value = self.get(&key)?;
        value.map(|value| Address::decode(&key, value)).transpose()
    }

    fn leases_of(&self, owner: &Owner) -> Result<Vec<Lease>, Error> {
        let key = Table::Lease.of_owner(owner);
        let value = self.get(&key)?;
        value.map_or(Ok(Vec::new()), |value| decode_leases(&key, value))
    }

    /// The pool of exactly these addresses.
    pub(crate) fn pool(&self, span: &Span) -> Result<Option<Pool>, Error> {
        let key = Table::Pool.of_ip(span.family, span.first);
        let value = self.get(&key)?;
        let pool = value.map(|value| Pool::decode(&key, value)).transpose()?;
        Ok(pool.filter(|pool| pool.span == *span))
    }

    /// All pools that `keep` wants; a node has as many as its networks have ranges.
    pub(crate) fn pools(&self, keep: impl Fn(&Span) -> bool) -> Result<Vec<Pool>, Error> {
        let rows = self.rows_under(&[Table::Pool as u8])?;
        let pools = rows.map(|row| row.and_then(|(key, value)| Pool::decode(key, value)));
        pools.filter(|pool| pool.as_ref().map_or(true, |pool| keep(&pool.span))).collect()
    }

    pub(crate) fn survey(&self, span: &Span) -> Result<Survey, Error> {
        let [from, to] = [span.first, span.last].map(|ip| Table::Address.of_ip(span.family, ip));
        let within = (Bound::Included(&from[..]), Bound::Included(&to[..]));
        let mut survey = Survey { leased: 0, freed: Vec::new() };
        for row in self.store.rows().range(self.txn(), &within).map_err(failed("read"))? {
            let (key, value) = row.map_err(failed("read"))?;
            let ip = Address::ip(key)?;
            if span.contains(ip) {
                match Address::decode(key, value)? {
                    Address::Leased(_) => survey.leased += 1,
                    Address::Freed(at) => survey.freed.push(Freed { ip, at }),
                }
            }
        }
        survey.freed.sort_by_key(|freed| freed.at);
        Ok(survey)
    }

    /// The leases that the owner holds, if they are what is asked for.
    fn confirm(
        &self,
        network: &str,
        sets: &[Set<'_>],
        wanted: &[IpAddr],
        held: Vec<Lease>,
    ) -> Result<Vec<Lease>, Error> {
        for lease in &held {
            self.check_holder(lease)?;
        }
        let of_network = held.iter().all(|lease| lease.network == network);
        let serves = |set: &Set<'_>| held.iter().filter(|lease| set.contains(&lease.address)).count() == 1;
        let is_held = |wanted: &IpAddr| held.iter().any(|lease| lease.address == *wanted);
        if of_network && held.len() == sets.len() && sets.iter().all(serves) && wanted.iter().all(is_held) {
            return Ok(held);
        }
        Err(Error::Held { held, asked: network.into() })
    }

    /// What a lease says, the row of its address has to say too: an address has one owner.
    fn check_holder(&self, lease: &Lease) -> Result<(), Error> {
        let (family, ip) = (Family::of(lease.address), bits(lease.address));
        match self.address(family, ip)? {
            Some(Address::Leased(owner)) if owner == lease.owner => Ok(()),
            _ => Err(Table::Address.damaged(&Table::Address.of_ip(family, ip))),
        }
    }

    /// Finds an address, in the first pool that has a good one.
    fn pick(&self, mut pools: Vec<Pool>, now: u64) -> Result<Result<Pick, Vec<Pool>>, Error> {
        let mut oldest: Option<(Freed, usize)> = None;
        for (index, pool) in pools.iter_mut().enumerate() {
            let freed = self.first_freed(pool)?;
            let cooled = freed.filter(|freed| self.cooled(freed, now));
            let first = cooled.filter(|_| pool.tail - pool.head > REMEMBERED);
            let fresh = if first.is_none() { self.fresh(pool)? } else { None };
            if let Some(ip) = fresh {
                return Ok(Ok(Pick { pool: pool.clone(), ip, freed: None }));
            }
            if let Some(Freed { ip, .. }) = cooled {
                return Ok(Ok(Pick { freed: Some(pool.head), pool: pool.clone(), ip }));
            }
            if let Some(freed) = freed
                && oldest.is_none_or(|(oldest, _)| freed.at < oldest.at)
            {
                oldest = Some((freed, index));
            }
        }
        Ok(match oldest {
            Some((Freed { ip, .. }, index)) => {
                let pool = pools.swap_remove(index);
                Ok(Pick { freed: Some(pool.head), pool, ip })
            }
            None => Err(pools),
        })
    }

    /// The next address that was never leased. What it passes on the way, because an earlier range had leased it, it
    /// passes once.
    fn fresh(&self, pool: &mut Pool) -> Result<Option<u128>, Error> {
        let Span { family, first, .. } = pool.span;
        while let Some(ip) = first.checked_add(pool.passed).and_then(|from| pool.span.next_from(from)) {
            pool.passed = ip - first + 1;
            if self.address(family, ip)?.is_none() {
                return Ok(Some(ip));
            }
        }
        Ok(None)
    }
}

impl WriteTxn<'_> {
    /// Leases one address of each family of each set, IPv4 first; the ranges of these are tried in order. An owner that holds
    /// such addresses gets the same again.
    ///
    /// # Errors
    /// Nothing is leased then. [`Error::Exhausted`], [`Error::Overlap`], [`Error::TooMany`]; [`Error::Held`] if the owner
    /// holds addresses of another network, or others than one of each family of each set (they may be in use, so they
    /// are not taken away); [`Error::Full`], [`Error::Transaction`], [`Error::Damaged`], [`Error::Clock`].
    pub fn reserve(&mut self, network: &str, ranges: &[Range], owner: &Owner) -> Result<Vec<Lease>, Error> {
        self.reserve_these(network, ranges, &[], owner)
    }

    /// As [`WriteTxn::reserve`], but of ranges that have an address of `wanted`, exactly that one. It may be one that
    /// cools down: whoever names it knows who had it.
    ///
    /// # Errors
    /// Also [`Error::Elsewhere`], [`Error::Unleasable`], [`Error::TwoOfSet`], and [`Error::Taken`] if another owner
    /// has it.
    pub fn reserve_these(
        &mut self,
        network: &str,
        ranges: &[Range],
        wanted: &[IpAddr],
        owner: &Owner,
    ) -> Result<Vec<Lease>, Error> {
        check_apart(ranges)?;
        let sets = sets(ranges)?;
        exact::check(network, ranges, &sets, wanted)?;
        let held = self.reader().leases_of(owner)?;
        if !held.is_empty() {
            return self.reader().confirm(network, &sets, wanted, held);
        }
        let now = now()?;
        let mut picks = Vec::with_capacity(sets.len());
        for set in &sets {
            let pools = set.ranges.iter().map(|range| self.adopt(range.span())).collect::<Result<_, _>>()?;
            picks.push(match wanted.iter().find(|address| set.contains(address)) {
                Some(address) => self.reader().pick_this(network, pools, *address)?,
                None => {
                    let pick = self.reader().pick(pools, now)?;
                    pick.map_err(|pools| exhausted(network, set.family, &pools))?
                }
            });
        }
        let mut leases = Vec::with_capacity(picks.len());
        for pick in picks {
            let address = self.take(pick, owner, now)?;
            leases.push(Lease { owner: owner.clone(), network: network.into(), address });
        }
        if !leases.is_empty() {
            let addresses: Vec<IpAddr> = leases.iter().map(|lease| lease.address).collect();
            self.put(&Table::Lease.of_owner(owner), &encode_leases(network, &addresses))?;
        }
        Ok(leases)
    }

    /// Frees all that the owner holds, and says what it was: nothing for an owner that is not known.
    ///
    /// # Errors
    /// [`Error::Full`], [`Error::Transaction`], [`Error::Damaged`], [`Error::Clock`].
    pub fn release(&mut self, owner: &Owner) -> Result<Vec<Lease>, Error> {
        let leases = self.reader().leases_of(owner)?;
        let at = now()?;
        for lease in &leases {
            self.give_back(lease, at)?;
        }
        self.delete(&Table::Lease.of_owner(owner))?;
        Ok(leases)
    }

    /// The pool of these addresses; made from the address rows if there is none, in place of those it overlaps.
    fn adopt(&mut self, span: &Span) -> Result<Pool, Error> {
        if let Some(pool) = self.reader().pool(span)? {
            return Ok(pool);
        }
        let replaced = self.reader().pools(|other| other.overlaps(span))?;
        for old in replaced {
            self.delete_between(&old.freed_key(0), &old.freed_key(u64::MAX))?;
            self.delete(&old.key())?;
        }
        let Survey { leased, freed } = self.reader().survey(span)?;
        let tail = freed.len() as u64;
        let pool = Pool { span: span.clone(), passed: 0, leased, head: 0, tail };
        for (seq, freed) in (0..).zip(freed) {
            self.put(&pool.freed_key(seq), &freed.encode())?;
        }
        self.put(&pool.key(), &pool.encode())?;
        Ok(pool)
    }

    fn take(&mut self, Pick { mut pool, ip, freed }: Pick, owner: &Owner, now: u64) -> Result<IpAddr, Error> {
        let key = Table::Address.of_ip(pool.span.family, ip);
        // The pool is an index: it may be wrong, and then the address is nobody else's either.
        if matches!(self.reader().address(pool.span.family, ip)?, Some(Address::Leased(_))) {
            return Err(Table::Address.damaged(&key));
        }
        let mut cooled = true;
        if let Some(seq) = freed {
            cooled = self.reader().cooled(&self.reader().freed(&pool, seq)?, now);
            // The freed rows have no gap: those before it move up. Only an address that was named has any.
            for before in (pool.head..seq).rev() {
                let moved = self.reader().freed(&pool, before)?;
                self.put(&pool.freed_key(before + 1), &moved.encode())?;
            }
            self.delete(&pool.freed_key(pool.head))?;
            pool.head += 1;
        }
        pool.leased = pool.leased.checked_add(1).ok_or_else(|| Table::Pool.damaged(&pool.key()))?;
        self.put(&pool.key(), &pool.encode())?;
        self.put(&key, &Address::Leased(owner.clone()).encode())?;
        let address = address(pool.span.family, ip).ok_or_else(|| Table::Address.damaged(&key))?;
        self.early.extend((!cooled).then_some(address));
        Ok(address)
    }

    fn give_back(&mut self, lease: &Lease, at: u64) -> Result<(), Error> {
        let (family, ip) = (Family::of(lease.address), bits(lease.address));
        let key = Table::Address.of_ip(family, ip);
        self.reader().check_holder(lease)?;
        self.put(&key, &Address::Freed(at).encode())?;
        let holds = |span: &Span| span.family == family && span.contains(ip);
        let pools = self.reader().pools(holds)?;
        for mut pool in pools {
            self.put(&pool.freed_key(pool.tail), &Freed { ip, at }.encode())?;
            pool.tail = pool.tail.checked_add(1).ok_or_else(|| Table::Pool.damaged(&pool.key()))?;
            pool.leased = pool.leased.checked_sub(1).ok_or_else(|| Table::Pool.damaged(&pool.key()))?;
            self.put(&pool.key(), &pool.encode())?;
        }
        Ok(())
    }
}

/// What one address comes from: the ranges of one family in one set, in order.
pub(crate) struct Set<'r> {
    pub(crate) family: Family,
    ranges: Vec<&'r Range>,
}

impl Set<'_> {
    pub(crate) fn contains(&self, address: &IpAddr) -> bool {
        self.ranges.iter().any(|range| range.contains(*address))
    }
}

/// IPv4 comes first, for those who know one address of a pod only and take the first.
fn sets(ranges: &[Range]) -> Result<Vec<Set<'_>>, Error> {
    let mut sets: BTreeMap<(Family, u8), Vec<&Range>> = BTreeMap::new();
    for range in ranges {
        sets.entry((range.family(), range.set())).or_default().push(range);
    }
    if sets.len() > MOST_ADDRESSES {
        return Err(Error::TooMany { asked: sets.len(), most: MOST_ADDRESSES });
    }
    Ok(sets.into_iter().map(|((family, _), ranges)| Set { family, ranges }).collect())
}

fn check_apart(ranges: &[Range]) -> Result<(), Error> {
    for (index, one) in ranges.iter().enumerate() {
        let mut rest = ranges.iter().skip(index + 1);
        if let Some(other) = rest.find(|other| one.span().overlaps(other.span())) {
            return Err(Error::Overlap { one: one.subnet(), other: other.subnet() });
        }
    }
    Ok(())
}

fn exhausted(network: &str, family: Family, pools: &[Pool]) -> Error {
    let total = pools.iter().map(|pool| pool.span.len()).sum();
    let used = pools.iter().map(|pool| u128::from(pool.leased)).sum();
    Error::Exhausted { network: network.into(), family, total, used }
}

/// Nanoseconds since boot, time in suspend too: unlike wall-clock time it never goes back, and it ends with the
/// rows that it is written to.
pub(crate) fn now() -> Result<u64, Error> {
    let time = clock_gettime(ClockId::CLOCK_BOOTTIME).map_err(Error::Clock)?;
    Ok((time.tv_sec() as u64).saturating_mul(1_000_000_000).saturating_add(time.tv_nsec() as u64))
}
