//! The floor that `make bench` measures the CNI plugin by: a whole attach of a dual-stack pod by rtnetlink on tokio's runtime of one thread, as
//! most people would write it, with no lease, no record and no eBPF. `floor NAMESPACE` attaches that one and says nothing; the pair goes
//! with the namespace. `attach.rs` does the same through this crate.

use std::error::Error;
use std::net::{IpAddr, Ipv4Addr, Ipv6Addr};
use std::os::fd::{AsFd, AsRawFd};

use netlink_packet_core::{
    NLM_F_ACK, NLM_F_CREATE, NLM_F_EXCL, NLM_F_REQUEST, NetlinkMessage, NetlinkPayload,
};
use netlink_packet_route::RouteNetlinkMessage;
use netlink_packet_route::link::{
    AfSpecInet6, AfSpecUnspec, In6AddrGenMode, InfoData, InfoKind, InfoVeth, LinkAttribute, LinkMessage,
};
use netlink_packet_route::route::{RouteMessage, RouteScope};
use rtnetlink::{Handle, LinkMessageBuilder, LinkUnspec, RouteMessageBuilder, new_connection};
use weft_netns::NetNs;

type Done = Result<(), Box<dyn Error + Send + Sync>>;

const HOST_MAC: [u8; 6] = [6, 0, 0, 0, 0, 1];
const POD_MAC: [u8; 6] = [2, 0, 0, 0, 0, 1];
const PODS: [IpAddr; 2] =
    [IpAddr::V4(Ipv4Addr::new(10, 1, 0, 2)), IpAddr::V6(Ipv6Addr::new(0xfd00, 1, 0, 0, 0, 0, 0, 2))];
const GATEWAYS: [IpAddr; 2] =
    [IpAddr::V4(Ipv4Addr::new(169, 254, 1, 1)), IpAddr::V6(Ipv6Addr::new(0xfe80, 0, 0, 0, 0, 0, 0, 1))];

fn main() -> Done {
    let path = std::env::args().nth(1).ok_or("which namespace?")?;
    let runtime = tokio::runtime::Builder::new_current_thread().enable_io().build()?;
    let pod = NetNs::open(path.as_ref())?;
    runtime.block_on(attach(&pod))
}

async fn attach(pod: &NetNs) -> Done {
    let outside = open()?;
    let runtime = tokio::runtime::Handle::current();
    let inside = pod.run(|| {
        let _runtime = runtime.enter();
        open()
    })??;
    let name = format!("veth{}", std::process::id());
    create(&outside, pod, &name).await?;
    let index = index_of(&outside, &name).await?;
    set_up_silent(&outside, index).await?;
    for address in PODS {
        neighbour(&outside, index, address, POD_MAC).await?;
        route(&outside, on_link(address, index)).await?;
    }
    let index = index_of(&inside, "eth0").await?;
    inside.link().set(LinkUnspec::new_with_index(1).up().build()).execute().await?;
    set_up_silent(&inside, index).await?;
    for (address, gateway) in PODS.into_iter().zip(GATEWAYS) {
        inside.address().add(index, address, if address.is_ipv4() { 32 } else { 128 }).execute().await?;
        neighbour(&inside, index, gateway, HOST_MAC).await?;
        route(&inside, on_link(gateway, index)).await?;
        route(&inside, default(gateway, index)).await?;
    }
    Ok(())
}

fn open() -> std::io::Result<Handle> {
    let (connection, handle, _) = new_connection()?;
    tokio::spawn(connection);
    Ok(handle)
}

/// In one message: rtnetlink's own pair is moved into the namespace afterwards, which the kernel waits for.
async fn create(outside: &Handle, pod: &NetNs, name: &str) -> Done {
    let end = |name: &str, mac: [u8; 6]| {
        LinkMessageBuilder::<LinkUnspec>::new()
            .name(name)
            .mtu(1500)
            .address(mac.to_vec())
            .append_extra_attribute(LinkAttribute::NumTxQueues(1))
            .append_extra_attribute(LinkAttribute::NumRxQueues(1))
    };
    let peer = end("eth0", POD_MAC).setns_by_fd(pod.as_fd().as_raw_fd()).build();
    let mut message: LinkMessage = end(name, HOST_MAC).build();
    message.attributes.push(LinkAttribute::LinkInfo(vec![
        netlink_packet_route::link::LinkInfo::Kind(InfoKind::Veth),
        netlink_packet_route::link::LinkInfo::Data(InfoData::Veth(InfoVeth::Peer(peer))),
    ]));
    let mut request = NetlinkMessage::from(RouteNetlinkMessage::NewLink(message));
    request.header.flags = NLM_F_REQUEST | NLM_F_ACK | NLM_F_CREATE | NLM_F_EXCL;
    let mut answers = outside.clone().request(request)?;
    while let Some(answer) = futures_util::StreamExt::next(&mut answers).await {
        if let NetlinkPayload::Error(refusal) = answer.payload {
            return Err(refusal.to_io().into());
        }
    }
    Ok(())
}

async fn index_of(handle: &Handle, name: &str) -> Result<u32, Box<dyn Error + Send + Sync>> {
    let mut found = handle.link().get().match_name(name.to_owned()).execute();
    let link = futures_util::TryStreamExt::try_next(&mut found).await?;
    Ok(link.ok_or("the link is gone")?.header.index)
}

async fn set_up_silent(handle: &Handle, index: u32) -> Done {
    let silent = AfSpecUnspec::Inet6(vec![AfSpecInet6::AddrGenMode(In6AddrGenMode::None)]);
    let message =
        LinkUnspec::new_with_index(index).append_extra_attribute(LinkAttribute::AfSpecUnspec(vec![silent]));
    handle.link().set(message.build()).execute().await?;
    Ok(handle.link().set(LinkUnspec::new_with_index(index).up().build()).execute().await?)
}

async fn neighbour(handle: &Handle, index: u32, address: IpAddr, mac: [u8; 6]) -> Done {
    Ok(handle.neighbours().add(index, address).link_layer_address(&mac).replace().execute().await?)
}

async fn route(handle: &Handle, route: RouteMessage) -> Done {
    Ok(handle.route().add(route).replace().execute().await?)
}

fn on_link(to: IpAddr, index: u32) -> RouteMessage {
    match to {
        IpAddr::V4(to) => RouteMessageBuilder::<Ipv4Addr>::new()
            .destination_prefix(to, 32)
            .scope(RouteScope::Link)
            .output_interface(index)
            .build(),
        IpAddr::V6(to) => {
            RouteMessageBuilder::<Ipv6Addr>::new().destination_prefix(to, 128).output_interface(index).build()
        }
    }
}

fn default(via: IpAddr, index: u32) -> RouteMessage {
    match via {
        IpAddr::V4(via) => {
            RouteMessageBuilder::<Ipv4Addr>::new().gateway(via).output_interface(index).build()
        }
        IpAddr::V6(via) => {
            RouteMessageBuilder::<Ipv6Addr>::new().gateway(via).output_interface(index).build()
        }
    }
}
