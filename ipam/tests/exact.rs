//! Addresses that are asked for by name: which there are, what is refused, and that the index over them holds.
#![expect(clippy::unwrap_used, reason = "a test that cannot go on panics")]

mod support;

use std::collections::BTreeMap;
use std::net::IpAddr;
use std::time::Duration;

use proptest::prelude::*;
use support::{audit, folder, lease, owner, range, release};
use weft_ipam::{Error, Owner, Range, RangeSpec, Store};

fn ip(text: &str) -> IpAddr {
    text.parse().unwrap()
}

fn ips<const N: usize>(texts: [&str; N]) -> Vec<IpAddr> {
    texts.map(ip).into()
}

fn lease_these(
    store: &Store,
    ranges: &[Range],
    wanted: &[IpAddr],
    owner: &Owner,
) -> Result<Vec<IpAddr>, Error> {
    let mut txn = store.write()?;
    let leases = txn.reserve_these("net", ranges, wanted, owner)?;
    txn.commit()?;
    Ok(leases.into_iter().map(|lease| lease.address).collect())
}

#[test]
fn a_named_address_is_leased_and_the_other_family_chosen() {
    let dir = folder();
    let store = Store::open(dir.path()).unwrap();
    let both = [range("10.0.0.0/24"), range("10.0.1.0/24"), range("fd00::/64")];
    let these = |wanted: &[&str], who: &str| {
        let wanted: Vec<IpAddr> = wanted.iter().map(|text| ip(text)).collect();
        lease_these(&store, &both, &wanted, &owner(who)).unwrap()
    };
    assert_eq!(these(&["10.0.1.7"], "a"), ips(["10.0.1.7", "fd00::2"]), "of the second range");
    assert_eq!(these(&["fd00::7"], "b"), ips(["10.0.0.2", "fd00::7"]));
    assert_eq!(these(&["fd00::8", "10.0.0.3"], "c"), ips(["10.0.0.3", "fd00::8"]), "in any order");
    assert_eq!(these(&[], "d"), ips(["10.0.0.4", "fd00::3"]), "what was named is passed");
    assert_eq!(these(&["10.0.1.7"], "a"), ips(["10.0.1.7", "fd00::2"]), "again");
    let err = lease_these(&store, &both, &ips(["10.0.1.8"]), &owner("a")).unwrap_err();
    assert!(matches!(err, Error::Held { .. }), "{err}");
    drop(store);
    assert_eq!(audit(dir.path()).len(), 8);
}

#[test]
fn each_set_gives_an_address_of_each_of_its_families() {
    let dir = folder();
    let store = Store::open(dir.path()).unwrap();
    let sets = [
        range("10.0.0.0/30").in_set(2),
        range("10.0.1.0/24").in_set(1),
        range("fd00::/64").in_set(1),
        range("10.0.2.0/24").in_set(2),
    ];
    let these = |wanted: &[IpAddr], who: &str| lease_these(&store, &sets, wanted, &owner(who));
    assert_eq!(these(&[], "a").unwrap(), ips(["10.0.1.2", "10.0.0.2", "fd00::2"]));
    assert_eq!(these(&[], "a").unwrap(), ips(["10.0.1.2", "10.0.0.2", "fd00::2"]), "again");
    assert_eq!(
        these(&[], "b").unwrap(),
        ips(["10.0.1.3", "10.0.2.2", "fd00::3"]),
        "the first of its ranges is full"
    );
    assert_eq!(these(&ips(["10.0.2.9", "10.0.1.9"]), "c").unwrap(), ips(["10.0.1.9", "10.0.2.9", "fd00::4"]));
    let held = lease_these(&store, &sets[..3], &[], &owner("b")).unwrap_err();
    assert!(matches!(held, Error::Held { .. }), "{held}");
    let fewer = lease_these(&store, &sets[1..3], &[], &owner("a")).unwrap_err();
    assert!(matches!(fewer, Error::Held { .. }), "{fewer}");
    let many: Vec<Range> = (0..17).map(|set| range(&format!("10.1.{set}.0/24")).in_set(set)).collect();
    let err = lease_these(&store, &many, &[], &owner("d")).unwrap_err();
    assert_eq!(err.to_string(), "the ranges give an interface 17 addresses, and it may have 16");
    let stock = store.read().unwrap().stock(&sets).unwrap();
    let stock: Vec<(u128, u128)> = stock.iter().map(|stock| (stock.used, stock.total)).collect();
    assert_eq!(stock[..2], [(3, 253), (3, 254)]);
    drop(store);
    assert_eq!(audit(dir.path()).len(), 9);
}

