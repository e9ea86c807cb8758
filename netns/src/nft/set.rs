//! Sets and maps, and what is in them.

use netlink_packet_netfilter::nftables::{
    DataAttribute, ListAttribute, NfTablesMessage, SetAttribute, SetElementAttribute, SetElementList,
    SetElementMessage, SetFlags, Verdict, VerdictAttribute,
};

use crate::netlink::attributes;

/// What a field of a key or a value is. A field takes a whole number of 4-byte registers, with zeros behind a shorter one.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Type {
    /// 4 bytes.
    Ipv4,
    /// 16 bytes.
    Ipv6,
    /// An IP protocol number: 1 byte.
    Protocol,
    /// 2 bytes, big-endian.
    Port,
    /// What to do with the packet; as a value only, and alone.
    Verdict,
}

impl Type {
    /// What `nft` shows a field as (`enum datatypes` in nftables' include/datatype.h); the kernel only keeps it.
    fn number(self) -> u32 {
        match self {
            Type::Ipv4 => 7,
            Type::Ipv6 => 8,
            Type::Protocol => 12,
            Type::Port => 13,
            Type::Verdict => VERDICT,
        }
    }

    /// Bytes in registers.
    fn len(self) -> u32 {
        if self == Type::Ipv6 { 16 } else { 4 }
    }
}

/// `NFT_DATA_VERDICT`: the one type of a value that the kernel tells from others.
const VERDICT: u32 = 0xffff_ff00;

/// Six bits a field (`TYPE_BITS` in nftables' include/datatype.h).
fn concatenated(types: &[Type]) -> u32 {
    types.iter().fold(0, |all, one| (all << 6) | one.number())
}

fn len(types: &[Type]) -> u32 {
    types.iter().map(|one| one.len()).sum()
}

/// A set, or with `value` a map.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Set {
    /// Its name in the table.
    pub name: &'static str,
    /// The fields of a key.
    pub key: &'static [Type],
    /// The fields of a value; none in a set.
    pub value: &'static [Type],
    /// Whether elements can be made to expire.
    pub expires: bool,
}

impl Set {
    pub(super) fn attributes(&self, table: &str, id: u32) -> Vec<SetAttribute> {
        let mut flags = SetFlags::empty();
        flags.set(SetFlags::Timeout, self.expires);
        flags.set(SetFlags::Map, !self.value.is_empty());
        let mut attributes = vec![
            SetAttribute::Table(table.to_owned()),
            SetAttribute::Name(self.name.to_owned()),
            SetAttribute::Flags(flags),
            SetAttribute::KeyType(concatenated(self.key)),
            SetAttribute::KeyLen(len(self.key)),
            SetAttribute::Id(id),
        ];
        if !self.value.is_empty() {
            attributes.push(SetAttribute::DataType(concatenated(self.value)));
            attributes.push(SetAttribute::DataLen(len(self.value)));
        }
        attributes
    }
}

/// A key with its value.
#[derive(Debug, Clone, PartialEq, Eq, PartialOrd, Ord)]
pub struct Element {
    /// As it lies in registers.
    pub key: Vec<u8>,
    /// What a map gives for it.
    pub value: Option<Value>,
}

/// What a map gives.
#[derive(Debug, Clone, PartialEq, Eq, PartialOrd, Ord)]
pub enum Value {
    /// As it lies in registers.
    Data(Vec<u8>),
    /// Go on with a chain, and then where the map was looked into.
    Jump(String),
}

impl Element {
    fn attributes(&self) -> Vec<SetElementAttribute> {
        let mut attributes = vec![SetElementAttribute::Key(DataAttribute::Value(self.key.clone()))];
        attributes.extend(self.value.as_ref().map(|value| {
            SetElementAttribute::Data(match value {
                Value::Data(bytes) => DataAttribute::Value(bytes.clone()),
                Value::Jump(chain) => DataAttribute::Verdict(vec![
                    VerdictAttribute::Code(Verdict::Jump),
                    VerdictAttribute::Chain(chain.clone()),
                ]),
            })
        }));
        attributes
    }
}

