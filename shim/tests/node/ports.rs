//! Host ports and masquerade, by packets: pods, a host, and an outside behind the uplink. `nft` is the witness.

use std::io::{ErrorKind, Read, Write};
use std::net::{IpAddr, SocketAddr, TcpListener, TcpStream, UdpSocket};
use std::os::fd::{AsRawFd, OwnedFd};
use std::process::Command;
use std::time::{Duration, Instant};

use serde_json::{Value, json};
use weft_netns::NetNs;

use nix::sys::signal::{Signal, kill};
use nix::sys::socket::{self, AddressFamily, Backlog, SockFlag, SockProtocol, SockType, SockaddrStorage};
use nix::unistd::Pid;

use crate::common::{Answer, Node, OUTSIDE, conf, slowness, wait_until};

/// The host's addresses on its uplink, and those of the outside.
pub(crate) const HOST: [&str; 2] = ["192.0.2.10", "2001:db8::10"];
pub(crate) const BEYOND: [&str; 2] = ["192.0.2.1", "2001:db8::1"];

/// Moves the far end of the uplink into a namespace of its own.
pub(crate) fn outside(node: &Node) -> NetNs {
    let path = node.pod("outside");
    node.ip(&["link", "set", OUTSIDE, "netns", &path.display().to_string()]);
    for args in [
        "link set lo up".to_owned(),
        format!("addr add {}/24 dev {OUTSIDE}", BEYOND[0]),
        format!("addr add {}/64 dev {OUTSIDE} nodad", BEYOND[1]),
        format!("link set {OUTSIDE} up"),
        "route add 10.88.0.0/24 via 192.0.2.10".to_owned(),
        "-6 route add fd00:88::/64 via 2001:db8::10".to_owned(),
    ] {
        node.ip_in_pod("outside", &args.split(' ').collect::<Vec<_>>());
    }
    node.pod_ns("outside")
}

pub(crate) fn with_ports(mappings: Value) -> Value {
    let mut conf = conf();
    conf["runtimeConfig"] = json!({ "portMappings": mappings });
    conf
}

pub(crate) fn port(protocol: &str, host: u16, pod: u16) -> Value {
    json!({ "HostPort": host, "ContainerPort": pod, "Protocol": protocol, "HostIP": "" })
}

pub(crate) fn add(node: &Node, name: &str, conf: &Value) -> Answer {
    node.pod(name);
    let answer = node.cni("ADD", name, conf);
    assert!(answer.status.success(), "ADD {name}: {}", answer.json);
    answer
}

pub(crate) fn del(node: &Node, names: &[&str]) {
    for name in names {
        let answer = node.cni("DEL", name, &conf());
        assert!(answer.status.success(), "DEL {name}: {}", answer.json);
    }
    node.assert_empty();
    let sets = ["ports4", "ports6", "ports4_at", "ports6_at", "hairpin4", "hairpin6", "hidden4_", "hidden6_"];
    let withdrawn = ["withdrawn4", "withdrawn6", "withdrawn4_at", "withdrawn6_at"];
    for set in sets.into_iter().chain(withdrawn) {
        wait_until("the kernel's clock ticks", || elements(node, set) == 0);
    }
}

/// Elements of a set or map, as `nft` sees them; of all whose names begin so, if it ends with an underscore.
pub(crate) fn elements(node: &Node, name: &str) -> usize {
    let output = node.run(Command::new("nft").args(["-j", "list", "ruleset"]), "");
    let listed: Value = serde_json::from_slice(&output.stdout).unwrap();
    let objects = listed["nftables"].as_array().unwrap();
    let is_meant = |set: &&Value| {
        let own = set["name"].as_str().unwrap_or_default();
        own == name || name.ends_with('_') && own.starts_with(name)
    };
    let sets = objects.iter().flat_map(|object| [&object["set"], &object["map"]]).filter(is_meant);
    sets.map(|set| set["elem"].as_array().map_or(0, Vec::len)).sum()
}

pub(crate) fn at(address: &str, port: u16) -> SocketAddr {
    SocketAddr::new(address.parse().unwrap(), port)
}

pub(crate) fn patience() -> Duration {
    Duration::from_secs(2) * slowness()
}

/// A connection from a namespace to `target`, taken by whoever listens in `server`: the client as the server sees it.
pub(crate) fn tcp(client: &NetNs, target: SocketAddr, server: &NetNs, port: u16) -> Option<IpAddr> {
    let connect = |target| TcpStream::connect_timeout(&target, patience());
    let served = any(target.is_ipv4(), port);
    connection(client, connect, target, &bound(server, served, TcpListener::bind::<SocketAddr>))
}

