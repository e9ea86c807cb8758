//! Addresses, routes and neighbours, in the shape that pods have: packets pass without a question asked on the wire.

#![expect(clippy::unwrap_used, reason = "a test that cannot go on panics")]

mod common;

use std::net::{IpAddr, Ipv6Addr, UdpSocket};

use common::{HOST_MAC, POD_MAC, Tcpdump, ip, pair, pings};
use weft_netns::{NetNs, Netlink, Route, sysctl};

fn address(text: &str) -> IpAddr {
    text.parse().unwrap()
}

fn on_link(destination: &str, index: u32) -> Route {
    let destination = address(destination);
    Route { destination, prefix: if destination.is_ipv4() { 32 } else { 128 }, via: None, index }
}

fn default_via(via: &str, index: u32) -> Route {
    let destination = if via.contains(':') { "::" } else { "0.0.0.0" };
    Route { destination: address(destination), prefix: 0, via: Some(address(via)), index }
}

/// A pod's end as weft makes it, and a host with an address of its own.
fn wire(host: &NetNs, pod: &NetNs) -> (Netlink, Netlink, u32, u32) {
    let (outside, inside, host_index, pod_index) = pair(host, pod).unwrap();
    outside.set_up_silent(host_index).unwrap();
    inside.set_up_silent(pod_index).unwrap();
    for (own, gateway, of_host) in
        [("10.1.0.2", "169.254.1.1", "192.0.2.10"), ("fd00:1::2", "fe80::1", "2001:db8::10")]
    {
        inside.add_address(pod_index, address(own), if own.contains(':') { 128 } else { 32 }).unwrap();
        inside.replace_neighbour(pod_index, address(gateway), HOST_MAC).unwrap();
        inside.replace_route(&on_link(gateway, pod_index)).unwrap();
        inside.replace_route(&default_via(gateway, pod_index)).unwrap();
        outside.replace_neighbour(host_index, address(own), POD_MAC).unwrap();
        outside.replace_route(&on_link(own, host_index)).unwrap();
        outside.set_up(1).unwrap();
        outside.add_address(1, address(of_host), if of_host.contains(':') { 128 } else { 32 }).unwrap();
    }
    (outside, inside, host_index, pod_index)
}

/// A pod's first packets by IPv6 were lost: the kernel makes an address's route in a worker.
#[test]
fn a_new_ipv6_address_takes_packets_at_once() {
    let (host, pod) = (NetNs::create().unwrap(), NetNs::create().unwrap());
    let (_, inside, _, pod_index) = pair(&host, &pod).unwrap();
    inside.set_up(1).unwrap();
    inside.set_up_silent(pod_index).unwrap();
    let received = pod.run(|| {
        let receives = |number| {
            let own = Ipv6Addr::new(0xfd00, 1, 0, 0, 0, 0, 1, number);
            inside.add_address(pod_index, own.into(), 128).unwrap();
            inside.add_local_route(pod_index, own).unwrap();
            let socket = UdpSocket::bind((own, 0)).unwrap();
            socket.set_nonblocking(true).unwrap();
            let sent = socket.send_to(b"x", socket.local_addr().unwrap());
            sent.is_ok() && socket.recv(&mut [0; 8]).is_ok()
        };
        (0..100).filter(|number| receives(*number)).count()
    });
    assert_eq!(received.unwrap(), 100);
    let ours = ip(&pod, "-6 route show table local type local proto 119");
    assert_eq!(ours.as_array().unwrap().len(), 100, "{ours}");
}

#[test]
fn packets_pass_and_nobody_asks_for_an_address() {
    let (host, pod) = (NetNs::create().unwrap(), NetNs::create().unwrap());
    host.run(|| sysctl::write("net/ipv6/conf/all/forwarding", "1").unwrap()).unwrap();
    wire(&host, &pod);
    let wire = Tcpdump::start(&host, "veth0");
    for of_host in ["192.0.2.10", "2001:db8::10"] {
        assert!(pings(&pod, of_host), "{of_host}");
    }
    for of_pod in ["10.1.0.2", "fd00:1::2"] {
        assert!(pings(&host, of_pod), "{of_pod}");
    }
    let seen = wire.until(&["ICMP echo reply", "ICMP6, echo reply"], 2);
    assert!(!seen.contains("ARP") && !seen.contains("solicitation"), "{seen}");
    for (netns, link, count) in [(&host, "veth0", 2), (&pod, "eth0", 2)] {
        let neighbours = ip(netns, &format!("neigh show dev {link}"));
        let neighbours = neighbours.as_array().unwrap();
        assert_eq!(neighbours.len(), count, "{link}: {neighbours:?}");
        assert!(neighbours.iter().all(|neighbour| neighbour["state"][0] == "PERMANENT"), "{neighbours:?}");
    }
}

