//! `make install` and `make uninstall`.

use std::collections::BTreeSet;
use std::fs;
use std::process::Command;

use weft_conformance::{Tools, run};

use crate::tree::{Tree, binaries, changed, checkout, table};

const CONFIG: &str = "/etc/weft/config.toml";
const BOOK: &str = "/usr/local/share/weft/installed";

#[test]
fn what_is_installed_is_what_the_list_says() {
    let tree = Tree::new();
    let before = tree.listing();
    assert_eq!(tree.install(), "", "an installation has nothing to say");
    let after = tree.listing();
    let mut wanted: BTreeSet<String> = [BOOK.to_owned()].into();
    for [kind, mode, source, destination] in table("/usr/local") {
        let want = if kind == "link" { format!("link to {source}") } else { format!("100{mode} 0:0") };
        assert_eq!(after.get(&destination), Some(&want), "{destination}");
        wanted.insert(destination);
    }
    let made =
        after.iter().filter(|(path, what)| !before.contains_key(*path) && !what.starts_with("40755 0:0"));
    assert_eq!(made.map(|(path, _)| path.clone()).collect::<BTreeSet<_>>(), wanted);
    for program in ["usr/local/bin/weft", "usr/local/bin/containerd-shim-weft-v1", "opt/cni/bin/weft"] {
        let name = if program.starts_with("opt") { "weft-cni" } else { program.rsplit('/').next().unwrap() };
        assert!(
            fs::read(tree.path(program)).unwrap() == fs::read(binaries().join(name)).unwrap(),
            "{program}"
        );
    }
    for path in made_files(&tree) {
        let text = String::from_utf8_lossy(&fs::read(tree.path(&path)).unwrap()).into_owned();
        assert!(
            !["@bindir@", "@libdir@", "@datadir@", "@docdir@", "@cnidir@"]
                .iter()
                .any(|name| text.contains(name)),
            "{path}"
        );
    }
}

/// Destinations of what install.sh fills in.
fn made_files(tree: &Tree) -> Vec<String> {
    let rows = table("/usr/local").into_iter().filter(|[kind, ..]| kind == "file" || kind == "config");
    let paths: Vec<String> = rows.map(|[.., destination]| destination).collect();
    assert!(paths.iter().all(|path| tree.path(path).exists()));
    paths
}

#[test]
fn uninstalled_leaves_what_was_there() {
    let tree = Tree::new();
    let before = tree.listing();
    tree.install();
    assert!(changed(&before, &tree.listing()).len() > 20);
    tree.install();
    assert_eq!(tree.make("uninstall"), "");
    assert_eq!(changed(&before, &tree.listing()), [""; 0]);
}

#[test]
fn uninstall_without_an_installation_fails_and_removes_nothing() {
    let tree = Tree::new();
    fs::write(tree.path("usr/local/bin/weft"), "another's").unwrap();
    let before = tree.listing();
    let output = tree.try_make("uninstall");
    let said = String::from_utf8_lossy(&output.stderr);
    assert!(!output.status.success() && said.contains("nothing is installed here"), "{said}");
    assert_eq!(changed(&before, &tree.listing()), [""; 0]);
}

#[test]
fn configuration_that_was_changed_is_kept_and_named() {
    let tree = Tree::new();
    let before = tree.listing();
    tree.install();
    fs::write(tree.path(CONFIG), "fast_path = false\n").unwrap();

    let said = tree.install();
    assert_eq!(said, format!("install.sh: kept {CONFIG}, which was changed; the new one is {CONFIG}.new\n"));
    assert_eq!(fs::read_to_string(tree.path(CONFIG)).unwrap(), "fast_path = false\n");
    let shipped = fs::read(checkout().join("packaging/weft/config.toml")).unwrap();
    assert_eq!(fs::read(tree.path("/etc/weft/config.toml.new")).unwrap(), shipped);

    let said = tree.make("uninstall");
    assert_eq!(said, format!("install.sh: kept {CONFIG}, which was changed\n"));
    assert_eq!(
        changed(&before, &tree.listing()),
        ["new: /etc/weft (40755 0:0)", "new: /etc/weft/config.toml (100644 0:0)"]
    );
}

