//! The socket: what it says when the kernel's answer is not what was hoped for, and that of several answers each is somebody's.

#![expect(clippy::unwrap_used, reason = "a test that cannot go on panics")]

mod common;

use std::error::Error as _;
use std::ffi::OsStr;
use std::net::IpAddr;
use std::os::unix::ffi::OsStrExt;
use std::process::Command;
use std::thread;

use common::ip;
use weft_netns::{NetNs, Netlink};

#[test]
fn an_answer_that_cannot_be_read_is_an_error_and_the_next_one_is_the_next_requests() {
    let host = NetNs::create().unwrap();
    let name = OsStr::from_bytes(b"not-utf8-\xff");
    let add = || {
        let mut command = Command::new("ip");
        command.args(["link", "add"]).arg(name).args(["type", "veth", "peer", "name", "peer"]);
        command.status().unwrap()
    };
    assert!(host.run(add).unwrap().success());
    let netlink = Netlink::open_in(&host).unwrap();
    let peer = netlink.link(&"peer".parse().unwrap()).unwrap().unwrap();
    let err = netlink.link_by_index(peer.peer_index.unwrap()).unwrap_err();
    assert_eq!(err.source().unwrap().to_string(), "unreadable answer");
    assert_eq!(netlink.link_by_index(1).unwrap().unwrap().name, "lo", "the socket is still good");
    let veths = netlink.veths().unwrap();
    assert_eq!(veths.iter().map(|link| link.index).collect::<Vec<_>>(), [peer.index], "left out of a list");
}

#[test]
fn a_socket_is_in_its_namespace_and_the_thread_that_opened_it_is_not() {
    let own = || std::fs::read_link("/proc/thread-self/ns/net").unwrap();
    let (before, host) = (own(), NetNs::create().unwrap());
    ip(&host, "link add only-here type bridge");
    let netlink = Netlink::open_in(&host).unwrap();
    assert_eq!(own(), before);
    assert!(netlink.link(&"only-here".parse().unwrap()).unwrap().is_some());
    assert_eq!(Netlink::open().unwrap().link(&"only-here".parse().unwrap()).unwrap(), None);
}

#[test]
fn a_list_that_ends_in_an_error_is_an_error() {
    let host = NetNs::create().unwrap();
    let netlink = Netlink::open_in(&host).unwrap();
    let err = netlink.addresses(4711).unwrap_err();
    assert_eq!(
        (err.errno(), err.to_string().as_str()),
        (Some(nix::libc::ENODEV), "list addresses of link 4711")
    );
    assert_eq!(netlink.addresses(1).unwrap(), [], "the socket is still good");
}

#[test]
fn a_list_of_many_datagrams_is_whole() {
    let host = NetNs::create().unwrap();
    let netlink = Netlink::open_in(&host).unwrap();
    let addresses: Vec<IpAddr> =
        (0..2000_u16).map(|at| [10, 9, at.to_be_bytes()[0], at.to_be_bytes()[1]].into()).collect();
    for address in &addresses {
        netlink.add_address(1, *address, 32).unwrap();
    }
    let mut listed = netlink.addresses(1).unwrap();
    listed.sort_unstable();
    assert_eq!(listed, addresses.iter().map(|address| (*address, 32)).collect::<Vec<_>>());
    assert_eq!(ip(&host, "addr show lo")[0]["addr_info"].as_array().unwrap().len(), 2000);
}

#[test]
fn threads_share_a_socket_and_each_gets_its_own_answers() {
    let host = NetNs::create().unwrap();
    let netlink = Netlink::open_in(&host).unwrap();
    thread::scope(|scope| {
        for number in 0..4_u8 {
            let netlink = &netlink;
            scope.spawn(move || {
                for last in 0..50 {
                    netlink.add_address(1, [10, 9, number, last].into(), 32).unwrap();
                    let index = u32::from(last % 2 + 1);
                    assert_eq!(
                        netlink.link_by_index(index).unwrap().is_some(),
                        index == 1,
                        "only lo is there"
                    );
                    let own = netlink.addresses(1).unwrap();
                    let own = own.iter().filter(|(address, _)| {
                        matches!(address, IpAddr::V4(address) if address.octets()[2] == number)
                    });
                    assert_eq!(own.count(), usize::from(last) + 1);
                }
            });
        }
    });
    assert_eq!(ip(&host, "addr show lo")[0]["addr_info"].as_array().unwrap().len(), 200);
}
