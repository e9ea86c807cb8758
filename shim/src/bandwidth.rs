//! A pod's bandwidth limits: a token bucket for each direction, in the host's namespace, where the pod cannot reach it.
//!
//! What the pod receives waits at the root of its host end. What it sends comes in there, where nothing can wait, and is
//! led through an ifb of the pod's own, behind all other filters of that link: the source check of the fast path comes
//! first. Such a pod is marked in the eBPF map, so that packets between it and other pods of the node take the stack,
//! and with it the buckets. If the ifb goes, nothing of the pod passes: the limit is never lifted by an accident.
//!
//! The buckets and the filter die with the pair of links. The ifb does not, and is deleted at detach, by its name.

use serde::{Deserialize, Serialize};
use weft_netns::{Error, LinkName, Netlink, TokenBucket};

use crate::failpoint::failpoint;
use crate::record::{Names, Record};

/// Bytes before the network header. A veth puts them before each packet, and no wire ever sees them.
const ETHERNET_HEADER: u32 = 14;
/// The largest packet that waits as one (`GRO_MAX_SIZE` in the kernel's include/linux/netdevice.h).
const LARGEST_PACKET: u32 = 8 * 65535;
/// No queue for the sake of latency is longer, whatever the rate.
const LONGEST_QUEUE: u64 = 16 << 20;

/// What a pod may receive and send.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
pub(crate) struct Bandwidth {
    /// To the pod.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub(crate) ingress: Option<Limit>,
    /// From the pod.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub(crate) egress: Option<Limit>,
}

/// One direction. Counted are IP packets, from their network header on.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub(crate) struct Limit {
    /// Bits per second.
    pub(crate) rate: u64,
    /// Bits that pass at once after a pause; `None` where nobody said.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub(crate) burst: Option<u64>,
}

impl Bandwidth {
    pub(crate) fn is_unlimited(&self) -> bool {
        self.ingress.is_none() && self.egress.is_none()
    }
}

impl Limit {
    /// The bucket that keeps a link of this MTU to the limit.
    ///
    /// - The bucket counts Ethernet headers, the limit does not: its rate is higher by one header a full packet.
    /// - The burst is at least one packet, without which nothing would pass, and 5 ms of the rate, without which the
    ///   kernel's timers would make the rate (net/sched/sch_tbf.c: R_crit = B*HZ). Where nobody said, it is 25 ms.
    /// - The queue takes 50 ms of the rate and 16 packets, which TCP needs to keep the rate, and one packet as large as
    ///   the burst lets pass uncut.
    pub(crate) fn bucket(&self, mtu: u32) -> TokenBucket {
        let frame = mtu.saturating_add(ETHERNET_HEADER);
        let rate = u128::from(self.rate) * u128::from(frame) / (8 * u128::from(mtu.max(1)));
        let rate = u64::try_from(rate).unwrap_or(u64::MAX).max(1);
        let milliseconds = |count: u64| rate / 1000 * count + rate % 1000 * count / 1000;
        let wanted = self.burst.map_or(milliseconds(25), |bits| bits / 8);
        let burst = wanted.max(milliseconds(5)).max(frame.into());
        let burst = u32::try_from(burst).unwrap_or(u32::MAX);
        let waiting = milliseconds(50).min(LONGEST_QUEUE).max(16 * u64::from(frame));
        let queue = waiting + u64::from(burst.min(LARGEST_PACKET));
        TokenBucket { rate, burst, queue: u32::try_from(queue).unwrap_or(u32::MAX) }
    }
}

/// Puts the pod's limits in force: before the links rise, so before the first packet, and without the grace period that
/// a link which is up would wait for.
pub(crate) fn limit(host: &Netlink, record: &Record, names: &Names) -> Result<(), Error> {
    if let Some(limit) = &record.bandwidth.ingress {
        host.set_token_bucket(record.host_index, &limit.bucket(record.mtu))?;
    }
    let Some(limit) = &record.bandwidth.egress else { return Ok(()) };
    let ifb = create_ifb(host, names, record.mtu)?;
    failpoint("ifb");
    host.set_token_bucket(ifb, &limit.bucket(record.mtu))?;
    host.set_up_silent(ifb)?;
    host.lead_through(record.host_index, ifb)
}