/// A message's attributes for some elements of one set.
pub(crate) fn list(table: &str, set: &str, elements: &[Element]) -> Vec<SetElementList> {
    list_of(table, set, elements.iter().map(Element::attributes))
}

/// The same, as good as gone: the kernel takes no shorter time, and counts in jiffies.
pub(super) fn expiring(table: &str, set: &str, elements: &[Element]) -> Vec<SetElementList> {
    let end = [SetElementAttribute::Timeout(1), SetElementAttribute::Expiration(1)];
    list_of(table, set, elements.iter().map(|element| [element.attributes(), end.to_vec()].concat()))
}

fn list_of(
    table: &str,
    set: &str,
    elements: impl Iterator<Item = Vec<SetElementAttribute>>,
) -> Vec<SetElementList> {
    vec![
        SetElementList::Table(table.to_owned()),
        SetElementList::Set(set.to_owned()),
        SetElementList::Elements(elements.map(ListAttribute::Element).collect()),
    ]
}

/// Whether an element in a dump has an end.
pub(super) fn ends(message: &[u8]) -> bool {
    let lists = nested(message, number::ELEMENTS);
    let mut elements = lists.flat_map(|list| nested(list, number::ELEMENT));
    elements.any(|element| nested(element, number::EXPIRATION).next().is_some())
}

pub(super) fn get_elements(table: &str, set: &str) -> NfTablesMessage {
    let attributes = vec![SetElementList::Table(table.to_owned()), SetElementList::Set(set.to_owned())];
    NfTablesMessage::GetSetElement(SetElementMessage { attributes })
}

pub(super) fn get_element(table: &str, set: &str, key: &Element) -> NfTablesMessage {
    let key = Element { value: None, ..key.clone() };
    NfTablesMessage::GetSetElement(SetElementMessage { attributes: list(table, set, &[key]) })
}

/// Numbers of nested attributes (include/uapi/linux/netfilter/nf_tables.h).
mod number {
    /// `NFTA_SET_ELEM_LIST_ELEMENTS`, and in it `NFTA_LIST_ELEM`.
    pub(super) const ELEMENTS: u16 = 3;
    pub(super) const ELEMENT: u16 = 1;
    /// `NFTA_SET_ELEM_KEY`, `NFTA_SET_ELEM_DATA`.
    pub(super) const KEY: u16 = 1;
    pub(super) const DATA: u16 = 2;
    /// `NFTA_SET_ELEM_EXPIRATION`.
    pub(super) const EXPIRATION: u16 = 5;
    /// `NFTA_DATA_VALUE`, `NFTA_DATA_VERDICT`, and in it `NFTA_VERDICT_CHAIN`.
    pub(super) const VALUE: u16 = 1;
    pub(super) const VERDICT: u16 = 2;
    pub(super) const CHAIN: u16 = 2;
}

/// The elements in one part of a dump.
pub(crate) fn elements_of(message: &[u8]) -> Vec<Element> {
    let lists = nested(message, number::ELEMENTS);
    lists.flat_map(|list| nested(list, number::ELEMENT)).filter_map(element_of).collect()
}

fn element_of(element: &[u8]) -> Option<Element> {
    let key = nested(element, number::KEY).flat_map(|key| nested(key, number::VALUE)).next()?.to_vec();
    let value = nested(element, number::DATA).find_map(|data| {
        let bytes = nested(data, number::VALUE).next().map(|bytes| Value::Data(bytes.to_vec()));
        let mut chains = nested(data, number::VERDICT).flat_map(|verdict| nested(verdict, number::CHAIN));
        let text = |name: &[u8]| String::from_utf8_lossy(name).trim_end_matches('\0').to_owned();
        bytes.or_else(|| chains.next().map(|name| Value::Jump(text(name))))
    });
    Some(Element { key, value })
}

/// The values of the attributes of one number.
fn nested(bytes: &[u8], number: u16) -> impl Iterator<Item = &[u8]> {
    attributes(bytes).filter(move |(kind, _)| *kind == number).map(|(_, value)| value)
}
