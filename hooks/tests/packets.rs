//! What the programs do with packets: between pods, to and from the node, with foreign addresses, and on the way back from a
//! translated address.
#![expect(clippy::unwrap_used, reason = "a test that cannot run fails")]

mod node;

use std::{
    net::{IpAddr, UdpSocket},
    time::Duration,
};

use node::{NODE_V4, NODE_V6, Node, Pod, VIRTUAL_V4, VIRTUAL_V6, json, sh, tcp, udp};
use weft_hooks::{Counters, Drops, FastPath, Mode, PodCounters, Reason, Wanted, Way};

fn two_pods() -> (Node, FastPath, Pod, Pod) {
    let node = Node::new();
    let mut fast_path = node.open();
    let (a, b) = (Pod::new(1), Pod::new(2));
    a.join(&mut fast_path);
    b.join(&mut fast_path);
    (node, fast_path, a, b)
}

/// What was counted for one pod, which is what bpftool shows.
fn counted(node: &Node, pod: &Pod) -> Counters {
    let counters = PodCounters::open(&node.dir()).unwrap().unwrap().of(pod.ifindex()).unwrap().unwrap();
    let (outcomes, drops) = node.counted(pod.ifindex()).unwrap();
    let of = |count: weft_hooks::Count| count.packets;
    let Counters { redirected, passed, dropped, returned, .. } = counters;
    assert_eq!(outcomes, [of(redirected), of(passed), of(dropped), of(returned)]);
    let told = counters.drops.unwrap().iter().map(|(_, packets)| packets).collect::<Vec<_>>();
    assert_eq!(told[..9], drops[..9]);
    assert_eq!(told.iter().sum::<u64>(), dropped.packets);
    counters
}

/// By how much each reason grew, where it did.
fn reasons(before: Option<Drops>, now: Option<Drops>) -> Vec<(Reason, u64)> {
    let (before, now) = (before.unwrap(), now.unwrap());
    let grown = before.iter().zip(now.iter()).map(|((why, before), (_, now))| (why, now - before));
    grown.filter(|(_, grown)| *grown > 0).collect()
}

/// Values of the map `returns`, by bpftool.
fn returns(node: &Node) -> Vec<u64> {
    let dump = json(&format!("bpftool -j map dump pinned {}", node.dir().join("returns").display()));
    dump.as_array().unwrap().iter().map(|entry| entry["formatted"]["value"].as_u64().unwrap()).collect()
}

#[test]
fn pod_to_pod_takes_the_fast_path_and_the_stack_sees_nothing() {
    let (node, fast_path, a, b) = two_pods();
    assert!(a.pings(b.v4) && a.pings(b.v6) && b.pings(a.v4));
    let counted = fast_path.counters().unwrap();
    assert_eq!(counted.redirected.packets, 3 * 2 * 3, "three pings, each way: {counted:?}");
    // 98 bytes on the wire for IPv4's echo, 118 for IPv6's.
    assert_eq!(counted.redirected.bytes, 12 * 98 + 6 * 118, "{counted:?}");
    for target in [IpAddr::from(b.v4), b.v6.into()] {
        let client = if target.is_ipv4() { IpAddr::from(a.v4) } else { a.v6.into() };
        assert_eq!(tcp(&a, &b, target, 8080).unwrap(), client);
        assert_eq!(udp(&a, &b, target, 100).unwrap(), client);
        assert_eq!(udp(&a, &b, target, 9000).unwrap(), client, "in fragments");
    }
    let counted = fast_path.counters().unwrap();
    assert!(counted.redirected.bytes > 2 << 20, "{counted:?}");
    assert_eq!(
        (counted.passed.packets, counted.dropped.packets, counted.returned.packets),
        (0, 0, 0),
        "{counted:?}"
    );
    assert_eq!(node.forwarded(), 0);
}

