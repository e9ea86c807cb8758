//! What netkit would be worth in the place of veth: round trips of TCP from pod to pod, over both, in one run. A prototype: weft
//! makes veth pairs (ARCHITECTURE.md says why).
#![expect(clippy::unwrap_used, reason = "a test that cannot run fails")]

mod node;

use std::{
    io::{self, Read as _, Write as _},
    net::{IpAddr, Ipv4Addr, TcpListener, TcpStream},
    os::fd::{AsRawFd as _, FromRawFd as _, OwnedFd},
    thread,
    time::Instant,
};

use nix::{
    libc,
    sys::socket::{AddressFamily, MsgFlags, SockFlag, SockProtocol, SockType, recv, send, socket},
};
use node::{Node, Pod, colons, sh};
use weft_hooks::{FastPath, Mode, Wanted, Way};

/// include/uapi/linux/if_link.h
const IFLA_NETKIT_MODE: u16 = 5;
const NETKIT_L2: u32 = 0;
/// include/uapi/linux/bpf.h
const BPF_OBJ_GET: i64 = 7;
const BPF_LINK_CREATE: i64 = 28;
/// Where a program is hung by the host's end, and runs on what the pod's end sends.
const BPF_NETKIT_PEER: u32 = 55;

fn attribute(kind: u16, payload: &[u8]) -> Vec<u8> {
    let mut bytes = ((payload.len() + 4) as u16).to_ne_bytes().to_vec();
    bytes.extend(kind.to_ne_bytes());
    bytes.extend(payload);
    bytes.resize(bytes.len().next_multiple_of(4), 0);
    bytes
}

/// The distribution's `ip` may not know the kind: RTM_NEWLINK by hand. The peer gets a name of the kernel's choice.
fn create_netkit(name: &str) {
    let data = attribute(IFLA_NETKIT_MODE, &NETKIT_L2.to_ne_bytes());
    let info = [attribute(libc::IFLA_INFO_KIND, b"netkit"), attribute(libc::IFLA_INFO_DATA, &data)].concat();
    let body =
        [vec![0; 16], attribute(libc::IFLA_IFNAME, name.as_bytes()), attribute(libc::IFLA_LINKINFO, &info)];
    let body = body.concat();
    let flags = (libc::NLM_F_REQUEST | libc::NLM_F_ACK | libc::NLM_F_CREATE | libc::NLM_F_EXCL) as u16;
    let mut message = ((body.len() + 16) as u32).to_ne_bytes().to_vec();
    message.extend(libc::RTM_NEWLINK.to_ne_bytes());
    message.extend(flags.to_ne_bytes());
    message.extend([0; 8]);
    message.extend(body);
    let route = socket(AddressFamily::Netlink, SockType::Raw, SockFlag::empty(), SockProtocol::NetlinkRoute);
    let route = route.unwrap();
    send(route.as_raw_fd(), &message, MsgFlags::empty()).unwrap();
    let mut answer = [0; 4096];
    recv(route.as_raw_fd(), &mut answer, MsgFlags::empty()).unwrap();
    let error = i32::from_ne_bytes(answer[16..20].try_into().unwrap());
    assert_eq!(error, 0, "create netkit {name}: {}", io::Error::from_raw_os_error(-error));
}

fn netkit(pod: &Pod) {
    let (link, pid) = (&pod.link, pod.pid());
    create_netkit(link);
    let peer = node::json(&format!("ip -j link show {link}"))[0]["link"].as_str().unwrap().to_owned();
    let (mac, host_mac) = (colons(pod.mac), colons(pod.host_mac));
    sh(&format!(
        "ip link set {link} address {host_mac}
         ip link set {peer} address {mac}
         ip link set {peer} netns {pid} name eth0"
    ));
}

fn bpf(command: i64, attributes: &mut [u64; 16]) -> OwnedFd {
    let size = size_of_val(attributes);
    // SAFETY: the kernel reads and writes `size` bytes of the array, and the pointers in it are to live values.
    let fd = unsafe { libc::syscall(libc::SYS_bpf, command, attributes.as_mut_ptr(), size) };
    assert!(fd >= 0, "bpf({command}): {}", io::Error::last_os_error());
    // SAFETY: the descriptor is fresh and nobody else's.
    unsafe { OwnedFd::from_raw_fd(fd as i32) }
}

