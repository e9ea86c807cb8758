//! What is kept of an attached interface: enough to detach it with the configuration and the namespace gone.
//!
//! A record is JSON, one per (container id, interface), in the store beside the leases it names:
//! `{"version":1,"state":"attached","container":…,"interface":"eth0","network":…,"netns":{…},"addresses":[…],…}`.
//! Fields may be added within a version; a reader that finds a higher version touches nothing.

use std::collections::BTreeMap;
use std::net::IpAddr;
use std::path::PathBuf;

use ipnet::IpNet;
use serde::{Deserialize, Serialize};
use weft_ipam::Owner;
use weft_netns::{Identity, LinkName, Mac};

use crate::bandwidth::Bandwidth;

/// The version that this program writes.
pub(crate) const VERSION: u32 = 1;

/// How far the attach came.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub(crate) enum State {
    /// Written before the first kernel object exists: whatever this record names may or may not be there.
    Attaching,
    /// The pod's network is whole.
    Attached,
    /// What the record names is being removed.
    Detaching,
}

/// Which way the packets of a pod go to other pods of the node.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub(crate) enum DataPath {
    /// The eBPF programs hand them over.
    Redirect,
    /// The kernel routes them.
    Routing,
}

/// The pod's network namespace: the path for people, the identity for decisions.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub(crate) struct Namespace {
    pub(crate) path: PathBuf,
    pub(crate) dev: u64,
    pub(crate) inode: u64,
}

/// Who the pod is to the orchestrator; empty where nobody said.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
pub(crate) struct PodName {
    pub(crate) namespace: String,
    pub(crate) name: String,
    pub(crate) uid: String,
    /// What the caller wants it to be found by.
    #[serde(default, skip_serializing_if = "BTreeMap::is_empty")]
    pub(crate) labels: BTreeMap<String, String>,
}

impl PodName {
    pub(crate) fn is_known(&self) -> bool {
        !self.name.is_empty()
    }
}

impl std::fmt::Display for PodName {
    /// As people write it.
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        match self.namespace.as_str() {
            "" => f.write_str(&self.name),
            namespace => write!(f, "{namespace}/{}", self.name),
        }
    }
}

/// One interface of one pod.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub(crate) struct Record {
    pub(crate) version: u32,
    pub(crate) state: State,
    pub(crate) container: String,
    pub(crate) interface: String,
    pub(crate) network: String,
    pub(crate) netns: Namespace,
    pub(crate) addresses: Vec<IpAddr>,
    pub(crate) host_link: String,
    /// The host end's index in the host's namespace; 0 until the link exists.
    pub(crate) host_index: u32,
    pub(crate) mac: String,
    pub(crate) host_mac: String,
    pub(crate) mtu: u32,
    /// Not kept: the links are born with them.
    #[serde(skip)]
    pub(crate) packets: weft_netns::PacketSizes,
    pub(crate) data_path: DataPath,
    /// Why the pod is not on the eBPF path.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub(crate) data_path_reason: Option<String>,
    #[serde(default, skip_serializing_if = "Bandwidth::is_unlimited")]
    pub(crate) bandwidth: Bandwidth,
    #[serde(default)]
    pub(crate) pod: PodName,
    /// Ports of the host that lead to the pod.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub(crate) ports: Vec<HostPort>,
    /// Where the pod's addresses are hidden behind the host's.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub(crate) masquerade: Option<Masquerade>,
    /// What the pod reaches over the interface; empty if that is everything, as it is for the interface of the pod's
    /// default route.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub(crate) destinations: Vec<IpNet>,
    /// What of a detach went wrong. Such a record is a tombstone: its caller was told that the pod is detached, its
    /// leases stay taken while something of it may be left, and the next reconcile tries again.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub(crate) tombstone: Option<String>,
}

/// One port of the host that leads to the pod.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
pub(crate) struct HostPort {
    pub(crate) protocol: Protocol,
    pub(crate) host_port: u16,
    pub(crate) pod_port: u16,
    /// The one address of the host that it is at; an unspecified one stands for all of its family, none for all.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub(crate) host_ip: Option<IpAddr>,
}

