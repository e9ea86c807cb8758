//! nftables and conntrack, in namespaces of the tests' own; `nft` is the witness. Needs root.
#![expect(clippy::unwrap_used, reason = "a test that cannot go on panics")]

use std::io::Write;
use std::net::{IpAddr, UdpSocket};
use std::process::{Command, Stdio};

use nix::libc;
use weft_netns::nft::{Base, Batch, Direction, Element, Expr, Family, Field, Hook, Kind, Set, Slot, Type};
use weft_netns::{Error, Flows, NetNs, Netfilter};

const TABLE: &str = "weft-test";
const PORTS: Set<'_> =
    Set { name: "ports", key: &[Type::Protocol, Type::Port], value: &[Type::Ipv4, Type::Port] };
const HIDDEN: Set<'_> = Set { name: "hidden", key: &[Type::Ipv6], value: &[] };

fn nft(netns: &NetNs, args: &[&str], input: &str) -> String {
    let run = || {
        let mut command = Command::new("nft");
        command.args(args).stdin(Stdio::piped()).stdout(Stdio::piped()).stderr(Stdio::piped());
        let mut child = command.spawn().unwrap();
        child.stdin.take().unwrap().write_all(input.as_bytes()).unwrap();
        child.wait_with_output().unwrap()
    };
    let output = netns.run(run).unwrap();
    assert!(output.status.success(), "nft {args:?}: {}", String::from_utf8_lossy(&output.stderr));
    String::from_utf8(output.stdout).unwrap()
}

fn open(netns: &NetNs) -> Netfilter {
    netns.run(|| Netfilter::open().unwrap()).unwrap()
}

fn table(rules: Vec<Vec<Expr>>) -> Batch {
    let mut batch = Batch::of(TABLE);
    batch.add_table();
    batch.add_set(&PORTS);
    batch.add_set(&HIDDEN);
    batch.add_chain("other", None);
    batch.add_chain("post", Some(Base { kind: Kind::Nat, hook: Hook::Postrouting, priority: 100 }));
    batch.add_chain("pre", Some(Base { kind: Kind::Nat, hook: Hook::Prerouting, priority: -100 }));
    rules.into_iter().for_each(|rule| batch.add_rule("post", rule));
    batch
}

fn port(number: u16) -> Element {
    let [high, low] = number.to_be_bytes();
    Element { key: vec![6, 0, 0, 0, high, low, 0, 0], value: Some(vec![10, 0, 0, 1, 0, 80, 0, 0]) }
}

#[test]
fn nft_reads_what_was_written() {
    let netns = NetNs::create().unwrap();
    let source = |family| Expr::Take(Field::Source(family), Slot(0));
    let v4 = Expr::Is(Family::Ipv4);
    let mut batch = table(vec![
        vec![Expr::LeavesBy("weft"), Expr::Jump("other")],
        vec![v4.clone(), source(Family::Ipv4), Expr::Begins(Slot(0), vec![127]), Expr::Return],
        vec![v4.clone(), source(Family::Ipv4), Expr::Within(Slot(0), vec![172, 16, 0, 0], 12), Expr::Accept],
        vec![Expr::Is(Family::Ipv6), source(Family::Ipv6), Expr::Find("hidden".into(), Slot(0)), Expr::Drop],
        vec![
            Expr::IsTranslated,
            v4.clone(),
            Expr::Put(Slot(4), vec![169, 254, 1, 1]),
            Expr::Translate(Direction::Source, Family::Ipv4, Slot(4), None),
        ],
        vec![Expr::Masquerade],
    ]);
    batch.add_rule(
        "pre",
        vec![
            Expr::IsForHost,
            v4,
            Expr::TakeProtocol(Slot(0)),
            Expr::Take(Field::DestinationPort, Slot(1)),
            Expr::Map("ports", Slot(0), Slot(4)),
            Expr::Translate(Direction::Destination, Family::Ipv4, Slot(4), Some(Slot(5))),
        ],
    );
    batch.add_elements("ports", &[port(8080)]);
    let hidden = Element { key: vec![0xfd; 16], value: None };
    batch.add_elements("hidden", std::slice::from_ref(&hidden));
    let netfilter = open(&netns);
    netfilter.commit(batch).unwrap();
    let listed = nft(&netns, &["list", "table", "inet", TABLE], "");
    for line in [
        "oifname \"weft*\" jump other",
        "ip saddr 127.0.0.0/8 return",
        "ip saddr 172.16.0.0/12 accept",
        "ip6 saddr @hidden drop",
        "ct status dnat meta nfproto ipv4 snat ip to 169.254.1.1",
        "masquerade fully-random",
        "fib daddr type local meta nfproto ipv4 dnat ip to meta l4proto . th dport map @ports",
        "type nat hook postrouting priority srcnat; policy accept;",
        "tcp . 8080 : 10.0.0.1 . 80",
        "elements = { fdfd:fdfd:fdfd:fdfd:fdfd:fdfd:fdfd:fdfd }",
    ] {
        assert!(listed.contains(line), "{line} in {listed}");
    }
    assert_eq!(netfilter.elements(TABLE, "hidden").unwrap(), [hidden]);
    assert_eq!(netfilter.rules(TABLE).unwrap(), [("post".to_owned(), 6), ("pre".to_owned(), 1)].into());
    assert_eq!(netfilter.element(TABLE, "ports", &port(8080)).unwrap(), Some(port(8080)));
    assert_eq!(netfilter.element(TABLE, "ports", &port(1)).unwrap(), None);
}