/// A pinned program on what the pod sends, as long as the descriptor is open.
fn hang(node: &Node, program: &str, pod: &Pod) -> OwnedFd {
    let path = std::ffi::CString::new(node.dir().join(program).to_str().unwrap()).unwrap();
    let program = bpf(BPF_OBJ_GET, &mut {
        let mut attributes = [0; 16];
        attributes[0] = path.as_ptr() as u64;
        attributes
    });
    let mut attributes = [0; 16];
    attributes[0] = program.as_raw_fd() as u64 | u64::from(pod.ifindex()) << 32;
    attributes[1] = u64::from(BPF_NETKIT_PEER);
    bpf(BPF_LINK_CREATE, &mut attributes)
}

/// Round trips of one byte.
struct Pair {
    what: &'static str,
    client: TcpStream,
    micros: Vec<f64>,
}

impl Pair {
    fn new(what: &'static str, client: &Pod, server: &Pod, target: IpAddr) -> Self {
        let listener = server.run(|| TcpListener::bind((target, 7)).unwrap());
        let client = client.run(|| TcpStream::connect((target, 7)).unwrap());
        client.set_nodelay(true).unwrap();
        let (mut accepted, _) = listener.accept().unwrap();
        accepted.set_nodelay(true).unwrap();
        thread::spawn(move || {
            let mut byte = [0];
            while accepted.read_exact(&mut byte).is_ok() && accepted.write_all(&byte).is_ok() {}
        });
        Self { what, client, micros: Vec::new() }
    }

    fn measure(&mut self, trips: u32) {
        let (start, mut byte) = (Instant::now(), [1]);
        for _ in 0..trips {
            self.client.write_all(&byte).unwrap();
            self.client.read_exact(&mut byte).unwrap();
        }
        self.micros.push(start.elapsed().as_secs_f64() * 1e6 / f64::from(trips));
    }

    fn median(&self) -> f64 {
        let mut sorted = self.micros.clone();
        sorted.sort_by(f64::total_cmp);
        sorted[sorted.len() / 2]
    }
}

fn join(fast_path: &mut FastPath, pod: &Pod) {
    fast_path.set_pod(pod.v4.into(), &pod.entry()).unwrap();
    fast_path.set_pod(pod.v6.into(), &pod.entry()).unwrap();
}

/// Guest instructions, if qemu counts time by them (-icount); the machine's load does not matter then.
#[test]
#[ignore = "a measurement, and not every kernel has netkit: conformance/vm boots some that have"]
fn netkit_beside_veth() {
    let trips = 200;
    let node = Node::new();
    // From netkit's transmit path a packet cannot go on inside the other namespace: bpf_redirect_peer asks the receive path to
    // look at it again (`skb_do_redirect` in net/core/filter.c), and there is none.
    let mut fast_path = node.open_wanted(Wanted { way: Way::Only(Mode::Redirect), ..Wanted::default() });
    let (c, d) = (Pod::linked(3, netkit), Pod::linked(4, netkit));
    for pod in [&c, &d] {
        join(&mut fast_path, pod);
    }
    // No to_pod: it knows what from_pod sends by a mark, which the host's end clears before it runs a program
    // (`netkit_prep_forward` in drivers/net/netkit.c).
    let _links = [&c, &d].map(|pod| hang(&node, "from_pod", pod));
    let before = fast_path.counters().unwrap().redirected.packets;
    let mut pairs = vec![Pair::new("netkit, redirect", &c, &d, d.v4.into())];
    pairs[0].measure(10);
    let counted = fast_path.counters().unwrap();
    assert!(counted.redirected.packets >= before + 20, "by the program: {counted:?}");
    assert_eq!(node.forwarded(), 0);

    let mut by_peer = node.open_wanted(Wanted { way: Way::Best, ..Wanted::default() });
    let (a, b) = (Pod::new(1), Pod::new(2));
    a.join(&mut by_peer);
    b.join(&mut by_peer);
    pairs.push(Pair::new("veth, redirect_peer", &a, &b, b.v4.into()));
    pairs.push(Pair::new("loopback", &a, &a, Ipv4Addr::LOCALHOST.into()));
    for pair in &mut pairs {
        pair.measure(trips / 10);
        pair.micros.clear();
    }
    for _ in 0..9 {
        pairs.iter_mut().for_each(|pair| pair.measure(trips));
    }
    assert!(
        by_peer.counters().unwrap().redirected.packets > u64::from(trips) * 9 * 4,
        "both by the programs"
    );
    assert_eq!(node.forwarded(), 0);
    let loopback = pairs[2].median();
    for pair in &pairs {
        let (low, high) =
            pair.micros.iter().fold((f64::MAX, 0.0_f64), |(low, high), one| (low.min(*one), high.max(*one)));
        println!(
            "vm: {:20} {:8.1} us a round trip ({low:.1} to {high:.1}), {:.3} of loopback's speed",
            pair.what,
            pair.median(),
            loopback / pair.median()
        );
    }
}
