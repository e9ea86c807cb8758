//! What the fast path takes of the kernel's memory: nothing, neither for a packet nor for a flow. Counted by the kernel's tracer, and
//! by bpftool.
#![expect(clippy::unwrap_used, reason = "a test that cannot run fails")]

mod node;

use std::fs;
use std::net::UdpSocket;

use nix::mount::{MntFlags, MsFlags, mount, umount2};
use node::{NODE_V4, Node, Pod, json};

const DATAGRAMS: usize = 500;
/// All that takes memory says so by one of them (include/trace/events/kmem.h).
const EVENTS: [&str; 3] = ["kmalloc", "kmem_cache_alloc", "mm_page_alloc"];

/// How often memory is taken by this thread, and by what the kernel does in its place, while it sends datagrams and receives them.
fn allocations(node: &Node, from: &UdpSocket, to: &UdpSocket) -> usize {
    let tracefs = node.tmp().join("tracing");
    fs::create_dir_all(&tracefs).unwrap();
    mount(Some("tracefs"), &tracefs, Some("tracefs"), MsFlags::empty(), None::<&str>).unwrap();
    let instance = tracefs.join(format!("instances/weft-{}", nix::unistd::gettid()));
    fs::create_dir(&instance).unwrap();
    let write = |file: &str, text: &str| fs::write(instance.join(file), text).unwrap();
    let own = nix::unistd::gettid().to_string();
    write("set_event_pid", &own);
    write("buffer_size_kb", "4096");
    let exchange = || {
        from.send(b"datagram").unwrap();
        assert_eq!(to.recv(&mut [0; 16]).unwrap(), 8);
    };
    exchange();
    EVENTS.iter().for_each(|event| write(&format!("events/kmem/{event}/enable"), "1"));
    write("trace", "");
    (0..DATAGRAMS).for_each(|_| exchange());
    EVENTS.iter().for_each(|event| write(&format!("events/kmem/{event}/enable"), "0"));
    let trace = fs::read_to_string(instance.join("trace")).unwrap();
    fs::remove_dir(&instance).unwrap();
    umount2(&tracefs, MntFlags::MNT_DETACH).unwrap();
    trace.lines().filter(|line| !line.starts_with('#')).count()
}

fn entries(node: &Node, map: &str) -> usize {
    let dump = json(&format!("bpftool -j map dump pinned {}", node.dir().join(map).display()));
    dump.as_array().unwrap().len()
}

#[test]
fn a_redirected_packet_allocates_nothing_and_its_flow_neither() {
    let node = Node::new();
    let mut fast_path = node.open();
    let [a, b, bare] = [1, 2, 3].map(Pod::new);
    a.join(&mut fast_path);
    b.join(&mut fast_path);
    let connected = |pod: &Pod, to: &UdpSocket, address: &str| {
        let port = to.local_addr().unwrap().port();
        pod.run(|| {
            let socket = UdpSocket::bind("0.0.0.0:0").unwrap();
            socket.connect((address, port)).unwrap();
            socket
        })
    };
    // Over a link without programs, to the host: what sending and receiving take.
    let host = UdpSocket::bind((NODE_V4, 0)).unwrap();
    let plain = allocations(&node, &connected(&bare, &host, NODE_V4), &host);
    assert!(plain >= DATAGRAMS, "the tracer tells of each datagram: {plain}");
    let server = b.run(|| UdpSocket::bind("0.0.0.0:0").unwrap());
    let to_b = b.v4.to_string();
    let redirected = allocations(&node, &connected(&a, &server, &to_b), &server);
    // Some are of timers that ran meanwhile.
    assert!(
        redirected < plain + DATAGRAMS / 10,
        "{redirected} for {DATAGRAMS} datagrams, {plain} without programs"
    );

    for _ in 0..100 {
        connected(&a, &server, &to_b).send(b"datagram").unwrap();
    }
    let counted = fast_path.counters().unwrap();
    assert!(counted.redirected.packets >= DATAGRAMS as u64 + 100, "{counted:?}");
    for map in ["flows", "returns"] {
        assert_eq!(entries(&node, map), 0, "{map}: 101 flows were redirected");
    }
}