#[test]
fn the_stack_carries_it_when_nothing_is_attached() {
    let node = Node::new();
    let (a, b) = (Pod::new(1), Pod::new(2));
    assert!(a.pings(b.v4) && a.pings(b.v6));
    assert_eq!(node.forwarded(), 12, "the witness of the other tests counts");
}

#[test]
fn a_redirected_frame_bears_the_addresses_of_its_last_hop() {
    let (_node, _fast_path, a, b) = two_pods();
    let capture = b.inside("timeout 5 tcpdump -i eth0 -c 1 -e -n -q icmp 2>/dev/null");
    let tcpdump = std::thread::scope(|scope| {
        let dump = scope.spawn(|| sh(&capture));
        node::until("captured packet", || {
            assert!(a.pings(b.v4));
            dump.is_finished()
        });
        dump.join().unwrap()
    });
    let header = format!("{} > {}", node::colons(b.host_mac), node::colons(b.mac));
    assert!(tcpdump.contains(&header), "{tcpdump}");
}

#[test]
fn host_and_pod_reach_each_other_through_the_stack() {
    let (_node, fast_path, a, _b) = two_pods();
    assert!(a.pings(NODE_V4) && a.pings(NODE_V6));
    for target in [IpAddr::from(a.v4), a.v6.into()] {
        assert!(node::status(&format!("ping -q -c 3 -i 0.01 -W 1 {target}")));
    }
    let counted = fast_path.counters().unwrap();
    assert_eq!((counted.passed.packets, counted.redirected.packets), (12, 0), "{counted:?}");
}

#[test]
fn a_pod_sends_only_from_its_own_addresses() {
    let (_node, fast_path, a, b) = two_pods();
    a.sh(&format!("ip addr add 10.9.9.9/32 dev eth0; ip addr add {NODE_V4}/32 dev eth0"));
    a.sh(&format!("ip addr add fd09::9/128 dev eth0 nodad; ip addr add {NODE_V6}/128 dev eth0 nodad"));
    for source in ["10.9.9.9", NODE_V4, "fd09::9", NODE_V6] {
        let v4 = source.contains('.');
        let (pod, elsewhere) =
            if v4 { (b.v4.into(), "198.51.100.7") } else { (IpAddr::from(b.v6), "2001:db8::7") };
        for target in [pod.to_string(), elsewhere.to_owned()] {
            let before = fast_path.counters().unwrap();
            assert!(!node::status(&a.inside(&format!("ping -q -c 1 -W 0.2 -I {source} {target}"))));
            let now = fast_path.counters().unwrap();
            assert_eq!(now.dropped.packets - before.dropped.packets, 1, "{source} to {target}");
            assert_eq!(
                (now.redirected, now.passed),
                (before.redirected, before.passed),
                "{source} to {target}"
            );
        }
    }
}

/// An IPv4 or IPv6 packet with a header of our making.
fn ip(from: [u8; 6], src: IpAddr, dst: IpAddr, proto: u8, payload: &[u8]) -> Vec<u8> {
    let mut frame = [&[0x0a, 0, 0, 0, 1, 1][..], &from].concat();
    match (src, dst) {
        (IpAddr::V4(src), IpAddr::V4(dst)) => {
            frame.extend([8, 0, 0x45, 0]);
            frame.extend((20 + payload.len() as u16).to_be_bytes());
            frame.extend([0, 1, 0, 0, 64, proto, 0, 0]);
            frame.extend(src.octets());
            frame.extend(dst.octets());
            let sum: u32 = frame[14..].chunks(2).map(|w| u32::from(w[0]) << 8 | u32::from(w[1])).sum();
            frame[24..26].copy_from_slice(&(!((sum & 0xffff) + (sum >> 16)) as u16).to_be_bytes());
        }
        (IpAddr::V6(src), IpAddr::V6(dst)) => {
            frame.extend([0x86, 0xdd, 0x60, 0, 0, 0]);
            frame.extend((payload.len() as u16).to_be_bytes());
            frame.extend([proto, 255]);
            frame.extend(src.octets());
            frame.extend(dst.octets());
        }
        _ => panic!("{src} and {dst} are of two families"),
    }
    frame.extend(payload);
    frame
}