#[test]
fn every_mistake_has_its_text_and_leases_nothing() {
    let dir = folder();
    let store = Store::open(dir.path()).unwrap();
    let spec = RangeSpec {
        subnet: "10.0.0.0/24".parse().unwrap(),
        start: Some(ip("10.0.0.10")),
        end: Some(ip("10.0.0.100")),
        gateway: Some(ip("10.0.0.50")),
        exclude: vec!["10.0.0.64/28".parse().unwrap(), "10.0.0.8/29".parse().unwrap()],
    };
    let ranges = [Range::new(spec).unwrap(), range("fd00::/64")];
    lease_these(&store, &ranges, &ips(["10.0.0.20"]), &owner("a")).unwrap();
    for (wanted, text) in [
        (&["10.0.1.1"][..], "address 10.0.1.1 is in no range of network net"),
        (&["fd01::1"], "address fd01::1 is in no range of network net"),
        (&["10.0.0.50"], "address 10.0.0.50 of subnet 10.0.0.0/24 cannot be leased: it is the gateway"),
        (&["fd00::1"], "address fd00::1 of subnet fd00::/64 cannot be leased: it is the gateway"),
        (&["10.0.0.70"], "address 10.0.0.70 of subnet 10.0.0.0/24 cannot be leased: it is excluded"),
        (&["10.0.0.12"], "address 10.0.0.12 of subnet 10.0.0.0/24 cannot be leased: it is excluded"),
        (
            &["10.0.0.101"],
            "address 10.0.0.101 of subnet 10.0.0.0/24 cannot be leased: \
             it is outside of the first and the last address to lease",
        ),
        (
            &["10.0.0.255"],
            "address 10.0.0.255 of subnet 10.0.0.0/24 cannot be leased: \
             it is outside of the first and the last address to lease",
        ),
        (
            &["fd00::"],
            "address fd00:: of subnet fd00::/64 cannot be leased: \
             it is outside of the first and the last address to lease",
        ),
        (&["10.0.0.20"], "address 10.0.0.20 is leased to interface eth0 of container a"),
        (
            &["10.0.0.21", "10.0.0.22"],
            "addresses 10.0.0.21 and 10.0.0.22 are both IPv4, and of ranges that give an interface one address",
        ),
    ] {
        let wanted: Vec<IpAddr> = wanted.iter().map(|text| ip(text)).collect();
        let err = lease_these(&store, &ranges, &wanted, &owner("b")).unwrap_err();
        assert_eq!(err.to_string(), text);
    }
    let err = lease_these(&store, &ranges[1..], &ips(["10.0.0.21"]), &owner("b")).unwrap_err();
    assert_eq!(err.to_string(), "address 10.0.0.21 is in no range of network net", "no range of the family");
    assert_eq!(store.read().unwrap().leases().unwrap().len(), 2, "those of a");
}

#[test]
fn a_named_address_may_be_a_warm_one_and_the_others_keep_their_order() {
    let dir = folder();
    let store = Store::open(dir.path()).unwrap();
    let ranges = [range("10.0.0.0/29")];
    for turn in 0..5 {
        lease(&store, &ranges, &owner(turn)).unwrap();
    }
    for turn in [3, 0, 4, 1] {
        release(&store, &owner(turn));
    }
    let named = ips(["10.0.0.6"]);
    assert_eq!(lease_these(&store, &ranges, &named, &owner("named")).unwrap(), named);
    let usage = store.read().unwrap().usage(&ranges).unwrap()[0];
    assert_eq!((usage.used, usage.cooling), (2, 3));
    let next: Vec<IpAddr> =
        ["a", "b", "c"].iter().flat_map(|name| lease(&store, &ranges, &owner(name)).unwrap()).collect();
    assert_eq!(next, ips(["10.0.0.5", "10.0.0.2", "10.0.0.3"]), "freed first, leased first");
    drop(store);
    assert_eq!(audit(dir.path()).len(), 5);
}