#[test]
fn addresses_are_usable_at_once() {
    let (host, pod) = (NetNs::create().unwrap(), NetNs::create().unwrap());
    let (_, inside, _, index) = wire(&host, &pod);
    let shown = ip(&pod, "addr show eth0")[0]["addr_info"].clone();
    assert!(shown.as_array().unwrap().iter().all(|address| address["tentative"].is_null()), "{shown}");
    let wanted = [(address("10.1.0.2"), 32), (address("fd00:1::2"), 128)];
    assert_eq!(inside.addresses(index).unwrap(), wanted);
    inside.add_address(index, address("10.1.0.2"), 32).unwrap();
    assert_eq!(inside.addresses(index).unwrap(), wanted, "adding again changes nothing");
    assert_eq!(inside.addresses(1).unwrap(), [], "of this link only");
}

#[test]
fn routes_bear_wefts_number_and_are_asked_for_one_by_one() {
    let (host, pod) = (NetNs::create().unwrap(), NetNs::create().unwrap());
    let (outside, inside, host_index, pod_index) = wire(&host, &pod);
    for family in ["-4", "-6"] {
        let routes = ip(&pod, &format!("{family} route show proto 119"));
        assert_eq!(routes.as_array().unwrap().len(), 2, "{routes}");
    }
    for there in [
        on_link("169.254.1.1", pod_index),
        default_via("fe80::1", pod_index),
        default_via("169.254.1.1", pod_index),
    ] {
        assert!(inside.has_route(&there).unwrap(), "{there}");
    }
    assert!(!inside.has_route(&default_via("169.254.1.2", pod_index)).unwrap(), "another gateway");
    for own in ["10.1.0.2", "fd00:1::2"] {
        let route = on_link(own, host_index);
        assert!(outside.has_route(&route).unwrap());
        assert!(outside.delete_route(&route).unwrap());
        assert!(!outside.has_route(&route).unwrap());
        assert!(!outside.delete_route(&route).unwrap(), "gone already");
    }
    assert_eq!(ip(&host, "-4 route show proto 119").as_array().unwrap().len(), 0);
}

#[test]
fn a_route_to_a_reused_address_leads_to_its_new_owner() {
    let host = NetNs::create().unwrap();
    ip(&host, "link add new type veth peer name other");
    ip(&host, "link set new up");
    let pod = NetNs::create().unwrap();
    let (outside, _, old, _) = wire(&host, &pod);
    let new = outside.link(&"new".parse().unwrap()).unwrap().unwrap().index;
    for address in ["10.1.0.2", "fd00:1::2"] {
        outside.replace_route(&on_link(address, new)).unwrap();
        assert!(outside.has_route(&on_link(address, new)).unwrap());
        assert!(!outside.delete_route(&on_link(address, old)).unwrap(), "the old owner's is gone");
        assert!(outside.has_route(&on_link(address, new)).unwrap(), "and the new one's stays");
    }
}

#[test]
fn neighbours_are_asked_for_one_by_one() {
    let (host, pod) = (NetNs::create().unwrap(), NetNs::create().unwrap());
    let (_, inside, _, index) = wire(&host, &pod);
    for gateway in ["169.254.1.1", "fe80::1"] {
        assert!(inside.has_neighbour(index, address(gateway), HOST_MAC).unwrap());
        assert!(!inside.has_neighbour(index, address(gateway), POD_MAC).unwrap(), "another address");
    }
    assert!(!inside.has_neighbour(index, address("169.254.1.2"), HOST_MAC).unwrap());
}

#[test]
fn the_mtu_is_that_of_the_default_routes_link() {
    let host = NetNs::create().unwrap();
    let link = || Netlink::open_in(&host).unwrap().default_route_link().unwrap();
    let mtu = || link().map(|link| link.mtu);
    assert_eq!(mtu(), None);
    for args in [
        "link add up0 mtu 9000 type veth peer name up1",
        "link set up1 mtu 9000 up",
        "addr add 192.0.2.1/31 dev up0",
        "link set up0 up",
        "route add default dev up0",
    ] {
        ip(&host, args);
    }
    assert_eq!(mtu(), Some(9000));
    ip(&host, "route del default");
    assert_eq!(mtu(), None);
    ip(&host, "-6 route add default dev up0");
    assert_eq!(mtu(), Some(9000));
    ip(&host, "-6 route del default");
    for of_no_use in ["unreachable", "blackhole", "prohibit"] {
        for family in ["-4", "-6"] {
            ip(&host, &format!("{family} route add {of_no_use} default"));
            assert_eq!(mtu(), None, "{family} {of_no_use}");
            ip(&host, &format!("{family} route del {of_no_use} default"));
        }
    }
    ip(&host, "route add default nexthop dev up0 nexthop dev up1");
    assert_eq!(mtu(), Some(9000), "one of several next hops");
    ip(&host, "addr add 198.51.100.77/32 dev lo");
    assert_eq!(mtu(), None, "the address that is asked for is the node's own");
}