fn arp(from: [u8; 6], sender_mac: [u8; 6], sender: [u8; 4]) -> Vec<u8> {
    let fixed = [8, 6, 0, 1, 8, 0, 6, 4, 0, 1];
    [&[0xff; 6][..], &from, &fixed, &sender_mac, &sender, &[0; 6], &[169, 254, 1, 1]].concat()
}

enum Verdict {
    Passed,
    Redirected,
    Dropped(Reason),
}

/// Packets redirected, passed and dropped, and the reasons, that were counted in between.
fn grown(before: Counters, now: Counters) -> ([u64; 3], Vec<(Reason, u64)>) {
    assert_eq!(now.returned, before.returned);
    let ways =
        [(now.redirected, before.redirected), (now.passed, before.passed), (now.dropped, before.dropped)];
    (ways.map(|(now, before)| now.packets - before.packets), reasons(before.drops, now.drops))
}

#[test]
fn frames_are_judged_by_their_source() {
    use Reason::{Arp, LinkLocal, Protocol, Router, SourceAddress, SourceMac, Truncated, Vlan};
    use Verdict::{Dropped, Passed, Redirected};
    let (node, fast_path, a, b) = two_pods();
    let (a4, a6, b4, b6) = (IpAddr::from(a.v4), IpAddr::from(a.v6), IpAddr::from(b.v4), IpAddr::from(b.v6));
    let v6 = |text: &str| text.parse::<IpAddr>().unwrap();
    let icmp6 = |kind: u8| [kind, 0, 0, 0, 0, 0, 0, 0];
    let mld = [58, 0, 5, 2, 0, 0, 1, 0, 143, 0, 0, 0, 0, 0, 0, 0];
    let other = [2, 0, 0, 0, 0, 9];
    let vlan = [&a.host_mac[..], &a.mac, &[0x81, 0, 0, 5], &ip(a.mac, a4, b4, 17, &[0; 8])[12..]].concat();
    let mut arp_for_ipx = arp(a.mac, a.mac, a.v4.octets());
    arp_for_ipx[16..18].copy_from_slice(&[0x81, 0x37]);
    for (what, frame, verdict) in [
        ("own v4", ip(a.mac, a4, b4, 17, &[0; 8]), Redirected),
        ("own v6", ip(a.mac, a6, b6, 17, &[0; 8]), Redirected),
        ("the other pod's v4", ip(a.mac, b4, a4, 17, &[0; 8]), Dropped(SourceAddress)),
        ("the other pod's v6", ip(a.mac, b6, a6, 17, &[0; 8]), Dropped(SourceAddress)),
        ("own v4, other MAC", ip(other, a4, b4, 17, &[0; 8]), Dropped(SourceMac)),
        ("own v6, other MAC", ip(other, a6, b6, 17, &[0; 8]), Dropped(SourceMac)),
        ("no v4 yet", ip(a.mac, [0, 0, 0, 0].into(), [255; 4].into(), 17, &[0; 8]), Dropped(LinkLocal)),
        ("half a header", ip(a.mac, a4, b4, 17, &[])[..30].to_vec(), Dropped(Truncated)),
        ("duplicate address detection", ip(a.mac, v6("::"), v6("ff02::1:ff00:1"), 58, &icmp6(135)), Passed),
        ("UDP from ::", ip(a.mac, v6("::"), v6("ff02::1"), 17, &[0; 8]), Dropped(LinkLocal)),
        ("multicast listener report", ip(a.mac, v6("::"), v6("ff02::16"), 0, &mld), Passed),
        ("neighbour solicitation", ip(a.mac, v6("fe80::5"), v6("ff02::1:ff00:1"), 58, &icmp6(135)), Passed),
        ("router advertisement", ip(a.mac, v6("fe80::5"), v6("ff02::1"), 58, &icmp6(134)), Dropped(Router)),
        ("redirect", ip(a.mac, v6("fe80::1"), b6, 58, &icmp6(137)), Dropped(Router)),
        ("echo from a link-local address", ip(a.mac, v6("fe80::5"), b6, 58, &icmp6(128)), Dropped(LinkLocal)),
        ("UDP from a link-local address", ip(a.mac, v6("fe80::5"), b6, 17, &[0; 8]), Dropped(LinkLocal)),
        ("own ARP", arp(a.mac, a.mac, a.v4.octets()), Passed),
        ("ARP probe", arp(a.mac, a.mac, [0; 4]), Passed),
        ("ARP for the gateway", arp(a.mac, a.mac, [169, 254, 1, 1]), Dropped(Arp)),
        ("ARP for the other pod", arp(a.mac, a.mac, b.v4.octets()), Dropped(Arp)),
        ("ARP with another MAC", arp(a.mac, other, a.v4.octets()), Dropped(Arp)),
        ("ARP from another MAC", arp(other, other, a.v4.octets()), Dropped(Arp)),
        ("VLAN", vlan, Dropped(Vlan)),
        (
            "an unknown protocol",
            [&a.host_mac[..], &a.mac, &[0x88, 0xcc], &[0; 40]].concat(),
            Dropped(Protocol),
        ),
        ("half an IPv6 header", ip(a.mac, a6, b6, 17, &[])[..40].to_vec(), Dropped(Truncated)),
        ("half an ARP message", arp(a.mac, a.mac, a.v4.octets())[..30].to_vec(), Dropped(Truncated)),
        ("ARP for something else", arp_for_ipx, Dropped(Arp)),
        ("neighbour solicitation in IPv4", ip(a.mac, [0; 4].into(), b4, 58, &icmp6(135)), Dropped(LinkLocal)),
    ] {
        let look = || (fast_path.counters().unwrap(), counted(&node, &a), counted(&node, &b));
        let before = look();
        a.send_frame(&frame);
        let now = look();
        let wanted = match verdict {
            Redirected => ([1, 0, 0], vec![]),
            Passed => ([0, 1, 0], vec![]),
            Dropped(why) => ([0, 0, 1], vec![(why, 1)]),
        };
        assert_eq!(grown(before.0, now.0), wanted, "{what}, of the node");
        assert_eq!(grown(before.1, now.1), wanted, "{what}, of the pod");
        assert_eq!(now.2, before.2, "{what}, of the other pod");
    }
}

