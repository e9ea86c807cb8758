//! The units on a node that systemd boots, pods beside udev and networkd, and the removal of the package there.

use std::fs;
use std::io::Write;
use std::process::Stdio;
use std::time::Duration;

use serde_json::{Value, json};
use weft_conformance::wait_until;

use crate::booted::{Booted, Bpffs};
use crate::root::Root;

/// In containerd's place: notes what is loaded when it starts.
const CONTAINERD: &str = "
[Service]
Type=oneshot
RemainAfterExit=yes
ExecStart=/bin/sh -c 'ls /sys/fs/bpf/weft >/run/seen'
[Install]
WantedBy=multi-user.target
";

fn unit(root: &Root, name: &str, text: &str) {
    fs::write(root.path("/etc/systemd/system").join(name), text).unwrap();
    weft_conformance::run(root.command("systemctl").args(["enable", name]));
}

/// Attaches a pod in a namespace of its own; its link on the node.
fn attach(node: &Booted, name: &str) -> String {
    node.run(&format!("ip netns add {name}"));
    let answer = cni(node, "ADD", name);
    answer["interfaces"][0]["name"].as_str().unwrap().to_owned()
}

fn cni(node: &Booted, verb: &str, name: &str) -> Value {
    let conf = json!({
        "cniVersion": "1.1.0", "name": "weft", "type": "weft",
        "ranges": [{ "subnet": "10.88.0.0/16" }, { "subnet": "fd00:88::/64" }],
    });
    let mut command = node.command("/opt/cni/bin/weft");
    command.env("CNI_COMMAND", verb).env("CNI_CONTAINERID", name).env("CNI_IFNAME", "eth0");
    command.env("CNI_NETNS", format!("/run/netns/{name}")).env("CNI_PATH", "/opt/cni/bin");
    let mut plugin = command.stdin(Stdio::piped()).stdout(Stdio::piped()).spawn().unwrap();
    plugin.stdin.take().unwrap().write_all(conf.to_string().as_bytes()).unwrap();
    let output = plugin.wait_with_output().unwrap();
    let answer = String::from_utf8_lossy(&output.stdout).into_owned();
    assert!(output.status.success(), "{verb} {name}: {answer}");
    serde_json::from_str(&answer).unwrap_or(Value::Null)
}

fn reaches(node: &Booted, from: &str, address: &str) -> bool {
    node.succeeds(&format!("ip netns exec {from} ping -c 1 -W 5 {address}"))
}

#[test]
#[ignore = "by make test-packages"]
fn the_programs_are_loaded_before_containerd_starts() {
    let root = Root::with_deb();
    unit(&root, "containerd.service", CONTAINERD);
    let node = Booted::new(root, Bpffs::Mounted);
    assert_eq!(node.run("systemctl is-system-running"), "running\n");
    assert_eq!(node.run("systemctl show --property=Result --value weft-init.service"), "success\n");
    let seen = node.run("cat /run/seen");
    assert!(seen.contains("from_pod\n") && seen.contains("version\n"), "{seen}");
    assert_eq!(node.run("systemctl is-active weft.socket weft-reconcile.timer"), "active\nactive\n");
    assert_eq!(
        node.run("stat -c %A:%U:%G /run/weft /run/weft/weft.sock"),
        "drwx------:root:root\nsrw-------:root:root\n"
    );
    // Stopping it unloads nothing.
    node.run("systemctl stop weft-init.service");
    assert_eq!(node.run("ls /sys/fs/bpf/weft"), seen);
}

#[test]
#[ignore = "by make test-packages"]
fn a_bpffs_that_weft_mounts_is_there_for_the_node() {
    let node = Booted::new(Root::with_deb(), Bpffs::Absent);
    assert_eq!(node.run("systemctl show --property=Result --value weft-init.service"), "success\n");
    assert_eq!(node.run("stat -f -c %T /sys/fs/bpf"), "bpf_fs\n");
    attach(&node, "a");
    assert!(node.run("weft pods").contains("redirect"), "{}", node.run("weft pods"));
}

