//! The rows of the store: the on-disk format, version 1.
//!
//! One LMDB tree without a name; the first byte of a key is the table. Numbers are big-endian, so that keys sort
//! as their numbers do. `family` is one byte, 4 or 6; `ip` has 16 bytes, an IPv4 address the last four of them.
//!
//! | table   | key                            | value |
//! |---------|--------------------------------|-------|
//! | meta    | `00`                           | format u16, boot id (text, 36 bytes) |
//! | pool    | `01` family, first ip          | last ip, passed u128, leased u64, head u64, tail u64, holes (from ip, to ip)* |
//! | address | `02` family, ip                | leased: `01` container `00` interface; free again: `02` freed-at u64 |
//! | freed   | `03` family, first ip, seq u64 | ip, freed-at u64 |
//! | lease   | `04` container `00` interface  | count u8, (family, ip)*, network (text) |
//! | record  | `05` container `00` interface  | the caller's bytes |
//! | count   | `06` name                      | u64 |
//!
//! `address` and `lease` are the truth and say the same from both ends. A `pool` is an index over the addresses of
//! one range (first, last, holes): `passed` counts the numbers from `first` on that were considered and need not be
//! again, and its `freed` rows `head..tail` are the free addresses that were leased before, in the order of their
//! freeing, without gaps. No address is in two pools. `freed-at` is CLOCK_BOOTTIME in nanoseconds.

use std::net::IpAddr;

use crate::error::Error;
use crate::lease::{Lease, Owner};
use crate::range::{Family, Span, address, bits};

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Table {
    Meta = 0,
    Pool = 1,
    Address = 2,
    Freed = 3,
    Lease = 4,
    Record = 5,
    Count = 6,
}

impl Table {
    fn name(self) -> &'static str {
        match self {
            Table::Meta => "meta",
            Table::Pool => "pool",
            Table::Address => "address",
            Table::Freed => "freed",
            Table::Lease => "lease",
            Table::Record => "record",
            Table::Count => "count",
        }
    }

    /// The row is not what this version writes.
    pub(crate) fn damaged(self, key: &[u8]) -> Error {
        Error::Damaged { table: self.name(), key: key.into() }
    }

    /// The key of an owner's row.
    pub(crate) fn of_owner(self, owner: &Owner) -> Vec<u8> {
        [&self.of_container(owner.container()), owner.interface().as_bytes()].concat()
    }

    /// What the keys of all of a container's rows begin with.
    pub(crate) fn of_container(self, container: &str) -> Vec<u8> {
        [&[self as u8], container.as_bytes(), &[0]].concat()
    }

    /// The owner whose row has this key.
    pub(crate) fn owner(self, key: &[u8]) -> Result<Owner, Error> {
        owner(key.get(1..).unwrap_or_default()).ok_or_else(|| self.damaged(key))
    }

    /// The key of a number with a name.
    pub(crate) fn of_name(self, name: &str) -> Vec<u8> {
        [&[self as u8], name.as_bytes()].concat()
    }

    /// The key of a row about one address, or about the pool that begins there.
    pub(crate) fn of_ip(self, family: Family, ip: u128) -> [u8; 18] {
        let mut key = [self as u8; 18];
        key[1] = family as u8;
        key[2..].copy_from_slice(&ip.to_be_bytes());
        key
    }
}

pub(crate) const META: &[u8] = &[Table::Meta as u8];

fn owner(bytes: &[u8]) -> Option<Owner> {
    let (container, interface) = std::str::from_utf8(bytes).ok()?.split_once('\0')?;
    Owner::new(container, interface).ok()
}

/// Takes numbers off the front of a key or value.
struct Reader<'b>(&'b [u8]);

