//! Pods with a user namespace.

use std::fs;
use std::os::unix::fs::MetadataExt;
use std::path::Path;

use ttrpc::Code;

use crate::fixture::*;

#[tokio::test]
async fn a_pods_namespaces_belong_to_its_user_namespace() {
    let pod = Pod::with_user_namespace().await;
    let daemon = pod.daemon.id();
    let pid = pod.up(&Want { pid: POD, ..Want::user() }).await;
    assert_ne!(pid, daemon);
    let user = ns(pid, "user");
    assert_ne!(user, of_node("user"));
    for name in ["net", "ipc", "uts", "pid"] {
        assert_ne!(ns(pid, name), of_node(name), "{name}");
        assert_eq!(owner(pid, name), user, "{name}");
    }
    assert_eq!(ns(pid, "net"), fs::metadata(&pod.netns).unwrap().ino());
    for kind in ["uid", "gid"] {
        let map = fs::read_to_string(format!("/proc/{pid}/{kind}_map")).unwrap();
        assert_eq!(Vec::from_iter(map.split_whitespace()), ["0", "100000", "65536"]);
        let status = fs::read_to_string(format!("/proc/{pid}/status")).unwrap();
        let line = status.lines().find(|line| line.to_lowercase().starts_with(kind)).unwrap();
        assert_eq!(Vec::from_iter(line.split_whitespace())[1..], ["100000"; 4]);
    }
    // The daemon stays the node's root; one process between it and process 1 has been reaped.
    for name in ["user", "pid"] {
        assert_eq!(ns(daemon, name), of_node(name), "{name}");
    }
    assert_eq!(fs::read_dir(format!("/proc/{daemon}/task")).unwrap().count(), 1, "one thread");
    until("only process 1 is left of the children", || {
        let children = fs::read_to_string(format!("/proc/{daemon}/task/{daemon}/children")).unwrap();
        children.trim() == pid.to_string()
    });
    let target = pid.to_string();
    assert_eq!(run("nsenter", &["-t", &target, "-u", "hostname"]), "pod-host\n");
    let sysctl = |name| run("nsenter", &["-t", &target, "-n", "-i", "cat", &format!("/proc/sys/{name}")]);
    assert_eq!(sysctl("net/ipv4/ip_unprivileged_port_start"), "0\n");
    assert_eq!(sysctl("kernel/shm_rmid_forced"), "1\n");
    assert_eq!(sysctl("net/ipv4/ping_group_range"), "1\t0\n", "as the kernel has it");
    pod.down().await;
}

#[tokio::test]
async fn a_container_in_a_pods_user_namespace_owns_what_the_pod_has() {
    let pod = Pod::with_user_namespace().await;
    let want = Want { pid: POD, ..Want::user() };
    let sandbox = pod.up(&want).await;
    let script = "cat /proc/self/uid_map; hostname; cat /etc/resolv.conf >/dev/null || exit 1; \
                  echo 10.0.0.1 me >>/etc/hosts; stat -c %u:%g /etc/hosts /etc/resolv.conf; \
                  echo data >/dev/shm/file; exec sleep 1000";
    let container = pod.launch(pod.bundle("one", sandbox, &want, script)).await;
    for name in ["user", "net", "ipc", "uts", "pid"] {
        assert_eq!(ns(container.pid, name), ns(sandbox, name), "{name}");
    }
    let shm = pod.dir().join("shm/file");
    until("the container has written", || shm.exists());
    let output = || fs::read_to_string(&container.output).unwrap();
    // What it printed comes by way of the shim.
    until("its output has come", || output().lines().count() == 4);
    let printed = output();
    let words: Vec<&str> = printed.split_whitespace().collect();
    assert_eq!(words, ["0", "100000", "65536", "pod-host", "0:0", "0:0"], "{printed}");
    let meta = fs::metadata(&shm).unwrap();
    assert_eq!((meta.uid(), meta.gid()), (ROOT, ROOT));
    assert!(fs::read_to_string(pod.dir().join("hosts")).unwrap().ends_with("10.0.0.1 me\n"));

    pod.kill(&container, false).await;
    assert_eq!(pod.wait(&container).await, 137);
    pod.delete(&container).await;
    assert!(is_alive(sandbox));
    pod.down().await;
}

#[tokio::test]
async fn each_container_of_a_pod_with_a_user_namespace_may_have_its_own_processes() {
    let pod = Pod::with_user_namespace().await;
    let want = Want::user();
    let sandbox = pod.up(&want).await;
    assert_eq!(ns(sandbox, "pid"), of_node("pid"));
    let container = pod.launch(pod.bundle("one", sandbox, &want, "exec sleep 1000")).await;
    for name in ["user", "net", "ipc", "uts"] {
        assert_eq!(ns(container.pid, name), ns(sandbox, name), "{name}");
    }
    assert_ne!(ns(container.pid, "pid"), of_node("pid"));
    assert_eq!(owner(container.pid, "pid"), ns(sandbox, "user"));
    // The container is still there, and the sandbox ends it.
    pod.stop().await;
    assert!(!is_alive(container.pid));
    pod.delete(&container).await;
    pod.down().await;
}