/// A node whose networkd has a file for all links, and whose packets are checked for the way they come.
#[test]
#[ignore = "by make test-packages"]
fn pods_keep_their_links_beside_udev_and_networkd() {
    let root = Root::with_deb();
    fs::write(
        root.path("/etc/systemd/network/10-all.network"),
        "[Match]\nName=*\n[Link]\nMTUBytes=1300\n[Network]\nLinkLocalAddressing=no\n",
    )
    .unwrap();
    let node = Booted::new(root, Bpffs::Mounted);
    for strict in ["all", "default"] {
        node.run(&format!("sysctl -w net.ipv4.conf.{strict}.rp_filter=1"));
    }
    let links = [attach(&node, "a"), attach(&node, "b")];
    node.run("ip link add other0 type veth peer name other1");
    let look = || {
        let routes = node.run("ip route") + &node.run("ip -6 route show proto 119");
        let of_links = links.each_ref().map(|link| {
            node.run(&format!("ip -oneline addr show dev {link}"))
                + &node.run(&format!("ip -oneline link show dev {link}"))
        });
        (routes, node.run("ip neigh show nud permanent"), of_links)
    };
    wait_until(Duration::from_secs(10), "the links have a carrier", || !look().0.contains("linkdown"));
    let before = look();
    for times in ["start", "restart"] {
        node.run(&format!("systemctl {times} systemd-networkd.service"));
        wait_until(Duration::from_secs(20), "networkd has configured another link", || {
            node.run("cat /sys/class/net/other0/mtu") == "1300\n"
        });
        for link in &links {
            let index = node.run(&format!("cat /sys/class/net/{link}/ifindex"));
            let state = node.run(&format!("cat /run/systemd/netif/links/{}", index.trim()));
            assert!(state.contains("ADMIN_STATE=unmanaged"), "{state}");
        }
        assert_eq!(look(), before, "after the {times} of networkd");
        node.run("ip link set other0 mtu 1500");
    }
    for link in &links {
        let said = node.run(&format!("udevadm test-builtin net_setup_link /sys/class/net/{link}"));
        assert!(said.contains("ID_NET_LINK_FILE=/usr/lib/systemd/network/00-weft.link"), "{said}");
    }
    assert_eq!(look(), before, "after udev has looked at the links");
    for address in ["10.88.0.3", "fd00:88::3"] {
        assert!(reaches(&node, "a", address), "{address}");
    }
    assert_eq!(node.run("weft pods").matches("redirect").count(), 2);
}

#[test]
#[ignore = "by make test-packages"]
fn a_removal_spares_pods_that_are_attached_and_leaves_nothing_else() {
    let node = Booted::new(Root::with_deb(), Bpffs::Mounted);
    attach(&node, "a");
    attach(&node, "b");
    let output = node.command("dpkg").args(["--remove", "weft"]).output().unwrap();
    let said = String::from_utf8_lossy(&output.stderr).into_owned();
    assert!(output.status.success() && said.contains("pods that are attached keep their network"), "{said}");
    assert!(!node.root().path("/usr/bin/weft").exists());
    assert!(reaches(&node, "a", "10.88.0.3") && reaches(&node, "b", "fd00:88::2"));
    assert!(!node.succeeds("systemctl is-active weft.socket"));

    node.root().install_deb();
    for name in ["a", "b"] {
        cni(&node, "DEL", name);
        node.run(&format!("ip netns del {name}"));
    }
    node.run("dpkg --purge weft");
    assert_eq!(node.run("ls /sys/fs/bpf"), "maps.debug\nprogs.debug\n");
    assert!(!node.succeeds("test -e /run/weft"), "{}", node.run("find /run/weft"));
    assert_eq!(node.run("systemctl list-units --all --plain --no-legend weft*"), "");
}

/// In place of a service that loads rules of its own.
const NFTABLES: &str = "
[Service]
Type=oneshot
ExecStart=/bin/true
";

#[test]
#[ignore = "by make test-packages"]
fn a_pod_that_is_gone_is_freed_by_the_unit_that_reconciles() {
    let root = Root::with_deb();
    fs::write(root.path("/etc/systemd/system/nftables.service"), NFTABLES).unwrap();
    let node = Booted::new(root, Bpffs::Mounted);
    let link = attach(&node, "a");
    attach(&node, "b");
    attach(&node, "c");
    // As after the death of everybody who knew of the pod.
    node.run("ip netns del a");
    node.run("systemctl start nftables.service");
    wait_until(
        Duration::from_secs(20),
        "the start of nftables.service starts weft-reconcile.service",
        || {
            node.run(
                "systemctl show --property=ExecMainExitTimestampMonotonic --value weft-reconcile.service",
            ) != "0\n"
        },
    );
    assert_eq!(node.run("systemctl show --property=Result --value weft-reconcile.service"), "success\n");
    let pods: Value = serde_json::from_str(&node.run("weft pods -o json")).unwrap();
    assert_eq!(pods.as_array().unwrap().len(), 2, "{pods}");
    assert!(!node.run("ip route").contains(&link), "{link}");
    assert!(reaches(&node, "b", "10.88.0.4"));
}

#[test]
#[ignore = "by make test-packages"]
fn the_socket_starts_what_answers_and_that_ends_when_nobody_asks() {
    let root = Root::with_deb();
    let drop_in = root.path("/etc/systemd/system/weft.service.d");
    fs::create_dir(&drop_in).unwrap();
    fs::write(drop_in.join("idle.conf"), "[Service]\nExecStart=\nExecStart=/usr/bin/weft serve --idle 2\n")
        .unwrap();
    let node = Booted::new(root, Bpffs::Mounted);
    attach(&node, "a");
    for _ in 0..2 {
        assert!(!node.succeeds("systemctl is-active --quiet weft.service"), "nobody has asked");
        let pods: Value = serde_json::from_str(&node.run("weft pods -o json")).unwrap();
        assert_eq!(pods.as_array().unwrap().len(), 1, "{pods}");
        assert_eq!(node.run("systemctl is-active weft.service"), "active\n");
        wait_until(Duration::from_secs(20), "it ends", || {
            !node.succeeds("systemctl is-active --quiet weft.service")
        });
        assert_eq!(node.run("systemctl show --property=Result --value weft.service"), "success\n");
        assert_eq!(node.run("systemctl is-active weft.socket"), "active\n");
    }
}