impl Reader<'_> {
    fn array<const N: usize>(&mut self) -> Option<[u8; N]> {
        let (head, rest) = self.0.split_first_chunk()?;
        self.0 = rest;
        Some(*head)
    }

    fn u64(&mut self) -> Option<u64> {
        self.array().map(u64::from_be_bytes)
    }

    fn u128(&mut self) -> Option<u128> {
        self.array().map(u128::from_be_bytes)
    }

    fn address(&mut self) -> Option<IpAddr> {
        let [family] = self.array()?;
        let family = Family::ALL.into_iter().find(|known| *known as u8 == family)?;
        address(family, self.u128()?)
    }

    /// Reads until nothing is left.
    fn all<T>(mut self, one: impl Fn(&mut Self) -> Option<T>) -> Option<Vec<T>> {
        let mut list = Vec::new();
        while !self.0.is_empty() {
            list.push(one(&mut self)?);
        }
        Some(list)
    }
}

/// Which program and which boot the rows are of.
pub(crate) struct Meta<'b> {
    pub(crate) format: u16,
    pub(crate) boot: &'b [u8],
}

impl<'b> Meta<'b> {
    pub(crate) fn decode(value: &'b [u8]) -> Result<Self, Error> {
        let mut reader = Reader(value);
        let format = reader.array().map(u16::from_be_bytes).ok_or_else(|| Table::Meta.damaged(META))?;
        Ok(Meta { format, boot: reader.0 })
    }

    pub(crate) fn encode(&self) -> Vec<u8> {
        [&self.format.to_be_bytes(), self.boot].concat()
    }
}

/// The index over the addresses of one range.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct Pool {
    pub(crate) span: Span,
    /// Numbers from `span.first` on that the search for an address that was never leased has behind it.
    pub(crate) passed: u128,
    pub(crate) leased: u64,
    /// Sequence number of the address that was freed first.
    pub(crate) head: u64,
    /// The next sequence number.
    pub(crate) tail: u64,
}

impl Pool {
    pub(crate) fn key(&self) -> [u8; 18] {
        Table::Pool.of_ip(self.span.family, self.span.first)
    }

    pub(crate) fn freed_key(&self, seq: u64) -> [u8; 26] {
        let mut key = [0; 26];
        key[..18].copy_from_slice(&self.freed_prefix());
        key[18..].copy_from_slice(&seq.to_be_bytes());
        key
    }

    /// What the keys of all of its freed rows begin with.
    pub(crate) fn freed_prefix(&self) -> [u8; 18] {
        Table::Freed.of_ip(self.span.family, self.span.first)
    }

    pub(crate) fn decode(key: &[u8], value: &[u8]) -> Result<Pool, Error> {
        Self::parse(key, value).ok_or_else(|| Table::Pool.damaged(key))
    }

    fn parse(key: &[u8], value: &[u8]) -> Option<Pool> {
        let mut from = Reader(key.get(1..)?);
        let first = from.address()?;
        let mut value = Reader(value);
        let last = value.u128()?;
        let passed = value.u128()?;
        let [leased, head, tail] = [value.u64()?, value.u64()?, value.u64()?];
        let holes = value.all(|reader| Some((reader.u128()?, reader.u128()?)))?;
        let span = Span { family: Family::of(first), first: bits(first), last, holes };
        let pool = Pool { span, passed, leased, head, tail };
        (from.0.is_empty() && pool.is_sound()).then_some(pool)
    }

    /// Numbers that cannot be would be counted with: an endless search, or an address for two.
    fn is_sound(&self) -> bool {
        let known = u128::from(self.leased) + u128::from(self.tail.saturating_sub(self.head));
        self.span.is_sound()
            && self.head <= self.tail
            && self.passed <= self.span.last - self.span.first + 1
            && known <= self.span.len()
    }

    pub(crate) fn encode(&self) -> Vec<u8> {
        let mut value = Vec::with_capacity(56 + 32 * self.span.holes.len());
        for number in [self.span.last, self.passed] {
            value.extend(number.to_be_bytes());
        }
        for number in [self.leased, self.head, self.tail] {
            value.extend(number.to_be_bytes());
        }
        for (from, to) in &self.span.holes {
            value.extend(from.to_be_bytes());
            value.extend(to.to_be_bytes());
        }
        value
    }
}