#[test]
fn each_pod_is_counted_by_itself() {
    let (node, fast_path, a, b) = two_pods();
    for pod in [&a, &b] {
        pod.sh(
            "nft \"table inet got { counter got {}; chain c { type filter hook prerouting priority -400; \
                meta pkttype host counter name got; }; }\"",
        );
    }
    let received = |pod: &Pod| {
        let got = json(&pod.inside("nft -j list counter inet got got"));
        got["nftables"][1]["counter"]["packets"].as_u64().unwrap()
    };
    assert!(a.pings(b.v4) && a.pings(b.v6) && a.pings(NODE_V4));
    a.send_frame(&ip(a.mac, a.v4.into(), b.v4.into(), 253, &[0; 8]));
    let (of_a, of_b) = (counted(&node, &a), counted(&node, &b));
    assert_eq!((of_a.redirected.packets, of_a.passed.packets), (7, 3));
    assert_eq!(of_a.redirected.bytes, 3 * 98 + 3 * 118 + 42);
    // Answers, and the word that nobody there knows that protocol.
    assert_eq!((of_b.redirected.packets, of_b.passed.packets), (7, 0));
    assert_eq!((received(&a), received(&b)), (7 + 3, 7), "what pods received is what was handed over");

    node.translate(&b);
    assert!(a.pings(VIRTUAL_V4));
    assert_eq!(counted(&node, &a).passed.packets, 6);
    assert_eq!((counted(&node, &b).returned.packets, counted(&node, &a).returned.packets), (3, 0));

    // Attaching again goes on counting; an end forgets, and the node's sums stay.
    fast_path.attach(&a.link).unwrap();
    assert_eq!(counted(&node, &a).passed.packets, 6);
    assert!(fast_path.forget_counters(a.ifindex()).unwrap());
    assert!(!fast_path.forget_counters(a.ifindex()).unwrap());
    assert_eq!(node.counted(a.ifindex()), None);
    let sums = fast_path.counters().unwrap();
    assert_eq!((sums.redirected.packets, sums.passed.packets, sums.returned.packets), (14, 6, 3));
}

