//! What weft promises its users, through containerd and crictl: many pods at once, nothing lost when something dies, pods that are
//! what CRI says, and connections that come back the way they went.

#![expect(clippy::expect_used, reason = "a test that cannot go on panics")]

use std::collections::BTreeSet;
use std::io::{Read, Write};
use std::net::{IpAddr, SocketAddr};
use std::process::{Command, Stdio};
use std::time::Duration;

use nix::sys::signal::Signal;
use serde_json::{Value, json};
use weft_conformance::{
    Background, ContainerSpec, Node, NodeSpec, Pod, PodSpec, Subject, image, run, wait_until, weft_conflist,
};

const SOON: Duration = Duration::from_secs(20);

/// Runs the command with `input` on its standard input; what it printed.
fn feed(command: &mut Command, input: &str) -> String {
    let mut child = command.stdin(Stdio::piped()).stdout(Stdio::piped()).spawn().expect("run a command");
    child.stdin.take().expect("stdin is piped").write_all(input.as_bytes()).expect("write to a command");
    let output = child.wait_with_output().expect("wait for a command");
    assert!(output.status.success(), "{command:?}: {}", output.status);
    String::from_utf8(output.stdout).expect("UTF-8")
}

fn counter(node: &Node, way: &str) -> u64 {
    let status = run(node.command("weft").args(["status", "-o", "json"]));
    let status: Value = serde_json::from_str(&status).expect("weft prints JSON");
    status["counters"][way]["packets"].as_u64().expect("a number")
}

#[test]
fn a_hundred_pods_ten_at_a_time() {
    let node = Node::start(Subject::Weft);
    let mut pods = Vec::new();
    for round in 0..10 {
        let names: Vec<String> = (0..10).map(|n| format!("p{round}{n}")).collect();
        std::thread::scope(|scope| {
            let started: Vec<_> =
                names.iter().map(|name| scope.spawn(|| node.run_pod(&PodSpec::new(name)))).collect();
            pods.extend(started.into_iter().map(|thread| thread.join().expect("a pod started")));
        });
    }
    let addresses: BTreeSet<IpAddr> = pods.iter().flat_map(Pod::ips).collect();
    assert_eq!(addresses.len(), 200, "a hundred pods of two families have different addresses");
    while !pods.is_empty() {
        std::thread::scope(|scope| {
            for pod in pods.drain(..10) {
                scope.spawn(move || {
                    pod.stop();
                    pod.remove();
                });
            }
        });
    }
    node.finish();
}

#[test]
fn a_killed_shim_leaves_nothing_once_its_pod_is_removed() {
    let node = Node::start(Subject::Weft);
    for (name, pid_mode) in [("shared", 0), ("own", 1)] {
        let pod = node.run_pod(&PodSpec::new(name).with(pid_namespace(pid_mode)));
        let main = pod.run(&ContainerSpec::new("main", image::BUSYBOX).with(pid_namespace(pid_mode)));
        assert_eq!(main.state(), "CONTAINER_RUNNING");
        assert_eq!(node.signal(Signal::SIGKILL, &["containerd-shim-weft-v1", "-id", pod.id()]), 1);
        // Until containerd has noticed, a question about this pod is answered by an error.
        let gone =
            || node.crictl(&["pods", "--quiet", "--no-trunc", "--state", "notready"]).contains(pod.id());
        wait_until(SOON, "containerd sees that the sandbox has gone", gone);
        wait_until(SOON, "the container is seen to have ended", || main.state() == "CONTAINER_EXITED");
        node.crictl(&["rmp", "--force", pod.id()]);
    }
    node.finish();
}

fn pid_namespace(mode: u8) -> Value {
    json!({ "linux": { "security_context": { "namespace_options": { "pid": mode } } } })
}

