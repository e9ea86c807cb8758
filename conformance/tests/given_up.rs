//! Pods that containerd loses sight of: it hangs up, runs the shim's `delete` and forgets them. Nobody else would ever end them.

use std::fs;
use std::os::unix::net::UnixStream;

use nix::sys::signal::Signal;
use serde_json::json;
use weft_conformance::{ContainerSpec, Node, PodSpec, Subject, image, try_run};

/// After five seconds containerd gives up a shim that does not answer: it runs `delete`, which must not leave the pod to nobody.
#[test]
fn a_shim_that_hangs_over_a_restart_leaves_nothing() {
    let node = Node::start(Subject::Weft);
    let pod = node.run_pod(&PodSpec::new("a"));
    let container = pod.run(&ContainerSpec::new("main", image::BUSYBOX));
    let shim = ["containerd-shim-weft-v1", "-id", pod.id()];
    node.stop_containerd(Signal::SIGKILL);
    assert_eq!(node.signal(Signal::SIGSTOP, &shim), 1);
    node.start_containerd();
    assert_eq!(pod.state(), "SANDBOX_NOTREADY");
    assert_eq!(container.state(), "CONTAINER_EXITED");
    assert_eq!(node.signal(Signal::SIGCONT, &shim), 0, "the shim has been ended");
    node.finish();
}

/// The call's time ends at every step of RunPodSandbox, one after the other.
#[test]
fn a_client_that_does_not_wait_for_its_pod_leaves_nothing() {
    let node = Node::start(Subject::Weft);
    let mut failed = 0;
    for milliseconds in 1..=60 {
        let name = format!("p{milliseconds}");
        let config = json!({
            "metadata": { "name": name, "namespace": "default", "uid": name },
            "hostname": name,
            "log_directory": node.dir().join("logs"),
            "linux": {},
        });
        let file = node.dir().join("pods").join(&name);
        fs::write(&file, config.to_string()).expect("write the configuration of a pod");
        let timeout = format!("{milliseconds}ms");
        let run = ["--timeout", &timeout, "runp", "--runtime", "weft"];
        failed += usize::from(try_run(node.crictl_command(&run).arg(&file)).is_err());
    }
    assert!(failed > 5, "the first of them had no time: {failed}");
    // A `start` that is killed between making its socket and starting its daemon leaves a file, and nobody to remove it.
    for socket in fs::read_dir(node.dir().join("s")).expect("list the sockets").flatten() {
        if UnixStream::connect(socket.path()).is_err() {
            fs::remove_file(socket.path()).expect("remove a socket");
        }
    }
    // What was made in time is removed, and then nothing must be left.
    node.finish();
}
