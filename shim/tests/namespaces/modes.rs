//! Whose namespaces a container gets: the pod's, its own, the node's or another container's.

use std::fs;

use serde_json::json;

use crate::fixture::*;

#[tokio::test]
async fn in_pod_mode_a_container_shares_all_namespaces_with_its_pod() {
    let pod = Pod::new().await;
    let want = Want { pid: POD, ..Want::own() };
    let sandbox = pod.up(&want).await;
    let container = pod.launch(pod.bundle("one", sandbox, &want, "exec sleep 1000")).await;
    for name in ["net", "ipc", "uts", "pid"] {
        assert_eq!(ns(container.pid, name), ns(sandbox, name), "{name}");
        assert_ne!(ns(container.pid, name), of_node(name), "{name}");
    }
    assert_eq!(ns(container.pid, "user"), of_node("user"));
    end(&pod, &container).await;
    pod.down().await;
}

#[tokio::test]
async fn in_container_mode_a_container_has_its_own_processes() {
    let pod = Pod::new().await;
    let want = Want::own();
    let sandbox = pod.up(&want).await;
    let one = pod.launch(pod.bundle("one", sandbox, &want, "exec sleep 1000")).await;
    let two = pod.launch(pod.bundle("two", sandbox, &want, "exec sleep 1000")).await;
    assert_eq!(ns(sandbox, "pid"), of_node("pid"));
    assert_ne!(ns(one.pid, "pid"), of_node("pid"));
    assert_ne!(ns(one.pid, "pid"), ns(two.pid, "pid"));
    for name in ["net", "ipc", "uts"] {
        assert_eq!(ns(one.pid, name), ns(sandbox, name), "{name}");
        assert_eq!(ns(two.pid, name), ns(sandbox, name), "{name}");
    }
    end(&pod, &one).await;
    end(&pod, &two).await;
    pod.down().await;
}

#[tokio::test]
async fn in_node_mode_a_container_has_the_nodes_namespaces() {
    let pod = Pod::new().await;
    let want = Want { network: NODE, pid: NODE, ipc: NODE, user: None };
    let sandbox = pod.up(&want).await;
    let container = pod.launch(pod.bundle("one", sandbox, &want, "exec sleep 1000")).await;
    for name in ["net", "ipc", "uts", "pid", "user"] {
        assert_eq!(ns(container.pid, name), of_node(name), "{name}");
    }
    // The last mount of a path is the one that is seen (mount(2)).
    let device = |pid: u32| {
        let table = fs::read_to_string(format!("/proc/{pid}/mountinfo")).unwrap();
        let line = table.lines().rfind(|line| line.split(' ').nth(4) == Some("/dev/shm")).unwrap();
        line.split(' ').nth(2).unwrap().to_owned()
    };
    assert_eq!(device(container.pid), device(std::process::id()));
    end(&pod, &container).await;
    pod.down().await;
}

#[tokio::test]
async fn each_mode_is_independent_of_the_others() {
    for (network, pid, ipc) in [(POD, NODE, POD), (POD, POD, NODE), (NODE, POD, POD), (NODE, CONTAINER, NODE)]
    {
        let pod = Pod::new().await;
        let want = Want { network, pid, ipc, user: None };
        let sandbox = pod.up(&want).await;
        let container = pod.launch(pod.bundle("one", sandbox, &want, "exec sleep 1000")).await;
        for (name, mode) in [("net", network), ("uts", network), ("ipc", ipc), ("pid", pid)] {
            let is_nodes = ns(container.pid, name) == of_node(name);
            assert_eq!(is_nodes, mode == NODE, "{name} of network {network}, pid {pid}, ipc {ipc}");
        }
        end(&pod, &container).await;
        pod.down().await;
    }
}

#[tokio::test]
async fn in_target_mode_a_container_sees_the_processes_of_another() {
    let pod = Pod::new().await;
    let want = Want::own();
    let sandbox = pod.up(&want).await;
    let target = pod.launch(pod.bundle("target", sandbox, &want, "exec sleep 1000")).await;
    let of = |pid: u32, name: &str| format!("/proc/{pid}/ns/{name}");
    let linux = json!({ "namespaces": [
        { "type": "mount" },
        { "type": "network", "path": of(sandbox, "net") },
        { "type": "ipc", "path": of(sandbox, "ipc") },
        { "type": "uts", "path": of(sandbox, "uts") },
        { "type": "pid", "path": of(target.pid, "pid") },
    ]});
    let debug = pod.launch(pod.bundle_of("debug", linux, "cat /proc/1/cmdline; exec sleep 1000")).await;
    assert_eq!(ns(debug.pid, "pid"), ns(target.pid, "pid"));
    assert_eq!(ns(debug.pid, "net"), ns(sandbox, "net"));
    until("the debugger has printed", || !fs::read(&debug.output).unwrap().is_empty());
    assert_eq!(fs::read_to_string(&debug.output).unwrap(), "sleep\x001000\0");
    end(&pod, &debug).await;
    assert!(is_alive(target.pid));
    end(&pod, &target).await;
    pod.down().await;
}