/// The same by SCTP. The library's types do with any socket of connections. Both ends are bound to one address: an end that is not
/// tells the other all addresses of its node, inside of the packet where nobody translates them. Linux asks each of them for a sign
/// of life after one to five seconds, and the ABORT of whoever has no such association ends this one.
fn sctp(
    client: &NetNs,
    (from, to): (&str, SocketAddr),
    server: &NetNs,
    served: SocketAddr,
) -> Option<IpAddr> {
    fn bound_socket(address: SocketAddr) -> std::io::Result<OwnedFd> {
        let family = if address.is_ipv4() { AddressFamily::Inet } else { AddressFamily::Inet6 };
        let socket = socket::socket(family, SockType::Stream, SockFlag::SOCK_CLOEXEC, SockProtocol::Sctp)?;
        socket::bind(socket.as_raw_fd(), &SockaddrStorage::from(address))?;
        Ok(socket)
    }
    let listen = |address| {
        let listener = TcpListener::from(bound_socket(address)?);
        socket::listen(&listener, Backlog::new(1)?)?;
        Ok(listener)
    };
    let connect = |(from, to): (SocketAddr, SocketAddr)| {
        let stream = TcpStream::from(bound_socket(from)?);
        stream.set_write_timeout(Some(patience()))?;
        socket::connect(stream.as_raw_fd(), &SockaddrStorage::from(to))?;
        Ok(stream)
    };
    connection(client, connect, (at(from, 0), to), &bound(server, served, listen))
}

fn connection<T: Send>(
    client: &NetNs,
    connect: fn(T) -> std::io::Result<TcpStream>,
    target: T,
    listener: &TcpListener,
) -> Option<IpAddr> {
    listener.set_nonblocking(true).unwrap();
    std::thread::scope(|scope| {
        let asking = scope.spawn(move || {
            client.run(|| {
                let mut stream = connect(target).ok()?;
                stream.set_read_timeout(Some(patience())).unwrap();
                let mut answer = String::new();
                stream.read_to_string(&mut answer).ok().filter(|_| answer == "here")
            })
        });
        let mut seen = None;
        while !asking.is_finished() {
            match listener.accept() {
                Ok((mut stream, from)) => {
                    stream.write_all(b"here").unwrap();
                    seen = Some(from.ip());
                }
                Err(_) => std::thread::park_timeout(Duration::from_millis(5)),
            }
        }
        asking.join().unwrap().unwrap().and(seen)
    })
}

/// A datagram to `target` from a socket, and its answer from whoever listens in `server`: the client as the server sees it.
pub(crate) fn udp(client: &UdpSocket, target: SocketAddr, server: &NetNs, port: u16) -> Option<IpAddr> {
    let listener = bound(server, any(target.is_ipv4(), port), UdpSocket::bind::<SocketAddr>);
    listener.set_read_timeout(Some(patience())).unwrap();
    client.set_read_timeout(Some(patience())).unwrap();
    client.send_to(b"ping", target).ok()?;
    let mut bytes = [0; 16];
    let (_, from) = listener.recv_from(&mut bytes).ok()?;
    listener.send_to(b"pong", from).unwrap();
    let (_, answered) = client.recv_from(&mut bytes).ok()?;
    (answered == target).then_some(from.ip())
}

pub(crate) fn socket(netns: &NetNs, ipv4: bool) -> UdpSocket {
    bound(netns, any(ipv4, 0), UdpSocket::bind::<SocketAddr>)
}

pub(crate) fn any(ipv4: bool, port: u16) -> SocketAddr {
    at(if ipv4 { "0.0.0.0" } else { "::" }, port)
}

/// A socket that serves `address` in a namespace. The one before it may still be open for a moment: in a child that another
/// thread has forked and that has not come to its exec yet.
pub(crate) fn bound<T: Send>(
    netns: &NetNs,
    address: SocketAddr,
    bind: fn(SocketAddr) -> std::io::Result<T>,
) -> T {
    let deadline = Instant::now() + 5 * patience();
    loop {
        match netns.run(|| bind(address)).unwrap() {
            Err(err) if err.kind() == std::io::ErrorKind::AddrInUse && Instant::now() < deadline => {
                std::thread::park_timeout(Duration::from_millis(5));
            }
            bound => return bound.unwrap(),
        }
    }
}