impl std::fmt::Display for HostPort {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        match self.host_ip {
            Some(at) => {
                write!(f, "{}/{}", std::net::SocketAddr::new(at, self.host_port), self.protocol.name())
            }
            None => write!(f, "{}/{}", self.host_port, self.protocol.name()),
        }
    }
}

/// What a host port is a port of.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub(crate) enum Protocol {
    Tcp,
    Udp,
    Sctp,
}

impl Protocol {
    /// As IANA has numbered them.
    pub(crate) fn number(self) -> u8 {
        match self {
            Protocol::Tcp => 6,
            Protocol::Udp => 17,
            Protocol::Sctp => 132,
        }
    }

    pub(crate) fn name(self) -> &'static str {
        match self {
            Protocol::Tcp => "tcp",
            Protocol::Udp => "udp",
            Protocol::Sctp => "sctp",
        }
    }
}

/// Which addresses of the pod are hidden, and from whom not.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub(crate) struct Masquerade {
    pub(crate) addresses: Vec<IpAddr>,
    /// Destinations that see them; none overlaps another.
    pub(crate) except: Vec<IpNet>,
}

/// Why a record cannot be used.
#[derive(Debug, thiserror::Error)]
pub(crate) enum Error {
    #[error("record of {container} {interface} has format {found}, this version knows up to {VERSION}")]
    Newer { container: String, interface: String, found: u64 },
    #[error("read record of {container} {interface}")]
    Broken { container: String, interface: String, source: serde_json::Error },
    #[error("write record of {container} {interface}")]
    Write { container: String, interface: String, source: serde_json::Error },
}

#[derive(Deserialize)]
struct Versioned {
    version: u64,
}

impl std::fmt::Display for Record {
    /// The pod as people know it, or the container and its interface.
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        match self.pod.is_known() {
            true => write!(f, "pod {}", self.pod),
            false => write!(f, "container {} {}", self.container, self.interface),
        }
    }
}

impl Record {
    /// Reads a record, its version first: a newer one need not have the fields that this program knows.
    pub(crate) fn decode(owner: &Owner, bytes: &[u8]) -> Result<Record, Error> {
        let broken = |source| Error::Broken {
            container: owner.container().into(),
            interface: owner.interface().into(),
            source,
        };
        let Versioned { version } = serde_json::from_slice(bytes).map_err(broken)?;
        if version > u64::from(VERSION) {
            let (container, interface) = (owner.container().into(), owner.interface().into());
            return Err(Error::Newer { container, interface, found: version });
        }
        serde_json::from_slice(bytes).map_err(broken)
    }

    pub(crate) fn encode(&self) -> Result<Vec<u8>, Error> {
        serde_json::to_vec(self).map_err(|source| Error::Write {
            container: self.container.clone(),
            interface: self.interface.clone(),
            source,
        })
    }

    /// The first address of each family: where host ports lead, and what those are told who know no second.
    pub(crate) fn first_addresses(&self) -> impl Iterator<Item = IpAddr> {
        [true, false]
            .into_iter()
            .filter_map(|ipv4| self.addresses.iter().copied().find(|address| address.is_ipv4() == ipv4))
    }

    /// Whether the pod's network is whole, and nobody has asked for its end.
    pub(crate) fn is_attached(&self) -> bool {
        self.state == State::Attached && self.tombstone.is_none()
    }

    pub(crate) fn identity(&self) -> Identity {
        Identity { dev: self.netns.dev, inode: self.netns.inode }
    }
}

/// The names that belong to an interface: the same for the same owner, so that an attach that was killed
/// before it wrote them down finds its own links again.
pub(crate) struct Names {
    pub(crate) host_link: String,
    /// Of a pod whose sending is limited. No host end has an `s` in its name.
    pub(crate) ifb: String,
    /// Nobody ever sees it on a wire; it says whose the ifb is.
    pub(crate) ifb_mac: Mac,
    pub(crate) mac: Mac,
    pub(crate) host_mac: Mac,
}

impl Names {
    /// `weft` and 44 bits of the owner's hash make the 15 bytes that a link name may have; the MAC addresses are
    /// unicast and locally administered (IEEE 802, second bit of the first byte).
    pub(crate) fn of(owner: &Owner) -> Names {
        Names::of_parts(owner.container(), owner.interface())
    }