#[test]
fn pods_and_their_packets_live_through_containerds_death() {
    let node = Node::start(Subject::Weft);
    let (a, b) = (node.run_pod(&PodSpec::new("a")), node.run_pod(&PodSpec::new("b")));
    let main = a.run(&ContainerSpec::new("main", image::BUSYBOX));
    let ends = a.run(
        &ContainerSpec::new("ends", image::BUSYBOX)
            .shell("until [ -e /tmp/end ]; do sleep 0.05; done; echo out; exit 7"),
    );
    let end = ends.path("/tmp/end");
    for (signal, address) in [(Signal::SIGKILL, b.ipv4()), (Signal::SIGTERM, b.ipv6())] {
        let mut ping = a.command("ping");
        ping.args(["-i", "0.01", "-c", "300", "-n", "-q", &address.to_string()]).stdout(Stdio::piped());
        let mut ping = Background::start(&mut ping);
        node.stop_containerd(signal);
        // In the first round the container ends while nobody is there to see it.
        node.command("touch").arg(&end).status().expect("run touch");
        node.start_containerd();
        wait_until(SOON, "the ping ends", || ping.has_ended());
        let mut said = String::new();
        ping.child()
            .stdout
            .take()
            .expect("stdout is piped")
            .read_to_string(&mut said)
            .expect("read what ping says");
        assert!(said.contains("300 received, 0% packet loss"), "{said}");
        assert_eq!(a.state(), "SANDBOX_READY");
        assert_eq!(main.exec(&["echo", "still here"]), "still here\n");
        wait_until(SOON, "the exit code arrives", || ends.exit_code() == Some(7));
        wait_until(SOON, "the output arrives", || ends.logs() == "out\n");
    }
    node.finish();
}

/// As kube-proxy does it with nftables: a virtual address is translated to a pod of the same node.
#[test]
fn a_virtual_address_leads_to_a_local_pod_and_the_answer_back() {
    let node = Node::start(Subject::Weft);
    let (a, b) = (node.run_pod(&PodSpec::new("a")), node.run_pod(&PodSpec::new("b")));
    let server = b.run(
        &ContainerSpec::new("web", image::WEB)
            .shell("mkdir -p /srv; echo here > /srv/index.html; httpd -f -vv -p 8080 -h /srv"),
    );
    let client = a.run(&ContainerSpec::new("client", image::BUSYBOX));
    let rules = format!(
        "table inet services {{
            chain pre {{
                type nat hook prerouting priority dstnat;
                ip daddr 10.96.0.10 tcp dport 80 dnat ip to {}:8080
                ip6 daddr fd00:96::10 tcp dport 80 dnat ip6 to [{}]:8080
            }}
        }}",
        b.ipv4(),
        b.ipv6()
    );
    feed(node.command("nft").args(["-f", "-"]), &rules);
    for (service, own) in [("10.96.0.10", a.ipv4()), ("fd00:96::10", a.ipv6())] {
        let service = SocketAddr::new(service.parse().expect("an address"), 80);
        let direct = SocketAddr::new(if own.is_ipv4() { b.ipv4() } else { b.ipv6() }, 8080);
        let returned = counter(&node, "returned");
        assert_eq!(client.fetch(service), "here\n", "by the virtual address");
        assert!(counter(&node, "returned") > returned, "the answer went back through the stack");
        let redirected = counter(&node, "redirected");
        assert_eq!(client.fetch(direct), "here\n", "and directly");
        assert!(
            counter(&node, "redirected") > redirected,
            "a connection of its own still takes the fast path"
        );
        let seen = server.logs();
        assert!(seen.contains(&own.to_string()), "the server sees the client's own address {own}: {seen}");
    }
    run(node.command("nft").args(["delete", "table", "inet", "services"]));
    node.finish();
}