#[test]
fn a_host_port_leads_to_the_pod_from_everywhere() {
    let node = Node::new();
    let beyond = outside(&node);
    let conf = with_ports(json!([port("tcp", 8080, 80), port("udp", 8053, 53)]));
    let own = add(&node, "a", &conf).addresses();
    let other = node.add("b").addresses();
    let (a, b) = (node.pod_ns("a"), node.pod_ns("b"));
    for (family, gateway) in [(0, "169.254.1.1"), (1, "fe80::1")] {
        // Who asks, where, and whom the pod sees: its own gateway where an answer would else not come back.
        let mut ways = vec![
            (&beyond, HOST[family], BEYOND[family]),
            (&node.host, HOST[family], HOST[family]),
            (&b, HOST[family], other[family].as_str()),
            (&a, HOST[family], gateway),
        ];
        if family == 0 {
            ways.extend([(&node.host, "127.0.0.1", gateway), (&node.host, "127.1.2.3", gateway)]);
        }
        for (client, to, from) in ways {
            let from = Some(from.parse().unwrap());
            assert_eq!(tcp(client, at(to, 8080), &a, 80), from, "tcp to {to}");
            let socket = socket(client, family == 0);
            assert_eq!(udp(&socket, at(to, 8053), &a, 53), from, "udp to {to}");
            assert_eq!(udp(&socket, at(to, 8053), &a, 53), from, "udp to {to}, once more");
        }
        // Not only for the first packet: what the pod itself serves is reached as ever.
        assert_eq!(tcp(&b, at(&own[family], 80), &a, 80), Some(other[family].parse().unwrap()));
        assert_eq!(tcp(&beyond, at(HOST[family], 8081), &a, 8081), None, "a port that is not published");
    }
    assert_eq!((elements(&node, "ports4"), elements(&node, "ports6")), (2, 2));
    let told = node.weft(&["ports", "-o", "json"]);
    assert_eq!(told.as_array().unwrap().len(), 2);
    assert_eq!((&told[0]["protocol"], &told[0]["host_port"]), (&json!("udp"), &json!(8053)));
    let [v4, v6] = [format!("{}:80", own[0]), format!("[{}]:80", own[1])];
    assert_eq!((&told[1]["container"], &told[1]["to"]), (&json!("a"), &json!([v4, v6])));
    let table = node.run(node.command(env!("CARGO_BIN_EXE_weft")).arg("ports"), "").stdout;
    let table = String::from_utf8(table).unwrap();
    assert!(table.contains(&format!("8080  tcp       any      -    {v4},{v6}")), "{table}");
    del(&node, &["a", "b"]);
    assert_eq!(tcp(&beyond, at(HOST[0], 8080), &a, 80), None, "a port that was published");
}

#[test]
#[ignore = "not every kernel has SCTP: conformance/vm boots some that have"]
fn a_host_port_of_sctp_leads_to_the_pod_from_everywhere() {
    let node = Node::new();
    let beyond = outside(&node);
    let own = add(&node, "a", &with_ports(json!([port("sctp", 3868, 38)]))).addresses();
    let other = node.add("b").addresses();
    let (a, b) = (node.pod_ns("a"), node.pod_ns("b"));
    for (family, gateway) in [(0, "169.254.1.1"), (1, "fe80::1")] {
        let [own, other] = [&own[family], &other[family]];
        let mut ways = vec![
            (&beyond, BEYOND[family], HOST[family], BEYOND[family]),
            (&node.host, HOST[family], HOST[family], HOST[family]),
            (&b, other, HOST[family], other),
            (&a, own, HOST[family], gateway),
        ];
        if family == 0 {
            ways.push((&node.host, "127.0.0.1", "127.0.0.1", gateway));
        }
        for (client, from, to, seen) in ways {
            let seen = Some(seen.parse().unwrap());
            assert_eq!(sctp(client, (from, at(to, 3868)), &a, at(own, 38)), seen, "from {from} to {to}");
        }
        let direct = sctp(&b, (other, at(own, 39)), &a, at(own, 39));
        assert_eq!(direct, Some(other.parse().unwrap()), "from pod to pod");
        let sent = sctp(&a, (own, at(BEYOND[family], 40)), &beyond, at(BEYOND[family], 40));
        assert_eq!(sent, Some(HOST[family].parse().unwrap()), "from pod to outside");
    }
    del(&node, &["a", "b"]);
}

