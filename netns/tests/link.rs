//! Links: veth pairs, lookups and deletion.

#![expect(clippy::unwrap_used, reason = "a test that cannot go on panics")]

mod common;

use std::sync::Arc;

use common::{HOST_MAC, PACKETS, POD_MAC, ip, pair};
use weft_netns::{NetNs, Netlink};

#[test]
fn a_pair_is_born_with_all_it_needs_and_its_peer_inside() {
    let (host, pod) = (NetNs::create().unwrap(), NetNs::create().unwrap());
    let (outside, inside, host_index, pod_index) = pair(&host, &pod).unwrap();
    outside.set_up_silent(host_index).unwrap();
    inside.set_up_silent(pod_index).unwrap();
    let outside = ip(&host, "-d link show veth0")[0].clone();
    assert_eq!(outside["address"], HOST_MAC.to_string());
    assert_eq!(outside["mtu"], 1400);
    assert_eq!(outside["linkinfo"]["info_kind"], "veth");
    assert!(outside["flags"].as_array().unwrap().contains(&"UP".into()), "{outside}");
    assert_eq!(outside["inet6_addr_gen_mode"], "none");
    let inside = ip(&pod, "-d link show eth0")[0].clone();
    assert_eq!(inside["address"], POD_MAC.to_string());
    assert_eq!(inside["mtu"], 1400);
    assert_eq!(inside["inet6_addr_gen_mode"], "none");
    for (netns, name) in [(&host, "veth0"), (&pod, "eth0")] {
        let addresses = ip(netns, &format!("addr show {name}"))[0]["addr_info"].clone();
        assert_eq!(addresses, serde_json::json!([]), "no address that nobody gave");
    }
    assert_eq!(ip(&host, "link show").as_array().unwrap().len(), 2);
}

#[test]
fn a_link_is_what_ip_says() {
    let (host, pod) = (NetNs::create().unwrap(), NetNs::create().unwrap());
    let (outside, inside, host_index, pod_index) = pair(&host, &pod).unwrap();
    let link = outside.link(&"veth0".parse().unwrap()).unwrap().unwrap();
    assert_eq!((link.index, link.name.as_str(), link.mac, link.mtu), (host_index, "veth0", HOST_MAC, 1400));
    assert_eq!(link.packets, PACKETS);
    assert_eq!((link.up, link.kind.as_deref(), link.peer_index), (false, Some("veth"), Some(pod_index)));
    assert_eq!(outside.link_by_index(host_index).unwrap(), Some(link));
    let link = inside.link(&"eth0".parse().unwrap()).unwrap().unwrap();
    assert_eq!((link.up, link.peer_index, link.packets), (false, Some(host_index), PACKETS));
    inside.set_up(pod_index).unwrap();
    outside.set_up(host_index).unwrap();
    assert_eq!(ip(&pod, "link show eth0")[0]["operstate"], "UP");
    // Below the usual size, what iproute2 6.1 sets is for IPv4 too (`netif_set_gso_max_size`).
    ip(&pod, "link set eth0 gso_max_size 65535");
    assert_eq!(inside.link_by_index(pod_index).unwrap().unwrap().packets.gso, 65_535);
    assert!(outside.link_by_index(host_index).unwrap().unwrap().up);
    assert_eq!(outside.link(&"absent".parse().unwrap()).unwrap(), None);
    assert_eq!(outside.link_by_index(4711).unwrap(), None);
}

#[test]
fn the_list_of_veths_has_no_other_kind() {
    let (host, pod) = (NetNs::create().unwrap(), NetNs::create().unwrap());
    ip(&host, "link add b0 type bridge");
    let (outside, inside, host_index, pod_index) = pair(&host, &pod).unwrap();
    let listed = outside.veths().unwrap();
    assert_eq!(listed, [outside.link_by_index(host_index).unwrap().unwrap()]);
    assert_eq!(inside.veths().unwrap()[0].index, pod_index);
    assert!(outside.delete_link(host_index).unwrap());
    assert_eq!(outside.veths().unwrap(), []);
}

