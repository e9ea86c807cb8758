//! A node in namespaces of its own, and pods on it, wired as weft wires them.
//!
//! The test's thread takes a new mount and a new network namespace, so nothing outside is touched and everything goes with the
//! thread. A pod's namespace is held by a `sleep` that dies with the thread. Tools are run as a second witness.
#![expect(clippy::unwrap_used, clippy::expect_used, reason = "a fixture that cannot be built fails its test")]
#![expect(
    clippy::disallowed_methods,
    reason = "every test has namespaces of its own, and enters them here only"
)]
#![allow(dead_code, clippy::allow_attributes, reason = "each test file uses its own part")]

use std::{
    fs::{self, File},
    io::{self, Read as _, Write as _},
    net::{IpAddr, Ipv4Addr, Ipv6Addr, SocketAddr, TcpListener, TcpStream, UdpSocket},
    os::fd::{AsRawFd as _, FromRawFd as _, OwnedFd},
    path::{Path, PathBuf},
    process::{Child, Command, Output, Stdio},
    thread,
    time::{Duration, Instant},
};

use nix::{
    libc,
    mount::{MntFlags, MsFlags, mount, umount2},
    sched::{CloneFlags, setns, unshare},
};
use serde_json::Value;
use tempfile::TempDir;
use weft_hooks::{FastPath, PodEntry, Wanted};

pub(crate) const NODE_V4: &str = "192.0.2.1";
pub(crate) const NODE_V6: &str = "2001:db8:ffff::1";
/// Answered by nobody until a test translates it.
pub(crate) const VIRTUAL_V4: &str = "10.96.0.1";
pub(crate) const VIRTUAL_V6: &str = "fd96::1";
/// Long enough for a loaded machine, and paid in full only by what is meant not to come.
const PATIENCE: Duration = Duration::from_secs(3);

/// A node with a bpf file system, and counters of what its stack forwards between pods.
pub(crate) struct Node {
    tmp: TempDir,
    bpffs: Option<PathBuf>,
}

impl Node {
    pub(crate) fn new() -> Self {
        let mut node = Self::without_bpffs();
        let bpffs = node.tmp.path().join("bpf");
        fs::create_dir(&bpffs).unwrap();
        mount(Some("bpf"), &bpffs, Some("bpf"), MsFlags::empty(), None::<&str>).unwrap();
        node.bpffs = Some(bpffs);
        node
    }

    pub(crate) fn without_bpffs() -> Self {
        let made = unshare(CloneFlags::CLONE_NEWNS | CloneFlags::CLONE_NEWNET);
        made.expect("these tests load programs and make namespaces: run them as root");
        mount(None::<&str>, "/", None::<&str>, MsFlags::MS_REC | MsFlags::MS_PRIVATE, None::<&str>).unwrap();
        sh("ip link set lo up");
        sh(&format!("ip addr add {NODE_V4}/32 dev lo; ip -6 addr add {NODE_V6}/128 dev lo nodad"));
        fs::write("/proc/sys/net/ipv4/ip_forward", "1").unwrap();
        fs::write("/proc/sys/net/ipv6/conf/all/forwarding", "1").unwrap();
        nft("table inet seen {
               counter forwarded {}
               chain forward { type filter hook forward priority 0; iifname weft* oifname weft* counter name forwarded; }
             }");
        Self { tmp: TempDir::new().unwrap(), bpffs: None }
    }

    pub(crate) fn tmp(&self) -> &Path {
        self.tmp.path()
    }

    /// The folder for pins, which does not exist yet.
    pub(crate) fn dir(&self) -> PathBuf {
        self.bpffs.as_deref().unwrap().join("weft")
    }

    pub(crate) fn locks(&self) -> PathBuf {
        self.tmp.path().join("run/weft")
    }

    pub(crate) fn open(&self) -> FastPath {
        FastPath::open(&self.dir(), &self.locks()).unwrap()
    }

    pub(crate) fn open_wanted(&self, wanted: Wanted) -> FastPath {
        FastPath::open_wanted(&self.dir(), &self.locks(), wanted).unwrap()
    }

    /// Packets from pod to pod that went through the node's stack, by nftables' count.
    pub(crate) fn forwarded(&self) -> u64 {
        let json = json("nft -j list counter inet seen forwarded");
        let counter = json["nftables"].as_array().unwrap().iter().find(|o| !o["counter"].is_null()).unwrap();
        counter["counter"]["packets"].as_u64().unwrap()
    }

