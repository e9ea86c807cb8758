//! Namespaces: identity, entering, pins, and what is none.

#![expect(clippy::unwrap_used, reason = "a test that cannot go on panics")]

mod common;

use std::os::unix::fs::MetadataExt;
use std::path::Path;

use common::{ip, mounts_below};
use weft_netns::{Error, NetNs, sysctl};

fn own_inode() -> u64 {
    std::fs::metadata("/proc/thread-self/ns/net").unwrap().ino()
}

#[test]
fn a_new_namespace_is_empty_and_not_ours() {
    let netns = NetNs::create().unwrap();
    assert_ne!(netns.identity(), NetNs::current().unwrap().identity());
    let links = ip(&netns, "link show");
    assert_eq!(links.as_array().unwrap().len(), 1);
    assert_eq!(links[0]["ifname"], "lo");
}

#[test]
fn run_enters_on_a_thread_of_its_own() {
    let (before, netns) = (own_inode(), NetNs::create().unwrap());
    assert_eq!(netns.run(own_inode).unwrap(), netns.identity().inode);
    assert_eq!(own_inode(), before);
}

#[test]
fn a_panic_inside_reaches_the_caller_where_it_was() {
    let (before, netns) = (own_inode(), NetNs::create().unwrap());
    let panic = std::panic::catch_unwind(|| netns.run(|| panic!("inside"))).unwrap_err();
    assert_eq!(panic.downcast_ref::<&str>(), Some(&"inside"));
    assert_eq!(own_inode(), before);
}

#[test]
fn join_is_for_good() {
    let netns = NetNs::create().unwrap();
    let thread = std::thread::spawn(move || {
        netns.join().unwrap();
        (own_inode(), netns.identity().inode)
    });
    let (found, wanted) = thread.join().unwrap();
    assert_eq!(found, wanted);
}

#[test]
fn a_pin_keeps_a_namespace_and_unpin_lets_it_go() {
    let dir = tempfile::tempdir().unwrap();
    let path = dir.path().join("a");
    let identity = {
        let netns = NetNs::create().unwrap();
        netns.pin(&path).unwrap();
        netns.identity()
    };
    assert_eq!(NetNs::open(&path).unwrap().identity(), identity);
    let err = NetNs::create().unwrap().pin(&path).unwrap_err();
    assert_eq!(err.errno(), Some(nix::libc::EEXIST));
    assert_eq!(err.to_string(), format!("pin namespace {}", path.display()));
    assert_eq!(NetNs::open(&path).unwrap().identity(), identity, "the first pin is as it was");
    for _ in 0..2 {
        NetNs::unpin(&path).unwrap();
        assert!(!path.exists());
    }
    assert_eq!(mounts_below(dir.path()), 0);
}

#[test]
fn unpin_removes_a_file_that_is_not_mounted() {
    let dir = tempfile::tempdir().unwrap();
    let path = dir.path().join("a");
    std::fs::write(&path, "").unwrap();
    NetNs::unpin(&path).unwrap();
    assert!(!path.exists());
}

#[test]
fn a_pin_that_fails_leaves_nothing() {
    let dir = tempfile::tempdir().unwrap();
    let err = NetNs::create().unwrap().pin(&dir.path().join("absent/a")).unwrap_err();
    assert_eq!(err.errno(), Some(nix::libc::ENOENT));
    assert_eq!(std::fs::read_dir(dir.path()).unwrap().count(), 0);
}

#[test]
fn what_is_no_network_namespace_is_told_apart() {
    let absent = NetNs::open(Path::new("/proc/absent")).unwrap_err();
    assert!(matches!(absent, Error::Open { .. }));
    assert_eq!(absent.errno(), Some(nix::libc::ENOENT));
    let dir = tempfile::tempdir().unwrap();
    let fifo = dir.path().join("fifo");
    nix::unistd::mkfifo(&fifo, nix::sys::stat::Mode::S_IRWXU).unwrap();
    for path in ["/proc/self/status", "/dev/null", "/proc", fifo.to_str().unwrap()] {
        let err = NetNs::open(Path::new(path)).unwrap_err();
        assert!(matches!(err, Error::NotANamespace { .. }), "{err}");
        assert_eq!(err.to_string(), format!("{path} is not a namespace"));
    }
    for kind in ["mnt", "pid", "uts", "user"] {
        let err = NetNs::open(&Path::new("/proc/self/ns").join(kind)).unwrap_err();
        assert!(matches!(err, Error::OtherNamespace { .. }), "{err}");
    }
}

#[test]
fn sysctls_are_the_threads_own() {
    let netns = NetNs::create().unwrap();
    let key = "net/ipv4/ip_forward";
    let before = sysctl::read(key).unwrap();
    let inside = netns.run(|| {
        sysctl::write(key, "0").unwrap();
        let was = sysctl::read(key).unwrap();
        sysctl::ensure(key, "1").unwrap();
        (was, sysctl::read(key).unwrap())
    });
    assert_eq!(inside.unwrap(), ("0".into(), "1".into()));
    assert_eq!(sysctl::read(key).unwrap(), before);
    let err = sysctl::read("net/absent").unwrap_err();
    assert_eq!((err.to_string().as_str(), err.errno()), ("read sysctl net/absent", Some(nix::libc::ENOENT)));
}