#[test]
fn a_pod_reaches_no_localhost_but_its_own() {
    let node = Node::new();
    add(&node, "a", &with_ports(json!([port("tcp", 8080, 80)])));
    let a = node.pod_ns("a");
    node.ip_in_pod(
        "a",
        &["route", "add", "127.0.0.2/32", "via", "169.254.1.1", "dev", "eth0", "table", "77"],
    );
    node.ip_in_pod("a", &["rule", "add", "to", "127.0.0.2/32", "table", "77", "pref", "0"]);
    // The local table comes first and knows 127.0.0.0/8.
    node.ip_in_pod("a", &["rule", "add", "pref", "5", "table", "local"]);
    node.ip_in_pod("a", &["rule", "del", "pref", "0", "table", "local"]);
    let link = node.ip_in_pod("a", &["link", "show", "eth0"])[0]["ifname"].as_str().unwrap().to_owned();
    let sysctl = format!("/proc/sys/net/ipv4/conf/{link}/route_localnet");
    a.run(|| std::fs::write(sysctl, "1").unwrap()).unwrap();
    assert_eq!(tcp(&a, at("127.0.0.2", 9000), &node.host, 9000), None);
    del(&node, &["a"]);
}

#[test]
fn a_port_at_one_address_is_at_no_other() {
    let node = Node::new();
    let beyond = outside(&node);
    node.ip(&["addr", "add", "192.0.2.11/24", "dev", "uplink"]);
    let mapping =
        |ip: &str| json!({ "hostPort": 8080, "containerPort": 80, "protocol": "tcp", "hostIP": ip });
    add(&node, "a", &with_ports(json!([mapping("192.0.2.10")])));
    add(&node, "b", &with_ports(json!([mapping("192.0.2.11")])));
    add(&node, "c", &with_ports(json!([mapping("::")])));
    let from = Some(BEYOND[0].parse().unwrap());
    assert_eq!(tcp(&beyond, at("192.0.2.10", 8080), &node.pod_ns("a"), 80), from);
    assert_eq!(tcp(&beyond, at("192.0.2.11", 8080), &node.pod_ns("b"), 80), from);
    assert_eq!(tcp(&beyond, at(HOST[1], 8080), &node.pod_ns("c"), 80), Some(BEYOND[1].parse().unwrap()));
    assert_eq!(tcp(&node.host, at("127.0.0.1", 8080), &node.pod_ns("a"), 80), None, "localhost");
    del(&node, &["a", "b", "c"]);
}

#[test]
fn a_taken_port_is_refused_with_the_name_of_its_pod() {
    let node = Node::new();
    let conf = with_ports(json!([port("udp", 8053, 53), port("tcp", 8080, 80)]));
    node.pod("a");
    let answer = node.cni_with("ADD", "a", &conf.to_string(), |command| {
        let netns = node.dir.path().join("netns-a");
        command
            .env("CNI_NETNS", netns)
            .env("CNI_ARGS", "IgnoreUnknown=1;K8S_POD_NAMESPACE=shop;K8S_POD_NAME=web");
    });
    assert!(answer.status.success(), "{}", answer.json);
    node.pod("b");
    let (code, text) =
        node.cni("ADD", "b", &with_ports(json!([port("tcp", 8080, 81), port("tcp", 8090, 90)]))).error();
    assert_eq!((code, text.as_str()), (105, "attach the pod: host port 8080/tcp is taken by pod shop/web"));
    assert_eq!((elements(&node, "ports4"), elements(&node, "hairpin4")), (2, 1), "nothing of b");
    assert_eq!(node.weft(&["pods", "-o", "json"]).as_array().unwrap().len(), 1);
    // The same number of another protocol is another port, and a port is free with its pod.
    add(&node, "c", &with_ports(json!([port("udp", 8080, 80)])));
    assert!(node.cni("DEL", "a", &conf).status.success());
    let answer = node.cni("ADD", "b", &with_ports(json!([port("tcp", 8080, 81)])));
    assert!(answer.status.success(), "{}", answer.json);
    del(&node, &["b", "c"]);
}

#[test]
fn udp_that_was_sent_before_its_port_was_published_arrives_afterwards() {
    let node = Node::new();
    let beyond = outside(&node);
    // There is a table, so connections are remembered.
    add(&node, "first", &with_ports(json!([port("tcp", 1, 1)])));
    let client = socket(&beyond, true);
    let target = at(HOST[0], 8053);
    client.send_to(b"early", target).unwrap();
    for name in ["a", "b"] {
        add(&node, name, &with_ports(json!([port("udp", 8053, 53)])));
        // What says that nobody listens may have come back.
        drop(client.take_error());
        assert_eq!(udp(&client, target, &node.pod_ns(name), 53), Some(BEYOND[0].parse().unwrap()), "{name}");
        assert!(node.cni("DEL", name, &conf()).status.success());
    }
    del(&node, &["first"]);
}