#[test]
fn a_pod_is_what_its_configuration_says() {
    let node = Node::start(Subject::Weft);
    let dns = json!({ "dns_config": { "servers": ["192.0.2.53"], "searches": ["example"], "options": ["ndots:5"] } });
    let pod = node.run_pod(&PodSpec::new("a").with(dns));
    let (one, two) = (
        pod.run(&ContainerSpec::new("one", image::BUSYBOX)),
        pod.run(&ContainerSpec::new("two", image::BUSYBOX)),
    );
    assert_eq!(
        one.exec(&["cat", "/etc/resolv.conf"]),
        "search example\nnameserver 192.0.2.53\noptions ndots:5\n"
    );
    assert_eq!(one.exec(&["cat", "/etc/hostname"]), "a\n");
    assert_eq!(
        one.exec(&["cat", "/etc/hosts"]),
        std::fs::read_to_string("/etc/hosts").expect("read /etc/hosts")
    );
    one.exec(&["sh", "-c", "echo shared > /dev/shm/file"]);
    assert_eq!(two.exec(&["cat", "/dev/shm/file"]), "shared\n");
    assert!(
        one.exec(&["cat", "/proc/1/cmdline"]).contains("sandbox-init"),
        "containers share a PID namespace"
    );
    assert_eq!(one.exec(&["readlink", "/proc/self/ns/ipc"]), two.exec(&["readlink", "/proc/self/ns/ipc"]));
    let inside = one.exec(&["cat", "/proc/self/cgroup"]);
    assert!(inside.lines().any(|line| line.contains("/a/")), "below the pod's cgroup: {inside}");

    let host = node.run_pod(&PodSpec::new("host").host_network());
    let in_host = host.run(&ContainerSpec::new("main", image::BUSYBOX).with(json!({
        "linux": { "security_context": { "namespace_options": { "network": 2 } } }
    })));
    assert!(in_host.exec(&["ip", "addr", "show", "uplink"]).contains("192.0.2.10/24"));
    assert_eq!(host.ips(), [] as [IpAddr; 0]);
    node.finish();
}

/// The reference runs the same: what is asked here is what containerd asks of every shim.
fn streams_reach_a_container_and_come_back(subject: Subject) {
    let node = Node::start(subject);
    let pod = node.run_pod(&PodSpec::new("a"));
    let main = pod.run(&ContainerSpec::new("main", image::BUSYBOX));
    assert_eq!(
        feed(&mut node.crictl_command(&["exec", "-i", main.id(), "cat"]), "to and fro\n"),
        "to and fro\n"
    );
    let failed =
        node.crictl_command(&["exec", main.id(), "sh", "-c", "exit 9"]).output().expect("run crictl");
    assert!(String::from_utf8_lossy(&failed.stderr).contains("exit code 9"), "{failed:?}");

    // crictl wants a terminal of its own for one in the container: script(1) makes it, as long as its own input is open.
    let config = node.dir().join("crictl.yaml");
    let line = format!("crictl --config {} exec -it {} sh -c 'tty; echo out'", config.display(), main.id());
    let mut script = node.command("script");
    script.args(["-qec", &line, "/dev/null"]).stdin(Stdio::piped()).stdout(Stdio::piped());
    let mut script = script.spawn().expect("run script(1)");
    let open = script.stdin.take();
    let mut said = String::new();
    script.stdout.take().expect("stdout is piped").read_to_string(&mut said).expect("read what crictl says");
    drop(open);
    assert!(script.wait().expect("wait for script(1)").success(), "{said}");
    assert!(said.contains("/dev/pts/0\r\n") && said.contains("out\r\n"), "{said:?}");

    // Without stdin_once containerd ends an attach with its input, whether or not there is an answer yet.
    let talker = ContainerSpec::new("talker", image::BUSYBOX).stdin().with(json!({ "stdin_once": true }));
    let talker = pod.run(&talker.shell("read line; echo got $line; cat; echo end"));
    let said = feed(&mut node.crictl_command(&["attach", "-i", talker.id()]), "one\ntwo\n");
    assert_eq!(said, "got one\ntwo\nend\n");
    wait_until(SOON, "it ends", || talker.exit_code() == Some(0));
    assert_eq!(talker.logs(), "got one\ntwo\nend\n");

    // It ends once it is logged: of one that is faster than containerd's open(2) the reference loses what a terminal said.
    let script = "tty; echo err >&2; until [ -e /end ]; do sleep 0.05; done";
    let terminal = pod.run(&ContainerSpec::new("terminal", image::BUSYBOX).tty().shell(script));
    wait_until(SOON, "it is logged", || terminal.logs().contains("err"));
    terminal.exec(&["touch", "/end"]);
    wait_until(SOON, "it ends", || terminal.exit_code() == Some(0));
    assert_eq!(terminal.logs().replace('\r', ""), "/dev/pts/0\nerr\n");
    node.finish();
}

