//! Namespaces for tests, and `ip` as the second witness.

#![expect(dead_code, reason = "not every test binary uses all of it")]

use std::io::{BufRead, BufReader};
use std::path::Path;
use std::process::{Child, Command, Stdio};

use serde_json::{Value, json};
use weft_netns::{Error, Mac, NetNs, Netlink, PacketSizes, Veth};

/// `ip -j ARGS` inside the namespace.
pub(crate) fn ip(netns: &NetNs, args: &str) -> Value {
    let output = netns.run(|| Command::new("ip").arg("-j").args(args.split(' ')).output().unwrap()).unwrap();
    assert!(output.status.success(), "ip {args}: {}", String::from_utf8_lossy(&output.stderr));
    serde_json::from_slice(&output.stdout).unwrap_or(json!([]))
}

/// One echo request, answered within two seconds.
pub(crate) fn pings(netns: &NetNs, address: &str) -> bool {
    let ping = || {
        Command::new("ping").args(["-c", "1", "-W", "2", "-n", address]).output().unwrap().status.success()
    };
    netns.run(ping).unwrap()
}

pub(crate) const HOST_MAC: Mac = Mac::new([6, 0, 0, 0, 0, 1]);
pub(crate) const POD_MAC: Mac = Mac::new([2, 0, 0, 0, 0, 1]);

/// No two alike.
pub(crate) const PACKETS: PacketSizes = PacketSizes { gso: 131_072, gro: 196_608 };

/// A pair between two namespaces, `veth0` outside and `eth0` inside.
pub(crate) fn pair(host: &NetNs, pod: &NetNs) -> Result<(Netlink, Netlink, u32, u32), Error> {
    let (outside, inside) = (Netlink::open_in(host)?, Netlink::open_in(pod)?);
    let veth = Veth {
        name: "veth0".parse()?,
        mac: HOST_MAC,
        mtu: 1400,
        packets: PACKETS,
        peer_name: "eth0".parse()?,
        peer_mac: POD_MAC,
        peer_ns: pod,
    };
    let host_index = outside.create_veth(&veth)?;
    let pod_index = inside.link(&"eth0".parse()?)?.unwrap().index;
    Ok((outside, inside, host_index, pod_index))
}

/// Mounts below a path, in this process's mount namespace.
pub(crate) fn mounts_below(dir: &Path) -> usize {
    let mounts = std::fs::read_to_string("/proc/self/mountinfo").unwrap();
    mounts
        .lines()
        .filter(|line| line.split(' ').nth(4).is_some_and(|target| Path::new(target).starts_with(dir)))
        .count()
}

/// What passes on a link.
pub(crate) struct Tcpdump(Child);

impl Tcpdump {
    /// Returns when it listens.
    pub(crate) fn start(netns: &NetNs, link: &str) -> Tcpdump {
        let mut command = Command::new("tcpdump");
        command
            .args(["-n", "-l", "--immediate-mode", "-i", link])
            .stdout(Stdio::piped())
            .stderr(Stdio::piped());
        let mut child = netns.run(|| command.spawn().unwrap()).unwrap();
        let mut lines = BufReader::new(child.stderr.take().unwrap()).lines();
        assert!(lines.any(|line| line.unwrap().starts_with("listening on")), "tcpdump ended");
        Tcpdump(child)
    }

    /// All that passed until each of `texts` was seen `times`. What passed before a packet is seen before it.
    pub(crate) fn until(mut self, texts: &[&str], times: usize) -> String {
        let mut seen = String::new();
        let mut lines = BufReader::new(self.0.stdout.take().unwrap()).lines();
        while texts.iter().any(|text| seen.matches(text).count() < times) {
            seen += &lines.next().unwrap().unwrap();
            seen.push('\n');
        }
        seen
    }
}

impl Drop for Tcpdump {
    fn drop(&mut self) {
        self.0.kill().unwrap();
        self.0.wait().unwrap();
    }
}