#[tokio::test]
async fn process_1_in_a_path_is_the_sandbox() {
    for (pod, want) in [
        (Pod::new().await, Want { pid: POD, ..Want::own() }),
        (Pod::with_user_namespace().await, Want { pid: POD, ..Want::user() }),
    ] {
        let sandbox = pod.up(&want).await;
        let container = pod.launch(pod.bundle("one", 1, &want, "exec sleep 1000")).await;
        for name in ["net", "ipc", "uts", "pid", "user"] {
            assert_eq!(ns(container.pid, name), ns(sandbox, name), "{name}");
        }
        end(&pod, &container).await;
        pod.down().await;
    }
}

/// For a container that may look into any process of its pod (CAP_SYS_PTRACE), as a debugger may.
#[tokio::test]
async fn process_1_of_a_pod_is_no_door_to_the_node() {
    let secret = tempfile::tempdir().unwrap();
    fs::write(secret.path().join("file"), "").unwrap();
    let path = secret.path().display();
    let script = format!(
        "exec 2>&1; sleep 1001 & ls /proc/$!/root/bin/sh && echo may look; \
         ls /proc/1/root{path}/file /proc/1/root/../../..{path}/file /proc/1/cwd{path}/file && echo root; \
         cat /proc/1/mountinfo; cat /proc/1/environ; echo end; exec sleep 1000"
    );
    for (pod, want) in [
        (Pod::new().await, Want { pid: POD, ..Want::own() }),
        (Pod::with_user_namespace().await, Want { pid: POD, ..Want::user() }),
    ] {
        let sandbox = pod.up(&want).await;
        let container = pod.launch(pod.bundle("one", sandbox, &want, &script)).await;
        let printed = || fs::read_to_string(&container.output).unwrap();
        until("the container has tried", || printed().ends_with("end\n"));
        let is_error = |line: &&str| line.starts_with("ls: ") || line.starts_with("cat: ");
        let text = printed();
        let lines: Vec<&str> = text.lines().filter(|line| !is_error(line)).collect();
        assert_eq!(lines[1..], ["may look", "end"], "{text}");
        let status = fs::read_to_string(format!("/proc/{sandbox}/status")).unwrap();
        let lines: Vec<&str> = status.lines().filter(|line| line.starts_with("Cap")).collect();
        let privileged = lines.iter().filter(|line| !line.ends_with("0000000000000000"));
        assert_eq!(Vec::from_iter(privileged.map(|line| line.split(':').next().unwrap())), ["CapBnd"]);
        end(&pod, &container).await;
        pod.down().await;
    }
}

#[tokio::test]
async fn kill_all_in_a_shared_pid_namespace_spares_the_other_containers() {
    let pod = Pod::new().await;
    let want = Want { pid: POD, ..Want::own() };
    let sandbox = pod.up(&want).await;
    // Each with a child, and an orphan that process 1 of the pod gets.
    let script = "(setsid sleep 1001 &) ; sleep 1002 & exec sleep 1000";
    let one = pod.launch(pod.bundle("one", sandbox, &want, script)).await;
    let two = pod.launch(pod.bundle("two", sandbox, &want, script)).await;
    let processes = |name: &str| {
        let path = format!("/sys/fs/cgroup/pids/{}/{name}/cgroup.procs", pod.id);
        let path = match std::path::Path::new(&path).exists() {
            true => path,
            false => format!("/sys/fs/cgroup/{}/{name}/cgroup.procs", pod.id),
        };
        fs::read_to_string(path).map_or(0, |text| text.lines().count())
    };
    until("both have three processes", || processes("one") == 3 && processes("two") == 3);
    let children = || fs::read_to_string(format!("/proc/{sandbox}/task/{sandbox}/children")).unwrap();
    // Three there are before the last fork has ended, too.
    until("process 1 has the orphans", || children().split_whitespace().count() == 2);

    pod.kill(&one, true).await;
    assert_eq!(pod.wait(&one).await, 137);
    until("all of the one are gone", || processes("one") == 0);
    assert_eq!(processes("two"), 3);
    // Those that have ended are its children until it has reaped them.
    until("the other's orphan is the only one", || children().split_whitespace().count() == 1);
    pod.delete(&one).await;

    // The end of the first process alone is the end of the rest of its container, and of nothing else.
    pod.kill(&two, false).await;
    assert_eq!(pod.wait(&two).await, 137);
    until("the orphan is gone", || children().is_empty());
    assert!(is_alive(sandbox));
    pod.delete(&two).await;
    pod.down().await;
}

async fn end(pod: &Pod, container: &Container) {
    pod.kill(container, false).await;
    assert_eq!(pod.wait(container).await, 137);
    pod.delete(container).await;
}
