//! The map of the node's pods: which address is behind which link. The bytes are those of `bpf/pods.h`.
//!
//! ```text
//! key, 16 bytes    an IPv6 address, or ::ffff:a.b.c.d
//! value, 32 bytes  0 version  1 flags  2..4 spare  4..8 ifindex  8..14 mac  14..20 host_mac  20..32 spare
//! ```
//! Only user space writes it. What the programs note about a pod is in a map of its own (`returns`), which user space clears when
//! the address changes hands.

use std::{
    net::{IpAddr, Ipv6Addr},
    path::Path,
};

use aya::{
    Pod,
    maps::{HashMap, Map, MapData, MapError},
};

use crate::error::Error;

pub(crate) const PODS: &str = "pods";
pub(crate) const RETURNS: &str = "returns";

type Key = [u8; 16];
type Value = [u8; 32];

/// The kernel's size of a map is compared with these when it is opened; bpf/pods.h asserts the same.
const VALUE_VERSION: u8 = 1;
const FLAG_STACK: u8 = 1;

/// What the data path knows of one address of a pod.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct PodEntry {
    /// Index of the host's end of the veth pair, in the node's namespace.
    pub ifindex: u32,
    /// MAC address of the pod's end.
    pub mac: [u8; 6],
    /// MAC address of the host's end.
    pub host_mac: [u8; 6],
    /// The fast path leaves this pod alone: everything from and to it goes through the kernel's stack.
    pub stack_only: bool,
}

/// The pinned maps, open.
#[derive(Debug)]
pub(crate) struct Pods {
    pods: HashMap<MapData, Key, Value>,
    returns: HashMap<MapData, Key, u32>,
}

impl Pods {
    pub(crate) fn open(dir: &Path) -> Result<Self, Error> {
        Ok(Self { pods: open_map(dir, PODS)?, returns: open_map(dir, RETURNS)? })
    }

    /// Called under `pods.lock`.
    pub(crate) fn set(&mut self, addr: IpAddr, entry: &PodEntry) -> Result<(), Error> {
        let key = key(addr);
        if self.get(addr)?.is_none_or(|old| old.ifindex != entry.ifindex) {
            delete(&mut self.returns, &key, RETURNS)?;
        }
        self.pods.insert(key, entry.encode(), 0).map_err(Error::map("write", PODS))
    }

    pub(crate) fn get(&self, addr: IpAddr) -> Result<Option<PodEntry>, Error> {
        match self.pods.get(&key(addr), 0) {
            Ok(value) => Ok(Some(PodEntry::decode(&value))),
            Err(MapError::KeyNotFound) => Ok(None),
            Err(e) => Err(Error::map("read", PODS)(e)),
        }
    }

    /// Called under `pods.lock`, so that nobody can put the address to another use between the look and the deed.
    pub(crate) fn remove(&mut self, addr: IpAddr, ifindex: u32) -> Result<bool, Error> {
        if self.get(addr)?.is_none_or(|entry| entry.ifindex != ifindex) {
            return Ok(false);
        }
        let key = key(addr);
        delete(&mut self.pods, &key, PODS)?;
        delete(&mut self.returns, &key, RETURNS)?;
        Ok(true)
    }

    pub(crate) fn iter(&self) -> impl Iterator<Item = Result<(IpAddr, PodEntry), Error>> {
        self.pods.iter().map(|item| {
            let (key, value) = item.map_err(Error::map("list", PODS))?;
            Ok((Ipv6Addr::from(key).to_canonical(), PodEntry::decode(&value)))
        })
    }

    /// The links of all pods, each once.
    pub(crate) fn links(&self) -> Result<Vec<u32>, Error> {
        let mut links = self.iter().map(|pod| Ok(pod?.1.ifindex)).collect::<Result<Vec<_>, Error>>()?;
        links.sort_unstable();
        links.dedup();
        Ok(links)
    }
}

fn open_map<V: Pod>(dir: &Path, name: &'static str) -> Result<HashMap<MapData, Key, V>, Error> {
    let map = MapData::from_pin(dir.join(name)).map_err(Error::map("open", name))?;
    Map::from_map_data(map).and_then(TryInto::try_into).map_err(Error::map("open", name))
}

/// Delete an entry; an absent one is deleted.
fn delete<V: Pod>(map: &mut HashMap<MapData, Key, V>, key: &Key, name: &'static str) -> Result<(), Error> {
    let deleted = map.remove(key).map_err(Error::map("write", name));
    match deleted {
        Err(e) if e.is_absent() => Ok(()),
        deleted => deleted,
    }
}

fn key(addr: IpAddr) -> Key {
    match addr {
        IpAddr::V4(v4) => v4.to_ipv6_mapped().octets(),
        IpAddr::V6(v6) => v6.octets(),
    }
}

impl PodEntry {
    fn encode(&self) -> Value {
        let mut value = Value::default();
        value[0] = VALUE_VERSION;
        value[1] = if self.stack_only { FLAG_STACK } else { 0 };
        value[4..8].copy_from_slice(&self.ifindex.to_ne_bytes());
        value[8..14].copy_from_slice(&self.mac);
        value[14..20].copy_from_slice(&self.host_mac);
        value
    }

    fn decode(value: &Value) -> Self {
        let [_version, flags, _, _, i0, i1, i2, i3, m0, m1, m2, m3, m4, m5, h0, h1, h2, h3, h4, h5, ..] =
            *value;
        Self {
            ifindex: u32::from_ne_bytes([i0, i1, i2, i3]),
            mac: [m0, m1, m2, m3, m4, m5],
            host_mac: [h0, h1, h2, h3, h4, h5],
            stack_only: flags & FLAG_STACK != 0,
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_value_is_the_bytes_of_struct_pod() {
        let entry = PodEntry {
            ifindex: 7,
            mac: [1, 2, 3, 4, 5, 6],
            host_mac: [11, 12, 13, 14, 15, 16],
            stack_only: true,
        };
        let value = entry.encode();
        assert_eq!(PodEntry::decode(&value), entry);
        assert_eq!(&value[..4], &[1, 1, 0, 0]);
        assert_eq!(value[4..8], 7u32.to_ne_bytes());
        assert_eq!(
            &value[8..],
            &[1, 2, 3, 4, 5, 6, 11, 12, 13, 14, 15, 16, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0]
        );
    }

    #[test]
    fn an_ipv4_key_is_a_mapped_address() {
        let key = key([10, 1, 2, 3].into());
        assert_eq!(key, [0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0xff, 0xff, 10, 1, 2, 3]);
    }
}