/// Nobody publishes the port again, so only DEL can have done it.
#[test]
fn after_del_nothing_translates_what_still_comes() {
    let node = Node::new();
    let beyond = outside(&node);
    add(&node, "a", &with_ports(json!([port("udp", 8053, 53)])));
    let clients = [0, 1].map(|family| {
        let client = socket(&beyond, family == 0);
        let target = at(HOST[family], 8053);
        let seen = udp(&client, target, &node.pod_ns("a"), 53);
        assert_eq!(seen, Some(BEYOND[family].parse().unwrap()));
        client.connect(target).unwrap();
        client
    });
    assert!(node.cni("DEL", "a", &conf()).status.success());
    for client in clients {
        client.send(b"late").unwrap();
        // The host itself says that nobody listens.
        let refused = client.recv(&mut [0; 16]).unwrap_err();
        assert_eq!(refused.kind(), ErrorKind::ConnectionRefused);
    }
    del(&node, &[]);
}

/// Within the tick in which its element is still there, too.
#[test]
fn a_port_is_shut_when_del_returns_and_its_next_pod_has_it_at_once() {
    let node = Node::new();
    let beyond = outside(&node);
    let at_one = json!({ "HostPort": 8081, "ContainerPort": 80, "Protocol": "tcp", "HostIP": "192.0.2.10" });
    let conf = with_ports(json!([port("tcp", 8080, 80), at_one]));
    for round in 0..3 {
        let pod = format!("pod-{round}");
        add(&node, &pod, &conf);
        let inside = node.pod_ns(&pod);
        for (family, port) in [(0, 8080), (1, 8080), (0, 8081)] {
            let seen = tcp(&beyond, at(HOST[family], port), &inside, 80);
            assert_eq!(seen, Some(BEYOND[family].parse().unwrap()), "{pod} {port}");
        }
        assert!(node.cni("DEL", &pod, &conf).status.success());
        for (family, port) in [(0, 8080), (1, 8080), (0, 8081)] {
            let target = at(HOST[family], port);
            let refused = beyond.run(move || TcpStream::connect_timeout(&target, patience())).unwrap();
            assert_eq!(refused.unwrap_err().kind(), ErrorKind::ConnectionRefused, "{pod} {port}");
        }
    }
    let listed =
        String::from_utf8(node.run(Command::new("nft").args(["list", "ruleset"]), "").stdout).unwrap();
    for rule in [
        "meta l4proto . th dport != @withdrawn4 dnat ip to meta l4proto . th dport map @ports4",
        "ip6 daddr . meta l4proto . th dport != @withdrawn6_at dnat",
    ] {
        assert!(listed.contains(rule), "{rule} in {listed}");
    }
    del(&node, &[]);
}

#[test]
fn the_outside_sees_the_hosts_address_where_it_should() {
    let node = Node::new();
    let beyond = outside(&node);
    node.ip_in_pod("outside", &["addr", "add", "198.51.100.1/32", "dev", "lo"]);
    node.ip(&["route", "add", "198.51.100.1/32", "via", BEYOND[0]]);
    let mut open = conf();
    open["masquerade"] = json!(false);
    let mut except = conf();
    except["masqueradeExcept"] = json!(["198.51.100.0/24"]);
    let hidden = node.add("hidden").addresses();
    let open = add(&node, "open", &open).addresses();
    let except = add(&node, "except", &except).addresses();
    for family in [0, 1] {
        for (pod, seen) in [("hidden", HOST[family]), ("open", &open[family]), ("except", HOST[family])] {
            let from = tcp(&node.pod_ns(pod), at(BEYOND[family], 7000), &beyond, 7000);
            assert_eq!(from, Some(seen.parse().unwrap()), "{pod}");
        }
        let from = tcp(&node.pod_ns("hidden"), at(&open[family], 7000), &node.pod_ns("open"), 7000);
        assert_eq!(from, Some(hidden[family].parse().unwrap()), "from pod to pod");
    }
    let far = at("198.51.100.1", 7000);
    for (pod, seen) in [("hidden", HOST[0]), ("except", except[0].as_str())] {
        let from = tcp(&node.pod_ns(pod), far, &beyond, 7000);
        assert_eq!(from, Some(seen.parse().unwrap()), "{pod} to an exception");
    }
    let rules = node.run(Command::new("nft").args(["list", "table", "inet", "weft"]), "");
    assert!(String::from_utf8(rules.stdout).unwrap().contains("masquerade fully-random"));
    del(&node, &["hidden", "open", "except"]);
}

