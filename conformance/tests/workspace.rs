//! The invariants of ARCHITECTURE.md that can be read off the sources: who depends on whom, who opens which door, and
//! what no product code does.

#![expect(clippy::unwrap_used, reason = "a test that cannot go on panics")]

use std::path::{Path, PathBuf};
use std::process::Command;

use serde_json::Value;

fn root() -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).parent().unwrap().to_owned()
}

/// The crates of the workspace that `name` depends on, test dependencies apart.
fn depends_on(name: &str) -> Vec<String> {
    let mut cargo = Command::new(env!("CARGO"));
    let output = cargo
        .args(["metadata", "--no-deps", "--offline", "--format-version", "1"])
        .current_dir(root())
        .output();
    let metadata: Value = serde_json::from_slice(&output.unwrap().stdout).unwrap();
    let packages = metadata["packages"].as_array().unwrap();
    let package = packages.iter().find(|package| package["name"] == name).unwrap();
    let dependencies =
        package["dependencies"].as_array().unwrap().iter().filter(|dependency| dependency["kind"] != "dev");
    let names = dependencies.map(|dependency| dependency["name"].as_str().unwrap().to_owned());
    names.filter(|name| name.starts_with("weft-")).collect()
}

#[test]
fn only_the_shim_joins_the_other_crates() {
    for leaf in ["weft-netns", "weft-ipam", "weft-hooks", "weft-conformance"] {
        assert_eq!(depends_on(leaf), [""; 0], "{leaf} depends on no crate of the workspace");
    }
    let mut joined = depends_on("weft-shim");
    joined.sort();
    assert_eq!(joined, ["weft-hooks", "weft-ipam", "weft-netns"]);
    // The fuzz targets go into all of them, by entry points that nothing else turns on.
    let mut fuzzed = depends_on("weft-fuzz");
    fuzzed.sort();
    assert_eq!(fuzzed, ["weft-hooks", "weft-ipam", "weft-netns", "weft-shim"]);
}

/// Product sources, with their tests cut off.
fn product_sources() -> Vec<(PathBuf, String)> {
    let mut found = Vec::new();
    let mut folders: Vec<PathBuf> =
        ["netns", "ipam", "hooks", "shim"].map(|name| root().join(name).join("src")).into();
    while let Some(folder) = folders.pop() {
        for entry in std::fs::read_dir(folder).unwrap() {
            let path = entry.unwrap().path();
            if path.is_dir() {
                folders.push(path);
            } else if path.extension().is_some_and(|extension| extension == "rs")
                && path.file_stem().unwrap() != "testing"
            {
                let text = std::fs::read_to_string(&path).unwrap();
                let product = text.split("\n#[cfg(test)]\nmod tests").next().unwrap().to_owned();
                found.push((path.strip_prefix(root()).unwrap().to_owned(), product));
            }
        }
    }
    assert!(found.len() > 20, "the sources are where this test looks for them");
    found
}

/// The files in whose code, comments apart, one of `words` stands.
fn files_with(words: &[&str]) -> Vec<String> {
    let code = |text: &str| {
        let lines = text.lines().filter(|line| !line.trim_start().starts_with("//"));
        lines.collect::<Vec<_>>().join("\n")
    };
    let files =
        product_sources().into_iter().filter(|(_, text)| words.iter().any(|word| code(text).contains(word)));
    let mut names: Vec<String> = files.map(|(path, _)| path.to_string_lossy().into_owned()).collect();
    names.sort();
    names
}

#[test]
fn each_kernel_interface_has_one_door() {
    assert_eq!(files_with(&["setns(", "unshare("]), ["netns/src/ns.rs", "shim/src/sandbox/namespaces.rs"]);
    assert_eq!(files_with(&["NETLINK_ROUTE"]), ["netns/src/netlink.rs"]);
    assert_eq!(files_with(&["use heed"]), ["ipam/src/store.rs"]);
    assert_eq!(files_with(&["Ebpf::load", "EbpfLoader"]), ["hooks/src/program.rs"]);
    assert_eq!(files_with(&["NetlinkRoute"]), ["hooks/src/tc.rs"]);
}

#[test]
fn no_product_code_runs_a_network_tool() {
    let tools =
        ["ip", "nft", "tc", "iptables", "bridge", "bpftool"].map(|tool| format!("Command::new(\"{tool}\")"));
    let tools: Vec<&str> = tools.iter().map(String::as_str).collect();
    assert_eq!(files_with(&tools), [""; 0]);
}

#[test]
fn a_file_has_at_most_400_lines_without_its_tests() {
    let long: Vec<_> = product_sources()
        .into_iter()
        .map(|(path, text)| (path, text.lines().count()))
        .filter(|(_, lines)| *lines > 400)
        .collect();
    assert_eq!(long, []);
}

#[test]
fn the_binaries_hold_no_logic() {
    for (path, text) in product_sources().iter().filter(|(path, _)| path.starts_with("shim/src/bin")) {
        assert!(text.lines().count() < 40, "{} is a program of its own", path.display());
    }
}