#[test]
fn configuration_that_an_earlier_version_installed_is_replaced() {
    let tree = Tree::new();
    let before = tree.listing();
    tree.install();
    // As an earlier version would have left it: another text, its sum, and a file that there is no more.
    fs::write(tree.path(CONFIG), "# old\n").unwrap();
    let sum = run(Command::new("sha256sum").arg(tree.path(CONFIG)));
    let book = fs::read_to_string(tree.path(BOOK)).unwrap();
    let mut lines: Vec<String> = book.lines().map(str::to_owned).collect();
    lines.retain(|line| !line.ends_with(CONFIG));
    lines.push(format!("config {} {CONFIG}", sum.split(' ').next().unwrap()));
    lines.push("file /usr/local/bin/weft-old".into());
    fs::write(tree.path(BOOK), lines.join("\n") + "\n").unwrap();
    fs::write(tree.path("/usr/local/bin/weft-old"), "").unwrap();

    assert_eq!(tree.install(), "");
    let shipped = fs::read(checkout().join("packaging/weft/config.toml")).unwrap();
    assert_eq!(fs::read(tree.path(CONFIG)).unwrap(), shipped);
    assert_eq!(tree.make("uninstall"), "");
    assert_eq!(changed(&before, &tree.listing()), [""; 0], "the earlier version's file too");
}

#[test]
fn a_file_of_the_administrators_is_not_taken_over() {
    let tree = Tree::new();
    fs::create_dir_all(tree.path("/etc/weft")).unwrap();
    fs::write(tree.path(CONFIG), "fast_path = false\n").unwrap();
    let before = tree.listing();
    assert!(tree.install().contains("kept /etc/weft/config.toml"));
    assert_eq!(tree.make("uninstall"), "");
    assert_eq!(changed(&before, &tree.listing()), [""; 0]);
    assert_eq!(fs::read_to_string(tree.path(CONFIG)).unwrap(), "fast_path = false\n");
}

/// packaging/README.md names every file, and none that there is not.
#[test]
fn every_file_has_its_reason() {
    let text = fs::read_to_string(checkout().join("packaging/README.md")).unwrap();
    let rows = text.lines().filter_map(|line| line.strip_prefix("| `"));
    let named: BTreeSet<String> = rows.map(|row| row.split('`').next().unwrap().to_owned()).collect();
    // The man pages in one row.
    let path = |[kind, .., path]: [String; 4]| match path.rsplit_once('/') {
        Some((folder, _)) if kind == "page" => format!("{folder}/weft*.8"),
        _ => path,
    };
    let mut installed: BTreeSet<String> = table("/usr/local").into_iter().map(path).collect();
    installed.insert(BOOK.into());
    assert_eq!(named, installed);
}

/// Every key that the example names is one that weft knows.
#[test]
fn the_example_configuration_holds_without_its_comment_signs() {
    let text = fs::read_to_string(checkout().join("packaging/weft/config.toml")).unwrap();
    let lines = text.lines().map(|line| match line.strip_prefix('#') {
        Some(key) if !key.starts_with(' ') => key,
        _ => line,
    });
    let dir = tempfile::tempdir().unwrap();
    let config = dir.path().join("config.toml");
    fs::write(&config, lines.collect::<Vec<_>>().join("\n")).unwrap();
    let mut weft = Command::new(binaries().join("weft"));
    weft.args(["pods", "-o", "json"]).env("WEFT_CONFIG", &config).env("WEFT_RUN_DIR", dir.path());
    assert_eq!(run(&mut weft).trim(), "[]");
    let set = fs::read_to_string(&config).unwrap();
    for key in ["run_dir", "bpf_dir", "fast_path", "binary", "root", "ranges", "mtu"] {
        assert!(set.lines().any(|line| line.starts_with(&format!("{key} = "))), "{key}");
    }
}

/// containerd's own reading of the two drop-ins.
#[test]
fn containerd_reads_the_drop_ins() {
    let tree = Tree::installed();
    let (conf, default) =
        (tree.path("/etc/containerd/conf.d"), tree.path("/usr/local/share/weft/weft-default.toml"));
    fs::copy(default, conf.join("weft-default.toml")).unwrap();
    let main = tree.path("/etc/containerd/config.toml");
    fs::write(&main, format!("version = 3\nimports = ['{}/*.toml']\n", conf.display())).unwrap();
    let mut containerd = Command::new(Tools::find().program("containerd"));
    let dump = run(containerd.arg("--config").arg(main).args(["config", "dump"]));
    for line in [
        "default_runtime_name = 'weft'",
        "[plugins.'io.containerd.cri.v1.runtime'.containerd.runtimes.weft]",
        "runtime_type = 'io.containerd.weft.v1'",
        "sandboxer = 'shim'",
        "disable_pause_image_pull = true",
        "use_internal_loopback = true",
    ] {
        assert!(dump.lines().any(|found| found.trim() == line), "{line} in\n{dump}");
    }
}