/// Whether or not the last pod's element has expired by then.
#[test]
fn an_address_is_hidden_as_its_next_pod_wants_it() {
    let node = Node::new();
    let beyond = outside(&node);
    let mut other = conf();
    other["masqueradeExcept"] = json!(["203.0.113.0/24"]);
    let mut open = conf();
    open["masquerade"] = json!(false);
    let seen = |pod: &str| tcp(&node.pod_ns(pod), at(BEYOND[0], 7000), &beyond, 7000).unwrap().to_string();
    for (pod, mut conf, hidden) in [
        ("a", conf(), true),
        ("b", other, true),
        ("c", conf(), true),
        ("d", conf(), true),
        ("e", open, false),
    ] {
        conf["args"] = json!({ "cni": { "ips": ["10.88.0.50"] } });
        if pod == "e" {
            wait_until("the kernel's clock ticks", || elements(&node, "hidden4_") == 0);
        }
        add(&node, pod, &conf);
        assert_eq!(seen(pod), if hidden { HOST[0] } else { "10.88.0.50" }, "{pod}");
        wait_until("an expiry that was called off is over", || {
            elements(&node, "hidden4_") == usize::from(hidden)
        });
        assert!(node.cni("DEL", pod, &conf).status.success());
    }
    del(&node, &[]);
}

#[test]
fn a_flushed_table_is_back_with_the_next_pod_and_foreign_ones_are_left_alone() {
    let node = Node::new();
    let beyond = outside(&node);
    add(&node, "a", &with_ports(json!([port("tcp", 8080, 80)])));
    assert!(node.run(Command::new("nft").args(["flush", "ruleset"]), "").status.success());
    assert_eq!(tcp(&beyond, at(HOST[0], 8080), &node.pod_ns("a"), 80), None, "it is gone");
    let foreign = "table inet other { chain c { type filter hook input priority 0; tcp dport 1 drop\n }\n}";
    assert!(node.run(Command::new("nft").args(["-f", "-"]), foreign).status.success());
    let before = node.run(Command::new("nft").args(["-j", "list", "table", "inet", "other"]), "").stdout;
    add(&node, "b", &with_ports(json!([port("tcp", 8090, 90)])));
    let from = Some(BEYOND[0].parse().unwrap());
    assert_eq!(tcp(&beyond, at(HOST[0], 8080), &node.pod_ns("a"), 80), from);
    assert_eq!(tcp(&beyond, at(HOST[0], 8090), &node.pod_ns("b"), 90), from);
    assert_eq!(tcp(&node.pod_ns("a"), at(BEYOND[0], 7000), &beyond, 7000), Some(HOST[0].parse().unwrap()));
    // Flushed while nothing but detaches follow: they succeed.
    assert!(node.run(Command::new("nft").args(["delete", "table", "inet", "weft"]), "").status.success());
    for name in ["a", "b"] {
        assert!(node.cni("DEL", name, &conf()).status.success());
    }
    node.assert_empty();
    let after = node.run(Command::new("nft").args(["-j", "list", "table", "inet", "other"]), "").stdout;
    assert_eq!(after, before);
}

#[test]
fn a_flushed_table_is_back_at_once_while_weft_serves() {
    let node = Node::new();
    add(&node, "a", &with_ports(json!([port("tcp", 8080, 80)])));
    let nft =
        |args: &[&str]| assert!(node.run(Command::new("nft").args(args), "").status.success(), "{args:?}");
    nft(&["flush", "chain", "inet", "weft", "ports"]);
    let mut command = node.command(env!("CARGO_BIN_EXE_weft"));
    let mut serve = node.host.run(|| command.arg("serve").spawn().unwrap()).unwrap();
    let listed = || {
        let output = node.run(Command::new("nft").args(["list", "table", "inet", "weft"]), "");
        String::from_utf8(output.stdout).unwrap()
    };
    let whole =
        || listed().contains("dport map @ports4\n") && listed().contains("tcp . 8080 : 10.88.0.2 . 80");
    wait_until("it is repaired at the start", whole);
    for loss in [
        &["flush", "ruleset"][..],
        &["delete", "table", "inet", "weft"],
        &["flush", "chain", "inet", "weft", "ports"],
    ] {
        nft(loss);
        wait_until("it is repaired", whole);
    }
    kill(Pid::from_raw(i32::try_from(serve.id()).unwrap()), Signal::SIGTERM).unwrap();
    assert!(serve.wait().unwrap().success());
    del(&node, &["a"]);
}