    /// The same for the owner of a record; its MAC addresses may be others.
    pub(crate) fn derived(record: &Record) -> Names {
        Names::of_parts(&record.container, &record.interface)
    }

    fn of_parts(container: &str, interface: &str) -> Names {
        let hash = fnv1a(&[container, interface]);
        let [_, _, _, a, b, c, d, e] = hash.to_be_bytes();
        Names {
            host_link: format!("{HOST_LINK_PREFIX}{:011x}", hash >> 20),
            ifb: format!("{IFB_PREFIX}{:010x}", hash >> 24),
            ifb_mac: Mac::new([IFB_MAC_KIND, a, b, c, d, e]),
            mac: Mac::new([0x02, a, b, c, d, e]),
            host_mac: Mac::new([HOST_MAC_KIND, a, b, c, d, e]),
        }
    }

    /// Those that a record says: the pod's end may have an address that was asked for.
    pub(crate) fn of_record(record: &Record) -> Result<Names, weft_netns::Error> {
        let (mac, host_mac) = (record.mac.parse()?, record.host_mac.parse()?);
        Ok(Names { host_link: record.host_link.clone(), mac, host_mac, ..Names::derived(record) })
    }

    pub(crate) fn link(&self) -> Result<LinkName, weft_netns::Error> {
        self.host_link.parse()
    }

    /// Whether a link's name and address are of one owner, whoever that is: 20 bits of the owner's hash are in both.
    /// Without a record this is what tells a host end of weft's from a link that happens to be called so.
    pub(crate) fn belong_together(host_link: &str, host_mac: Mac) -> bool {
        let [kind, a, b, c, _, _] = host_mac.bytes();
        let of_mac = u64::from(a) << 12 | u64::from(b) << 4 | u64::from(c) >> 4;
        let digits = host_link.strip_prefix(HOST_LINK_PREFIX).filter(|digits| digits.len() == 11);
        let of_name = digits.and_then(|digits| u64::from_str_radix(digits, 16).ok());
        kind == HOST_MAC_KIND && of_name.is_some_and(|bits| bits & 0xf_ffff == of_mac)
    }

    /// The same of an ifb: 16 bits are in both.
    pub(crate) fn is_ifb(name: &str, mac: Mac) -> bool {
        let [kind, a, b, ..] = mac.bytes();
        let digits = name.strip_prefix(IFB_PREFIX).filter(|digits| digits.len() == 10);
        let of_name = digits.and_then(|digits| u64::from_str_radix(digits, 16).ok());
        kind == IFB_MAC_KIND && of_name.is_some_and(|bits| bits & 0xffff == u64::from(a) << 8 | u64::from(b))
    }

    /// Whether an ifb and a host end are called as those of one owner: the name of the one has ten of the other's digits.
    pub(crate) fn are_of_one(ifb: &str, host_link: &str) -> bool {
        let digits = ifb.strip_prefix(IFB_PREFIX).zip(host_link.strip_prefix(HOST_LINK_PREFIX));
        digits.is_some_and(|(of_ifb, of_link)| of_ifb.len() == 10 && of_link.starts_with(of_ifb))
    }
}

/// The first byte of the addresses of host ends.
const HOST_MAC_KIND: u8 = 0x06;
/// The same of ifbs.
const IFB_MAC_KIND: u8 = 0x0a;

/// The number that an owner's names are made of.
pub(crate) fn hash(owner: &Owner) -> u64 {
    fnv1a(&[owner.container(), owner.interface()])
}

/// What the names of all links begin with.
pub(crate) const HOST_LINK_PREFIX: &str = "weft";

/// What the names of ifbs begin with.
const IFB_PREFIX: &str = "wefts";

/// FNV-1a (64 bit) over the parts, each ended by a zero byte. Stable for ever, unlike the standard library's
/// hashers: links are found again by it after an upgrade.
pub(crate) fn fnv1a(parts: &[&str]) -> u64 {
    let bytes = parts.iter().flat_map(|part| part.bytes().chain([0]));
    bytes.fold(0xcbf2_9ce4_8422_2325, |hash, byte| (hash ^ u64::from(byte)).wrapping_mul(0x0100_0000_01b3))
}

