//! Token buckets and the way through an ifb, with `tc` as the second witness.

#![expect(clippy::unwrap_used, reason = "a test that cannot go on panics")]

mod common;

use std::process::Command;

use common::{ip, pair};
use serde_json::Value;
use weft_netns::{Mac, NetNs, Netlink, TokenBucket};

fn tc(netns: &NetNs, args: &str) -> Value {
    let output = netns.run(|| Command::new("tc").arg("-j").args(args.split(' ')).output().unwrap()).unwrap();
    assert!(output.status.success(), "tc {args}: {}", String::from_utf8_lossy(&output.stderr));
    serde_json::from_slice(&output.stdout).unwrap()
}

#[test]
fn a_token_bucket_is_what_tc_says() {
    let (host, pod) = (NetNs::create().unwrap(), NetNs::create().unwrap());
    let (outside, _, index, _) = pair(&host, &pod).unwrap();
    // A rate of more than 32 bits, and one whose burst lasts longer than the 274 s that a u32 of ticks can say.
    for (rate, burst) in
        [(1_250_000, 125_000), (12_500_000_000, 4_000_000), (125_000, 200_000_000), (1, 1464)]
    {
        let bucket = TokenBucket { rate, burst, queue: 300_000 };
        assert!(!outside.has_token_bucket(index, &bucket).unwrap());
        outside.set_token_bucket(index, &bucket).unwrap();
        assert!(outside.has_token_bucket(index, &bucket).unwrap(), "{bucket:?}");
        for other in [
            TokenBucket { rate: rate + 1 + rate / 100, ..bucket },
            TokenBucket { burst: burst + burst / 100, ..bucket },
            TokenBucket { queue: 300_001, ..bucket },
        ] {
            assert!(!outside.has_token_bucket(index, &other).unwrap(), "{other:?} is not {bucket:?}");
        }
        let told = tc(&host, "qdisc show dev veth0");
        assert_eq!(told[0]["kind"], "tbf", "{told}");
        assert_eq!(told[0]["options"]["rate"], rate, "{told}");
        assert_eq!(told.as_array().unwrap().len(), 1, "{told}");
    }
    let none = TokenBucket { rate: 0, burst: 0, queue: 0 };
    let err = outside.set_token_bucket(index, &none).unwrap_err();
    assert_eq!(err.errno(), Some(nix::libc::EINVAL), "{err}");
    let gone = outside.set_token_bucket(4711, &TokenBucket { rate: 1, burst: 1, queue: 1 }).unwrap_err();
    assert_eq!(gone.errno(), Some(nix::libc::ENODEV), "{gone}");
    assert_eq!(gone.to_string(), "limit the rate of link 4711");
}

#[test]
fn what_comes_in_is_led_through_an_ifb() {
    let (host, pod) = (NetNs::create().unwrap(), NetNs::create().unwrap());
    let (outside, _, index, _) = pair(&host, &pod).unwrap();
    let name = "through".parse().unwrap();
    let ifb = outside.create_ifb(&name, Mac::new([2; 6]), 1400).unwrap();
    let link = ip(&host, "-d link show through")[0].clone();
    assert_eq!(link["linkinfo"]["info_kind"], "ifb");
    assert_eq!((&link["mtu"], &link["ifindex"]), (&1400.into(), &ifb.into()));
    assert!(!outside.is_led_through(index, ifb).unwrap(), "no clsact yet");
    for _ in 0..2 {
        outside.lead_through(index, ifb).unwrap();
        assert!(outside.is_led_through(index, ifb).unwrap());
        assert!(!outside.is_led_through(index, index).unwrap());
    }
    let filters = tc(&host, "filter show dev veth0 ingress");
    let filter = filters.as_array().unwrap().iter().find(|filter| !filter["options"].is_null()).unwrap();
    assert_eq!((&filter["protocol"], &filter["pref"]), (&"all".into(), &0xffff.into()), "{filters}");
    let action = &filter["options"]["actions"][0];
    assert_eq!((&action["kind"], &action["to_dev"]), (&"mirred".into(), &"through".into()), "{filters}");
    assert_eq!(
        outside.create_ifb(&name, Mac::new([2; 6]), 1400).unwrap_err().errno(),
        Some(nix::libc::EEXIST)
    );
    assert!(outside.delete_link(ifb).unwrap());
    assert!(!outside.is_led_through(index, ifb).unwrap());
    let absent = Netlink::open_in(&host).unwrap().lead_through(4711, 4712).unwrap_err();
    assert_eq!(absent.errno(), Some(nix::libc::ENODEV), "{absent}");
}
