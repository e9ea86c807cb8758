//! Loading, upgrading and removing: once, whole, under live traffic, and without a trace.
#![expect(clippy::unwrap_used, reason = "a test that cannot run fails")]

mod node;

use std::{
    fs,
    io::Read as _,
    os::unix::fs::symlink,
    process::{Child, Command, Stdio},
    thread,
    time::{Duration, Instant},
};

use node::{Node, Pod, json, sh, status};
use weft_hooks::{
    Direction, Error, FastPath, LAYOUT_VERSION, Mode, PROGRAM_VERSION, PodCounters, PodEntry, Versions,
    Wanted,
};

fn newer(by: u32) -> Wanted {
    Wanted { program: PROGRAM_VERSION + by, ..Wanted::default() }
}

fn version(node: &Node) -> Option<Versions> {
    FastPath::status(&node.dir()).unwrap()
}

fn files(node: &Node) -> Vec<String> {
    let mut names: Vec<_> =
        fs::read_dir(node.dir()).unwrap().map(|e| e.unwrap().file_name().into_string().unwrap()).collect();
    names.sort();
    names
}

const WHOLE: [&str; 9] =
    ["counters", "drops", "flows", "from_pod", "pod_counters", "pods", "returns", "to_pod", "version"];

/// Handles, priorities and program numbers of the filters on one side of a link, by tc.
fn filters(link: &str, side: &str) -> Vec<(u64, u64, String)> {
    let shown = json(&format!("tc -j filter show dev {link} {side}"));
    let shown = shown.as_array().unwrap().iter().filter(|f| !f["options"]["prog"].is_null());
    shown
        .map(|f| {
            let options = &f["options"];
            (
                f["pref"].as_u64().unwrap(),
                options["prog"]["id"].as_u64().unwrap(),
                options["bpf_name"].as_str().unwrap().to_owned(),
            )
        })
        .collect()
}

#[test]
fn the_map_is_what_the_header_says() {
    let node = Node::new();
    let mut fast_path = node.open();
    let pod = Pod::new(1);
    assert_eq!(fast_path.pod(pod.v4.into()).unwrap(), None);
    pod.join(&mut fast_path);
    assert_eq!(fast_path.pod(pod.v4.into()).unwrap(), Some(pod.entry()));
    let mut listed = fast_path.pods().collect::<Result<Vec<_>, _>>().unwrap();
    listed.sort_by_key(|(addr, _)| *addr);
    assert_eq!(listed, [(pod.v4.into(), pod.entry()), (pod.v6.into(), pod.entry())]);

    // bpftool reads the names and offsets that clang wrote, not ours.
    let link = json(&format!("ip -j link show {}", pod.link));
    let dump = json(&format!("bpftool -j map dump pinned {}", node.dir().join("pods").display()));
    let dump = dump.as_array().unwrap();
    assert_eq!(dump.len(), 2);
    for entry in dump {
        let value = &entry["formatted"]["value"];
        assert_eq!(value["ifindex"], link[0]["ifindex"]);
        let mac = |name: &str| {
            let bytes: Vec<_> =
                value[name].as_array().unwrap().iter().map(|b| b.as_u64().unwrap() as u8).collect();
            node::colons(bytes.try_into().unwrap())
        };
        assert_eq!(mac("host_mac"), link[0]["address"].as_str().unwrap());
        assert_eq!(mac("mac"), node::colons(pod.mac));
        assert_eq!((value["version"].as_u64(), value["flags"].as_u64()), (Some(1), Some(0)));
    }
}

#[test]
fn an_address_is_removed_only_by_its_owner() {
    let node = Node::new();
    let mut fast_path = node.open();
    let pod = Pod::new(1);
    fast_path.set_pod(pod.v4.into(), &pod.entry()).unwrap();
    assert!(!fast_path.remove_pod(pod.v4.into(), pod.ifindex() + 1).unwrap());
    assert!(fast_path.pod(pod.v4.into()).unwrap().is_some());
    assert!(fast_path.remove_pod(pod.v4.into(), pod.ifindex()).unwrap());
    assert!(!fast_path.remove_pod(pod.v4.into(), pod.ifindex()).unwrap());
    assert_eq!(fast_path.pod(pod.v4.into()).unwrap(), None);
}