#[cfg(test)]
mod tests {
    use super::*;

    fn owner() -> Owner {
        Owner::new("c0ffee", "eth0").unwrap()
    }

    fn record() -> Record {
        Record {
            version: VERSION,
            state: State::Attached,
            container: "c0ffee".into(),
            interface: "eth0".into(),
            network: "weft".into(),
            netns: Namespace { path: "/run/netns/a".into(), dev: 4, inode: 7 },
            addresses: vec!["10.88.0.2".parse().unwrap(), "fd00:88::2".parse().unwrap()],
            host_link: "weft0123456789a".into(),
            host_index: 12,
            mac: "02:00:00:00:00:01".into(),
            host_mac: "06:00:00:00:00:01".into(),
            mtu: 1500,
            packets: weft_netns::PacketSizes::default(),
            data_path: DataPath::Redirect,
            data_path_reason: None,
            bandwidth: Bandwidth::default(),
            pod: PodName::default(),
            ports: Vec::new(),
            masquerade: None,
            destinations: Vec::new(),
            tombstone: None,
        }
    }

    #[test]
    fn a_record_reads_back_as_written() {
        let record = record();
        assert_eq!(Record::decode(&owner(), &record.encode().unwrap()).unwrap(), record);
    }

    #[test]
    fn a_pod_is_called_as_people_write_it() {
        for (namespace, name, called) in [
            ("default", "web", "pod default/web"),
            ("", "web", "pod web"),
            ("default", "", "container c0ffee eth0"),
        ] {
            let (namespace, name) = (namespace.into(), name.into());
            let record = Record { pod: PodName { namespace, name, ..PodName::default() }, ..record() };
            assert_eq!(record.to_string(), called);
        }
    }

    #[test]
    fn a_newer_record_is_refused_by_its_version_alone() {
        let err = Record::decode(&owner(), br#"{"version":2,"shape":"unknown"}"#).unwrap_err();
        assert_eq!(err.to_string(), "record of c0ffee eth0 has format 2, this version knows up to 1");
    }

    #[test]
    fn a_torn_record_is_an_error_that_names_its_owner() {
        let bytes = record().encode().unwrap();
        for cut in 0..bytes.len() {
            let err = Record::decode(&owner(), &bytes[..cut]).unwrap_err();
            assert_eq!(err.to_string(), "read record of c0ffee eth0");
        }
    }

    #[test]
    fn names_fit_a_link_and_differ_between_owners() {
        let (a, b) = (Names::of(&owner()), Names::of(&Owner::new("c0ffee", "eth1").unwrap()));
        assert_eq!(a.host_link.len(), 15);
        a.link().unwrap();
        a.ifb.parse::<LinkName>().unwrap();
        assert_ne!(a.ifb, b.ifb);
        assert_ne!(a.host_link, b.host_link);
        assert_ne!(a.mac.to_string(), a.host_mac.to_string());
    }

    #[test]
    fn a_host_end_is_known_by_its_name_and_address_alone() {
        for container in ["c0ffee", "a", "b", "k8s.io/web"] {
            let names = Names::of(&Owner::new(container, "eth0").unwrap());
            let other = Names::of(&Owner::new(&format!("0{container}"), "eth0").unwrap());
            assert!(Names::belong_together(&names.host_link, names.host_mac), "{container}");
            assert!(!Names::belong_together(&names.host_link, other.host_mac), "another owner's address");
            assert!(!Names::belong_together(&names.host_link, names.mac), "the pod's end");
            assert!(!Names::belong_together(&names.host_link[..14], names.host_mac), "a shorter name");
            assert!(Names::is_ifb(&names.ifb, names.ifb_mac), "{container}");
            assert!(!Names::is_ifb(&names.ifb, other.ifb_mac) && !Names::is_ifb(&names.ifb, names.host_mac));
            assert!(Names::are_of_one(&names.ifb, &names.host_link), "{container}");
            assert!(!Names::are_of_one(&names.ifb, &other.host_link), "another owner's host end");
        }
        assert!(!Names::belong_together("weft", Mac::new([6, 0, 0, 0, 0, 0])));
    }
}
