//! `weft.network.v1` without CNI: pods attached, looked at, watched and detached over ttrpc alone.

use std::io::Read;
use std::os::unix::fs::PermissionsExt;
use std::os::unix::net::UnixStream;
use std::process::{Child, Stdio};
use std::time::Duration;

use crate::common::{Node, conf, pings, wait_until};
use crate::network::{Watch, block_on, code, connect, end, soon, spawn};
use nix::sys::signal::Signal;
use serde_json::Value;
use ttrpc::Code;
use ttrpc::context::with_duration;
use weft_shim::api::network::watch_response::Kind;
use weft_shim::api::network::{
    AttachRequest, CheckRequest, DetachRequest, Filter, ListRequest, NodeStatusRequest, Range, State,
    StatsRequest, StatusRequest,
};
use weft_shim::api::network_ttrpc::PodNetworkClient;

/// `weft serve`, ended when dropped.
pub(crate) struct Serve(Option<Child>);

impl Serve {
    pub(crate) fn start(node: &Node, args: &[&str]) -> Serve {
        let mut command = node.command(env!("CARGO_BIN_EXE_weft"));
        let process = spawn(node, command.arg("serve").args(args));
        let socket = node.run_dir().join("weft.sock");
        wait_until("weft serves", || UnixStream::connect(&socket).is_ok());
        Serve(Some(process))
    }
}

impl Drop for Serve {
    fn drop(&mut self) {
        end(self.0.take().unwrap(), Signal::SIGTERM);
    }
}

pub(crate) async fn client(node: &Node) -> PodNetworkClient {
    connect(&node.run_dir().join("weft.sock")).await
}

pub(crate) fn range(subnet: &str) -> Range {
    Range { subnet: subnet.into(), ..Default::default() }
}

pub(crate) fn attach(node: &Node, name: &str, app: &str) -> AttachRequest {
    AttachRequest {
        container_id: name.into(),
        netns_path: node.pod(name).to_str().unwrap().into(),
        network: "test".into(),
        ranges: vec![range("10.88.0.0/24"), range("fd00:88::/64")],
        mtu: 1450,
        pod_namespace: "default".into(),
        pod_name: format!("{name}-pod"),
        labels: [("app".to_owned(), app.to_owned())].into(),
        ..Default::default()
    }
}

pub(crate) fn detach(name: &str) -> DetachRequest {
    DetachRequest { container_id: name.into(), ..Default::default() }
}

#[test]
fn a_client_runs_pods_networks_without_cni() {
    let node = Node::new();
    let _serve = Serve::start(&node, &[]);
    block_on(async {
        let client = client(&node).await;
        let (a, b) = (attach(&node, "a", "web"), attach(&node, "b", "db"));
        let made = client.attach(soon(), &a).await.unwrap().attachment.unwrap();
        assert_eq!(made.addresses, ["10.88.0.2", "fd00:88::2"]);
        assert_eq!((made.state.unwrap(), made.mtu), (State::ATTACHED, 1450));
        assert_eq!(made.labels["app"], "web");
        assert_eq!(client.attach(soon(), &a).await.unwrap().attachment.unwrap(), made, "again");
        client.attach(soon(), &b).await.unwrap();
        for address in ["10.88.0.3", "fd00:88::3"] {
            assert!(pings(&node.pod_ns("a"), address), "a to b at {address}");
        }
        let inside = node.ip_in_pod("a", &["addr", "show", "eth0"])[0].clone();
        assert_eq!((&inside["address"], &inside["mtu"]), (&Value::from(made.mac), &1450.into()));
        let check = CheckRequest { container_id: "a".into(), ..Default::default() };
        assert_eq!(client.check(soon(), &check).await.unwrap().deviations, [""; 0]);
        node.ip(&["-6", "route", "del", "fd00:88::2"]);
        let deviations = client.check(soon(), &check).await.unwrap().deviations;
        assert_eq!(deviations, ["route to fd00:88::2 on the host is missing"]);
        for request in [detach("a"), detach("a"), detach("b"), detach("nobody")] {
            client.detach(soon(), &request).await.unwrap();
        }
    });
    for pod in ["a", "b"] {
        assert_eq!(node.ip_in_pod(pod, &["link", "show"]).as_array().unwrap().len(), 1, "only lo in {pod}");
    }
    node.assert_empty();
}

