//! `weft.network.v1.PodNetwork` over ttrpc: from `weft serve` for the node, from a shim for its own pod.

use std::os::fd::OwnedFd;
use std::os::unix::fs::PermissionsExt;
use std::os::unix::net::UnixListener;
use std::path::Path;
use std::process::{Child, Command, Stdio};

use crate::common::{Node, conf, wait_until};
use nix::sys::signal::{Signal, kill};
use nix::unistd::Pid;
use ttrpc::Code;
use ttrpc::asynchronous::{Client, ClientStreamReceiver};
use ttrpc::context::with_duration;
use weft_shim::api::network::watch_response::Kind;
use weft_shim::api::network::{DataPath, ListRequest, State, StatusRequest, WatchRequest, WatchResponse};
use weft_shim::api::network_ttrpc::PodNetworkClient;

pub(crate) fn block_on<T>(future: impl Future<Output = T>) -> T {
    tokio::runtime::Builder::new_current_thread().enable_all().build().unwrap().block_on(future)
}

pub(crate) async fn connect(socket: &Path) -> PodNetworkClient {
    PodNetworkClient::new(Client::connect(&format!("unix://{}", socket.display())).await.unwrap())
}

pub(crate) fn soon() -> ttrpc::context::Context {
    with_duration(std::time::Duration::from_secs(10) * crate::common::slowness())
}

/// A watch: what happened, and to which container.
pub(crate) struct Watch(ClientStreamReceiver<WatchResponse>);

impl Watch {
    pub(crate) async fn start(client: &PodNetworkClient) -> Watch {
        Watch::start_for(client, soon()).await
    }

    /// One with a deadline of its own.
    pub(crate) async fn start_for(client: &PodNetworkClient, context: ttrpc::context::Context) -> Watch {
        Watch(client.watch(context, &WatchRequest::new()).await.unwrap())
    }

    pub(crate) async fn next(&mut self) -> (Kind, String) {
        self.try_next().await.unwrap().unwrap()
    }

    /// The next event; `None`, or an error, at the end.
    pub(crate) async fn try_next(&mut self) -> ttrpc::Result<Option<(Kind, String)>> {
        let event = self.0.recv().await?;
        Ok(event.map(|event| (event.kind.unwrap(), event.attachment.container_id.clone())))
    }

    /// These containers are there, and nothing else.
    pub(crate) async fn must_begin_with(&mut self, containers: &[&str]) {
        for container in containers {
            assert_eq!(self.next().await, (Kind::PRESENT, (*container).into()));
        }
        assert_eq!(self.next().await, (Kind::SYNCED, String::new()));
    }

    /// All that is told until the watch ends, and how it ends.
    pub(crate) async fn rest(&mut self) -> (Vec<(Kind, String)>, ttrpc::Result<()>) {
        let mut told = Vec::new();
        loop {
            match self.try_next().await {
                Ok(Some(event)) => told.push(event),
                Ok(None) => return (told, Ok(())),
                Err(err) => return (told, Err(err)),
            }
        }
    }
}

pub(crate) fn code<T: std::fmt::Debug>(answer: ttrpc::Result<T>) -> (Code, String) {
    match answer.unwrap_err() {
        ttrpc::Error::RpcStatus(status) => (status.code(), status.message().to_owned()),
        err => panic!("no status: {err}"),
    }
}

fn status_of(container_id: &str) -> StatusRequest {
    StatusRequest { container_id: container_id.into(), ..Default::default() }
}

pub(crate) fn spawn(node: &Node, command: &mut Command) -> Child {
    node.host.run(|| command.spawn().unwrap()).unwrap()
}

pub(crate) fn end(mut process: Child, signal: Signal) {
    kill(Pid::from_raw(i32::try_from(process.id()).unwrap()), signal).unwrap();
    process.wait().unwrap();
}