/// An address that is free and was leased before.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) struct Freed {
    pub(crate) ip: u128,
    /// CLOCK_BOOTTIME, nanoseconds.
    pub(crate) at: u64,
}

impl Freed {
    pub(crate) fn decode(key: &[u8], value: &[u8]) -> Result<Freed, Error> {
        let mut reader = Reader(value);
        let parsed = reader.u128().zip(reader.u64()).filter(|_| reader.0.is_empty());
        let (ip, at) = parsed.ok_or_else(|| Table::Freed.damaged(key))?;
        Ok(Freed { ip, at })
    }

    pub(crate) fn encode(&self) -> [u8; 24] {
        let mut value = [0; 24];
        value[..16].copy_from_slice(&self.ip.to_be_bytes());
        value[16..].copy_from_slice(&self.at.to_be_bytes());
        value
    }
}

/// An address that is or was leased.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) enum Address {
    Leased(Owner),
    /// CLOCK_BOOTTIME, nanoseconds.
    Freed(u64),
}

const LEASED: u8 = 1;
const FREED: u8 = 2;

impl Address {
    pub(crate) fn decode(key: &[u8], value: &[u8]) -> Result<Address, Error> {
        let parsed = match value.split_first() {
            Some((&LEASED, bytes)) => owner(bytes).map(Address::Leased),
            Some((&FREED, bytes)) => bytes.try_into().ok().map(u64::from_be_bytes).map(Address::Freed),
            _ => None,
        };
        parsed.ok_or_else(|| Table::Address.damaged(key))
    }

    pub(crate) fn encode(&self) -> Vec<u8> {
        match self {
            Address::Leased(owner) => {
                [&[LEASED], owner.container().as_bytes(), &[0], owner.interface().as_bytes()].concat()
            }
            Address::Freed(at) => [&[FREED][..], &at.to_be_bytes()].concat(),
        }
    }

    /// The number in the key of an address row.
    pub(crate) fn ip(key: &[u8]) -> Result<u128, Error> {
        Self::at(key).map(bits)
    }

    /// The address in the key of an address row.
    pub(crate) fn at(key: &[u8]) -> Result<IpAddr, Error> {
        let mut reader = Reader(key.get(1..).unwrap_or_default());
        let ip = reader.address().filter(|_| reader.0.is_empty());
        ip.ok_or_else(|| Table::Address.damaged(key))
    }
}

/// The value of a lease row: one address of each family at most, all of one network.
pub(crate) fn encode_leases(network: &str, addresses: &[IpAddr]) -> Vec<u8> {
    let mut value = vec![0];
    for &address in addresses {
        value[0] += 1;
        value.push(Family::of(address) as u8);
        value.extend(bits(address).to_be_bytes());
    }
    value.extend(network.bytes());
    value
}

/// The leases of one lease row.
pub(crate) fn decode_leases(key: &[u8], value: &[u8]) -> Result<Vec<Lease>, Error> {
    let owner = Table::Lease.owner(key)?;
    parse_leases(&owner, value).ok_or_else(|| Table::Lease.damaged(key))
}

fn parse_leases(owner: &Owner, value: &[u8]) -> Option<Vec<Lease>> {
    let mut reader = Reader(value);
    let [count] = reader.array()?;
    let addresses: Vec<IpAddr> = (0..count).map(|_| reader.address()).collect::<Option<_>>()?;
    if addresses.iter().enumerate().any(|(at, address)| addresses.iter().take(at).any(|one| one == address)) {
        return None;
    }
    // Whoever leased did not let one pass that would break the lines it is told in.
    let network = std::str::from_utf8(reader.0).ok().filter(|name| !name.contains(char::is_control))?;
    let lease = |address| Lease { owner: owner.clone(), network: network.into(), address };
    Some(addresses.into_iter().map(lease).collect())
}

