//! What became of the packets that pods sent, node-wide, since the maps were made. Kept per CPU, added up when read.

use std::path::Path;

use aya::maps::{Map, MapData, PerCpuArray};

use crate::error::Error;

pub(crate) const COUNTERS: &str = "counters";

/// `struct count` of bpf/pods.h: packets, bytes.
type Value = [u64; 2];

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
    /// Dropped, because they bore no address of their pod.
    pub dropped: Count,
    /// To the stack, although for a pod of this node, because their flow had come through the stack.
    pub returned: Count,
}

impl Counters {
    /// Read the counters pinned in `dir`. Changes nothing, unlike opening a [`FastPath`](crate::FastPath), which upgrades.
    ///
    /// # Errors
    /// [`Error::Map`].
    pub fn read(dir: &Path) -> Result<Self, Error> {
        let map = MapData::from_pin(dir.join(COUNTERS)).map_err(Error::map("open", COUNTERS))?;
        let map = Map::from_map_data(map).map_err(Error::map("open", COUNTERS))?;
        let map: PerCpuArray<MapData, Value> = map.try_into().map_err(Error::map("open", COUNTERS))?;
        let read = |outcome| -> Result<Count, Error> {
            let values = map.get(&outcome, 0).map_err(Error::map("read", COUNTERS))?;
            Ok(values.iter().fold(Count::default(), |sum, [packets, bytes]| Count {
                packets: sum.packets + packets,
                bytes: sum.bytes + bytes,
            }))
        };
        // In the order of enum outcome of bpf/pods.h.
        Ok(Self { redirected: read(0)?, passed: read(1)?, dropped: read(2)?, returned: read(3)? })
    }
}