#[test]
fn the_kernels_explanation_is_in_the_error() {
    let (host, pod) = (NetNs::create().unwrap(), NetNs::create().unwrap());
    let (_, inside, _, index) = pair(&host, &pod).unwrap();
    let err = inside.replace_route(&on_link("169.254.1.1", index)).unwrap_err();
    assert_eq!(err.errno(), Some(nix::libc::ENETDOWN));
    assert_eq!(err.to_string(), format!("add route 169.254.1.1/32 on link {index}"));
    let source = std::error::Error::source(&err).unwrap().to_string();
    assert!(source.contains("(Device for nexthop is not up)"), "{source}");
}

#[test]
fn only_routes_of_weft_count_as_routes_over_a_link() {
    let (host, pod) = (NetNs::create().unwrap(), NetNs::create().unwrap());
    host.run(|| sysctl::write("net/ipv6/conf/all/forwarding", "1").unwrap()).unwrap();
    let index = {
        let (outside, _inside, index, _) = wire(&host, &pod);
        assert!(outside.has_routes_over(index).unwrap());
        assert!(!outside.has_routes_over(1).unwrap(), "lo");
        assert!(!outside.has_routes_over(4711).unwrap(), "no such link");
        index
    };
    for (family, gone) in [("-4", "10.1.0.2"), ("-6", "fd00:1::2")] {
        ip(&host, &format!("{family} route del {gone} dev veth0"));
    }
    ip(&host, "route add 203.0.113.0/24 dev veth0");
    let outside = Netlink::open_in(&host).unwrap();
    assert!(!outside.has_routes_over(index).unwrap(), "another's route, and the kernel's own");
    outside.replace_route(&on_link("fd00:1::2", index)).unwrap();
    assert!(outside.has_routes_over(index).unwrap(), "IPv6 alone");
}

/// Two links, and the default route over the first: what is sent from the second's address leaves by the second.
#[test]
fn what_comes_from_an_address_leaves_by_its_link() {
    let (host, pod) = (NetNs::create().unwrap(), NetNs::create().unwrap());
    let index = {
        let (_outside, inside, _, first) = wire(&host, &pod);
        ip(&pod, "link add second type veth peer name other");
        ip(&pod, "link set other up");
        let second = inside.link(&"second".parse().unwrap()).unwrap().unwrap().index;
        inside.set_up_silent(second).unwrap();
        for (ipv4, own, gateway) in [(true, "10.2.0.2", "169.254.1.1"), (false, "fd00:2::2", "fe80::1")] {
            let default = inside.default_route(ipv4).unwrap();
            assert_eq!(default, Some(default_via(gateway, first)));
            inside.add_address(second, address(own), if ipv4 { 32 } else { 128 }).unwrap();
            let over_second = default_via(gateway, second);
            assert!(!inside.add_route(&over_second).unwrap(), "there is a default route");
            assert!(!inside.routes_source(address(own), second).unwrap());
            for _ in 0..2 {
                inside.route_source(address(own), Some(address(gateway)), second).unwrap();
            }
            assert!(inside.routes_source(address(own), second).unwrap());
            assert!(!inside.routes_source(address(own), first).unwrap());
        }
        for own in ["10.1.0.2", "fd00:1::2"] {
            assert!(inside.routes_source(address(own), first).unwrap(), "{own}");
        }
        second
    };
    for (family, own, to) in [("-4", "10.2.0.2", "203.0.113.1"), ("-6", "fd00:2::2", "2001:db8:1::1")] {
        let way = ip(&pod, &format!("{family} route get {to} from {own}"));
        assert_eq!(way[0]["dev"], "second", "{way}");
        let rules = ip(&pod, &format!("{family} rule show pref 32000"));
        assert_eq!(rules.as_array().unwrap().len(), 1, "{rules}");
        assert_eq!(rules[0]["table"], (0x7700_0000 + index).to_string());
    }
    let bare = NetNs::create().unwrap();
    let inside = Netlink::open_in(&bare).unwrap();
    for ipv4 in [true, false] {
        assert_eq!(inside.default_route(ipv4).unwrap(), None);
    }
}
