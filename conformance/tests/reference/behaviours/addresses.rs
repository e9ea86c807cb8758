//! Which address a pod gets.

use std::time::Duration;

use serde_json::{Value, json};

use crate::site::{BEYOND, Site};
use crate::traffic::{at, pings, tcp};
use crate::wish::Wish;

fn one_set(ranges: Value) -> Wish {
    Wish { sets: json!([ranges]), ..Wish::default() }
}

pub(crate) fn a_start_and_an_end(site: &Site) {
    let wish =
        one_set(json!([{ "subnet": "10.88.0.0/24", "rangeStart": "10.88.0.20", "rangeEnd": "10.88.0.21" }]));
    let pods = [site.add(&wish), site.add(&wish)];
    assert_eq!(pods.each_ref().map(|pod| pod.address()), ["10.88.0.20", "10.88.0.21"]);
    site.refuses(&wish);
    pods.iter().for_each(|pod| pod.del());
}

pub(crate) fn the_gateway_is_never_a_pods(site: &Site) {
    let wish = one_set(json!([{ "subnet": "10.88.0.0/29", "gateway": "10.88.0.3" }]));
    let pods: Vec<_> = (0..5).map(|_| site.add(&wish)).collect();
    let addresses: Vec<String> = pods.iter().map(|pod| pod.address()).collect();
    assert!(!addresses.contains(&"10.88.0.3".to_owned()), "{addresses:?}");
    pods.iter().for_each(|pod| pod.del());
}

/// A set with two ranges: the second serves when the first is full.
pub(crate) fn a_second_range_of_a_set(site: &Site) {
    let wish = one_set(json!([{ "subnet": "10.88.0.0/30" }, { "subnet": "10.88.1.0/30" }]));
    let pods = [site.add(&wish), site.add(&wish)];
    assert_eq!(pods.each_ref().map(|pod| pod.address()), ["10.88.0.2", "10.88.1.2"]);
    assert!(pings(&site.host, "10.88.1.2"), "by its own gateway");
    pods.iter().for_each(|pod| pod.del());
}

/// Two sets of one family are two addresses of one pod.
pub(crate) fn two_sets_of_a_family(site: &Site) {
    let range =
        |start: &str, end: &str| json!([{ "subnet": "10.88.0.0/24", "rangeStart": start, "rangeEnd": end }]);
    let sets = json!([range("10.88.0.20", "10.88.0.29"), range("10.88.0.30", "10.88.0.39")]);
    let pod = site.add(&Wish { sets, ..Wish::default() });
    assert_eq!(pod.addresses(), ["10.88.0.20", "10.88.0.30"]);
    assert!(pod.addresses().iter().all(|address| pings(&site.host, address)));
    pod.del();
}

fn gets(site: &Site, wish: &Wish, wanted: [&str; 2]) {
    let pod = site.add(wish);
    assert_eq!(pod.addresses(), wanted);
    assert!(wanted.iter().all(|address| pings(&site.host, address)));
    pod.del();
}

pub(crate) fn the_capability_ips(site: &Site) {
    let runtime = json!({ "ips": ["10.88.0.77/24", "fd00:88::77/64"] });
    gets(site, &Wish { runtime, ..Wish::default() }, ["10.88.0.77", "fd00:88::77"]);
}

/// Ranges that the runtime names, as Kubernetes' of old named a node's.
pub(crate) fn the_capability_ip_ranges(site: &Site) {
    let ranges =
        json!([[{ "subnet": "10.88.7.0/24", "rangeStart": "10.88.7.20" }], [{ "subnet": "fd00:88:7::/64" }]]);
    let pod = site.add(&Wish { sets: json!([]), runtime: json!({ "ipRanges": ranges }), ..Wish::default() });
    assert_eq!(pod.addresses(), ["10.88.7.20", "fd00:88:7::2"]);
    assert!(pod.addresses().iter().all(|address| pings(&site.host, address)));
    pod.del();
}

pub(crate) fn ips_of_args_cni(site: &Site) {
    let args = json!({ "ips": ["10.88.0.78", "fd00:88::78"] });
    gets(site, &Wish { args, ..Wish::default() }, ["10.88.0.78", "fd00:88::78"]);
}

pub(crate) fn ip_of_cni_args(site: &Site) {
    gets(
        site,
        &Wish { env: "IgnoreUnknown=1;IP=10.88.0.79", ..Wish::default() },
        ["10.88.0.79", "fd00:88::2"],
    );
}

