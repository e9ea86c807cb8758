//! The socket: what it says when the kernel's answer is not what was hoped for.

#![expect(clippy::unwrap_used, reason = "a test that cannot go on panics")]

mod common;

use std::error::Error as _;
use std::ffi::OsStr;
use std::os::unix::ffi::OsStrExt;
use std::pin::pin;
use std::process::Command;
use std::sync::mpsc;
use std::task::{Context, Waker};
use std::time::Duration;

use common::{block_on, ip};
use futures_util::future::join_all;
use weft_netns::{Error, NetNs, Netlink};

#[test]
fn an_answer_that_cannot_be_read_is_an_error_and_no_endless_wait() {
    let (done, answer) = mpsc::channel();
    std::thread::spawn(move || {
        let host = NetNs::create().unwrap();
        let name = OsStr::from_bytes(b"not-utf8-\xff");
        let add = || {
            let mut command = Command::new("ip");
            command.args(["link", "add"]).arg(name).args(["type", "veth", "peer", "name", "peer"]);
            command.status().unwrap()
        };
        assert!(host.run(add).unwrap().success());
        let found = block_on(async {
            let netlink = Netlink::open_in(&host).unwrap();
            let peer = netlink.link(&"peer".parse().unwrap()).await.unwrap().unwrap();
            let found = netlink.link_by_index(peer.peer_index.unwrap()).await;
            assert!(netlink.link_by_index(1).await.unwrap().is_some(), "the socket is still good");
            found
        });
        done.send(found).unwrap();
    });
    let err = answer.recv_timeout(Duration::from_secs(10)).unwrap().unwrap_err();
    assert_eq!(err.source().unwrap().to_string(), "unreadable answer");
}

#[test]
fn a_request_whose_runtime_ends_is_not_taken_for_done() {
    let host = NetNs::create().unwrap();
    let runtime = tokio::runtime::Builder::new_current_thread().enable_io().build().unwrap();
    let netlink = runtime.block_on(async { Netlink::open_in(&host).unwrap() });
    let mut request = pin!(netlink.set_up(1));
    assert!(request.as_mut().poll(&mut Context::from_waker(Waker::noop())).is_pending());
    drop(runtime);
    block_on(request).unwrap_err();
    block_on(netlink.set_up(1)).unwrap_err();
}

#[test]
fn a_socket_needs_a_runtime() {
    let host = NetNs::create().unwrap();
    assert!(matches!(Netlink::open_in(&host), Err(Error::Socket(_))));
}

#[test]
fn a_list_that_ends_in_an_error_is_an_error() {
    let host = NetNs::create().unwrap();
    let err = block_on(async { Netlink::open_in(&host).unwrap().addresses(4711).await }).unwrap_err();
    assert_eq!(
        (err.errno(), err.to_string().as_str()),
        (Some(nix::libc::ENODEV), "list addresses of link 4711")
    );
}

#[test]
fn requests_overlap_and_each_gets_its_own_answer() {
    let host = NetNs::create().unwrap();
    block_on(async {
        let netlink = Netlink::open_in(&host).unwrap();
        let addresses: Vec<_> = (0..200).map(|last| [10, 9, 0, last].into()).collect();
        let adding = join_all(addresses.iter().map(|address| netlink.add_address(1, *address, 32))).await;
        adding.into_iter().for_each(Result::unwrap);
        let asking = join_all((0..50).map(|index| netlink.link_by_index(index % 2 + 1))).await;
        for (index, link) in asking.into_iter().enumerate() {
            assert_eq!(link.unwrap().is_some(), index % 2 == 0, "only lo is there");
        }
        let mut listed = netlink.addresses(1).await.unwrap();
        listed.sort_unstable();
        assert_eq!(listed, addresses.iter().map(|address| (*address, 32)).collect::<Vec<_>>());
    });
    assert_eq!(ip(&host, "addr show lo")[0]["addr_info"].as_array().unwrap().len(), 200);
}
