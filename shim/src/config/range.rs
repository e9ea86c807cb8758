//! Ranges of addresses as they are written down, in the node's configuration and in that of CNI.

use std::fmt;

use serde::Deserialize;
use serde::de::value::{MapAccessDeserializer, SeqAccessDeserializer};
use serde::de::{Deserializer, Error, MapAccess, SeqAccess, Visitor};

/// A subnet, and what of it may be leased. The spelling is that of the `host-local` plugin.
#[derive(Debug, Clone, PartialEq, Eq, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Range {
    /// The subnet in CIDR form.
    pub subnet: ipnet::IpNet,
    /// First address to lease; by default the subnet's first host.
    #[serde(default, rename = "rangeStart", alias = "range_start")]
    pub start: Option<std::net::IpAddr>,
    /// Last address to lease; by default the subnet's last host.
    #[serde(default, rename = "rangeEnd", alias = "range_end")]
    pub end: Option<std::net::IpAddr>,
    /// Never leased; by default the subnet's first host.
    #[serde(default)]
    pub gateway: Option<std::net::IpAddr>,
    /// Parts of the subnet that are never leased.
    #[serde(default)]
    pub exclude: Vec<ipnet::IpNet>,
    /// Ranges of one family and set serve one address.
    #[serde(skip)]
    pub set: u8,
}

/// A range of the set 0, or the ranges of a set.
struct Member(Vec<Range>, bool);

impl<'de> Deserialize<'de> for Member {
    fn deserialize<D: Deserializer<'de>>(from: D) -> Result<Member, D::Error> {
        from.deserialize_any(MemberVisitor)
    }
}

/// By hand, because an untagged enum's error does not say what is wrong with which key.
struct MemberVisitor;

impl<'de> Visitor<'de> for MemberVisitor {
    type Value = Member;

    fn expecting(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("a range or a list of ranges")
    }

    fn visit_map<A: MapAccess<'de>>(self, map: A) -> Result<Member, A::Error> {
        Ok(Member(vec![Range::deserialize(MapAccessDeserializer::new(map))?], false))
    }

    fn visit_seq<A: SeqAccess<'de>>(self, seq: A) -> Result<Member, A::Error> {
        Ok(Member(Vec::deserialize(SeqAccessDeserializer::new(seq))?, true))
    }
}

/// Ranges, of which those that are in a list of their own are a set, as `host-local` has them: they are numbered from 1. Go encodes
/// an empty slice as `null`.
pub(crate) fn sets<'de, D: Deserializer<'de>>(from: D) -> Result<Vec<Range>, D::Error> {
    let mut ranges = Vec::new();
    let mut last: u8 = 0;
    for Member(members, is_set) in Option::<Vec<Member>>::deserialize(from)?.unwrap_or_default() {
        if is_set {
            last = last.checked_add(1).ok_or_else(|| D::Error::custom("there are more than 255 sets"))?;
        }
        ranges.extend(members.into_iter().map(|range| Range { set: if is_set { last } else { 0 }, ..range }));
    }
    Ok(ranges)
}
