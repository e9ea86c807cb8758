//! The kernel variables of pods' links, set as udev has them set: by systemd-sysctl, when a link is born.

use std::fs;
use std::process::Command;

use weft_conformance::run;

use crate::tree::{Tree, checkout};

/// What a hardened node may say of all links.
const HARDENED: &str = "
net.ipv4.conf.default.forwarding = 0
net.ipv4.conf.*.forwarding = 0
net.ipv4.conf.*.accept_redirects = 1
net.ipv6.conf.*.accept_ra = 2
net.ipv6.conf.*.accept_redirects = 1
";

/// In a network namespace of its own: links are born, `sysctl` runs for each as udev's 99-systemd.rules has it, and what came out
/// is printed.
const SCRIPT: &str = r"
set -eu
ip link add weft0123456789a type veth peer name other0
for link in weft0123456789a other0; do
    $1 --prefix=/net/ipv4/conf/$link --prefix=/net/ipv6/conf/$link $2 $3
    for key in ipv4/forwarding ipv4/accept_redirects ipv6/accept_ra ipv6/accept_redirects; do
        echo $link $key $(cat /proc/sys/net/${key%/*}/conf/$link/${key#*/})
    done
done
";

#[test]
fn a_hardened_node_does_not_break_the_links_of_pods() {
    let tree = Tree::installed();
    let hardened = tree.path("/etc/10-hardened.conf");
    fs::write(&hardened, HARDENED).unwrap();
    let mut node = Command::new("unshare");
    node.args(["--net", "sh", "-c", SCRIPT, "sh", "/lib/systemd/systemd-sysctl"]);
    let shown = run(node.arg(hardened).arg(tree.path("/usr/local/lib/sysctl.d/90-weft.conf")));
    let lines: Vec<&str> = shown.lines().collect();
    assert_eq!(
        lines,
        [
            "weft0123456789a ipv4/forwarding 1",
            "weft0123456789a ipv4/accept_redirects 0",
            "weft0123456789a ipv6/accept_ra 0",
            "weft0123456789a ipv6/accept_redirects 0",
            "other0 ipv4/forwarding 0",
            "other0 ipv4/accept_redirects 1",
            "other0 ipv6/accept_ra 2",
            "other0 ipv6/accept_redirects 1",
        ]
    );
}

/// The other program that reads these files, on a node without any pod: `sysctl --system` must not fail for it.
#[test]
fn procps_takes_the_file_where_there_are_no_pods() {
    let file = checkout().join("packaging/network/90-weft.conf");
    let mut sysctl = Command::new("unshare");
    let output = sysctl.args(["--net", "sysctl", "-p"]).arg(file).output().unwrap();
    assert!(output.status.success(), "{output:?}");
    assert_eq!(String::from_utf8_lossy(&output.stderr), "");
}