pub(crate) fn an_address_of_another_is_refused(site: &Site) {
    let wish = Wish { runtime: json!({ "ips": ["10.88.0.77/24"] }), ..Wish::default() };
    let pod = site.add(&wish);
    site.refuses(&wish);
    assert!(pings(&site.host, "10.88.0.77"), "whoever had it has it");
    pod.del();
}

pub(crate) fn an_address_outside_the_ranges_is_refused(site: &Site) {
    site.refuses(&Wish { runtime: json!({ "ips": ["10.99.0.77/24"] }), ..Wish::default() });
}

fn has_mac(site: &Site, wish: &Wish, wanted: &str) {
    let (pod, other) = (site.add(wish), site.add(&Wish::default()));
    assert_eq!((&pod.link()["address"], &pod.reported()["mac"]), (&json!(wanted), &json!(wanted)));
    assert!(pings(&site.host, &pod.address()) && pings(&other.space, &pod.address()));
    pod.del();
    other.del();
}

pub(crate) fn the_capability_mac(site: &Site) {
    let runtime = json!({ "mac": "02:00:00:00:00:77" });
    has_mac(site, &Wish { runtime, ..Wish::default() }, "02:00:00:00:00:77");
}

pub(crate) fn mac_of_args_cni(site: &Site) {
    let args = json!({ "mac": "02:00:00:00:00:78" });
    has_mac(site, &Wish { args, ..Wish::default() }, "02:00:00:00:00:78");
}

pub(crate) fn mac_of_cni_args(site: &Site) {
    has_mac(
        site,
        &Wish { env: "IgnoreUnknown=1;MAC=02:00:00:00:00:79", ..Wish::default() },
        "02:00:00:00:00:79",
    );
}

pub(crate) fn a_full_range_is_an_error_that_leaves_nothing(site: &Site) {
    let wish = one_set(json!([{ "subnet": "10.88.0.0/30" }]));
    let only = site.add(&wish);
    let error = site.refuses(&wish);
    let said = error.to_string();
    assert!(said.contains("10.88.0.1") || said.contains("network test"), "the error names the range: {said}");
    let late = site.pod(&wish);
    late.again().unwrap_err();
    late.del();
    assert_eq!(late.space.ip("link show").as_array().unwrap().len(), 1, "only lo");
    only.del();
    late.again().unwrap();
    late.del();
}

pub(crate) fn a_freed_address_is_not_the_next(site: &Site) {
    let first = site.add(&Wish::default());
    first.del();
    let second = site.add(&Wish::default());
    assert_ne!(second.addresses(), first.addresses());
    second.del();
}

/// A pod is killed with its namespace, and nobody calls DEL.
pub(crate) fn a_dead_pods_address_comes_back(site: &Site) {
    let wish = one_set(json!([{ "subnet": "10.88.0.0/30" }]));
    let first = site.add(&wish).address();
    // The pair of links goes with the namespace, when the kernel comes to it.
    weft_conformance::wait_until(Duration::from_secs(10), "the dead pod's link is gone", || {
        site.host.ip("link show type veth").as_array().unwrap().len() == 1
    });
    assert_eq!(site.add(&wish).address(), first);
}

/// Only what `routes` names is reached.
pub(crate) fn routes_of_the_configuration(site: &Site) {
    site.outside.must("ip addr add 198.51.100.1/32 dev lo");
    site.outside.must("ip addr add 203.0.113.1/32 dev lo");
    let sets = json!([[{ "subnet": "10.88.0.0/24" }]]);
    let routes = json!([{ "dst": "198.51.100.0/24" }, { "dst": "192.0.2.0/24" }]);
    let pod = site.add(&Wish { sets, routes: routes.clone(), ..Wish::default() });
    let told: Vec<&Value> =
        pod.result["routes"].as_array().unwrap().iter().map(|route| &route["dst"]).collect();
    assert_eq!(told, ["198.51.100.0/24", "192.0.2.0/24"]);
    for (address, reached) in [("198.51.100.1", true), (BEYOND[0], true), ("203.0.113.1", false)] {
        assert_eq!(tcp(&pod.space, at(address, 7000), &site.outside, 7000).is_some(), reached, "{address}");
    }
    pod.del();
}

/// The usual way to write a default route.
pub(crate) fn a_default_route_of_the_configuration(site: &Site) {
    let routes = json!([{ "dst": "0.0.0.0/0" }, { "dst": "::/0" }]);
    let pod = site.add(&Wish { routes, ..Wish::default() });
    for address in BEYOND {
        assert!(pings(&pod.space, address), "{address}");
    }
    assert_eq!(pod.check(), Ok(()));
    pod.del();
}
