//! The life of a pod under every containerd that is maintained: with weft as sandboxer where a version has that, and with containerd's own
//! everywhere. `make test` tries the oldest, one between and the newest, `make test-versions` all.

#![expect(clippy::expect_used, reason = "a test that cannot go on panics")]

use std::net::SocketAddr;
use std::time::Duration;

use nix::sys::signal::Signal;
use weft_conformance::{
    ContainerSpec, Daemon, Node, NodeSpec, PodSpec, Subject, image, wait_until, weft_conflist,
};

const SOON: Duration = Duration::from_secs(20);

/// Pod, container, exec, logs, a restart of containerd during which a container ends, and nothing left.
fn life(daemon: Daemon, handler: &str) {
    let mut conflist = weft_conflist();
    if daemon == Daemon::V1_7 {
        // The CNI library of 1.7 reads results of up to 1.0.0.
        conflist["cniVersion"] = "1.0.0".into();
    }
    let conflist = Some(conflist);
    let node = Node::start_with(NodeSpec { daemon, conflist, ..NodeSpec::new(Subject::Weft) });
    let pod = |name| node.run_pod(&PodSpec::new(name).handler(handler));
    let (a, b) = (pod("a"), pod("b"));
    b.run(&ContainerSpec::new("web", image::WEB));
    let client = a.run(&ContainerSpec::new("client", image::BUSYBOX));
    let ends = a.run(
        &ContainerSpec::new("ends", image::BUSYBOX)
            .shell("until [ -e /tmp/end ]; do sleep 0.05; done; echo out; exit 7"),
    );
    assert_eq!(client.exec(&["hostname"]), "a\n");
    let failed = client.try_exec(&["sh", "-c", "echo broken >&2; exit 3"]).expect_err("it fails");
    assert!(failed.contains("broken") && failed.contains("exited with 3"), "{failed}");
    for ip in [b.ipv4(), b.ipv6()] {
        assert_eq!(client.fetch(SocketAddr::new(ip, 80)), image::WEB_PAGE);
    }

    let end = ends.path("/tmp/end");
    for (signal, ends_now) in [(Signal::SIGTERM, true), (Signal::SIGKILL, false)] {
        node.stop_containerd(signal);
        if ends_now {
            // While nobody is there to see it.
            assert!(node.command("touch").arg(&end).status().expect("run touch").success());
        }
        node.start_containerd();
        if daemon == Daemon::V2_0 && handler == "weft" {
            forgotten(node);
            return;
        }
        assert_eq!(a.state(), "SANDBOX_READY");
        assert_eq!(client.exec(&["echo", "still here"]), "still here\n");
        wait_until(SOON, "the exit code arrives", || ends.exit_code() == Some(7));
        wait_until(SOON, "the output arrives", || ends.logs() == "out\n");
    }
    assert_eq!(client.fetch(SocketAddr::new(b.ipv4(), 80)), image::WEB_PAGE);

    ends.remove();
    client.stop(10);
    assert_eq!(client.exit_code(), Some(0), "the shell ends on SIGTERM");
    a.stop();
    assert_eq!(a.state(), "SANDBOX_NOTREADY");
    a.remove();
    node.finish();
}

/// containerd 2.0 looks for the sandboxes of shims in the wrong folder when it starts (the arguments of `LoadExistingShims` are exchanged in
/// plugins/sandbox/controller.go), and takes their pods for ended. Such pods cannot be saved, but their
/// shims end by themselves, and nothing stays.
fn forgotten(node: Node) {
    let listed = || node.crictl(&["pods", "--quiet", "--state", "ready"]);
    assert_eq!(listed(), "", "2.0 has learnt to find them: this case can go");
    node.crictl(&["rmp", "--all", "--force"]);
    node.finish();
}

macro_rules! versions {
    ($($name:ident: $daemon:ident, $handler:literal $(, $ignored:meta)?;)*) => {
        $(#[test] $(#[$ignored])? fn $name() { life(Daemon::$daemon, $handler); })*
    };
}

versions! {
    containerd_1_7_podsandbox: V1_7, "weft-podsandbox";
    containerd_2_0_podsandbox: V2_0, "weft-podsandbox", ignore = "by make test-versions";
    containerd_2_0_shim: V2_0, "weft", ignore = "by make test-versions";
    containerd_2_1_podsandbox: V2_1, "weft-podsandbox", ignore = "by make test-versions";
    containerd_2_1_shim: V2_1, "weft", ignore = "by make test-versions";
    containerd_2_2_podsandbox: V2_2, "weft-podsandbox", ignore = "by make test-versions";
    containerd_2_2_shim: V2_2, "weft", ignore = "by make test-versions";
    containerd_2_3_podsandbox: V2_3, "weft-podsandbox";
    containerd_2_3_shim: V2_3, "weft";
    containerd_2_4_podsandbox: V2_4, "weft-podsandbox";
    containerd_2_4_shim: V2_4, "weft";
}