#[test]
fn attaching_twice_is_attaching_once() {
    let node = Node::new();
    let mut fast_path = node.open();
    let pod = Pod::new(1);
    assert!(!fast_path.is_attached(&pod.link).unwrap());
    pod.join(&mut fast_path);
    fast_path.attach(&pod.link).unwrap();
    for (side, name) in [("ingress", "from_pod"), ("egress", "to_pod")] {
        assert_eq!(filters(&pod.link, side), [(0x5746, node.pinned_id(name), format!("weft/{name}"))]);
    }
    assert!(fast_path.is_attached(&pod.link).unwrap());
    sh(&format!("tc filter del dev {} egress", pod.link));
    assert!(!fast_path.is_attached(&pod.link).unwrap(), "one side is not enough");
    fast_path.attach(&pod.link).unwrap();
    assert!(fast_path.is_attached(&pod.link).unwrap());
    for result in [fast_path.attach("weft99"), fast_path.is_attached("weft99").map(drop)] {
        assert_eq!(result.unwrap_err().errno(), Some(nix::libc::ENODEV));
    }
}

#[test]
fn filters_of_others_are_left_alone() {
    let node = Node::new();
    let mut fast_path = node.open();
    let (a, b) = (Pod::new(1), Pod::new(2));
    let foreign = "bpf da bytecode '1,6 0 0 4294967295'"; // TC_ACT_UNSPEC
    for pod in [&a, &b] {
        sh(&format!("tc qdisc add dev {} clsact", pod.link));
        sh(&format!("tc filter add dev {} ingress prio 7 {foreign}", pod.link));
    }
    let show = || sh(&format!("tc filter show dev {} ingress prio 7", a.link));
    let before = show();
    a.join(&mut fast_path);
    assert_eq!(show(), before);

    // At our own place, too.
    sh(&format!("tc filter add dev {} ingress prio 22342 handle 0x77656674 {foreign}", b.link));
    let error = fast_path.attach(&b.link).unwrap_err();
    assert!(matches!(error, Error::ForeignFilter { direction: Direction::Ingress, .. }), "{error:?}");
    fast_path.set_pod(b.v4.into(), &b.entry()).unwrap();
    node.open_wanted(newer(1));
    FastPath::unload(&node.dir()).unwrap();
    assert_eq!(show(), before);
    assert!(sh(&format!("tc filter show dev {} ingress prio 22342", b.link)).contains("bytecode"));
}

#[test]
fn an_upgrade_swaps_the_programs_under_live_traffic() {
    let node = Node::new();
    let mut fast_path = node.open();
    let (a, b) = (Pod::new(1), Pod::new(2));
    a.join(&mut fast_path);
    b.join(&mut fast_path);
    let ids = || (node.pinned_id("from_pod"), node.pinned_id("to_pod"), filters(&a.link, "ingress")[0].1);
    let mut before = ids();
    thread::scope(|scope| {
        let ping = scope.spawn(|| sh(&a.inside(&format!("ping -q -c 1000 -i 0.002 -W 1 {}", b.v4))));
        for by in 1..=8 {
            node.open_wanted(newer(by));
            let now = ids();
            assert_eq!(now.0, now.2, "what is pinned hangs on the link");
            assert!(now.0 != before.0 && now.1 != before.1);
            before = now;
        }
        assert!(!ping.is_finished(), "the last swap came too late to prove anything");
        let report = ping.join().unwrap();
        assert!(report.contains("1000 received, 0% packet loss"), "{report}");
    });
    assert!(fast_path.counters().unwrap().redirected.packets >= 2000, "the counters survived");
    assert!(fast_path.is_attached(&b.link).unwrap(), "a handle from before attaches what is pinned now");
    assert_eq!(version(&node).unwrap().program, PROGRAM_VERSION + 8);
    assert_eq!(files(&node), WHOLE);
}

