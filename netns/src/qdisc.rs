//! Queueing disciplines: a token bucket at the root of a link, and clsact, where filters hang.
//!
//! A bucket holds back what leaves the link. It has no peak rate, so a whole burst passes at the speed of the wire, and
//! it cuts a segment that the sender left whole (GSO) where that is larger than the bucket (`tbf_segment` in the kernel's
//! net/sched/sch_tbf.c). A link that is down takes one at once; one that is up waits for a grace period first
//! (`dev_deactivate` in net/sched/sch_generic.c).

use netlink_packet_core::DefaultNla;
use netlink_packet_route::RouteNetlinkMessage;
use netlink_packet_route::tc::{TcAttribute, TcHandle, TcMessage, TcOption};
use nix::libc;

use crate::netlink::errno;
use crate::raw::{Raw, attribute, number_at, text};
use crate::{Error, Netlink};

// linux/rtnetlink.h, linux/pkt_sched.h; bytes of `struct tcmsg`
const TBF: &str = "tbf";
pub(crate) const TCMSG: usize = 20;
pub(crate) const TCA_OPTIONS: u16 = 2;
const TCA_KIND: u16 = 1;
const TCA_TBF_PARMS: u16 = 1;
const TCA_TBF_RATE64: u16 = 4;
const TCA_TBF_BURST: u16 = 6;
/// Asks for no table of transmission times: the kernel computes them, for rates of 64 bits too (`TC_LINKLAYER_ETHERNET`).
const LINKLAYER_ETHERNET: u8 = 1;
/// A tick is 64 ns (`PSCHED_SHIFT` in the kernel's include/net/pkt_sched.h).
const TICK_SHIFT: u32 = 6;

/// How fast, in bytes with the Ethernet header.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct TokenBucket {
    /// Bytes per second.
    pub rate: u64,
    /// Bytes that pass at once after a pause. Packets that are larger and cannot be cut are lost.
    pub burst: u32,
    /// Bytes that may wait; what comes then is lost.
    pub queue: u32,
}

impl Netlink {
    /// Puts a token bucket at the root of a link, in the place of what was there.
    ///
    /// # Errors
    /// `ENODEV` if the link is gone, `ENOENT` if the kernel has no tbf, `EINVAL` for a rate or burst of zero.
    pub fn set_token_bucket(&self, index: u32, bucket: &TokenBucket) -> Result<(), Error> {
        let failed =
            |source| Error::Netlink { op: "limit the rate of link", object: index.to_string(), source };
        let mut message = of_link(index, TcHandle::ROOT);
        message.attributes = vec![
            TcAttribute::Kind(TBF.into()),
            TcAttribute::Options(vec![
                option(TCA_TBF_PARMS, bucket.parameters()),
                option(TCA_TBF_RATE64, bucket.rate.to_ne_bytes().to_vec()),
                option(TCA_TBF_BURST, bucket.burst.to_ne_bytes().to_vec()),
            ]),
        ];
        self.replace(RouteNetlinkMessage::NewQueueDiscipline(message)).map_err(failed)
    }

    /// Whether exactly this token bucket is at the root of a link.
    ///
    /// # Errors
    /// `ENODEV` if the link is gone.
    pub fn has_token_bucket(&self, index: u32, bucket: &TokenBucket) -> Result<bool, Error> {
        let failed =
            |source| Error::Netlink { op: "look up the qdisc of link", object: index.to_string(), source };
        let message = of_link(index, TcHandle::ROOT);
        let answer = self.query_echo(RouteNetlinkMessage::GetQueueDiscipline(message)).map_err(failed)?;
        // The kernel is silent about a qdisc that it gave itself.
        Ok(answer.is_some_and(|found| bucket.is(&found)))
    }

    /// Gives a link a clsact qdisc, if it has none.
    ///
    /// # Errors
    /// [`Error::Netlink`].
    pub(crate) fn ensure_clsact(&self, index: u32) -> Result<(), Error> {
        let mut message = of_link(index, TcHandle::CLSACT);
        message.header.handle = TcHandle { major: TcHandle::CLSACT.major, minor: 0 };
        message.attributes.push(TcAttribute::Kind("clsact".into()));
        match self.create(RouteNetlinkMessage::NewQueueDiscipline(message)) {
            Ok(_) => Ok(()),
            Err(err) if errno(&err) == Some(libc::EEXIST) => Ok(()),
            Err(source) => {
                Err(Error::Netlink { op: "add clsact to link", object: index.to_string(), source })
            }
        }
    }
}

impl TokenBucket {
    /// `struct tc_tbf_qopt`: two `struct tc_ratespec` of 12 bytes, the second for a peak rate; limit, buffer and mtu.
    /// The buffer is left to `TCA_TBF_BURST`, which has no limit of 274 s.
    fn parameters(&self) -> Vec<u8> {
        let mut bytes = vec![0, LINKLAYER_ETHERNET, 0, 0, 0, 0, 0, 0];
        bytes.extend(u32::try_from(self.rate).unwrap_or(u32::MAX).to_ne_bytes());
        // A peak rate of none, and no table for it either.
        bytes.extend([0, LINKLAYER_ETHERNET, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0]);
        bytes.extend(self.queue.to_ne_bytes());
        bytes.extend([0; 8]);
        bytes
    }

    /// Whether a qdisc is this one.
    pub(crate) fn is(&self, found: &Raw) -> bool {
        let Some((_, rest)) = found.parts::<TCMSG>(libc::RTM_NEWQDISC) else { return false };
        let is_tbf = attribute(rest, TCA_KIND).and_then(text).is_some_and(|kind| kind == TBF);
        is_tbf && attribute(rest, TCA_OPTIONS).is_some_and(|options| self.is_told_by(options))
    }

    /// Reads the same structure as the kernel tells it. The burst comes as a time, in ticks modulo 2^32.
    fn is_told_by(&self, options: &[u8]) -> bool {
        let rate = attribute(options, TCA_TBF_RATE64).and_then(<[u8]>::first_chunk).copied();
        let Some(parameters) = attribute(options, TCA_TBF_PARMS) else { return false };
        let word = |at| number_at(parameters, at);
        let ticks = (u128::from(self.burst) * 1_000_000_000 / u128::from(self.rate.max(1))) >> TICK_SHIFT;
        // The kernel multiplies by a rounded factor of 32 bits (`psched_ratecfg_precompute`).
        let tolerance = 1 + (ticks >> 20);
        let is_near = |told: u32| {
            let apart = told.wrapping_sub(ticks as u32);
            u128::from(apart.min(apart.wrapping_neg())) <= tolerance
        };
        rate.map(u64::from_ne_bytes).or(word(8).map(u64::from)) == Some(self.rate)
            && word(24) == Some(self.queue)
            && word(28).is_some_and(is_near)
    }
}

/// A message about what hangs at a place of a link.
pub(crate) fn of_link(index: u32, parent: TcHandle) -> TcMessage {
    let mut message = TcMessage::with_index(index.cast_signed());
    message.header.parent = parent;
    message
}

fn option(kind: u16, value: Vec<u8>) -> TcOption {
    TcOption::Other(DefaultNla::new(kind, value))
}
