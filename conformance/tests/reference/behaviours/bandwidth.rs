//! Limits. What is asserted is that a transfer is not faster than its limit, and not many times slower: other tests run beside it.

use std::time::Duration;

use serde_json::{Value, json};

use crate::site::{BEYOND, Site};
use crate::traffic::transfer;
use crate::wish::Wish;

/// Bits per second, and what a megabyte takes then.
const RATE: u64 = 8_000_000;
const MEGABYTE: usize = 1_000_000;
const A_SECOND: Duration = Duration::from_secs(1);

fn limited(bandwidth: Value) -> Wish {
    Wish { runtime: json!({ "bandwidth": bandwidth }), ..Wish::default() }
}

fn takes_a_second(took: Duration) {
    // The burst, 0.1 s of the rate, comes on top.
    assert!(took > A_SECOND * 8 / 10, "faster than its limit: {took:?}");
    assert!(took < A_SECOND * 4, "{took:?}");
}

pub(crate) fn ingress(site: &Site) {
    let pod = site.add(&limited(json!({ "ingressRate": RATE, "ingressBurst": RATE / 10 })));
    takes_a_second(transfer(&site.outside, &pod.address(), &pod.space, MEGABYTE));
    pod.del();
}

pub(crate) fn egress(site: &Site) {
    let pod = site.add(&limited(json!({ "egressRate": RATE, "egressBurst": RATE / 10 })));
    takes_a_second(transfer(&pod.space, BEYOND[0], &site.outside, MEGABYTE));
    pod.del();
}

pub(crate) fn between_pods(site: &Site) {
    let pod = site.add(&limited(json!({ "ingressRate": RATE, "ingressBurst": RATE / 10 })));
    let other = site.add(&Wish::default());
    takes_a_second(transfer(&other.space, &pod.address(), &pod.space, MEGABYTE));
    pod.del();
    other.del();
}

/// As much as the burst goes at once.
pub(crate) fn burst(site: &Site) {
    let burst = 16 * MEGABYTE;
    let pod = site.add(&limited(json!({ "ingressRate": RATE / 8, "ingressBurst": burst })));
    let took = transfer(&site.outside, &pod.address(), &pod.space, MEGABYTE);
    assert!(took < 4 * A_SECOND, "8 s without a burst: {took:?}");
    pod.del();
}

/// A limit in the configuration goes before the runtime's.
pub(crate) fn of_the_configuration(site: &Site) {
    let limit = json!({ "ingressRate": RATE, "ingressBurst": RATE / 10 });
    let mut wish = limited(json!({ "ingressRate": 800_000_000, "ingressBurst": 80_000_000 }));
    wish.bandwidth = limit;
    let pod = site.add(&wish);
    takes_a_second(transfer(&site.outside, &pod.address(), &pod.space, MEGABYTE));
    pod.del();
}

/// Kubernetes' annotations have no burst, and CRI fills in the largest number: the limit must be felt all the same.
pub(crate) fn without_a_burst(site: &Site) {
    let pod = site.add(&limited(json!({ "ingressRate": RATE, "ingressBurst": u32::MAX })));
    let took = transfer(&site.outside, &pod.address(), &pod.space, MEGABYTE);
    pod.del();
    takes_a_second(took);
}

pub(crate) fn a_rate_without_burst_is_refused(site: &Site) {
    site.refuses(&limited(json!({ "ingressRate": RATE })));
}