    /// What kube-proxy does for a service with one pod behind it.
    pub(crate) fn translate(&self, to: &Pod) {
        let (v4, v6) = (to.v4, to.v6);
        nft(&format!(
            "table inet nat {{
               chain prerouting {{
                 type nat hook prerouting priority dstnat;
                 ip daddr {VIRTUAL_V4} dnat ip to {v4}
                 ip6 daddr {VIRTUAL_V6} dnat ip6 to {v6}
               }}
             }}"
        ));
    }

    /// What is counted for the pod behind a link, by bpftool: packets redirected, passed, dropped, returned, and its drops by reason.
    pub(crate) fn counted(&self, ifindex: u32) -> Option<([u64; 4], [u64; 16])> {
        let path = self.dir().join("pod_counters");
        let dump = json(&format!("bpftool -j map dump pinned {}", path.display()));
        let rows = dump.as_array().unwrap().iter().map(|row| &row["formatted"]);
        let row = rows.into_iter().find(|row| row["key"].as_u64() == Some(ifindex.into()))?;
        let (mut outcomes, mut drops) = ([0; 4], [0; 16]);
        for cpu in row["values"].as_array().unwrap() {
            let value = &cpu["value"];
            for (at, sum) in outcomes.iter_mut().enumerate() {
                *sum += value["outcomes"][at]["packets"].as_u64().unwrap();
            }
            for (at, sum) in drops.iter_mut().enumerate() {
                *sum += value["drops"][at].as_u64().unwrap();
            }
        }
        Some((outcomes, drops))
    }

    pub(crate) fn pinned_id(&self, name: &str) -> u64 {
        json(&format!("bpftool -j prog show pinned {}", self.dir().join(name).display()))["id"]
            .as_u64()
            .unwrap()
    }
}

impl Drop for Node {
    fn drop(&mut self) {
        if let Some(bpffs) = &self.bpffs {
            umount2(bpffs, MntFlags::MNT_DETACH).unwrap();
        }
    }
}

/// A pod: a namespace with one address of each family.
pub(crate) struct Pod {
    holder: Child,
    pub(crate) link: String,
    pub(crate) v4: Ipv4Addr,
    pub(crate) v6: Ipv6Addr,
    pub(crate) mac: [u8; 6],
    pub(crate) host_mac: [u8; 6],
}

impl Pod {
    pub(crate) fn new(number: u8) -> Self {
        Self::linked(number, |pod| {
            let (pid, mac, host_mac) = (pod.pid(), colons(pod.mac), colons(pod.host_mac));
            let link = &pod.link;
            sh(&format!(
                "ip link add {link} address {host_mac} type veth peer name eth0 address {mac} netns {pid}"
            ));
        })
    }

    /// A pod whose two links are made by `link`: the host's end, and eth0 in the pod.
    pub(crate) fn linked(number: u8, link: impl FnOnce(&Self)) -> Self {
        let holder = Command::new("setpriv")
            .args(["--pdeathsig", "KILL", "unshare", "--net", "sleep", "infinity"])
            .spawn()
            .unwrap();
        let (mac, host_mac) = ([0x0a, 0, 0, 0, 2, number], [0x0a, 0, 0, 0, 1, number]);
        let pod = Self {
            holder,
            link: format!("weft{number}"),
            v4: Ipv4Addr::new(10, 200, 0, number),
            v6: Ipv6Addr::new(0xfd00, 0, 0, 0, 0, 0, 0, number.into()),
            mac,
            host_mac,
        };
        until("the pod's namespace", || {
            fs::read_to_string(format!("/proc/{}/comm", pod.holder.id())).unwrap().trim() == "sleep"
        });
        pod.wire(link);
        pod
    }

    /// Of a process in the pod's namespace.
    pub(crate) fn pid(&self) -> u32 {
        self.holder.id()
    }

