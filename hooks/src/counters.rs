//! What became of the packets that pods sent: node-wide since the maps were made, and pod by pod. Kept per CPU, added up when
//! read.
//!
//! ```text
//! counters      an array by outcome, 16 bytes: packets u64, bytes u64
//! drops         an array by reason, 8 bytes: packets u64
//! pod_counters  key, 4 bytes: index of the host's end of the pod's veth pair
//!               value, 192 bytes: 4 times packets and bytes by outcome, then 16 times packets by reason
//! ```
//! The programs count in a row of `pod_counters` that is there and make none: user space makes it when it hangs the programs on a
//! link, and deletes it at detach, so nothing is left of a pod. Programs of version 1 have `counters` alone.

use std::{path::Path, thread, time::Duration};

use aya::{
    Pod,
    maps::{Map, MapData, MapError, PerCpuArray, PerCpuHashMap, PerCpuValues},
    util::nr_cpus,
};
use nix::errno::Errno;

use crate::error::Error;

pub(crate) const COUNTERS: &str = "counters";
pub(crate) const DROPS: &str = "drops";
pub(crate) const POD_COUNTERS: &str = "pod_counters";

/// `enum outcome` of bpf/pods.h.
const OUTCOMES: usize = 4;
/// `DROP_PLACES` of bpf/pods.h.
const PLACES: usize = 16;
/// `struct pod_count` of bpf/pods.h.
type Row = [u64; 2 * OUTCOMES + PLACES];
/// How often a row is tried again where the kernel has no memory for it, and after how long.
const PATIENCE: usize = 100;
const MOMENT: Duration = Duration::from_millis(1);
/// BPF_NOEXIST of linux/bpf.h.
const NOEXIST: u64 = 1;

/// Packets and their bytes.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub struct Count {
    /// Packets; a segment that its sender left to be cut later counts as one.
    pub packets: u64,
    /// Bytes with the Ethernet header.
    pub bytes: u64,
}

/// What became of the packets that pods sent.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub struct Counters {
    /// Straight into another pod.
    pub redirected: Count,
    /// To the kernel's stack.
    pub passed: Count,
    /// Dropped, for one of the reasons.
    pub dropped: Count,
    /// To the stack, although for a pod of this node, because their flow had come through the stack.
    pub returned: Count,
    /// Why packets were dropped; `None` where the pinned programs are of version 1, which does not tell.
    pub drops: Option<Drops>,
}

/// Why a packet was dropped.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Reason {
    /// It was sent from an address that is not the pod's.
    SourceAddress,
    /// From an address of the pod, but not from its MAC address.
    SourceMac,
    /// From an unspecified or link-local address, and it was no link maintenance: DHCP, mDNS.
    LinkLocal,
    /// What only a router says: a router advertisement or a redirect.
    Router,
    /// ARP that tells of an address or a MAC address which is not the pod's, or is not for IPv4 on Ethernet.
    Arp,
    /// It had a VLAN tag.
    Vlan,
    /// It was neither IP nor ARP.
    Protocol,
    /// It was shorter than its header.
    Truncated,
    /// From a pod that is being detached, and by no address of a pod. In no row of a pod.
    Detached,
    /// For a reason that only the pinned programs know, which are newer.
    Other,
}

/// Dropped packets by reason.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub struct Drops([u64; PLACES]);

/// The rows of pods, open.
pub struct PodCounters(PerCpuHashMap<MapData, u32, Row>);

impl Reason {
    /// In the order of `enum drop` of bpf/pods.h, and all others last.
    pub const ALL: [Self; 10] = [
        Self::SourceAddress,
        Self::SourceMac,
        Self::LinkLocal,
        Self::Router,
        Self::Arp,
        Self::Vlan,
        Self::Protocol,
        Self::Truncated,
        Self::Detached,
        Self::Other,
    ];

    /// Its name in answers and metrics.
    #[must_use]
    pub fn as_str(self) -> &'static str {
        match self {
            Self::SourceAddress => "source_address",
            Self::SourceMac => "source_mac",
            Self::LinkLocal => "link_local",
            Self::Router => "router",
            Self::Arp => "arp",
            Self::Vlan => "vlan",
            Self::Protocol => "protocol",
            Self::Truncated => "truncated",
            Self::Detached => "detached",
            Self::Other => "other",
        }
    }
}

impl Drops {
    /// Each reason and its packets, those that no packet was dropped for too.
    pub fn iter(&self) -> impl Iterator<Item = (Reason, u64)> {
        let known = Reason::ALL.len() - 1;
        let other = self.0.iter().skip(known).sum();
        Reason::ALL.into_iter().zip(self.0.iter().take(known).copied().chain([other]))
    }
}

impl Counters {
    /// Read the counters pinned in `dir`. Changes nothing, unlike opening a [`FastPath`](crate::FastPath), which upgrades.
    ///
    /// # Errors
    /// [`Error::Map`].
    pub fn read(dir: &Path) -> Result<Self, Error> {
        let counted: [[u64; 2]; OUTCOMES] = read(dir, COUNTERS, sum)?;
        let drops = match read(dir, DROPS, |values: &PerCpuValues<u64>| values.iter().sum()) {
            Err(e) if e.is_absent() => None,
            drops => Some(Drops(drops?)),
        };
        Ok(Self::of(counted, drops))
    }