#[test]
fn streams_of_the_reference() {
    streams_reach_a_container_and_come_back(Subject::Reference);
}

#[test]
fn streams_of_weft() {
    streams_reach_a_container_and_come_back(Subject::Weft);
}

#[test]
fn ctr_runs_a_container_with_and_without_a_network() {
    let weft_config =
        "[network.default]\nranges = [{ subnet = \"10.87.0.0/24\" }, { subnet = \"fd00:87::/64\" }]\n";
    let node = Node::start_with(NodeSpec { weft_config: weft_config.into(), ..NodeSpec::new(Subject::Weft) });
    let ctr = |options: &[&str], command: &[&str]| {
        let mut ctr = node.ctr(&["run", "--rm", "--runtime", "io.containerd.weft.v1"]);
        run(ctr.args(options).args([image::BUSYBOX, "c1"]).args(command))
    };
    let without = ctr(&[], &["ip", "-o", "addr"]);
    assert!(
        without.contains("1: lo") && !without.contains("eth0"),
        "a namespace of its own, and no network: {without}"
    );
    let with = ctr(
        &["--annotation", "weft.dev/network=default"],
        &["sh", "-c", "ip -o addr; ping -c 1 -W 5 192.0.2.10"],
    );
    assert!(with.contains("10.87.0.2/32") && with.contains("fd00:87::2/128"), "{with}");
    assert!(with.contains("1 packets received"), "{with}");
    let mut absent = node.ctr(&[
        "run",
        "--rm",
        "--runtime",
        "io.containerd.weft.v1",
        "--annotation",
        "weft.dev/network=none",
    ]);
    let absent = absent.args([image::BUSYBOX, "c2", "true"]).output().expect("run ctr");
    let said = String::from_utf8_lossy(&absent.stderr);
    assert!(
        !absent.status.success() && said.contains("network \"none\" is not in the node's configuration"),
        "{said}"
    );
    node.finish();
}

#[test]
fn a_pod_has_the_addresses_that_its_annotations_ask_for() {
    let weft_config = "[network.default]\nranges = [{ subnet = \"10.87.0.0/24\" }]\n";
    let node = Node::start_with(NodeSpec { weft_config: weft_config.into(), ..NodeSpec::new(Subject::Weft) });
    let asks = |name: &str| {
        PodSpec::new(name)
            .annotation("weft.dev/ips", "10.88.0.50, fd00:88::50")
            .annotation("weft.dev/mac", "02:00:00:00:00:50")
    };
    let pod = node.run_pod(&asks("a"));
    let wanted: [IpAddr; 2] = ["10.88.0.50", "fd00:88::50"].map(|ip| ip.parse().expect("an address"));
    assert_eq!(pod.ips(), wanted);
    let main = pod.run(&ContainerSpec::new("main", image::BUSYBOX));
    let mac = main.exec(&["cat", "/sys/class/net/eth0/address"]);
    assert_eq!(mac.trim(), "02:00:00:00:00:50");
    let other = node.run_pod(&PodSpec::new("other"));
    let ping = other.run(&ContainerSpec::new("main", image::BUSYBOX));
    assert!(ping.exec(&["ping", "-c", "1", "-W", "5", "10.88.0.50"]).contains("1 packets received"));
    let Err(why) = node.try_run_pod(&asks("b")) else { panic!("the address is taken") };
    assert!(why.contains("address 10.88.0.50 is leased to interface eth0 of container"), "{why}");
    let mut ctr = node.ctr(&["run", "--rm", "--runtime", "io.containerd.weft.v1"]);
    ctr.args(["--annotation", "weft.dev/network=default", "--annotation", "weft.dev/ips=10.87.0.9"]);
    let told = run(ctr.args([image::BUSYBOX, "c1", "ip", "-o", "addr"]));
    assert!(told.contains("10.87.0.9/32"), "{told}");
    node.finish();
}