#[test]
fn whoever_gets_a_warm_address_is_told() {
    let dir = folder();
    let ranges = [range("10.0.0.0/30"), range("fd00::/64")];
    let store = Store::open(dir.path()).unwrap();
    let early = |store: &Store, wanted: &[IpAddr]| {
        let mut txn = store.write().unwrap();
        txn.reserve_these("net", &ranges, wanted, &owner("a")).unwrap();
        let early = txn.early().to_vec();
        txn.commit().unwrap();
        release(store, &owner("a"));
        early
    };
    assert_eq!(early(&store, &[]), ips([]), "nobody has had it");
    assert_eq!(early(&store, &[]), ips(["10.0.0.2"]), "of the other family there are others");
    assert_eq!(early(&store, &ips(["fd00::2"])), ips(["10.0.0.2", "fd00::2"]), "one that was named");
    assert_eq!(early(&store.with_cool_down(Duration::ZERO), &ips(["fd00::2"])), ips([]), "cooled down");
}

#[derive(Debug, Clone)]
enum Step {
    Any(u8),
    This(u8, u8),
    Release(u8),
}

fn step() -> impl Strategy<Value = Step> {
    prop_oneof![
        (0..12_u8).prop_map(Step::Any),
        (0..12_u8, 2..15_u8).prop_map(|(who, host)| Step::This(who, host)),
        (0..12_u8).prop_map(Step::Release),
    ]
}

proptest! {
    #![proptest_config(ProptestConfig { cases: 300, failure_persistence: None, ..ProptestConfig::default() })]

    /// A /28 has 13 addresses, .2 to .14; the owners are fewer.
    #[test]
    fn named_and_chosen_addresses_share_a_range(
        steps in proptest::collection::vec(step(), 1..60),
        cools in any::<bool>(),
    ) {
        let dir = folder();
        let cool_down = if cools { Duration::ZERO } else { Duration::from_secs(86_400) };
        let store = Store::open(dir.path()).unwrap().with_cool_down(cool_down);
        let ranges = [range("10.0.0.0/28")];
        let mut held: BTreeMap<u8, IpAddr> = BTreeMap::new();
        for step in steps {
            match step {
                Step::Any(who) => {
                    let got = lease(&store, &ranges, &owner(who)).unwrap();
                    let before = held.insert(who, got[0]);
                    prop_assert!(before.is_none_or(|before| before == got[0]));
                }
                Step::This(who, host) => {
                    let wanted: IpAddr = [10, 0, 0, host].into();
                    let has_it = held.iter().find(|(_, address)| **address == wanted).map(|(who, _)| *who);
                    match (lease_these(&store, &ranges, &[wanted], &owner(who)), held.get(&who), has_it) {
                        (Ok(got), None, None) => {
                            prop_assert_eq!(got, vec![wanted]);
                            held.insert(who, wanted);
                        }
                        (Ok(got), Some(_), Some(holder)) => prop_assert_eq!((got, holder), (vec![wanted], who)),
                        (Err(Error::Held { .. }), Some(mine), _) => prop_assert_ne!(*mine, wanted),
                        (Err(Error::Taken { address, owner: by }), None, Some(holder)) => {
                            prop_assert_eq!((address, by), (wanted, owner(holder)));
                        }
                        (got, mine, holder) => prop_assert!(false, "{got:?} {mine:?} {holder:?}"),
                    }
                }
                Step::Release(who) => {
                    let freed = release(&store, &owner(who));
                    prop_assert_eq!(freed, held.remove(&who).into_iter().collect::<Vec<_>>());
                }
            }
            let values: std::collections::BTreeSet<_> = held.values().collect();
            prop_assert_eq!(values.len(), held.len(), "an address has two owners");
        }
        drop(store);
        prop_assert_eq!(audit(dir.path()).len(), held.len());
    }
}
