//! What must not be there when the pods are gone, seen by looking at the kernel and the file system, never by asking the subject alone.
//!
//! Kept by design and so not counted: the reference's bridge; until `weft cleanup`, weft's programs and its (empty) store.

use std::fs;
use std::path::Path;

use serde_json::Value;

use crate::Subject;
use crate::node::Node;
use crate::sandbox::Sandbox;
use crate::wait::{run, try_run};

/// What a node has before its containerd starts.
pub(crate) struct Baseline {
    mounts: Vec<String>,
}

impl Baseline {
    pub(crate) fn of(sandbox: &Sandbox) -> Self {
        Self { mounts: sandbox.mounts() }
    }
}

/// What is left of pods while containerd runs on.
pub(crate) fn of_pods(node: &Node) -> Vec<String> {
    let mut found = processes(node, "containerd --config");
    found.extend(mounts(node));
    found.extend(links(node));
    found.extend(traces(node));
    found.extend(node.cgroups().left_below().iter().map(|dir| format!("cgroup {}", dir.display())));
    found.extend(files_below(&node.dir().join("s")));
    found.extend(files_below(&node.pod_namespaces()));
    found.extend(leases(node));
    found
}

/// What is left when containerd has ended and weft has cleaned up.
pub(crate) fn of_node(node: &Node) -> Vec<String> {
    let mut found = processes(node, "");
    found.extend(mounts(node));
    found.extend(links(node));
    let pins = files_below(&node.path(node.dir().join("bpf"))).into_iter();
    // The kernel puts maps.debug and progs.debug on every bpf file system (kernel/bpf/inode.c).
    found.extend(pins.filter(|pin| !pin.ends_with(".debug")).map(|pin| format!("pin {pin}")));
    found
}

fn processes(node: &Node, expected: &str) -> Vec<String> {
    let others = node.sandbox().processes().into_iter();
    let others = others.filter(|(_, line)| expected.is_empty() || !line.starts_with(expected));
    others.map(|(pid, line)| format!("process {pid}: {line}")).collect()
}

/// Mounts, and so namespaces that are kept by a mount.
fn mounts(node: &Node) -> Vec<String> {
    let mounts = node.sandbox().mounts().into_iter();
    mounts
        .filter(|mount| !node.baseline().mounts.contains(mount))
        .map(|mount| format!("mount {mount}"))
        .collect()
}

fn links(node: &Node) -> Vec<String> {
    let links = run(node.command("ip").args(["-json", "link"]));
    let links: Value = serde_json::from_str(&links).expect("ip prints JSON");
    let names = links.as_array().expect("ip prints a list").iter().filter_map(|link| link["ifname"].as_str());
    let expected =
        |name: &&str| ["lo", "uplink"].contains(name) || node.subject().lasting_links().contains(name);
    names.filter(|name| !expected(name)).map(|name| format!("link {name}")).collect()
}

/// Identifiers and addresses of pods in names of files, in firewall rules and in routes.
fn traces(node: &Node) -> Vec<String> {
    let traces = node.traces();
    let mut places = Vec::new();
    for dir in ["s", "state", "weft", "runtime", "ipam"] {
        places.extend(below(&node.dir().join(dir)));
    }
    for dir in ["/run", "/var/lib/cni"] {
        places.extend(below(&node.path(dir)));
    }
    let rules = run(node.command("nft").args(["list", "ruleset"]));
    places.extend(rules.lines().map(|line| format!("rule {}", line.trim())));
    for family in ["-4", "-6"] {
        let routes = run(node.command("ip").args([family, "route", "show", "table", "all"]));
        places.extend(routes.lines().map(|line| format!("route {line}")));
    }
    places.retain(|place| traces.iter().any(|trace| names(place, trace)));
    places
}

/// Whether `trace` stands in `place` as a whole word: 10.0.0.2 is not in 10.0.0.21.
fn names(place: &str, trace: &str) -> bool {
    let part_of_word = |c: Option<char>| c.is_some_and(|c| c.is_ascii_alphanumeric() || c == '.' || c == ':');
    place.match_indices(trace).any(|(at, _)| {
        !part_of_word(place[..at].chars().next_back())
            && !part_of_word(place[at + trace.len()..].chars().next())
    })
}

/// Addresses that are still taken.
fn leases(node: &Node) -> Vec<String> {
    if node.subject() == Subject::Weft {
        return match try_run(node.command("weft").args(["pods", "-o", "json"])) {
            Ok(pods) if pods.trim() == "[]" => Vec::new(),
            Ok(pods) => vec![format!("attachments {pods}")],
            Err(why) => vec![why],
        };
    }
    let files = files_below(&node.dir().join("ipam")).into_iter();
    files.filter(|file| !file.contains("last_reserved_ip") && !file.ends_with("/lock")).collect()
}

/// Everything below a directory but directories.
fn files_below(dir: &Path) -> Vec<String> {
    let mut files = below(dir);
    files.retain(|path| !Path::new(path).is_dir());
    files
}

/// Everything below a directory; nothing if there is no such directory.
fn below(dir: &Path) -> Vec<String> {
    let mut found = Vec::new();
    // What vanishes while it is listed is not left behind.
    for entry in fs::read_dir(dir).into_iter().flatten().flatten() {
        let path = entry.path();
        found.push(path.to_string_lossy().into_owned());
        if entry.file_type().is_ok_and(|kind| kind.is_dir()) {
            found.extend(below(&path));
        }
    }
    found
}

#[cfg(test)]
mod tests {
    use super::names;

    #[test]
    fn a_trace_is_a_whole_word() {
        assert!(names("10.89.0.2 dev cni0", "10.89.0.2"));
        assert!(names("ip daddr 10.89.0.2/32", "10.89.0.2"));
        assert!(names("/run/weft/pods/abc", "abc"));
        assert!(!names("10.89.0.21 dev cni0", "10.89.0.2"));
        assert!(!names("fd00::1:2", "fd00::1"));
    }
}
