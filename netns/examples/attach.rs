//! What an attach costs: two sockets, a pair, and everything a dual-stack pod needs on both ends. Prints the median, the
//! 90th and the 99th percentile of each step, in microseconds. As root: `cargo run --release --example attach [ROUNDS]`.
//!
//! `attach NAMESPACE` attaches that one, says nothing, and is one of the floors that `make bench` measures the CNI plugin by: no lease, no
//! record, no eBPF. The pair goes with the namespace.
//!
//! Without one it makes its own namespaces: one plays the host, and each round has a new pod's. Making them is not counted, and none ends
//! before the last round, for the kernel takes its locks to take a namespace apart.

#![expect(clippy::print_stdout, reason = "that is what it is for")]

use std::net::{IpAddr, Ipv4Addr, Ipv6Addr};
use std::time::Instant;

use weft_netns::{Error, Mac, NetNs, Netlink, PacketSizes, Route, Veth};

const HOST_MAC: Mac = Mac::new([6, 0, 0, 0, 0, 1]);
const POD_MAC: Mac = Mac::new([2, 0, 0, 0, 0, 1]);
const PODS: [IpAddr; 2] =
    [IpAddr::V4(Ipv4Addr::new(10, 1, 0, 2)), IpAddr::V6(Ipv6Addr::new(0xfd00, 1, 0, 0, 0, 0, 0, 2))];
const GATEWAYS: [IpAddr; 2] =
    [IpAddr::V4(Ipv4Addr::new(169, 254, 1, 1)), IpAddr::V6(Ipv6Addr::new(0xfe80, 0, 0, 0, 0, 0, 0, 1))];
const ANY: [IpAddr; 2] = [IpAddr::V4(Ipv4Addr::UNSPECIFIED), IpAddr::V6(Ipv6Addr::UNSPECIFIED)];
const STEPS: [&str; 4] = ["sockets", "veth", "both ends", "whole"];

fn main() -> Result<(), Box<dyn std::error::Error>> {
    let argument = std::env::args().nth(1);
    if let Some(path) = argument.as_ref().filter(|text| text.starts_with('/')) {
        // A name of its own: the kernel takes the pair of the namespace before a moment later.
        attach(&NetNs::open(path.as_ref())?, std::process::id())?;
        return Ok(());
    }
    let rounds = argument.map_or(Ok(300), |text| text.parse())?;
    NetNs::create()?.join()?;
    let mut pods = Vec::new();
    let mut times = [const { Vec::new() }; STEPS.len()];
    for round in 0..rounds {
        let pod = NetNs::create()?;
        let taken = attach(&pod, round)?;
        pods.push(pod);
        for (step, micros) in times.iter_mut().zip(taken) {
            step.push(micros);
        }
    }
    for (name, mut step) in STEPS.into_iter().zip(times) {
        step.sort_unstable();
        let [median, p90, p99] = [50, 90, 99].map(|percent| step.get(step.len() * percent / 100));
        println!("{name:>10} {:>6} {:>6} {:>6} µs", micros(median), micros(p90), micros(p99));
    }
    Ok(())
}

fn micros(value: Option<&u128>) -> String {
    value.map_or("-".into(), u128::to_string)
}

fn attach(pod: &NetNs, round: u32) -> Result<[u128; STEPS.len()], Error> {
    let start = Instant::now();
    let (outside, inside) = (Netlink::open()?, Netlink::open_in(pod)?);
    let sockets = start.elapsed();
    let veth = Veth {
        name: format!("veth{round}").parse()?,
        mac: HOST_MAC,
        mtu: 1500,
        packets: PacketSizes::default(),
        peer_name: "eth0".parse()?,
        peer_mac: POD_MAC,
        peer_ns: pod,
    };
    let index = outside.create_veth(&veth)?;
    let made = start.elapsed();
    host_end(&outside, index)?;
    pod_end(&inside)?;
    let whole = start.elapsed();
    Ok([sockets, made - sockets, whole - made, whole].map(|step| step.as_micros()))
}

fn host_end(outside: &Netlink, index: u32) -> Result<(), Error> {
    outside.set_up_silent(index)?;
    for pod in PODS {
        outside.replace_neighbour(index, pod, POD_MAC)?;
        outside.replace_route(&on_link(pod, index))?;
    }
    Ok(())
}

fn pod_end(inside: &Netlink) -> Result<(), Error> {
    let link = inside.link(&"eth0".parse()?)?;
    let index = link.ok_or_else(|| Error::AbsentLink("eth0".into()))?.index;
    inside.set_up(1)?;
    inside.set_up_silent(index)?;
    for ((pod, gateway), any) in PODS.into_iter().zip(GATEWAYS).zip(ANY) {
        inside.add_address(index, pod, if pod.is_ipv4() { 32 } else { 128 })?;
        inside.replace_neighbour(index, gateway, HOST_MAC)?;
        inside.replace_route(&on_link(gateway, index))?;
        inside.replace_route(&Route { destination: any, prefix: 0, via: Some(gateway), index })?;
    }
    Ok(())
}

fn on_link(destination: IpAddr, index: u32) -> Route {
    Route { destination, prefix: if destination.is_ipv4() { 32 } else { 128 }, via: None, index }
}