#[test]
fn a_transaction_is_done_whole_or_not_at_all_and_says_what_was_refused() {
    let netns = NetNs::create().unwrap();
    let netfilter = open(&netns);
    let mut early = Batch::of(TABLE);
    early.add_elements("ports", &[port(1)]);
    let err = netfilter.commit(early).unwrap_err();
    assert_eq!(err.errno(), Some(libc::ENOENT));
    assert_eq!(err.to_string(), format!("add to set ports of table {TABLE}"));
    netfilter.commit(table(Vec::new())).unwrap();
    let ports: Vec<Element> = (1..=10_000).map(port).collect();
    let mut many = Batch::of(TABLE);
    many.add_elements("ports", &ports);
    netfilter.commit(many).unwrap();
    assert_eq!(netfilter.elements(TABLE, "ports").unwrap().len(), 10_000);
    let mut twice = Batch::of(TABLE);
    twice.add_elements("ports", &[port(20_000), port(5)]);
    assert_eq!(netfilter.commit(twice).unwrap_err().errno(), Some(libc::EEXIST));
    assert_eq!(netfilter.element(TABLE, "ports", &port(20_000)).unwrap(), None);
    let mut fewer = Batch::of(TABLE);
    fewer.delete_elements("ports", &ports[1..]);
    netfilter.commit(fewer).unwrap();
    assert_eq!(netfilter.elements(TABLE, "ports").unwrap(), [port(1)]);
    let mut rest = Batch::of(TABLE);
    rest.delete_table();
    netfilter.commit(rest).unwrap();
    assert!(!netfilter.has_table(TABLE).unwrap());
}

#[test]
fn a_transaction_may_ask_that_nothing_has_changed() {
    let netns = NetNs::create().unwrap();
    let netfilter = open(&netns);
    let change = |generation| {
        let mut batch = Batch::of(TABLE);
        batch.unless_changed_since(generation);
        batch.add_table();
        netfilter.commit(batch).map_err(|err: Error| err.errno())
    };
    let before = netfilter.generation().unwrap();
    nft(&netns, &["add", "table", "inet", "other"], "");
    assert_eq!(change(before), Err(Some(libc::ERESTART)));
    assert_eq!(change(netfilter.generation().unwrap()), Ok(()));
}

/// The kernel's own filter finds all of IPv6 but those that are meant, and detach of one pod cut the connections of all others.
#[test]
fn connections_are_found_by_their_ends_and_forgotten() {
    let netns = NetNs::create().unwrap();
    nft(
        &netns,
        &["-f", "-"],
        "table inet t {\n chain c {\n type filter hook output priority 0\n ct state new accept\n }\n}\n",
    );
    let netfilter = open(&netns);
    for (family, client, servers) in [
        (Family::Ipv4, "127.0.0.1", ["127.0.0.2", "127.0.0.3"]),
        (Family::Ipv6, "fd00::1", ["fd00::2", "fd00::3"]),
    ] {
        let [client, one, other]: [IpAddr; 3] =
            [client, servers[0], servers[1]].map(|ip| ip.parse().unwrap());
        netns
            .run(|| {
                for args in [
                    "link set lo up",
                    "addr replace fd00::1 dev lo",
                    "addr replace fd00::2 dev lo",
                    "addr replace fd00::3 dev lo",
                ] {
                    assert!(Command::new("ip").args(args.split(' ')).status().unwrap().success());
                }
                let socket = UdpSocket::bind((client, 0)).unwrap();
                for to in [(one, 53), (other, 54)] {
                    socket.send_to(b"x", to).unwrap();
                }
            })
            .unwrap();
        let known = |flows| {
            let found = netfilter.connections(flows).unwrap();
            found.iter().map(|connection| connection.to).collect::<Vec<_>>()
        };
        assert_eq!(known(Flows::ToUdpPort(family, 53)), [one]);
        assert_eq!(known(Flows::AnsweredBy(other)), [other]);
        assert_eq!(known(Flows::BegunBy(other)), [] as [IpAddr; 0]);
        assert_eq!(known(Flows::BegunBy(client)).len(), 2);
        for connection in netfilter.connections(Flows::AnsweredBy(one)).unwrap() {
            netfilter.forget(connection.clone()).unwrap();
            netfilter.forget(connection).unwrap();
        }
        assert_eq!(known(Flows::BegunBy(client)), [other]);
    }
    assert_eq!(netfilter.connections(Flows::ToUdpPort(Family::Ipv6, 53)).unwrap().len(), 0);
}