/// Pins as version 1 made them, by clang and bpftool: its sources are in tests/version-1.
fn version_1(node: &Node) -> FastPath {
    let sources = concat!(env!("CARGO_MANIFEST_DIR"), "/tests/version-1");
    let (dir, object) = (node.dir(), node.tmp().join("fastpath.bpf.o"));
    let (parent, object) = (dir.parent().unwrap().display(), object.display());
    // Relative, for libbpf takes the dots out of the whole path.
    sh(&format!(
        "clang -O2 -g -target bpf -mcpu=v3 -idirafter /usr/include/$(uname -m)-linux-gnu -c {sources}/fastpath.bpf.c -o {object}
         cd {parent}
         mkdir weft
         bpftool prog loadall {object} weft type classifier pinmaps weft
         rm weft/*rodata"
    ));
    symlink("layout=1 program=1 mode=redirect_peer", node.dir().join("version")).unwrap();
    assert_eq!(files(node), ["counters", "flows", "from_pod", "pods", "returns", "to_pod", "version"]);
    node.open_wanted(Wanted { program: 1, ..Wanted::default() })
}

#[test]
fn an_upgrade_from_version_1_counts_for_each_pod() {
    let node = Node::new();
    let mut old = version_1(&node);
    let (a, b) = (Pod::new(1), Pod::new(2));
    a.join(&mut old);
    b.join(&mut old);
    assert!(a.pings(b.v4));
    let told = old.counters().unwrap();
    assert_eq!((told.redirected.packets, told.drops), (6, None), "version 1 does not tell reasons");
    assert!(PodCounters::open(&node.dir()).unwrap().is_none());
    let from_pod = node.pinned_id("from_pod");

    thread::scope(|scope| {
        let ping = scope.spawn(|| sh(&a.inside(&format!("ping -q -c 500 -i 0.002 -W 1 {}", b.v4))));
        node::until("some traffic", || old.counters().unwrap().redirected.packets > 20);
        node.open();
        assert!(!ping.is_finished(), "the upgrade came too late to prove anything");
        let report = ping.join().unwrap();
        assert!(report.contains("500 received, 0% packet loss"), "{report}");
    });
    assert_ne!(node.pinned_id("from_pod"), from_pod);
    assert_eq!(files(&node), WHOLE);
    let new = node.open();
    assert_eq!(new.counters().unwrap().redirected.packets, 6 + 2 * 500, "the sums go on");
    let ([redirected, passed, dropped, returned], drops) = node.counted(a.ifindex()).unwrap();
    assert!((1..500).contains(&redirected), "from the upgrade on: {redirected}");
    assert_eq!((passed, dropped, returned, drops), (0, 0, 0, [0; 16]));
    assert!(node.counted(b.ifindex()).is_some());
}

#[test]
fn an_upgrade_counts_for_as_many_pods_as_there_are() {
    let node = Node::new();
    let mut old = version_1(&node);
    for number in 1..=5000u32 {
        let entry = PodEntry { ifindex: number, mac: [2; 6], host_mac: [6; 6], stack_only: false };
        old.set_pod(std::net::Ipv4Addr::from_bits(0x0a00_0000 + number).into(), &entry).unwrap();
    }
    let start = Instant::now();
    node.open();
    println!("5,000 rows after {:?}", start.elapsed());
    let counted = PodCounters::open(&node.dir()).unwrap().unwrap();
    assert_eq!(counted.links().collect::<Result<Vec<_>, _>>().unwrap().len(), 5000);
}

#[test]
fn an_upgrade_that_was_killed_is_done_again() {
    let node = Node::new();
    let mut old = version_1(&node);
    let pod = Pod::new(1);
    pod.join(&mut old);
    node.open();
    // Killed before the version was written, with or without the maps.
    for missing in [&["drops"][..], &["pod_counters"], &["drops", "pod_counters"], &[]] {
        for name in missing {
            fs::remove_file(node.dir().join(name)).unwrap();
        }
        fs::remove_file(node.dir().join("version")).unwrap();
        symlink("layout=1 program=1 mode=redirect_peer", node.dir().join("version")).unwrap();
        node.open();
        assert_eq!(files(&node), WHOLE);
        assert!(node.counted(pod.ifindex()).is_some(), "without {missing:?}");
        assert_eq!(version(&node).unwrap().program, PROGRAM_VERSION);
    }
}

#[test]
fn what_a_newer_version_pinned_is_removed_too() {
    let node = Node::new();
    node.open_wanted(newer(1));
    sh(&format!("bpftool map pin pinned {0}/pods {0}/sockets", node.dir().display()));
    FastPath::unload(&node.dir()).unwrap();
    assert!(!node.dir().exists());
}

#[test]
fn newer_pins_are_used_as_they_are() {
    let node = Node::new();
    node.open_wanted(newer(3));
    let id = node.pinned_id("from_pod");
    let mut older = node.open();
    let (a, b) = (Pod::new(1), Pod::new(2));
    a.join(&mut older);
    b.join(&mut older);
    assert!(a.pings(b.v4));
    assert_eq!(older.counters().unwrap().redirected.packets, 6);
    let newest = Versions {
        layout: LAYOUT_VERSION,
        program: PROGRAM_VERSION + 3,
        mode: Mode::RedirectPeer,
        forced: false,
    };
    assert_eq!((node.pinned_id("from_pod"), version(&node)), (id, Some(newest)));
}

#[test]
fn another_layout_is_refused_and_nonsense_is_named() {
    let node = Node::new();
    node.open();
    let path = node.dir().join("version");
    let open = || FastPath::open(&node.dir(), &node.locks()).unwrap_err();
    let put = |text: &str| {
        fs::remove_file(&path).unwrap();
        symlink(text, &path).unwrap();
    };
    put("layout=2 program=9 mode=redirect_peer");
    assert!(matches!(open(), Error::Layout { found: 2, known: LAYOUT_VERSION }));
    put("nonsense");
    let error = open();
    assert!(matches!(error, Error::Version { .. }));
    assert_eq!(error.to_string(), format!("{} says \"nonsense\", which is no version", path.display()));
    FastPath::unload(&node.dir()).unwrap();
    assert_eq!(version(&node), None);
}

#[test]
fn half_a_load_is_loaded_again() {
    let node = Node::new();
    let mut fast_path = node.open();
    let pod = Pod::new(1);
    pod.join(&mut fast_path);
    for missing in [&["version"][..], &["version", "to_pod"], &["version", "from_pod", "to_pod", "pods"]] {
        for name in missing {
            fs::remove_file(node.dir().join(name)).unwrap();
        }
        let mut fast_path = node.open();
        assert_eq!(files(&node), WHOLE);
        pod.join(&mut fast_path);
        assert!(fast_path.is_attached(&pod.link).unwrap());
    }
}

/// The test itself, run as a process that opens the pins and says which program it found.
fn opener(node: &Node) -> Child {
    Command::new(std::env::current_exe().unwrap())
        .args(["--exact", "child_opens", "--ignored", "--nocapture"])
        .env("WEFT_TEST_DIR", node.dir())
        .env("WEFT_TEST_LOCKS", node.locks())
        .stdout(Stdio::piped())
        .spawn()
        .unwrap()
}

#[test]
#[ignore = "the other processes of the tests below"]
fn child_opens() {
    let dir = std::env::var_os("WEFT_TEST_DIR").unwrap();
    FastPath::open(dir.as_ref(), std::env::var_os("WEFT_TEST_LOCKS").unwrap().as_ref()).unwrap();
    println!("found {}", json(&format!("bpftool -j prog show pinned {}/from_pod", dir.display()))["id"]);
}

#[test]
fn eight_processes_load_once() {
    let node = Node::new();
    let children: Vec<_> = (0..8).map(|_| opener(&node)).collect();
    let mut found: Vec<_> = children
        .into_iter()
        .map(|mut child| {
            let mut output = String::new();
            child.stdout.take().unwrap().read_to_string(&mut output).unwrap();
            assert!(child.wait().unwrap().success(), "{output}");
            output.lines().find_map(|l| l.split_once("found ").map(|(_, id)| id.to_owned())).unwrap()
        })
        .collect();
    found.dedup();
    assert_eq!(
        found,
        [node.pinned_id("from_pod").to_string()],
        "a second load would have put another in its place"
    );
}

#[test]
fn killed_while_loading_leaves_nothing_that_is_taken_for_whole() {
    let node = Node::new();
    let mut interrupted = 0;
    for delay in (0..120).step_by(4) {
        let mut child = opener(&node);
        let deadline = Instant::now() + Duration::from_millis(delay);
        while let Some(rest) = deadline.checked_duration_since(Instant::now()) {
            thread::park_timeout(rest);
        }
        child.kill().unwrap();
        child.wait().unwrap();
        if node.dir().exists() && version(&node).is_none() {
            interrupted += 1;
        }
        node.open();
        assert_eq!(files(&node), WHOLE, "killed after {delay} ms");
        FastPath::unload(&node.dir()).unwrap();
    }
    println!("{interrupted} of 30 kills left half a load");
}

#[test]
fn unloading_leaves_nothing() {
    let node = Node::new();
    let mut fast_path = node.open();
    let (a, b, gone) = (Pod::new(1), Pod::new(2), Pod::new(3));
    for pod in [&a, &b, &gone] {
        pod.join(&mut fast_path);
    }
    sh(&format!("ip link del {}", gone.link));
    let program = node.pinned_id("from_pod");
    let maps = json(&format!("bpftool -j prog show id {program}"))["map_ids"].clone();
    assert_eq!(maps.as_array().unwrap().len(), 7, "six and the constant");
    drop(fast_path);

    FastPath::unload(&node.dir()).unwrap();
    FastPath::unload(&node.dir()).unwrap();
    assert!(!node.dir().exists());
    for pod in [&a, &b] {
        assert_eq!((filters(&pod.link, "ingress"), filters(&pod.link, "egress")), (vec![], vec![]));
    }
    assert!(a.pings(b.v4), "by plain routing");
    // The kernel frees them after a grace period.
    node::until("end of the program", || !status(&format!("bpftool prog show id {program}")));
    for id in maps.as_array().unwrap() {
        node::until("end of a map", || !status(&format!("bpftool map show id {id}")));
    }
}

#[test]
fn mounts_a_bpf_file_system_where_there_is_none() {
    let node = Node::without_bpffs();
    let parent = node.tmp().join("bpf");
    let dir = parent.join("weft");
    let open = || FastPath::open(&dir, &node.locks());
    assert!(matches!(open().unwrap_err(), Error::NoBpffs { .. }), "no parent");
    fs::create_dir(&parent).unwrap();
    fs::write(parent.join("file"), "precious").unwrap();
    assert!(matches!(open().unwrap_err(), Error::NoBpffs { .. }), "a mount would hide what is there");
    fs::remove_file(parent.join("file")).unwrap();
    open().unwrap();
    open().unwrap();
    let mounts = json(&format!("findmnt -J --target {}", dir.display()));
    assert_eq!(mounts["filesystems"][0]["fstype"], "bpf");
    assert_eq!(mounts["filesystems"].as_array().unwrap().len(), 1);
    FastPath::unload(&dir).unwrap();
    sh(&format!("umount {}", parent.display()));
}
