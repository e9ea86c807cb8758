//! The floor of an attach: a program that makes the links, addresses, routes and neighbours of a dual-stack pod, and nothing else.
//! `make bench` runs it as often as the CNI plugin. `floor NAMESPACE`; the pair goes with the namespace.

use std::net::{IpAddr, Ipv4Addr, Ipv6Addr};

use futures_util::future::try_join;
use weft_netns::{Error, Mac, NetNs, Netlink, Route, Veth};

const HOST_MAC: Mac = Mac::new([6, 0, 0, 0, 0, 2]);
const POD_MAC: Mac = Mac::new([2, 0, 0, 0, 0, 2]);
/// Each with its gateway, and any.
const FAMILIES: [[IpAddr; 3]; 2] = [
    [
        IpAddr::V4(Ipv4Addr::new(10, 99, 0, 2)),
        IpAddr::V4(Ipv4Addr::new(169, 254, 1, 1)),
        IpAddr::V4(Ipv4Addr::UNSPECIFIED),
    ],
    [
        IpAddr::V6(Ipv6Addr::new(0xfd00, 99, 0, 0, 0, 0, 0, 2)),
        IpAddr::V6(Ipv6Addr::new(0xfe80, 0, 0, 0, 0, 0, 0, 1)),
        IpAddr::V6(Ipv6Addr::UNSPECIFIED),
    ],
];

fn main() -> Result<(), Box<dyn std::error::Error>> {
    let path = std::env::args_os().nth(1).ok_or("want the path of a namespace")?;
    let runtime = tokio::runtime::Builder::new_current_thread().enable_io().build()?;
    Ok(runtime.block_on(attach(&NetNs::open(path.as_ref())?))?)
}

async fn attach(pod: &NetNs) -> Result<(), Error> {
    let (outside, inside) = (Netlink::open()?, Netlink::open_in(pod)?);
    let veth = Veth {
        // The kernel takes the pair of the namespace before a moment later.
        name: format!("floor{}", std::process::id()).parse()?,
        mac: HOST_MAC,
        mtu: 1500,
        peer_name: "eth0".parse()?,
        peer_mac: POD_MAC,
        peer_ns: pod,
    };
    let index = outside.create_veth(&veth).await?;
    try_join(host_end(&outside, index), pod_end(&inside)).await?;
    Ok(())
}

async fn host_end(outside: &Netlink, index: u32) -> Result<(), Error> {
    outside.set_up_silent(index).await?;
    for [pod, ..] in FAMILIES {
        outside.replace_neighbour(index, pod, POD_MAC).await?;
        outside.replace_route(&host_route(pod, None, index)).await?;
    }
    Ok(())
}

async fn pod_end(inside: &Netlink) -> Result<(), Error> {
    let link = inside.link(&"eth0".parse()?).await?;
    let index = link.ok_or_else(|| Error::AbsentLink("eth0".into()))?.index;
    inside.set_up(1).await?;
    for [pod, ..] in FAMILIES {
        inside.add_address(index, pod, bits(pod)).await?;
    }
    inside.set_up_silent(index).await?;
    for [_, gateway, any] in FAMILIES {
        inside.replace_neighbour(index, gateway, HOST_MAC).await?;
        inside.replace_route(&host_route(gateway, None, index)).await?;
        inside.replace_route(&Route { prefix: 0, ..host_route(any, Some(gateway), index) }).await?;
    }
    Ok(())
}

fn host_route(destination: IpAddr, via: Option<IpAddr>, index: u32) -> Route {
    Route { destination, prefix: bits(destination), via, index }
}

fn bits(address: IpAddr) -> u8 {
    if address.is_ipv4() { 32 } else { 128 }
}