#[test]
fn reconcile_repairs_the_table_and_tells_of_it() {
    let node = Node::new();
    let beyond = outside(&node);
    add(&node, "a", &with_ports(json!([port("tcp", 8080, 80)])));
    assert_eq!(node.weft(&["reconcile", "-o", "json"])["nat_repaired"], false);
    for harm in [
        &["flush", "ruleset"][..],
        &["flush", "map", "inet", "weft", "ports4"],
        &["add", "element", "inet", "weft", "ports4", "{ tcp . 9 : 10.88.0.2 . 9 }"],
    ] {
        assert!(node.run(Command::new("nft").args(harm), "").status.success(), "{harm:?}");
        for (args, repaired) in [(&["--dry-run"][..], true), (&[], true), (&[], false)] {
            let args = [&["reconcile", "-o", "json"], args].concat();
            assert_eq!(node.weft(&args)["nat_repaired"], repaired, "{harm:?} {args:?}");
        }
        let from = Some(BEYOND[0].parse().unwrap());
        assert_eq!(tcp(&beyond, at(HOST[0], 8080), &node.pod_ns("a"), 80), from, "{harm:?}");
        assert_eq!(elements(&node, "ports4"), 1);
    }
    del(&node, &["a"]);
}

#[test]
fn check_finds_ports_and_masquerade_that_were_taken_away() {
    let node = Node::new();
    let mut conf = with_ports(json!([port("tcp", 8080, 80)]));
    conf["prevResult"] = add(&node, "a", &conf).json;
    let nft = |line: &str| {
        assert!(node.run(Command::new("nft").args(line.split(' ')), "").status.success(), "{line}");
    };
    let sets = String::from_utf8(node.run(Command::new("nft").args(["list", "sets"]), "").stdout).unwrap();
    let hidden = sets.split_whitespace().find(|word| word.starts_with("hidden6_")).unwrap();
    for (harm, lost) in [
        (
            "delete element inet weft ports4 { tcp . 8080 }",
            "host port 8080/tcp in set ports4 of the table inet weft",
        ),
        (
            &format!("flush set inet weft {hidden}"),
            &format!("the pod in set {hidden} of the table inet weft"),
        ),
        (
            &format!("flush chain inet weft {}", hidden.replace("hidden6", "masquerade")),
            &format!("a rule of chain {} in the table inet weft", hidden.replace("hidden6", "masquerade")),
        ),
        ("flush chain inet weft ports", "a rule of chain ports in the table inet weft"),
        ("delete table inet weft", "a rule of chain guard in the table inet weft"),
    ] {
        assert_eq!(node.cni("CHECK", "a", &conf).json, Value::Null, "before {harm}");
        nft(harm);
        let (code, text) = node.cni("CHECK", "a", &conf).error();
        assert_eq!(
            (code, text),
            (103, format!("the pod's network is not as it was made: {lost} is missing"))
        );
        assert_eq!(node.weft(&["reconcile", "-o", "json"])["nat_repaired"], true);
    }
    del(&node, &["a"]);
}

#[test]
fn elements_without_a_record_give_way() {
    let node = Node::new();
    let conf = with_ports(json!([port("tcp", 8080, 80)]));
    add(&node, "a", &conf);
    // As after a loss of the store: the table outlives what it tells of.
    std::fs::remove_dir_all(node.run_dir().join("store")).unwrap();
    let answer = add(&node, "b", &conf);
    assert_eq!(elements(&node, "ports4"), 1);
    let from = tcp(&node.host, at("127.0.0.1", 8080), &node.pod_ns("b"), 80);
    assert_eq!(from, Some("169.254.1.1".parse().unwrap()));
    assert_eq!(answer.addresses()[0], "10.88.0.2", "a's, of which nothing is known any more");
    node.cni("DEL", "b", &conf);
    node.remove_pod("a");
    wait_until("the links are gone", || node.links().is_empty());
    assert_eq!(node.reconcile(&[]).0["counters"].as_array().unwrap().len(), 1, "a's");
    node.assert_empty();
}

#[test]
fn eight_at_a_time_with_ports_while_the_table_is_flushed() {
    let node = Node::new();
    let names: Vec<String> = (0..24).map(|number| format!("p{number}")).collect();
    names.iter().for_each(|name| drop(node.pod(name)));
    let paths: Vec<_> = names.iter().map(|name| node.dir.path().join(format!("netns-{name}"))).collect();
    let call = |verb: &str, at: usize| {
        let mapping = json!([port("tcp", 9000 + u16::try_from(at).unwrap(), 80)]);
        let mut command = node.command(env!("CARGO_BIN_EXE_weft-cni"));
        command.env("CNI_COMMAND", verb).env("CNI_CONTAINERID", &names[at]).env("CNI_IFNAME", "eth0");
        command.env("CNI_PATH", "/").env("CNI_NETNS", &paths[at]);
        (command, with_ports(mapping).to_string())
    };
    let (host, deadline) = (&node.host, Instant::now() + Duration::from_secs(60) * slowness());
    for verb in ["ADD", "DEL", "ADD"] {
        std::thread::scope(|scope| {
            let workers: Vec<_> = (0..8)
                .map(|worker| {
                    let calls: Vec<_> = (worker..24).step_by(8).map(|at| call(verb, at)).collect();
                    scope.spawn(move || {
                        for (mut command, conf) in calls {
                            let output = crate::common::run_in(host, &mut command, &conf);
                            assert!(output.status.success(), "{}", String::from_utf8_lossy(&output.stdout));
                        }
                    })
                })
                .collect();
            while workers.iter().any(|worker| !worker.is_finished()) {
                assert!(Instant::now() < deadline);
                // It may be missing at this moment.
                drop(crate::common::run_in(
                    host,
                    Command::new("nft").args(["delete", "table", "inet", "weft"]),
                    "",
                ));
            }
        });
    }
    // Whoever comes next makes it whole.
    assert!(node.run(Command::new("nft").args(["flush", "ruleset"]), "").status.success());
    add(&node, "last", &conf());
    assert_eq!((elements(&node, "ports4"), elements(&node, "hidden4_")), (24, 25));
    let names: Vec<&str> = names.iter().map(String::as_str).chain(["last"]).collect();
    del(&node, &names);
}

