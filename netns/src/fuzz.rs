//! What the fuzz targets call: the kernel's answers, from the bytes of a datagram to what the callers are told.

use std::net::IpAddr;

use netlink_packet_core::{Emitable, NetlinkPayload};

use crate::netfilter::each;
use crate::netlink::{HEADER, errno, messages, refused};
use crate::nft::{self, Family};
use crate::raw::{Raw, attributes};
use crate::{Flows, TokenBucket, conntrack, counters, ifb, link, route};

/// Takes `bytes` for a datagram of route netlink, of netfilter netlink, and for attributes.
pub fn replies(bytes: &[u8]) {
    routes(bytes);
    netfilter(bytes);
    let within: usize = attributes(bytes).map(|(_, value)| value.len() + 4).sum();
    assert!(within <= bytes.len(), "attributes do not overlap");
    elements(bytes);
}

fn routes(bytes: &[u8]) {
    for (_, answer) in messages(bytes) {
        match answer {
            Some(NetlinkPayload::InnerMessage(message)) => route_message(&message),
            Some(NetlinkPayload::Error(end)) => refusal(end.raw_code(), end.header.get(HEADER..)),
            Some(NetlinkPayload::Done(end)) => refusal(end.code, Some(&end.extended_ack)),
            _ => {}
        }
    }
}

fn route_message(message: &Raw) {
    if let Some(link) = link::read(message) {
        assert_eq!(link.mac.to_string().parse::<crate::Mac>().ok(), Some(link.mac));
    }
    counters::counters_of(message);
    if let Some(route) = route::read(message) {
        assert!(!route.is_ours_over(route.index.unwrap_or_default().wrapping_add(1)));
    }
    route::address_of(message);
    route::is_permanent(message, crate::Mac::new([2; 6]));
    ifb::target(message);
    for (rate, burst) in [(0, 0), (1, u32::MAX), (u64::MAX, u32::MAX), (125_000, 15_000)] {
        TokenBucket { rate, burst, queue: burst }.is(message);
    }
}

fn refusal(code: i32, attributes: Option<&[u8]>) {
    match refused(code, attributes) {
        None => assert_eq!(code, 0, "an error is not taken for an acknowledgement"),
        Some(err) => {
            assert_eq!(errno(&err), Some(code.saturating_neg()));
            assert!(!err.to_string().is_empty());
        }
    }
}

fn netfilter(bytes: &[u8]) {
    // A datagram that cannot be read to its end is an error.
    let done = each(bytes, |message| {
        nft::is_loss(&message, "weft");
        match message.payload {
            NetlinkPayload::InnerMessage(raw) => netfilter_message(&raw),
            NetlinkPayload::Error(end) => refusal(end.raw_code(), end.header.get(HEADER..)),
            NetlinkPayload::Done(end) => refusal(end.code, Some(&end.extended_ack)),
            _ => {}
        }
        false
    });
    if let Err(err) = done {
        assert!(!err.to_string().is_empty());
    }
}

fn netfilter_message(raw: &Raw) {
    nft::batch::chain_of(raw);
    nft::batch::generation_of(raw);
    let any = IpAddr::from([10, 1, 0, 2]);
    let of_address = [Flows::AnsweredBy(any), Flows::BegunBy(any), Flows::TranslatedTo([Some(any), None])];
    for flows in of_address.into_iter().chain([Flows::ToUdpPort(Family::Ipv4, 53)]) {
        conntrack::connection(raw, flows);
    }
    nft::closed::closed(raw);
    elements(raw.attributes());
}

/// The elements that are read, told to the kernel, are the same elements.
fn elements(bytes: &[u8]) {
    let found = nft::set::elements_of(bytes);
    let told = nft::set::list("weft", "s", &found);
    let mut bytes = vec![0; told.as_slice().buffer_len()];
    told.as_slice().emit(&mut bytes);
    assert_eq!(nft::set::elements_of(&bytes), found);
}