    fn of(counted: [[u64; 2]; OUTCOMES], drops: Option<Drops>) -> Self {
        // In the order of enum outcome of bpf/pods.h.
        let [redirected, passed, dropped, returned] =
            counted.map(|[packets, bytes]| Count { packets, bytes });
        Self { redirected, passed, dropped, returned, drops }
    }
}

impl From<Row> for Counters {
    fn from(row: Row) -> Self {
        let [a, b, c, d, e, f, g, h, drops @ ..] = row;
        Self::of([[a, b], [c, d], [e, f], [g, h]], Some(Drops(drops)))
    }
}

impl PodCounters {
    /// Open the rows pinned in `dir`; `None` if nothing is pinned there, or programs of version 1, which count for the node only.
    ///
    /// # Errors
    /// [`Error::Map`].
    pub fn open(dir: &Path) -> Result<Option<Self>, Error> {
        let opened = open(dir, POD_COUNTERS)
            .and_then(|map| map.try_into().map_err(Error::map("open", POD_COUNTERS)).map(Self));
        match opened {
            Err(e) if e.is_absent() => Ok(None),
            opened => opened.map(Some),
        }
    }

    /// What became of the packets of the pod behind a link; `None` if they are not counted.
    ///
    /// # Errors
    /// [`Error::Map`].
    pub fn of(&self, ifindex: u32) -> Result<Option<Counters>, Error> {
        match self.0.get(&ifindex, 0) {
            Ok(values) => Ok(Some(sum(&values).into())),
            Err(MapError::KeyNotFound) => Ok(None),
            Err(e) => Err(Error::map("read", POD_COUNTERS)(e)),
        }
    }

    /// The links whose pods are counted, in no order. While others write, one may come twice.
    pub fn links(&self) -> impl Iterator<Item = Result<u32, Error>> {
        self.0.keys().map(|key| key.map_err(Error::map("list", POD_COUNTERS)))
    }

    /// Count for the pod behind a link from now on; go on where that is done already.
    ///
    /// The kernel fetches per-CPU memory beside the calls that use it up (mm/percpu.c, `pcpu_balance_workfn`), so a burst of new rows, as
    /// an upgrade makes them, may find none for a moment.
    pub(crate) fn add(&mut self, ifindex: u32) -> Result<(), Error> {
        for _ in 0..PATIENCE {
            match self.try_add(ifindex) {
                Err(e) if e.errno() == Some(Errno::ENOMEM as i32) => thread::park_timeout(MOMENT),
                added => return added,
            }
        }
        self.try_add(ifindex)
    }

    fn try_add(&mut self, ifindex: u32) -> Result<(), Error> {
        let failed = |(path, e)| Error::file("read", Path::new(path))(e);
        let zeroes = vec![Row::default(); nr_cpus().map_err(failed)?];
        let zeroes =
            zeroes.try_into().map_err(|e| Error::map("write", POD_COUNTERS)(MapError::IoError(e)))?;
        match self.0.insert(ifindex, zeroes, NOEXIST).map_err(Error::map("write", POD_COUNTERS)) {
            Err(e) if e.errno() == Some(Errno::EEXIST as i32) => Ok(()),
            added => added,
        }
    }

    /// Forget a link; says whether it was counted.
    ///
    /// # Errors
    /// [`Error::Map`].
    pub fn remove(&mut self, ifindex: u32) -> Result<bool, Error> {
        match self.0.remove(&ifindex).map_err(Error::map("write", POD_COUNTERS)) {
            Err(e) if e.is_absent() => Ok(false),
            removed => removed.map(|()| true),
        }
    }
}

fn open(dir: &Path, name: &'static str) -> Result<Map, Error> {
    MapData::from_pin(dir.join(name)).and_then(Map::from_map_data).map_err(Error::map("open", name))
}

/// An array by its indices, each added up over the CPUs.
fn read<V: Pod, T: Copy + Default, const N: usize>(
    dir: &Path,
    name: &'static str,
    add_up: impl Fn(&PerCpuValues<V>) -> T,
) -> Result<[T; N], Error> {
    let map: PerCpuArray<MapData, V> = open(dir, name)?.try_into().map_err(Error::map("open", name))?;
    let mut all = [T::default(); N];
    for (index, value) in (0..).zip(&mut all) {
        *value = add_up(&map.get(&index, 0).map_err(Error::map("read", name))?);
    }
    Ok(all)
}

fn sum<const N: usize>(values: &PerCpuValues<[u64; N]>) -> [u64; N] {
    values.iter().fold([0; N], |mut sum, value| {
        sum.iter_mut().zip(value).for_each(|(sum, value)| *sum += value);
        sum
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_row_is_the_words_of_struct_pod_count() {
        let counters = Counters::from(std::array::from_fn::<u64, 24, _>(|word| word as u64));
        let count = |packets, bytes| Count { packets, bytes };
        assert_eq!((counters.redirected, counters.passed), (count(0, 1), count(2, 3)));
        assert_eq!((counters.dropped, counters.returned), (count(4, 5), count(6, 7)));
        let drops: Vec<_> =
            counters.drops.unwrap().iter().map(|(why, packets)| (why.as_str(), packets)).collect();
        assert_eq!(drops.len(), Reason::ALL.len());
        assert_eq!((drops[0], drops[8]), (("source_address", 8), ("detached", 16)));
        assert_eq!(drops[9], ("other", 17 + 18 + 19 + 20 + 21 + 22 + 23), "what a newer program writes");
    }
}