#[test]
fn the_node_answers_for_all_pods() {
    let node = Node::new();
    let added = node.add("a").json;
    node.add("b");
    let socket = node.run_dir().join("weft.sock");
    let serve = spawn(&node, node.command(env!("CARGO_BIN_EXE_weft")).arg("serve"));
    wait_until("weft serves", || socket.exists());
    assert_eq!(std::fs::metadata(&socket).unwrap().permissions().mode() & 0o777, 0o600);
    block_on(async {
        let client = connect(&socket).await;
        let all = client.list(soon(), &ListRequest::new()).await.unwrap().attachments;
        assert_eq!(all.iter().map(|one| one.container_id.as_str()).collect::<Vec<_>>(), ["a", "b"]);
        let one = client.status(soon(), &status_of("a")).await.unwrap().attachment.unwrap();
        assert_eq!(one, all[0]);
        assert_eq!((one.interface.as_str(), one.network.as_str(), one.mtu), ("eth0", "test", 1450));
        assert_eq!(one.addresses, ["10.88.0.2", "fd00:88::2"]);
        assert_eq!((one.state.unwrap(), one.data_path.unwrap()), (State::ATTACHED, DataPath::REDIRECT));
        assert_eq!(
            (one.host_link.as_str(), one.mac.as_str()),
            (
                added["interfaces"][0]["name"].as_str().unwrap(),
                added["interfaces"][1]["mac"].as_str().unwrap(),
            )
        );
        let identity = node.pod_ns("a").identity();
        assert_eq!((one.netns_device, one.netns_inode), (identity.dev, identity.inode));
        let (found, why) = code(client.status(soon(), &status_of("c")).await);
        assert_eq!((found, why.as_str()), (Code::NOT_FOUND, "interface eth0 of container c is not attached"));
        assert_eq!(code(client.status(soon(), &status_of("")).await).0, Code::INVALID_ARGUMENT);
    });
    end(serve, Signal::SIGTERM);
    assert!(!socket.exists(), "the socket goes with the server");
    for pod in ["a", "b"] {
        assert!(node.cni("DEL", pod, &conf()).status.success());
    }
    node.assert_empty();
}

#[test]
fn a_left_over_socket_is_replaced_and_a_live_one_is_not() {
    let node = Node::new();
    node.add("a");
    let socket = node.run_dir().join("weft.sock");
    let first = spawn(&node, node.command(env!("CARGO_BIN_EXE_weft")).arg("serve"));
    wait_until("weft serves", || socket.exists());
    let second = node.run(node.command(env!("CARGO_BIN_EXE_weft")).arg("serve"), "");
    assert!(!second.status.success());
    let why = String::from_utf8_lossy(&second.stderr).into_owned();
    assert!(why.starts_with("weft: serve on ") && why.contains("address in use"), "{why}");
    end(first, Signal::SIGKILL);
    assert!(socket.exists(), "left over");
    let third = spawn(&node, node.command(env!("CARGO_BIN_EXE_weft")).arg("serve"));
    wait_until("it is replaced", || std::os::unix::net::UnixStream::connect(&socket).is_ok());
    end(third, Signal::SIGTERM);
    node.cni("DEL", "a", &conf());
    node.assert_empty();
}

#[test]
fn a_shim_answers_for_its_own_pod_only() {
    let node = Node::new();
    for pod in ["a", "b"] {
        node.add(pod);
    }
    let socket = node.dir.path().join("shim.sock");
    let listener = UnixListener::bind(&socket).unwrap();
    let mut command = node.command(env!("CARGO_BIN_EXE_containerd-shim-weft-v1"));
    command.args(["-namespace", "k8s.io", "-id", "a", "-address", "/nowhere"]).current_dir(node.dir.path());
    let shim = spawn(&node, command.stdin(Stdio::from(OwnedFd::from(listener))));
    block_on(async {
        let client = connect(&socket).await;
        let own = client.list(soon(), &ListRequest::new()).await.unwrap().attachments;
        assert_eq!(own.iter().map(|one| one.container_id.as_str()).collect::<Vec<_>>(), ["a"]);
        assert_eq!(client.status(soon(), &status_of("a")).await.unwrap().attachment.unwrap(), own[0]);
        assert_eq!(code(client.status(soon(), &status_of("b")).await).0, Code::NOT_FOUND);
    });
    end(shim, Signal::SIGKILL);
    for pod in ["a", "b"] {
        node.cni("DEL", pod, &conf());
    }
    node.assert_empty();
}