/// Calls to the kernel by which messages go and come, and their bytes, while the plugin does `verb`.
fn messages(node: &Node, verb: &str, name: &str, conf: &Value) -> (usize, usize) {
    let trace = node.dir.path().join("trace");
    let mut strace = node.command("strace");
    strace.args(["-f", "-qq", "-s", "0", "-e", "trace=sendto,recvfrom,sendmsg,recvmsg", "-o"]).arg(&trace);
    strace.arg(env!("CARGO_BIN_EXE_weft-cni"));
    strace
        .env("CNI_COMMAND", verb)
        .env("CNI_CONTAINERID", name)
        .env("CNI_IFNAME", "eth0")
        .env("CNI_PATH", "/");
    strace.env("CNI_NETNS", node.dir.path().join(format!("netns-{name}")));
    let output = node.run(&mut strace, &conf.to_string());
    assert!(output.status.success(), "{verb} {name}: {}", String::from_utf8_lossy(&output.stdout));
    let text = std::fs::read_to_string(trace).unwrap();
    let lengths = text.lines().filter_map(|line| line.rsplit_once(" = ")?.1.parse::<usize>().ok());
    lengths.fold((0, 0), |(calls, bytes), length| (calls + 1, bytes + length))
}

/// How long the plugin takes, without a witness.
fn took(node: &Node, verb: &str, name: &str, conf: &Value) -> Duration {
    let started = Instant::now();
    assert!(node.cni(verb, name, conf).status.success(), "{verb} {name}");
    started.elapsed()
}

/// Counted, not timed: as many messages of as many bytes, there and back. The time is printed.
#[test]
fn ten_thousand_ports_cost_what_ten_cost() {
    let nodes = [10, 10_000].map(|count| {
        let node = Node::new();
        let ports: Vec<Value> = (0..count).map(|number| port("tcp", 10_000 + number, 80)).collect();
        add(&node, "many", &with_ports(json!(ports)));
        assert_eq!(elements(&node, "ports4"), usize::from(count));
        node.pod("one");
        node
    });
    let one = with_ports(json!([port("tcp", 9999, 99), port("udp", 9999, 99)]));
    for verb in ["ADD", "DEL"] {
        let [few, many] = nodes.each_ref().map(|node| messages(node, verb, "one", &one));
        assert!(few.0 > 10 && few.1 > 1000, "{few:?} messages were seen");
        // The kernel puts as much into one answer as there is when it is read, and an element expires with its clock.
        assert!(many.0.abs_diff(few.0) <= few.0 / 10, "{verb}: {few:?} and {many:?} messages and bytes");
        assert!(many.1.abs_diff(few.1) <= few.1 / 20, "{verb}: {few:?} and {many:?} messages and bytes");
        println!("{verb} among 10 and 10,000 host ports: {few:?} and {many:?} messages and bytes");
    }
    let mut times: [[Vec<Duration>; 2]; 2] = Default::default();
    for _ in 0..9 {
        for (node, times) in nodes.iter().zip(&mut times) {
            times[0].push(took(node, "ADD", "one", &one));
            times[1].push(took(node, "DEL", "one", &one));
        }
    }
    for (operation, verb) in ["ADD", "DEL"].into_iter().enumerate() {
        let [few, many] = times.each_mut().map(|times| {
            times[operation].sort();
            times[operation][4].as_secs_f64() * 1e3
        });
        println!("{verb} among 10 and 10,000 host ports: {few:.2} and {many:.2} ms, ratio {:.2}", many / few);
    }
    for node in nodes {
        del(&node, &["many", "one"]);
    }
}