/// An ifb of this name that no record knows, left by a node whose store was lost, is replaced.
fn create_ifb(host: &Netlink, names: &Names, mtu: u32) -> Result<u32, Error> {
    let (name, mac) = (names.ifb.parse()?, names.ifb_mac);
    match host.create_ifb(&name, mac, mtu) {
        Err(err) if err.errno() == Some(nix::libc::EEXIST) && delete_ifb(host, &name)? => {
            host.create_ifb(&name, mac, mtu)
        }
        made => made,
    }
}

/// Removes what [`limit`] made and what does not die with the pair of links. The caller waits for the kernel's grace
/// periods, 16 ms, if the pod's sending is limited; moving the ifb into a dying namespace takes as long.
pub(crate) fn lift(host: &Netlink, record: &Record, names: &Names) -> Result<(), Error> {
    if record.bandwidth.egress.is_some() {
        delete_ifb(host, &names.ifb.parse()?)?;
    }
    Ok(())
}

/// `false` if there is none, or what has the name is no ifb.
fn delete_ifb(host: &Netlink, name: &LinkName) -> Result<bool, Error> {
    match host.link(name)? {
        Some(link) if link.kind.as_deref() == Some("ifb") => host.delete_link(link.index),
        _ => Ok(false),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn bucket(rate: u64, burst: Option<u64>, mtu: u32) -> (u64, u32, u32) {
        let bucket = Limit { rate, burst }.bucket(mtu);
        (bucket.rate, bucket.burst, bucket.queue)
    }

    #[test]
    fn a_bucket_holds_what_was_asked_for() {
        // 100 Mbit/s and 10 Mbit: the rate of frames is 1514/1500 of it.
        assert_eq!(bucket(100_000_000, Some(10_000_000), 1500), (12_616_666, 1_250_000, 630_833 + 524_280));
    }

    #[test]
    fn a_burst_that_nobody_stated_is_25_ms() {
        assert_eq!(bucket(100_000_000, None, 1500).1, 315_416);
        // and at least a packet
        assert_eq!(bucket(100_000, None, 1500).1, 1514);
    }

    #[test]
    fn a_burst_is_never_less_than_what_the_timers_need() {
        assert_eq!(bucket(100_000_000, Some(8), 1500).1, 63_083);
        assert_eq!(bucket(8, Some(8), 9000).1, 9014);
    }

    #[test]
    fn no_number_overflows() {
        assert_eq!(bucket(8, Some(8), 1500), (1, 1514, 17 * 1514));
        let (rate, burst, queue) = bucket(u64::MAX, Some(u64::MAX), 1);
        assert_eq!((rate, burst), (u64::MAX, u32::MAX));
        assert_eq!(queue, (16 << 20) + 524_280);
        bucket(u64::MAX, None, u32::MAX);
        assert_eq!(bucket(1_000_000_000_000_000, None, 65535).1, u32::MAX);
    }

    #[test]
    fn a_record_says_only_what_is_limited() {
        let json = |bandwidth: &Bandwidth| serde_json::to_string(bandwidth).unwrap();
        let none = Bandwidth::default();
        assert_eq!(json(&none), "{}");
        let both = Bandwidth {
            ingress: Some(Limit { rate: 8, burst: Some(16) }),
            egress: Some(Limit { rate: 8, burst: None }),
        };
        assert_eq!(json(&both), r#"{"ingress":{"rate":8,"burst":16},"egress":{"rate":8}}"#);
        assert_eq!(serde_json::from_str::<Bandwidth>(&json(&both)).unwrap(), both);
    }
}