#[tokio::test]
async fn on_the_nodes_network_the_shim_makes_the_user_namespace() {
    let pod = Pod::new().await;
    let mut want = Want { network: NODE, pid: POD, ..Want::user() };
    want.user = Some((POD, vec![[0, ROOT, IDS]], vec![[0, ROOT, 1000]]));
    let sandbox = pod.up(&want).await;
    for name in ["net", "uts"] {
        assert_eq!(ns(sandbox, name), of_node(name), "{name}");
    }
    for name in ["ipc", "pid"] {
        assert_eq!(owner(sandbox, name), ns(sandbox, "user"), "{name}");
    }
    assert_ne!(ns(sandbox, "user"), of_node("user"));
    let map = fs::read_to_string(format!("/proc/{sandbox}/gid_map")).unwrap();
    assert_eq!(Vec::from_iter(map.split_whitespace()), ["0", "100000", "1000"]);
    let container = pod.launch(pod.bundle("one", sandbox, &want, "exec sleep 1000")).await;
    for name in ["user", "net", "ipc", "uts", "pid"] {
        assert_eq!(ns(container.pid, name), ns(sandbox, name), "{name}");
    }
    pod.kill(&container, true).await;
    pod.wait(&container).await;
    pod.delete(&container).await;
    pod.down().await;
}

#[tokio::test]
async fn mappings_that_make_no_pod_are_refused_and_leave_nothing() {
    let pod = Pod::with_user_namespace().await;
    let one = || vec![[0, ROOT, IDS]];
    let cases = [
        (POD, vec![[0, ROOT, 10], [10, 200_000, 10]], one(), "user namespace: got 2 uid mappings, want 1"),
        (POD, one(), vec![], "user namespace: got 0 gid mappings, want 1"),
        (POD, vec![[1, ROOT, IDS]], one(), "user namespace: uid mapping of 65536 ids from 1 on has no id 0"),
        (NODE, one(), one(), "user namespace: mode NODE has no mappings"),
        (CONTAINER, one(), one(), "user namespace: got mode CONTAINER, want POD or NODE"),
        (TARGET, vec![], vec![], "user namespace: got mode TARGET, want POD or NODE"),
    ];
    for (mode, uids, gids, message) in cases {
        let want = Want { user: Some((mode, uids, gids)), ..Want::own() };
        assert_eq!(pod.refused(&want).await, (Code::INVALID_ARGUMENT, message.to_owned()));
        pod.assert_gone();
    }
    let node = Want { user: Some((NODE, vec![], vec![])), ..Want::own() };
    assert_eq!(ns(pod.up(&node).await, "user"), of_node("user"));
    pod.down().await;
}

#[tokio::test]
async fn a_network_namespace_of_the_nodes_own_makes_no_pod_with_a_user_namespace() {
    let pod = Pod::new().await;
    let refused = pod.refused(&Want { pid: POD, ..Want::user() }).await;
    let message = "sandbox-init: enter the user namespace of the pod's network namespace: Invalid argument (os error 22)";
    assert_eq!(refused, (Code::INTERNAL, message.to_owned()));
    assert!(!pod.dir().exists() && !pod.is_mounted("shm"));
    until("the cgroup is gone", || pod.cgroups().is_empty());
    until("the child is gone", || pod.members().is_empty());
    // The same with ids that no user namespace can have: found out after it has been made.
    let last = vec![[0, u32::MAX - 1, 10]];
    let want = Want { network: NODE, user: Some((POD, last.clone(), last)), ..Want::own() };
    let refused = pod.refused(&want).await;
    assert!(refused.1.starts_with("write /proc/") && refused.1.contains("uid_map: "), "{refused:?}");
    let daemon = pod.daemon.id();
    until("the child is gone", || {
        fs::read_to_string(format!("/proc/{daemon}/task/{daemon}/children")).unwrap().is_empty()
    });
    pod.up(&Want::own()).await;
    pod.down().await;
}

#[tokio::test]
async fn after_a_killed_daemon_delete_leaves_nothing_of_a_pod_with_a_user_namespace() {
    for pid in [POD, CONTAINER] {
        let mut pod = Pod::with_user_namespace().await;
        let want = Want { pid, ..Want::user() };
        let sandbox = pod.up(&want).await;
        let container = pod.launch(pod.bundle("one", sandbox, &want, "exec sleep 1000")).await;
        pod.daemon.kill().unwrap();
        pod.daemon.wait().unwrap();
        pod.clean_up(Some(&container));
        pod.clean_up(None);
        until("the processes have been reaped", || !is_alive(sandbox) && !is_alive(container.pid));
        assert!(!pod.is_mounted(&format!("{}/rootfs", container.id)));
        pod.assert_gone();
        pod.clean_up(None);
    }
}

#[tokio::test]
async fn a_sandbox_ends_with_the_process_in_its_user_namespace() {
    let pod = Pod::with_user_namespace().await;
    let sandbox = pod.up(&Want::user()).await;
    run("kill", &["-9", &sandbox.to_string()]);
    until("the process is reaped", || !Path::new(&format!("/proc/{sandbox}")).exists());
    assert_eq!(pod.status().await.0, "SANDBOX_NOTREADY");
    pod.down().await;
}
