//! The store against a model that is a list: which address comes next, who holds it, and when there is none.
#![expect(clippy::unwrap_used, reason = "a test that cannot go on panics")]

mod support;

use std::collections::{BTreeMap, VecDeque};
use std::net::IpAddr;
use std::time::Duration;

use proptest::prelude::*;
use support::{audit, folder, lease, owner, release};
use weft_ipam::{Error, Range, RangeSpec, Store};

/// Small enough to fill: 4 + 1 IPv4 addresses and 5 IPv6 addresses.
fn ranges() -> Vec<Range> {
    let spec = |subnet: &str, exclude: &[&str]| RangeSpec {
        subnet: subnet.parse().unwrap(),
        start: None,
        end: None,
        gateway: None,
        exclude: exclude.iter().map(|block| block.parse().unwrap()).collect(),
    };
    [spec("10.0.0.0/29", &["10.0.0.4/32"]), spec("10.0.1.0/30", &[]), spec("fd00::/125", &["fd00::5/128"])]
        .map(|spec| Range::new(spec).unwrap())
        .into()
}

#[derive(Debug, Clone)]
enum Step {
    /// Of this owner, from the ranges whose bit is set.
    Reserve(u8, u8),
    Release(u8),
    Reopen,
}

fn step() -> impl Strategy<Value = Step> {
    prop_oneof![
        6 => (0..12_u8, prop_oneof![Just(0b111_u8), Just(0b011), Just(0b100), 1..8_u8]).prop_map(|(who, which)| Step::Reserve(who, which)),
        5 => (0..12_u8).prop_map(Step::Release),
        1 => Just(Step::Reopen),
    ]
}

struct Pool {
    never: VecDeque<IpAddr>,
    /// With the number of the release.
    freed: VecDeque<(u32, IpAddr)>,
}

struct Model {
    pools: Vec<Pool>,
    held: BTreeMap<u8, Vec<IpAddr>>,
    releases: u32,
    /// Whether freed addresses cool down at once, or never.
    cools: bool,
}

impl Model {
    fn new(ranges: &[Range], cools: bool) -> Model {
        let never = |range: &Range| range.subnet().hosts().filter(|ip| range.contains(*ip)).collect();
        let pools = ranges.iter().map(|range| Pool { never: never(range), freed: VecDeque::new() }).collect();
        Model { pools, held: BTreeMap::new(), releases: 0, cools }
    }

    /// The pool that the next address of these comes from.
    fn next(&self, pools: &[usize]) -> Option<usize> {
        let good = |pool: &Pool| !pool.never.is_empty() || self.cools && !pool.freed.is_empty();
        let first = pools.iter().copied().find(|&index| good(&self.pools[index]));
        let oldest = || {
            let freed = pools.iter().filter_map(|&index| Some((self.pools[index].freed.front()?, index)));
            freed.min().map(|(_, index)| index)
        };
        first.or_else(oldest)
    }

    /// `Err` says how many of how many are leased.
    fn reserve(
        &mut self,
        who: u8,
        ranges: &[Range],
        which: &[usize],
    ) -> Result<Vec<IpAddr>, Option<(u128, u128)>> {
        let families = [true, false]
            .map(|v4| {
                which.iter().copied().filter(|&index| ranges[index].subnet().addr().is_ipv4() == v4).collect()
            })
            .into_iter()
            .filter(|family: &Vec<usize>| !family.is_empty());
        let families: Vec<Vec<usize>> = families.collect();
        if let Some(held) = self.held.get(&who) {
            let fits = |ip: &IpAddr| which.iter().any(|&index| ranges[index].contains(*ip));
            let same = held.len() == families.len() && held.iter().all(fits);
            return if same { Ok(held.clone()) } else { Err(None) };
        }
        let mut chosen = Vec::new();
        for family in &families {
            chosen.push(self.next(family).ok_or_else(|| {
                let total: u128 = family.iter().map(|&index| ranges[index].capacity()).sum();
                Some((total, total))
            })?);
        }
        let take = |index: usize| {
            let pool = &mut self.pools[index];
            pool.never.pop_front().or_else(|| pool.freed.pop_front().map(|(_, ip)| ip)).unwrap()
        };
        let addresses: Vec<IpAddr> = chosen.into_iter().map(take).collect();
        self.held.insert(who, addresses.clone());
        Ok(addresses)
    }

    fn release(&mut self, who: u8, ranges: &[Range]) -> Vec<IpAddr> {
        let addresses = self.held.remove(&who).unwrap_or_default();
        self.releases += 1;
        for &ip in &addresses {
            let index = ranges.iter().position(|range| range.contains(ip)).unwrap();
            self.pools[index].freed.push_back((self.releases, ip));
        }
        addresses
    }
}

fn check(store: &Store, ranges: &[Range], model: &Model) -> Result<(), TestCaseError> {
    let txn = store.read().unwrap();
    let held: Vec<(String, IpAddr)> = txn
        .leases()
        .unwrap()
        .into_iter()
        .map(|lease| (lease.owner.container().into(), lease.address))
        .collect();
    let mut expected: Vec<(String, IpAddr)> = Vec::new();
    for (who, addresses) in &model.held {
        expected.extend(addresses.iter().map(|ip| (who.to_string(), *ip)));
    }
    expected.sort_by(|(a, _), (b, _)| a.cmp(b));
    prop_assert_eq!(held, expected);
    for ((usage, range), pool) in txn.usage(ranges).unwrap().iter().zip(ranges).zip(&model.pools) {
        let free = pool.never.len() + pool.freed.len();
        prop_assert_eq!(usage.total, range.capacity());
        prop_assert_eq!(usage.total - usage.used, free as u128);
        prop_assert_eq!(usage.cooling, if model.cools { 0 } else { pool.freed.len() as u128 });
    }
    Ok(())
}

proptest! {
    #![proptest_config(ProptestConfig { cases: 400, failure_persistence: None, ..ProptestConfig::default() })]

    #[test]
    fn the_store_does_what_the_model_does(
        steps in proptest::collection::vec(step(), 1..80),
        cools in any::<bool>(),
    ) {
        let dir = folder();
        let cool_down = if cools { Duration::ZERO } else { Duration::from_secs(86_400) };
        let open = || Store::open(dir.path()).unwrap().with_cool_down(cool_down);
        let ranges = ranges();
        let mut model = Model::new(&ranges, cools);
        let mut store = open();
        for step in steps {
            match step {
                Step::Reserve(who, mask) => {
                    let which: Vec<usize> = (0..3).filter(|index| mask & (1 << index) != 0).collect();
                    let asked: Vec<Range> = which.iter().map(|&index| ranges[index].clone()).collect();
                    match (lease(&store, &asked, &owner(who)), model.reserve(who, &ranges, &which)) {
                        (Ok(got), Ok(want)) => prop_assert_eq!(got, want),
                        (Err(Error::Exhausted { total, used, .. }), Err(Some(want))) => prop_assert_eq!((total, used), want),
                        (Err(Error::Held { .. }), Err(None)) => {}
                        (got, want) => prop_assert!(false, "got {got:?}, want {want:?}"),
                    }
                }
                Step::Release(who) => prop_assert_eq!(release(&store, &owner(who)), model.release(who, &ranges)),
                Step::Reopen => {
                    drop(store);
                    store = open();
                }
            }
            check(&store, &ranges, &model)?;
        }
        drop(store);
        prop_assert_eq!(audit(dir.path()).len(), model.held.values().map(Vec::len).sum::<usize>());
    }
}