#[test]
fn a_taken_name_is_refused_and_nothing_is_left() {
    let (host, pod) = (NetNs::create().unwrap(), NetNs::create().unwrap());
    pair(&host, &pod).unwrap();
    let other = NetNs::create().unwrap();
    let err = pair(&host, &other).unwrap_err();
    assert_eq!(err.errno(), Some(nix::libc::EEXIST));
    assert_eq!(err.to_string(), "create veth veth0 eth0");
    assert_eq!(ip(&other, "link show").as_array().unwrap().len(), 1);
    let another_host = NetNs::create().unwrap();
    let err = pair(&another_host, &pod).unwrap_err();
    assert_eq!(err.errno(), Some(nix::libc::EEXIST), "the name inside is taken");
    assert_eq!(ip(&another_host, "link show").as_array().unwrap().len(), 1);
}

#[test]
fn deleting_takes_both_ends_and_what_is_gone_is_gone() {
    let (host, pod) = (NetNs::create().unwrap(), NetNs::create().unwrap());
    let (outside, _, host_index, _) = pair(&host, &pod).unwrap();
    assert!(outside.delete_link(host_index).unwrap());
    assert!(!outside.delete_link(host_index).unwrap());
    for netns in [&host, &pod] {
        assert_eq!(ip(netns, "link show").as_array().unwrap().len(), 1);
    }
    assert!(outside.delete_link(1).is_err(), "lo stays");
}

#[test]
fn a_socket_ends_with_its_last_owner() {
    let sockets = || {
        let fds = std::fs::read_dir("/proc/thread-self/fd").unwrap();
        let netlink = std::fs::read_to_string("/proc/thread-self/net/netlink").unwrap();
        let is_netlink = |link: &str| {
            let inode =
                link.strip_prefix("socket:[").and_then(|rest| rest.strip_suffix(']')).map(str::to_owned);
            inode.is_some_and(|inode| {
                netlink.lines().any(|line| line.split_whitespace().last() == Some(&inode))
            })
        };
        let links = fds.filter_map(|fd| std::fs::read_link(fd.unwrap().path()).ok());
        links.filter(|link| is_netlink(&link.to_string_lossy())).count()
    };
    // In a namespace of its own, for other tests open sockets beside this one.
    let look = || {
        assert_eq!(sockets(), 0);
        let netlink = Arc::new(Netlink::open().unwrap());
        let other = Arc::clone(&netlink);
        drop(netlink);
        assert!(other.link_by_index(1).unwrap().is_some());
        assert_eq!(sockets(), 1);
        drop(other);
        assert_eq!(sockets(), 0);
    };
    NetNs::create().unwrap().run(look).unwrap();
}

#[test]
fn counters_are_those_that_ip_shows() {
    let (host, pod) = (NetNs::create().unwrap(), NetNs::create().unwrap());
    let (outside, inside, host_index, pod_index) = pair(&host, &pod).unwrap();
    inside.set_up(pod_index).unwrap();
    outside.set_up(host_index).unwrap();
    inside.add_address(pod_index, "192.0.2.2".parse().unwrap(), 24).unwrap();
    outside.add_address(host_index, "192.0.2.1".parse().unwrap(), 24).unwrap();
    assert!(common::pings(&pod, "192.0.2.1"));
    let shown = |direction: &str| {
        let shown = ip(&host, "-s link show veth0")[0]["stats64"][direction].clone();
        (shown["packets"].as_u64().unwrap(), shown["bytes"].as_u64().unwrap())
    };
    let counters = outside.link_counters(&"veth0".parse().unwrap()).unwrap().unwrap();
    assert!(counters.received.packets >= 2, "an echo request and a question for the address: {counters:?}");
    assert_eq!((counters.received.dropped, counters.received.errors), (0, 0));
    let (packets, bytes) = shown("rx");
    assert!(packets >= counters.received.packets && bytes >= counters.received.bytes);
    assert!(shown("tx").0 >= counters.sent.packets && counters.sent.packets >= 2);
    assert_eq!(outside.link_counters(&"veth1".parse().unwrap()).unwrap(), None);
}
