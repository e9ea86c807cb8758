//! The units as files: systemd reads all of them without a complaint, and they give up what they do not need.

use std::fs;
use std::process::Command;

use weft_conformance::run;

use crate::tree::{Tree, table};

const UNITS: &str = "/usr/local/lib/systemd/system/";

/// The units that are installed.
fn units() -> Vec<String> {
    let rows = table("/usr/local").into_iter().filter(|[kind, ..]| kind == "file");
    rows.filter_map(|[.., path]| path.strip_prefix(UNITS).map(str::to_owned)).collect()
}

/// systemd-analyze, which leaves traces below /run, with a /run of its own.
fn analyze(tree: &Tree, verb: &str) -> Command {
    let mut command = Command::new("unshare");
    command.args([
        "--mount",
        "sh",
        "-c",
        r#"mount -t tmpfs tmpfs /run && exec systemd-analyze "$@""#,
        "sh",
        verb,
    ]);
    command.arg(format!("--root={}", tree.path("").display()));
    command
}

/// What systemd says of the units of weft in this root, beside the system's own.
fn verify(tree: &Tree) -> Vec<String> {
    let output = analyze(tree, "verify").arg("--man=no").args(units()).output().unwrap();
    let said = String::from_utf8(output.stderr).unwrap();
    said.lines().filter(|line| line.contains("weft")).map(str::to_owned).collect()
}

#[test]
fn systemd_has_nothing_to_say_of_the_units() {
    let tree = Tree::installed();
    assert_eq!(units().len(), 5, "{:?}", units());
    run(Command::new("cp").args(["-a", "/lib/systemd/system"]).arg(tree.path("/usr/lib/systemd/")));
    assert_eq!(verify(&tree), [""; 0]);
    // It would say something if there were something to say.
    let socket = tree.path(UNITS).join("weft.socket");
    let broken = fs::read_to_string(&socket).unwrap().replace("SocketMode=0600", "SocketMood=0600");
    fs::write(&socket, broken).unwrap();
    assert!(verify(&tree).join("").contains("SocketMood"), "{:?}", verify(&tree));
}

/// systemd's own measure of what a service could still do, 0 to 10. A service without any restriction has 9.6.
#[test]
fn the_services_give_up_what_they_do_not_need() {
    let tree = Tree::installed();
    for service in units().iter().filter(|unit| unit.ends_with(".service")) {
        let mut security = analyze(&tree, "security");
        let said = run(security.args(["--no-pager", "--offline=true", "--threshold=60"]).arg(service));
        assert!(said.contains("Overall exposure level"), "{said}");
    }
}
