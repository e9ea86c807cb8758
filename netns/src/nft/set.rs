//! Sets and maps, and what is in them.

use netlink_packet_netfilter::nftables::{
    DataAttribute, ListAttribute, NfTablesMessage, SetAttribute, SetElementAttribute, SetElementList,
    SetElementMessage, SetFlags,
};

use crate::raw::attributes;

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
}

impl Type {
    /// What `nft` shows a field as (`enum datatypes` in nftables' include/datatype.h); the kernel only keeps it.
    fn number(self) -> u32 {
        match self {
            Type::Ipv4 => 7,
            Type::Ipv6 => 8,
            Type::Protocol => 12,
            Type::Port => 13,
        }
    }

    /// Bytes in registers.
    fn len(self) -> u32 {
        if self == Type::Ipv6 { 16 } else { 4 }
    }
}

/// Six bits a field (`TYPE_BITS` in nftables' include/datatype.h).
fn concatenated(types: &[Type]) -> u32 {
    types.iter().fold(0, |all, one| (all << 6) | one.number())
}

fn len(types: &[Type]) -> u32 {
    types.iter().map(|one| one.len()).sum()
}

/// A set, or with `value` a map. Its elements can be made to expire.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Set<'a> {
    /// Its name in the table.
    pub name: &'a str,
    /// The fields of a key.
    pub key: &'static [Type],
    /// The fields of a value; none in a set.
    pub value: &'static [Type],
}

impl Set<'_> {
    pub(super) fn attributes(&self, table: &str, id: u32) -> Vec<SetAttribute> {
        let mut flags = SetFlags::Timeout;
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
    /// What a map gives for it, as it lies in registers.
    pub value: Option<Vec<u8>>,
}

impl Element {
    fn attributes(&self) -> Vec<SetElementAttribute> {
        let mut attributes = vec![SetElementAttribute::Key(DataAttribute::Value(self.key.clone()))];
        let value = self.value.clone().map(DataAttribute::Value);
        attributes.extend(value.map(SetElementAttribute::Data));
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
    /// `NFTA_DATA_VALUE`.
    pub(super) const VALUE: u16 = 1;
}

/// The elements in one part of a dump.
pub(crate) fn elements_of(message: &[u8]) -> Vec<Element> {
    let lists = nested(message, number::ELEMENTS);
    lists.flat_map(|list| nested(list, number::ELEMENT)).filter_map(element_of).collect()
}

fn element_of(element: &[u8]) -> Option<Element> {
    let first = |kind| nested(element, kind).flat_map(|data| nested(data, number::VALUE)).next();
    Some(Element { key: first(number::KEY)?.to_vec(), value: first(number::DATA).map(<[u8]>::to_vec) })
}

/// The values of the attributes of one number.
fn nested(bytes: &[u8], number: u16) -> impl Iterator<Item = &[u8]> {
    attributes(bytes).filter(move |(kind, _)| *kind == number).map(|(_, value)| value)
}