#[test]
fn what_a_pod_sends_while_it_is_detached_is_nobodys_spoofing() {
    let (node, mut fast_path, a, b) = two_pods();
    let spoofed = ip(a.mac, b.v4.into(), a.v4.into(), 17, &[0; 8]);
    let own = ip(a.mac, a.v4.into(), b.v4.into(), 17, &[0; 8]);
    let before = fast_path.counters().unwrap();
    for addr in [a.v4.into(), IpAddr::from(a.v6)] {
        assert!(fast_path.remove_pod(addr, a.ifindex()).unwrap());
    }
    assert!(fast_path.forget_counters(a.ifindex()).unwrap());
    a.send_frame(&own);
    a.send_frame(&spoofed);
    let now = fast_path.counters().unwrap();
    assert_eq!(reasons(before.drops, now.drops), [(Reason::Detached, 2)]);
    assert_eq!(counted(&node, &b), Counters { drops: Some(Drops::default()), ..Counters::default() });
    let links = PodCounters::open(&node.dir()).unwrap().unwrap().links().collect::<Result<Vec<_>, _>>();
    assert_eq!(links.unwrap(), [b.ifindex()]);
}

#[test]
fn a_pod_for_the_stack_only_is_left_to_it() {
    let (node, mut fast_path, a, b) = two_pods();
    let entry = weft_hooks::PodEntry { stack_only: true, ..b.entry() };
    fast_path.set_pod(b.v4.into(), &entry).unwrap();
    assert!(a.pings(b.v4) && b.pings(a.v4));
    assert_eq!(node.forwarded(), 12);
    assert!(a.pings(b.v6));
    assert_eq!(node.forwarded(), 12, "the other address is as it was");
    assert_eq!(fast_path.counters().unwrap().passed.packets, 12);
}

#[test]
fn replies_of_a_translated_flow_return_through_the_stack() {
    let (node, fast_path, a, b) = two_pods();
    node.translate(&b);
    for (address, client) in [(VIRTUAL_V4, IpAddr::from(a.v4)), (VIRTUAL_V6, a.v6.into())] {
        let target = address.parse().unwrap();
        assert_eq!(tcp(&a, &b, target, 8080).unwrap(), client, "the server sees the pod's own address");
        assert_eq!(udp(&a, &b, target, 100).unwrap(), client);
        assert_eq!(udp(&a, &b, target, 9000).unwrap(), client, "in fragments");
        assert!(a.pings(target));
    }
    assert!(fast_path.counters().unwrap().returned.packets > 0);
    assert_eq!(returns(&node), [1, 1], "both addresses of the server, and no other");

    // Other flows of the same server keep the fast path.
    let (counted, forwarded) = (fast_path.counters().unwrap(), node.forwarded());
    assert_eq!(tcp(&a, &b, b.v4.into(), 8081).unwrap(), IpAddr::from(a.v4));
    assert!(a.pings(b.v4) && b.pings(a.v6));
    let now = fast_path.counters().unwrap();
    assert!(now.redirected.packets > counted.redirected.packets + 12);
    assert_eq!((now.returned, node.forwarded()), (counted.returned, forwarded));
}