#[test]
fn pages_and_filters_tell_each_attachment_once() {
    let node = Node::new();
    let _serve = Serve::start(&node, &[]);
    block_on(async {
        let client = client(&node).await;
        for (pod, app) in [("a", "web"), ("b", "db"), ("c", "web"), ("d", "web")] {
            client.attach(soon(), &attach(&node, pod, app)).await.unwrap();
        }
        let filter = Filter { labels: [("app".to_owned(), "web".to_owned())].into(), ..Default::default() };
        let mut request = ListRequest { filter: Some(filter).into(), page_size: 2, ..Default::default() };
        let first = client.list(soon(), &request).await.unwrap();
        request.page_token = first.next_page_token.clone();
        let second = client.list(soon(), &request).await.unwrap();
        let names = |page: &weft_shim::api::network::ListResponse| {
            page.attachments.iter().map(|one| one.container_id.clone()).collect::<Vec<_>>()
        };
        assert_eq!((names(&first), names(&second)), (vec!["a".into(), "c".into()], vec!["d".to_owned()]));
        assert_eq!(second.next_page_token, "");
        let of = |filter: Filter| ListRequest { filter: Some(filter).into(), ..Default::default() };
        for (filter, count) in [
            (Filter { pod_name: "b-pod".into(), ..Default::default() }, 1),
            (Filter { pod_namespace: "default".into(), ..Default::default() }, 4),
            (Filter { network: "other".into(), ..Default::default() }, 0),
        ] {
            assert_eq!(client.list(soon(), &of(filter)).await.unwrap().attachments.len(), count);
        }
        request.page_token = "nonsense".into();
        assert_eq!(code(client.list(soon(), &request).await).0, Code::INVALID_ARGUMENT);
        let labelled = node.weft(&["pods", "--label", "app=db", "-o", "json"]);
        assert_eq!(labelled[0]["pod"]["labels"]["app"], "db");
        for pod in ["a", "b", "c", "d"] {
            client.detach(soon(), &detach(pod)).await.unwrap();
        }
    });
    node.assert_empty();
}

/// Whoever changes something, here the CNI plugin in processes of its own.
#[test]
fn a_watch_tells_what_other_processes_change() {
    let node = Node::new();
    node.add("a");
    let _serve = Serve::start(&node, &[]);
    block_on(async {
        let client = client(&node).await;
        let mut watch = Watch::start(&client).await;
        watch.must_begin_with(&["a"]).await;
        for turn in 0..20 {
            node.add("b");
            assert_eq!(watch.next().await, (Kind::ATTACHED, "b".into()), "{turn}");
            assert!(node.cni("DEL", "b", &conf()).status.success());
            assert_eq!(watch.next().await, (Kind::DETACHED, "b".into()), "{turn}");
            node.remove_pod("b");
        }
        assert!(node.cni("DEL", "a", &conf()).status.success());
        assert_eq!(watch.next().await, (Kind::DETACHED, "a".into()));
    });
    node.assert_empty();
}

