//! The deb and the rpm in clean root file systems: what is there after the installation works, and it goes again.

use std::fs;
use std::io::Write;
use std::process::{Command, Stdio};

use serde_json::Value;
use weft_conformance::run;

use crate::root::{Root, build_packages, packages};
use crate::tree::{changed, table};

const CONFIG: &str = "/etc/weft/config.toml";

/// Files, programs, units; `cni_link` is where the distribution's containerd looks, `zsh` where its zsh does.
fn smoke(root: &Root, cni_link: &str, zsh: &str) {
    let listing = root.listing();
    for [kind, mode, source, path] in table("/usr") {
        let path = if path.ends_with("/_weft") { zsh.to_owned() } else { path };
        let want = if kind == "link" { format!("link to {source}") } else { format!("100{mode} 0:0") };
        assert_eq!(listing.get(&path), Some(&want), "{path}");
    }
    assert_eq!(run(root.command("weft").arg("version")), format!("weft {}\n", env!("CARGO_PKG_VERSION")));
    let said = run(root.command("containerd-shim-weft-v1").arg("-v"));
    assert!(said.contains(env!("CARGO_PKG_VERSION")), "{said}");
    for plugin in ["/opt/cni/bin/weft", cni_link] {
        assert_eq!(
            cni_versions(root, plugin),
            ["0.1.0", "0.2.0", "0.3.0", "0.3.1", "0.4.0", "1.0.0", "1.1.0"],
            "{plugin}"
        );
    }

    let units = [
        "weft-init.service",
        "weft.socket",
        "weft.service",
        "weft-reconcile.service",
        "weft-reconcile.timer",
    ];
    let verified = root.output("systemd-analyze", &[&["verify", "--man=no"], &units[..]].concat());
    let said = String::from_utf8_lossy(&verified.stderr).into_owned();
    assert_eq!(said.lines().filter(|line| line.contains("weft")).collect::<Vec<_>>(), [""; 0]);
    let enabled = root.output("systemctl", &[&["is-enabled"], &units[..]].concat());
    let states = String::from_utf8(enabled.stdout).unwrap();
    assert_eq!(states.lines().collect::<Vec<_>>(), ["enabled", "enabled", "static", "static", "disabled"]);
}

/// What the CNI plugin answers to VERSION.
fn cni_versions(root: &Root, plugin: &str) -> Vec<String> {
    let mut command = root.command(plugin);
    command.env("CNI_COMMAND", "VERSION").stdin(Stdio::piped()).stdout(Stdio::piped());
    let mut plugin = command.spawn().unwrap();
    plugin.stdin.take().unwrap().write_all(br#"{"cniVersion":"1.1.0"}"#).unwrap();
    let output = plugin.wait_with_output().unwrap();
    let answer: Value = serde_json::from_slice(&output.stdout).unwrap();
    let versions = answer["supportedVersions"].as_array().unwrap().iter();
    versions.map(|version| version.as_str().unwrap().to_owned()).collect()
}

#[test]
#[ignore = "by make test-packages"]
fn the_deb_in_a_clean_root() {
    let root = Root::new();
    let before = root.listing();
    root.install_deb();
    smoke(&root, "/usr/lib/cni/weft", "/usr/share/zsh/vendor-completions/_weft");

    // What an administrator changed and switched off stays so, also when the package is installed again.
    fs::write(root.path(CONFIG), "fast_path = false\n").unwrap();
    run(root.command("systemctl").args(["disable", "weft.socket"]));
    root.install_deb();
    assert_eq!(fs::read_to_string(root.path(CONFIG)).unwrap(), "fast_path = false\n");
    let state = root.output("systemctl", &["is-enabled", "weft.socket"]);
    assert_eq!(String::from_utf8_lossy(&state.stdout), "disabled\n");

    run(root.command("dpkg").args(["--remove", "weft"]));
    let left = changed(&before, &root.listing());
    assert!(left.iter().any(|line| line.contains(CONFIG)), "configuration stays until a purge: {left:?}");
    assert!(!left.iter().any(|line| line.contains("/usr/") || line.contains("/opt/")), "{left:?}");
    run(root.command("dpkg").args(["--purge", "weft"]));
    assert_eq!(changed(&before, &root.listing()), [""; 0]);
}

#[test]
#[ignore = "by make test-packages"]
fn the_rpm_in_a_clean_root() {
    let root = Root::new();
    let rpm = |args: &[&str]| {
        let mut command = Command::new("rpm");
        command
            .env("PATH", "/usr/sbin:/usr/bin:/sbin:/bin")
            .arg("--root")
            .arg(root.dir())
            .args(["--dbpath", "/var/lib/rpm"]);
        let output = command.args(args).output().unwrap();
        (
            output.status.success(),
            String::from_utf8_lossy(&[output.stdout, output.stderr].concat()).into_owned(),
        )
    };
    let package = packages()[1].to_str().unwrap();
    // Debian's own packages are not in the books of rpm, so it is told not to look; this is all that it would look for.
    let wants = run(Command::new("rpm").args(["-qp", "--requires", package]));
    assert!(wants.lines().all(|want| want == "/bin/sh" || want.starts_with("rpmlib(")), "{wants}");

    assert_eq!(rpm(&["--initdb"]), (true, String::new()));
    let before = root.listing();
    let (installed, said) = rpm(&["--install", "--nodeps", package]);
    assert!(installed, "{said}");
    smoke(&root, "/usr/libexec/cni/weft", "/usr/share/zsh/site-functions/_weft");
    assert_eq!(rpm(&["--verify", "--nodeps", "weft"]), (true, String::new()));

    fs::write(root.path(CONFIG), "fast_path = false\n").unwrap();
    let (removed, said) = rpm(&["--erase", "weft"]);
    assert!(removed && said.contains("/etc/weft/config.toml.rpmsave"), "it is named: {said}");
    let left = changed(&before, &root.listing());
    let kept =
        |line: &String| line.contains("/etc/weft (") || line.contains("/etc/weft/config.toml.rpmsave (");
    assert!(left.len() <= 2 && left.iter().all(kept), "{left:?}");
    assert_eq!(
        fs::read_to_string(root.path("/etc/weft/config.toml.rpmsave")).unwrap(),
        "fast_path = false\n"
    );
}

#[test]
#[ignore = "by make test-packages"]
fn the_same_programs_make_the_same_packages() {
    let again = tempfile::tempdir().unwrap();
    for (one, other) in packages().iter().zip(build_packages(again.path())) {
        assert!(fs::read(one).unwrap() == fs::read(&other).unwrap(), "{}", other.display());
    }
}