    fn wire(&self, make: impl FnOnce(&Self)) {
        let Self { link, v4, v6, .. } = self;
        // A new link tells groups it joined, at random times: that would disturb what tests count.
        self.run(|| {
            nft("add table ip6 quiet
                         add chain ip6 quiet out { type filter hook output priority 0; }
                         add rule ip6 quiet out ip6 daddr ff02::16 drop")
        });
        make(self);
        let (mac, host_mac) = (colons(self.mac), colons(self.host_mac));
        sh(&format!(
            "ip link set {link} addrgenmode none
             ip link set {link} up
             ip route add {v4}/32 dev {link}
             ip neigh add {v4} lladdr {mac} dev {link} nud permanent
             ip addr add fe80::1/64 dev {link} nodad
             ip route add {v6}/128 dev {link}
             ip neigh add {v6} lladdr {mac} dev {link} nud permanent"
        ));
        self.sh(&format!(
            "ip link set lo up
             ip link set eth0 addrgenmode none
             ip link set eth0 up
             ip addr add {v4}/32 dev eth0
             ip route add 169.254.1.1 dev eth0 scope link
             ip route add default via 169.254.1.1 dev eth0
             ip neigh add 169.254.1.1 lladdr {host_mac} dev eth0 nud permanent
             ip addr add {v6}/128 dev eth0 nodad
             ip neigh add fe80::1 lladdr {host_mac} dev eth0 nud permanent
             ip route add default via fe80::1 dev eth0"
        ));
    }

    pub(crate) fn ifindex(&self) -> u32 {
        nix::net::if_::if_nametoindex(self.link.as_str()).unwrap()
    }

    pub(crate) fn entry(&self) -> PodEntry {
        PodEntry { ifindex: self.ifindex(), mac: self.mac, host_mac: self.host_mac, stack_only: false }
    }

    /// As the shim does: entries first, then the filters.
    pub(crate) fn join(&self, fast_path: &mut FastPath) {
        fast_path.set_pod(self.v4.into(), &self.entry()).unwrap();
        fast_path.set_pod(self.v6.into(), &self.entry()).unwrap();
        fast_path.attach(&self.link).unwrap();
    }

    /// Run a shell line in the pod.
    pub(crate) fn sh(&self, line: &str) -> String {
        sh(&self.inside(line))
    }

    pub(crate) fn inside(&self, line: &str) -> String {
        format!("nsenter --net=/proc/{}/ns/net sh -ec '{line}'", self.holder.id())
    }

    /// Run code in the pod's namespace, on a thread that ends. Sockets stay where they were opened.
    pub(crate) fn run<T: Send>(&self, inside: impl FnOnce() -> T + Send) -> T {
        let namespace = File::open(format!("/proc/{}/ns/net", self.holder.id())).unwrap();
        thread::scope(|scope| {
            let thread = scope.spawn(|| {
                setns(namespace, CloneFlags::CLONE_NEWNET).unwrap();
                inside()
            });
            thread.join().unwrap()
        })
    }

    /// Three echo requests, all answered.
    pub(crate) fn pings(&self, to: impl std::fmt::Display) -> bool {
        status(&self.inside(&format!("ping -q -c 3 -i 0.01 -W 1 {to}")))
    }

    /// Send a frame as it is.
    pub(crate) fn send_frame(&self, frame: &[u8]) {
        self.run(|| send_frame("eth0", frame));
    }
}

impl Drop for Pod {
    fn drop(&mut self) {
        self.holder.kill().unwrap();
        self.holder.wait().unwrap();
    }
}

fn send_frame(link: &str, frame: &[u8]) {
    let ifindex = nix::net::if_::if_nametoindex(link).unwrap();
    // SAFETY: socket(2) takes no pointers; a negative result is caught before it becomes an OwnedFd.
    let fd = unsafe { libc::socket(libc::AF_PACKET, libc::SOCK_RAW | libc::SOCK_CLOEXEC, 0) };
    assert!(fd >= 0, "{}", io::Error::last_os_error());
    // SAFETY: the descriptor is fresh and nobody else's.
    let socket = unsafe { OwnedFd::from_raw_fd(fd) };
    let to = libc::sockaddr_ll {
        sll_family: libc::AF_PACKET as u16,
        sll_protocol: 0,
        sll_ifindex: ifindex as i32,
        sll_hatype: 0,
        sll_pkttype: 0,
        sll_halen: 6,
        sll_addr: [0; 8],
    };
    // SAFETY: both pointers are to live values of the lengths given; sendto(2) only reads them.
    let sent = unsafe {
        libc::sendto(
            socket.as_raw_fd(),
            frame.as_ptr().cast(),
            frame.len(),
            0,
            std::ptr::from_ref(&to).cast(),
            size_of::<libc::sockaddr_ll>() as u32,
        )
    };
    assert_eq!(sent, frame.len() as isize, "{}", io::Error::last_os_error());
}

/// A TCP connection from one pod to `target`, where `server` listens on `port`; returns the client as the server saw it.
pub(crate) fn tcp(client: &Pod, server: &Pod, target: IpAddr, port: u16) -> io::Result<IpAddr> {
    let any: IpAddr =
        if target.is_ipv4() { Ipv4Addr::UNSPECIFIED.into() } else { Ipv6Addr::UNSPECIFIED.into() };
    let listener = server.run(|| TcpListener::bind((any, port))).unwrap();
    let mut stream = client.run(|| TcpStream::connect_timeout(&SocketAddr::new(target, port), PATIENCE))?;
    let (mut accepted, peer) = listener.accept()?;
    // More than a segment, so that segmentation offload is part of the test.
    let data = vec![7; 1 << 20];
    let received = thread::scope(|scope| {
        let reader = scope.spawn(|| {
            let mut received = Vec::new();
            accepted.set_read_timeout(Some(PATIENCE))?;
            accepted.read_to_end(&mut received)?;
            accepted.write_all(&received[..1000])?;
            drop(accepted);
            io::Result::Ok(received.len())
        });
        stream.set_write_timeout(Some(PATIENCE))?;
        stream.write_all(&data)?;
        stream.shutdown(std::net::Shutdown::Write)?;
        reader.join().unwrap()
    })?;
    assert_eq!(received, data.len());
    let mut answer = Vec::new();
    stream.set_read_timeout(Some(PATIENCE))?;
    stream.read_to_end(&mut answer)?;
    assert_eq!(answer.len(), 1000);
    Ok(peer.ip())
}

/// A datagram of `size` bytes from one pod to `target`, echoed by `server`; returns the client as the server saw it.
pub(crate) fn udp(client: &Pod, server: &Pod, target: IpAddr, size: usize) -> io::Result<IpAddr> {
    let any: IpAddr =
        if target.is_ipv4() { Ipv4Addr::UNSPECIFIED.into() } else { Ipv6Addr::UNSPECIFIED.into() };
    let bind = || UdpSocket::bind((any, 0));
    let listener = server.run(bind)?;
    let socket = client.run(bind)?;
    listener.set_read_timeout(Some(PATIENCE))?;
    socket.set_read_timeout(Some(PATIENCE))?;
    socket.connect((target, listener.local_addr()?.port()))?;
    socket.send(&vec![3; size])?;
    let mut buffer = vec![0; 65536];
    let (length, peer) = listener.recv_from(&mut buffer)?;
    assert_eq!(length, size);
    listener.send_to(&buffer[..length], peer)?;
    assert_eq!(socket.recv(&mut buffer)?, size);
    Ok(peer.ip())
}

pub(crate) fn colons(mac: [u8; 6]) -> String {
    mac.map(|byte| format!("{byte:02x}")).join(":")
}

/// Run shell lines, all of which must succeed; returns what they print.
pub(crate) fn sh(lines: &str) -> String {
    let output = output(lines);
    assert!(output.status.success(), "{lines}\n{}", String::from_utf8_lossy(&output.stderr));
    String::from_utf8(output.stdout).unwrap()
}

/// Whether a shell line succeeds.
pub(crate) fn status(line: &str) -> bool {
    output(line).status.success()
}

fn output(lines: &str) -> Output {
    Command::new("sh").args(["-ec", lines]).output().unwrap()
}

pub(crate) fn json(line: &str) -> Value {
    serde_json::from_str(&sh(line)).unwrap()
}

pub(crate) fn nft(rules: &str) {
    let mut child = Command::new("nft").args(["-f", "-"]).stdin(Stdio::piped()).spawn().unwrap();
    child.stdin.take().unwrap().write_all(rules.as_bytes()).unwrap();
    assert!(child.wait().unwrap().success(), "{rules}");
}

/// Wait for a state, for five seconds at most.
pub(crate) fn until(what: &str, mut state: impl FnMut() -> bool) {
    let deadline = Instant::now() + Duration::from_secs(5);
    while !state() {
        assert!(Instant::now() < deadline, "no {what} within five seconds");
        thread::park_timeout(Duration::from_millis(2));
    }
}