#[test]
fn a_watch_misses_nothing_of_many_at_once() {
    let node = Node::new();
    let _serve = Serve::start(&node, &[]);
    let names: Vec<String> = (0..16).map(|n| format!("p{n}")).collect();
    let pods: Vec<_> = names.iter().map(|name| (name, node.pod(name))).collect();
    let input = node.dir.path().join("conf");
    std::fs::write(&input, conf().to_string()).unwrap();
    let all_at_once = |verb: &str| {
        let call = |(name, netns): &(&String, std::path::PathBuf)| {
            let mut command = node.command(env!("CARGO_BIN_EXE_weft-cni"));
            command.env("CNI_COMMAND", verb).env("CNI_CONTAINERID", name).env("CNI_IFNAME", "eth0");
            command.env("CNI_NETNS", netns).env("CNI_PATH", "/").stdout(Stdio::null());
            spawn(&node, command.stdin(std::fs::File::open(&input).unwrap()))
        };
        let children: Vec<Child> = pods.iter().map(call).collect();
        children.into_iter().for_each(|mut child| assert!(child.wait().unwrap().success(), "{verb}"));
    };
    block_on(async {
        let client = client(&node).await;
        let mut watch = Watch::start(&client).await;
        watch.must_begin_with(&[]).await;
        for (verb, wanted) in [("ADD", Kind::ATTACHED), ("DEL", Kind::DETACHED)] {
            all_at_once(verb);
            let mut told = Vec::new();
            while told.len() < names.len() {
                let (kind, container) = watch.next().await;
                assert_eq!(kind, wanted);
                told.push(container);
            }
            told.sort();
            let mut wanted = names.clone();
            wanted.sort();
            assert_eq!(told, wanted, "{verb}: each once");
        }
    });
    node.assert_empty();
}

/// The node has 128 for all of root's programs.
#[test]
fn all_watches_share_one_inotify_instance() {
    let node = Node::new();
    let serve = Serve::start(&node, &[]);
    let descriptors = || {
        let files = std::fs::read_dir(format!("/proc/{}/fd", serve.0.as_ref().unwrap().id())).unwrap();
        let is_inotify = |file: &std::io::Result<std::fs::DirEntry>| {
            std::fs::read_link(file.as_ref().unwrap().path())
                .is_ok_and(|target| target.to_string_lossy() == "anon_inode:inotify")
        };
        files.filter(is_inotify).count()
    };
    block_on(async {
        let mut open = Vec::new();
        for _ in 0..150 {
            let client = client(&node).await;
            let mut watch = Watch::start(&client).await;
            watch.must_begin_with(&[]).await;
            open.push((client, watch));
        }
        assert_eq!(descriptors(), 2, "one, and the same for the event loop");
        node.add("a");
        for (_, watch) in &mut open {
            assert_eq!(watch.next().await, (Kind::ATTACHED, "a".into()));
        }
        node.weft(&["cleanup"]);
        for (_, watch) in &mut open {
            let (told, _) = watch.rest().await;
            // The store goes at once with the pod: not every watch has seen it without.
            assert!(told.iter().all(|event| *event == (Kind::DETACHED, "a".into())), "{told:?}");
        }
    });
    wait_until("nobody watches", || descriptors() == 0);
    assert!(!node.run_dir().join("store").exists(), "nobody has made it anew");
    assert!(node.run_dir().join("weft.sock").exists(), "the server that runs has its socket");
}

#[test]
fn a_deadline_ends_a_call_and_nothing_is_left_half_made() {
    let node = Node::new();
    let _serve = Serve::start(&node, &[]);
    block_on(async {
        let client = client(&node).await;
        let request = attach(&node, "a", "web");
        let at_once = || with_duration(Duration::from_nanos(1));
        let late = client.attach(at_once(), &request).await.unwrap_err();
        assert!(late.to_string().contains("deadline"), "{late}");
        let made = client.attach(soon(), &request).await.unwrap().attachment.unwrap();
        assert_eq!((made.state.unwrap(), made.addresses.len()), (State::ATTACHED, 2));
        let short = with_duration(Duration::from_millis(300));
        let (_, ended) = Watch::start_for(&client, short).await.rest().await;
        assert!(ended.is_err(), "{ended:?}");
        client.detach(soon(), &detach("a")).await.unwrap();
    });
    node.assert_empty();
}