#[test]
fn an_icmp_error_about_a_translated_flow_is_translated_too() {
    let (node, _fast_path, a, b) = two_pods();
    node.translate(&b);
    for address in [VIRTUAL_V4, VIRTUAL_V6] {
        let refused = a.run(|| {
            let any = if address == VIRTUAL_V4 { "0.0.0.0:0" } else { "[::]:0" };
            let socket = UdpSocket::bind(any)?;
            socket.set_read_timeout(Some(Duration::from_secs(1)))?;
            socket.connect((address, 9))?; // nobody listens there
            socket.send(b"x")?;
            socket.recv(&mut [0; 8])
        });
        assert_eq!(refused.unwrap_err().kind(), std::io::ErrorKind::ConnectionRefused, "{address}");
    }
}

#[test]
fn without_to_pod_a_translated_flow_hangs() {
    let (node, _fast_path, a, b) = two_pods();
    node.translate(&b);
    sh(&format!("tc filter del dev {} egress", b.link));
    let hangs = tcp(&a, &b, VIRTUAL_V4.parse().unwrap(), 8080).unwrap_err();
    assert_eq!(hangs.kind(), std::io::ErrorKind::TimedOut);
}

#[test]
fn what_cannot_be_read_puts_its_pod_on_the_stack() {
    let (node, mut fast_path, a, b) = two_pods();
    node.translate(&b);
    // Destination options (RFC 8200, 4.6), padded with PadN, before UDP.
    let payload = [17, 0, 1, 4, 0, 0, 0, 0, 0x10, 0, 0x10, 0, 0, 8, 0, 0];
    a.send_frame(&ip(a.mac, a.v6.into(), VIRTUAL_V6.parse().unwrap(), 60, &payload));
    node::until("mark", || returns(&node) == [2]);
    let before = fast_path.counters().unwrap();
    assert!(b.pings(a.v6));
    let now = fast_path.counters().unwrap();
    assert_eq!(
        now.returned.packets - before.returned.packets,
        6,
        "requests because of the mark, answers because of them"
    );

    // The next pod with that address starts afresh.
    let other = weft_hooks::PodEntry { ifindex: b.ifindex() + 1000, ..b.entry() };
    fast_path.set_pod(b.v6.into(), &other).unwrap();
    assert_eq!(returns(&node), [1], "that of the pod which answered");
}

#[test]
fn the_ladder_has_a_second_rung() {
    let node = Node::new();
    let mut fast_path = node.open_wanted(Wanted { way: Way::Only(Mode::Redirect), ..Wanted::default() });
    let (a, b) = (Pod::new(1), Pod::new(2));
    a.join(&mut fast_path);
    b.join(&mut fast_path);
    assert_eq!(FastPath::status(&node.dir()).unwrap().unwrap().mode, Mode::Redirect);
    assert!(a.pings(b.v4) && a.pings(b.v6));
    assert_eq!(tcp(&a, &b, b.v4.into(), 8080).unwrap(), IpAddr::from(a.v4));
    assert_eq!((node.forwarded(), returns(&node)), (0, vec![]), "to_pod takes them for nobody else's");
    node.translate(&b);
    assert_eq!(tcp(&a, &b, VIRTUAL_V4.parse().unwrap(), 8080).unwrap(), IpAddr::from(a.v4));
    assert_eq!(returns(&node), [1]);
}

#[test]
fn filters_behind_ours_still_see_what_passes() {
    let (_node, fast_path, a, b) = two_pods();
    assert!(a.pings(NODE_V4));
    // A program of one instruction that drops everything: return TC_ACT_SHOT.
    sh(&format!("tc filter add dev {} ingress prio 30000 bpf da bytecode '1,6 0 0 2'", a.link));
    assert!(!a.pings(NODE_V4));
    assert!(a.pings(b.v4), "what is redirected goes no further");
    assert_eq!(fast_path.counters().unwrap().dropped.packets, 0);
}