/// containerd and the shims die, and the namespaces with them: no DEL, no delete, nobody who knows the pods. When
/// containerd comes back, it takes down what it remembers, and CNI DEL of what is long gone succeeds.
#[test]
fn one_reconcile_frees_what_a_dead_node_has_left() {
    let node = Node::start(Subject::Weft);
    let pods: Vec<Pod> = ["a", "b", "c"].iter().map(|name| node.run_pod(&PodSpec::new(name))).collect();
    let paths: Vec<_> = pods.iter().map(|pod| pod.netns().to_owned()).collect();
    let reconcile = || -> Value {
        let report = run(node.command("weft").args(["reconcile", "-o", "json"]));
        serde_json::from_str(&report).expect("weft prints JSON")
    };
    assert_eq!(reconcile()["kept"], 3, "living pods stay");
    node.stop_containerd(Signal::SIGKILL);
    for pod in &pods {
        assert_eq!(node.signal(Signal::SIGKILL, &["containerd-shim-weft-v1", "-id", pod.id()]), 1);
    }
    for path in &paths {
        run(node.command("umount").arg(path));
    }
    let mut freed = 0;
    wait_until(SOON, "all three are freed", || {
        freed += reconcile()["freed"].as_array().map_or(0, Vec::len);
        freed == 3
    });
    assert_eq!(run(node.command("weft").args(["pods", "-o", "json"])).trim(), "[]");
    node.start_containerd();
    let again = node.run_pod(&PodSpec::new("again"));
    assert!(!again.ips().is_empty());
    for pod in pods {
        node.crictl(&["rmp", "--force", pod.id()]);
    }
    node.finish();
}

#[test]
fn a_pod_without_a_network_fails_with_the_plugins_own_words() {
    let conflist = json!({
        "cniVersion": "1.1.0", "name": "small",
        "plugins": [{ "type": "weft", "ranges": [{ "subnet": "10.88.0.0/30" }] }],
    });
    let node = Node::start_with(NodeSpec { conflist: Some(conflist), ..NodeSpec::new(Subject::Weft) });
    node.run_pod(&PodSpec::new("a"));
    let Err(why) = node.try_run_pod(&PodSpec::new("b")) else {
        panic!("one address is not enough for two pods")
    };
    assert!(why.contains("network small has no free IPv4 address: 1 of 1 are leased"), "{why}");
    node.finish();
}

/// Nobody calls weft after a plugin behind it; its shim looks before anything of the pod runs.
#[test]
fn a_mac_address_that_tuning_sets_behind_weft_is_the_pods() {
    let mut conflist = weft_conflist();
    let tuning = json!({ "type": "tuning", "mac": "02:00:00:00:00:42" });
    conflist["plugins"].as_array_mut().expect("a list of plugins").push(tuning);
    let node = Node::start_with(NodeSpec { conflist: Some(conflist), ..NodeSpec::new(Subject::Weft) });
    let (a, b) = (node.run_pod(&PodSpec::new("a")), node.run_pod(&PodSpec::new("b")));
    let links = run(a.command("ip").args(["link", "show", "eth0"]));
    assert!(links.contains("02:00:00:00:00:42"), "{links}");
    for address in [b.ipv4().to_string(), b.ipv6().to_string()] {
        run(a.command("ping").args(["-n", "-c", "1", "-W", "2", &address]));
    }
    node.finish();
}