#[test]
fn counters_are_those_that_the_kernel_shows() {
    let node = Node::new();
    for pod in ["a", "b"] {
        node.add(pod);
    }
    let _serve = Serve::start(&node, &[]);
    for _ in 0..3 {
        assert!(pings(&node.pod_ns("a"), "192.0.2.10"), "through the stack");
        assert!(pings(&node.pod_ns("a"), "10.88.0.3"), "by the fast path");
    }
    block_on(async {
        let client = client(&node).await;
        let filter = Filter { container_id: "a".into(), ..Default::default() };
        let request = StatsRequest { filter: Some(filter).into(), ..Default::default() };
        let stats = client.stats(soon(), &request).await.unwrap().stats;
        assert_eq!(stats.len(), 1);
        let shown = node.ip_in_pod("a", &["-s", "link", "show", "eth0"])[0]["stats64"].clone();
        let (sent, received) = (stats[0].sent.as_ref().unwrap(), stats[0].received.as_ref().unwrap());
        for (told, shown) in [(sent, &shown["tx"]), (received, &shown["rx"])] {
            let (packets, bytes) = (shown["packets"].as_u64().unwrap(), shown["bytes"].as_u64().unwrap());
            // Between the two looks the links may have said a word of their own.
            assert!(told.packets <= packets && packets <= told.packets + 4, "{told:?} and {shown}");
            assert!(told.bytes <= bytes, "{told:?} and {shown}");
        }
        assert!(sent.packets >= 6 && received.packets >= 6, "both ways of each echo: {stats:?}");
        let status = client.node_status(soon(), &NodeStatusRequest::new()).await.unwrap();
        let counters = status.counters.as_ref().unwrap();
        assert_eq!(counters.redirected.packets, 6, "three echo requests and their replies");
        assert!(counters.passed.packets >= 3);
        assert_eq!((status.attached, status.attaching, status.data_path.as_str()), (2, 0, "redirect_peer"));
        let ranges: Vec<_> = status
            .ranges
            .iter()
            .map(|range| {
                (range.network.as_str(), range.first.as_str(), range.used.as_str(), range.free.as_str())
            })
            .collect();
        assert_eq!(ranges[0], ("test", "10.88.0.2", "2", "251"));
        assert_eq!((ranges[1].0, ranges[1].1, ranges[1].2), ("test", "fd00:88::2", "2"));
        assert_eq!(ranges[1].3.len(), 20, "a /64 has more addresses than 64 bits can tell: {ranges:?}");
    });
    for pod in ["a", "b"] {
        node.cni("DEL", pod, &conf());
    }
    node.assert_empty();
}

#[test]
fn what_cannot_be_attached_has_a_code_and_leaves_nothing() {
    let node = Node::new();
    let _serve = Serve::start(&node, &[]);
    block_on(async {
        let client = client(&node).await;
        let good = attach(&node, "a", "web");
        let small = vec![range("10.88.0.0/30")];
        let cases = [
            (AttachRequest { container_id: String::new(), ..good.clone() }, Code::INVALID_ARGUMENT, "empty"),
            (AttachRequest { interface: "eth/0".into(), ..good.clone() }, Code::INVALID_ARGUMENT, "eth/0"),
            (
                AttachRequest { netns_path: "/absent".into(), ..good.clone() },
                Code::INVALID_ARGUMENT,
                "/absent",
            ),
            (
                AttachRequest { netns_path: String::new(), ..good.clone() },
                Code::INVALID_ARGUMENT,
                "netns_path",
            ),
            (AttachRequest { network: String::new(), ..good.clone() }, Code::INVALID_ARGUMENT, "network"),
            (AttachRequest { ranges: vec![], ..good.clone() }, Code::INVALID_ARGUMENT, "no [network.test]"),
            (AttachRequest { ranges: vec![range("x")], ..good.clone() }, Code::INVALID_ARGUMENT, "\"x\""),
        ];
        for (request, wanted, text) in cases {
            let (found, why) = code(client.attach(soon(), &request).await);
            assert_eq!(found, wanted, "{why}");
            assert!(why.contains(text), "{text} in {why}");
            node.assert_empty();
        }
        let first = AttachRequest { ranges: small.clone(), ..attach(&node, "b", "web") };
        client.attach(soon(), &first).await.unwrap();
        let (found, why) = code(client.attach(soon(), &AttachRequest { ranges: small, ..good }).await);
        assert_eq!(found, Code::RESOURCE_EXHAUSTED, "{why}");
        client.detach(soon(), &detach("b")).await.unwrap();
    });
    node.assert_empty();
}