#[cfg(test)]
mod tests {
    use super::*;

    fn owner() -> Owner {
        Owner::new("c", "eth0").unwrap()
    }

    #[test]
    fn rows_are_laid_out_as_documented() {
        let ip: IpAddr = "10.0.0.2".parse().unwrap();
        let ten = [0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 10, 0, 0];
        assert_eq!(Table::Lease.of_owner(&owner()), b"\x04c\0eth0");
        assert_eq!(Table::Address.of_ip(Family::V4, bits(ip)).to_vec(), [&[2, 4][..], &ten, &[2]].concat());
        assert_eq!(encode_leases("net", &[ip]), [&[1, 4][..], &ten, &[2], b"net"].concat());
        assert_eq!(Address::Leased(owner()).encode(), b"\x01c\0eth0");
        assert_eq!(Address::Freed(1).encode(), [2, 0, 0, 0, 0, 0, 0, 0, 1]);
        assert_eq!(Meta { format: 1, boot: b"b" }.encode(), [0, 1, b'b']);
    }

    #[test]
    fn a_row_reads_back_and_a_torn_one_is_damaged() {
        let span = Span { family: Family::V6, first: 2, last: 90, holes: vec![(5, 6), (8, 8)] };
        let pool = Pool { span, passed: 3, leased: 4, head: 5, tail: 6 };
        assert_eq!(Pool::decode(&pool.key(), &pool.encode()).unwrap(), pool);
        let freed = Freed { ip: 7, at: 8 };
        assert_eq!(Freed::decode(&pool.freed_key(5), &freed.encode()).unwrap(), freed);
        let key = Table::Lease.of_owner(&owner());
        let addresses = ["10.0.0.2".parse().unwrap(), "fd00::2".parse().unwrap()];
        let leases = decode_leases(&key, &encode_leases("net", &addresses)).unwrap();
        assert_eq!(leases.iter().map(|lease| lease.address).collect::<Vec<_>>(), addresses);
        assert!(leases.iter().all(|lease| lease.owner == owner() && lease.network == "net"));
        assert!(decode_leases(&key, &encode_leases("a\nb", &addresses)).is_err());
        let torn = |value: &[u8]| value[..value.len() - 1].to_vec();
        assert!(Pool::decode(&pool.key(), &torn(&pool.encode())).is_err());
        assert!(Freed::decode(&pool.freed_key(5), &torn(&freed.encode())).is_err());
        assert!(decode_leases(&key, &torn(&encode_leases("", &addresses))).is_err());
        assert!(Address::decode(&key, &torn(&Address::Freed(1).encode())).is_err());
        let err = Address::decode(&[2, 4], &[9]).unwrap_err();
        assert_eq!(err.to_string(), "address row [02, 04] of the store is damaged");
    }

    #[test]
    fn a_pool_with_numbers_that_cannot_be_is_damaged() {
        let span = Span { family: Family::V4, first: 2, last: 90, holes: vec![(5, 6), (8, 8)] };
        let sound = Pool { span, passed: 89, leased: 85, head: 5, tail: 6 };
        let decoded = |change: fn(&mut Pool)| {
            let mut pool = sound.clone();
            change(&mut pool);
            Pool::decode(&pool.key(), &pool.encode()).is_ok()
        };
        assert!(decoded(|_| {}));
        let unsound: [fn(&mut Pool); 9] = [
            |pool| pool.passed = 90,
            |pool| pool.leased = 86,
            |pool| pool.tail = u64::MAX,
            |pool| pool.head = 7,
            |pool| pool.span.last = 1,
            |pool| pool.span.last = 1 << 32,
            |pool| pool.span.holes = vec![(6, 5)],
            |pool| pool.span.holes = vec![(5, 6), (7, 8)],
            |pool| pool.span.holes = vec![(5, u128::MAX)],
        ];
        for (index, change) in unsound.into_iter().enumerate() {
            assert!(!decoded(change), "{index}");
        }
    }
}