/// Even if somebody opens the socket's file to everyone.
#[test]
fn another_user_is_not_answered() {
    let node = Node::new();
    let mut command = node.command(env!("CARGO_BIN_EXE_weft"));
    let mut serve = spawn(&node, command.arg("serve").stderr(Stdio::piped()));
    let socket = node.run_dir().join("weft.sock");
    wait_until("weft serves", || UnixStream::connect(&socket).is_ok());
    for (path, mode) in
        [(node.dir.path().to_owned(), 0o755), (node.run_dir(), 0o755), (socket.clone(), 0o666)]
    {
        std::fs::set_permissions(&path, std::fs::Permissions::from_mode(mode)).unwrap();
    }
    let answers_as = |uid: i64| {
        let socket = socket.clone();
        let ask = move || {
            // SAFETY: the system call changes the user of this thread only, which ends here.
            let done = unsafe { nix::libc::syscall(nix::libc::SYS_setresuid, -1_i64, uid, -1_i64) };
            assert_eq!(done, 0);
            block_on(async {
                let client = connect(&socket).await;
                client.list(soon(), &ListRequest::new()).await.is_ok()
            })
        };
        std::thread::spawn(ask).join().unwrap()
    };
    assert!(answers_as(0));
    assert!(!answers_as(65534));
    let mut said = serve.stderr.take().unwrap();
    end(serve, Signal::SIGTERM);
    let mut text = String::new();
    said.read_to_string(&mut text).unwrap();
    assert_eq!(text, "weft: refuse a connection of user 65534\n");
}

#[test]
fn a_shim_checks_and_counts_its_own_pod_and_changes_nothing() {
    use std::os::fd::OwnedFd;
    let node = Node::new();
    for pod in ["a", "b"] {
        node.add(pod);
    }
    let socket = node.dir.path().join("shim.sock");
    let listener = std::os::unix::net::UnixListener::bind(&socket).unwrap();
    let mut command = node.command(env!("CARGO_BIN_EXE_containerd-shim-weft-v1"));
    command.args(["-namespace", "k8s.io", "-id", "a", "-address", "/nowhere"]).current_dir(node.dir.path());
    let shim = spawn(&node, command.stdin(std::process::Stdio::from(OwnedFd::from(listener))));
    block_on(async {
        let client = connect(&socket).await;
        let check = |id: &str| CheckRequest { container_id: id.into(), ..Default::default() };
        assert_eq!(client.check(soon(), &check("a")).await.unwrap().deviations, [""; 0]);
        assert_eq!(code(client.check(soon(), &check("b")).await).0, Code::NOT_FOUND);
        let stats = client.stats(soon(), &StatsRequest::new()).await.unwrap().stats;
        assert_eq!(stats.len(), 1);
        assert!(stats[0].sent.is_some(), "{stats:?}");
        let mut watch = Watch::start(&client).await;
        watch.must_begin_with(&["a"]).await;
        assert!(node.cni("DEL", "b", &conf()).status.success());
        assert!(node.cni("DEL", "a", &conf()).status.success());
        assert_eq!(watch.next().await, (Kind::DETACHED, "a".into()));
        let status = StatusRequest { container_id: "a".into(), ..Default::default() };
        assert_eq!(code(client.status(soon(), &status).await).0, Code::NOT_FOUND);
        assert_eq!(code(client.attach(soon(), &AttachRequest::new()).await).0, Code::UNIMPLEMENTED);
        assert_eq!(code(client.detach(soon(), &detach("a")).await).0, Code::UNIMPLEMENTED);
    });
    end(shim, Signal::SIGKILL);
    node.assert_empty();
}
