//! A transaction: tables, chains, rules, sets and elements to add and to delete, all or nothing.

use netlink_packet_core::{
    DefaultNla, NLM_F_ACK, NLM_F_APPEND, NLM_F_CREATE, NLM_F_EXCL, NLM_F_REQUEST, NetlinkMessage,
};
use netlink_packet_netfilter::nftables::{
    ChainAttribute, ChainMessage, GenMessage, Hook as HookAttribute, HookNumber, InetHookNumber,
    NfTablesMessage, RuleAttribute, RuleMessage, SetElementMessage, SetMessage, TableAttribute, TableMessage,
};
use netlink_packet_netfilter::none::ControlMessage;
use netlink_packet_netfilter::{NetfilterHeader, NetfilterMessage, NetfilterProtoFamily};
use nix::libc;

use super::SUBSYSTEM;
use super::expr::Expr;
use super::inet;
use super::set::{Element, Set, expiring, list};
use crate::raw::Raw;

/// Where a base chain hangs.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Hook {
    /// Packets that come in, before they are routed.
    Prerouting,
    /// Packets that the host sends, before they are routed again.
    Output,
    /// Packets that go out.
    Postrouting,
}

/// What a base chain may do.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Kind {
    /// Let packets pass, or not.
    Filter,
    /// Translate the addresses of a connection; only its first packet comes by.
    Nat,
}

/// A chain that the kernel calls.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Base {
    /// What it may do.
    pub kind: Kind,
    /// Where it hangs.
    pub hook: Hook,
    /// Its place among the chains there: the smaller, the earlier.
    pub priority: i32,
}

/// Changes of one table of family `inet`.
#[derive(Debug)]
pub struct Batch {
    table: String,
    messages: Vec<NetlinkMessage<NetfilterMessage>>,
    /// What each message asks for, for the error that refuses it.
    names: Vec<String>,
}

impl Batch {
    /// Nothing yet.
    pub fn of(table: &str) -> Batch {
        let mut batch = Batch { table: table.to_owned(), messages: Vec::new(), names: Vec::new() };
        batch.push("begin a transaction".into(), control(ControlMessage::BatchBegin), 0);
        batch
    }

    fn push(&mut self, name: String, message: NetfilterMessage, flags: u16) {
        let mut message = NetlinkMessage::from(message);
        message.header.flags = NLM_F_REQUEST | flags;
        // The answer to a message bears its number.
        message.header.sequence_number = u32::try_from(self.messages.len()).unwrap_or(u32::MAX);
        self.messages.push(message);
        self.names.push(name);
    }

    /// Adds the table; one that exists stays as it is.
    pub fn add_table(&mut self) {
        let message = NfTablesMessage::NewTable(table(&self.table));
        self.push(format!("add table {}", self.table), inet(message), NLM_F_CREATE);
    }

    /// Deletes the table and all that is in it.
    pub fn delete_table(&mut self) {
        let message = NfTablesMessage::DeleteTable(table(&self.table));
        self.push(format!("delete table {}", self.table), inet(message), 0);
    }

    /// Adds a chain; without `base` it is one to jump to.
    pub fn add_chain(&mut self, name: &str, base: Option<Base>) {
        let mut attributes =
            vec![ChainAttribute::Table(self.table.clone()), ChainAttribute::Name(name.to_owned())];
        if let Some(base) = base {
            let hook = match base.hook {
                Hook::Prerouting => InetHookNumber::PreRouting,
                Hook::Output => InetHookNumber::LocalOut,
                Hook::Postrouting => InetHookNumber::PostRouting,
            };
            let kind = match base.kind {
                Kind::Filter => "filter",
                Kind::Nat => "nat",
            };
            attributes.extend([
                ChainAttribute::Hook(vec![
                    HookAttribute::Number(HookNumber::Inet(hook)),
                    HookAttribute::Priority(base.priority.cast_unsigned()),
                ]),
                ChainAttribute::Type(kind.to_owned()),
            ]);
        }
        let message = NfTablesMessage::NewChain(ChainMessage { attributes });
        self.push(format!("add chain {name} of table {}", self.table), inet(message), NLM_F_CREATE);
    }

    /// Adds a rule behind the others of its chain.
    pub fn add_rule(&mut self, chain: &str, rule: Vec<Expr>) {
        let attributes = vec![
            RuleAttribute::Table(self.table.clone()),
            RuleAttribute::Chain(chain.to_owned()),
            RuleAttribute::Expressions(rule.into_iter().flat_map(Expr::into_attributes).collect()),
        ];
        let message = NfTablesMessage::NewRule(RuleMessage { attributes });
        let name = format!("add a rule to chain {chain} of table {}", self.table);
        self.push(name, inet(message), NLM_F_CREATE | NLM_F_APPEND);
    }

    /// Adds a set or map.
    pub fn add_set(&mut self, set: &Set<'_>) {
        // Its number within the transaction, for rules that look into it: the kernel wants one.
        let id = u32::try_from(self.messages.len()).unwrap_or(u32::MAX);
        let attributes = set.attributes(&self.table, id);
        let message = NfTablesMessage::NewSet(SetMessage { attributes });
        self.push(format!("add set {} of table {}", set.name, self.table), inet(message), NLM_F_CREATE);
    }

    /// Adds elements, which must not exist.
    pub fn add_elements(&mut self, set: &str, elements: &[Element]) {
        self.new_elements(set, elements, NLM_F_CREATE | NLM_F_EXCL);
    }

    /// Adds elements, which may exist, but with no other value.
    pub fn have_elements(&mut self, set: &str, elements: &[Element]) {
        self.new_elements(set, elements, NLM_F_CREATE);
    }

    fn new_elements(&mut self, set: &str, elements: &[Element], flags: u16) {
        for part in elements.chunks(PART) {
            let attributes = list(&self.table, set, part);
            let message = NfTablesMessage::NewSetElement(SetElementMessage { attributes });
            self.push(format!("add to set {set} of table {}", self.table), inet(message), flags);
        }
    }

    /// Makes elements expire at the next tick of the kernel's clock (10 ms at most), without anybody waiting for it. For a kernel before
    /// 6.12 an element that exists is as it should be, and stays: [`Netfilter::has_lasting`](crate::Netfilter::has_lasting) tells.
    pub fn expire_elements(&mut self, set: &str, elements: &[Element]) {
        for part in elements.chunks(PART) {
            let attributes = expiring(&self.table, set, part);
            let message = NfTablesMessage::NewSetElement(SetElementMessage { attributes });
            self.push(format!("end in set {set} of table {}", self.table), inet(message), NLM_F_CREATE);
        }
    }

    /// Deletes elements, which must exist.
    pub fn delete_elements(&mut self, set: &str, elements: &[Element]) {
        for part in elements.chunks(PART) {
            let attributes = list(&self.table, set, part);
            let message = NfTablesMessage::DeleteSetElement(SetElementMessage { attributes });
            self.push(format!("delete from set {set} of table {}", self.table), inet(message), 0);
        }
    }

    /// Refused with `ERESTART` if anything has changed since [`Netfilter::generation`](crate::Netfilter::generation) said so.
    pub fn unless_changed_since(&mut self, generation: u32) {
        let attributes = vec![DefaultNla::new(GENID, generation.to_be_bytes().to_vec())];
        if let Some(begin) = self.messages.first_mut() {
            let message = ControlMessage::Other { message_type: BEGIN, attributes };
            begin.payload = control(message).into();
        }
    }

    /// The bytes for one sendmsg(2), and what each message asks for.
    pub(crate) fn finish(mut self) -> (Vec<u8>, Vec<String>) {
        if let Some(last) = self.messages.last_mut() {
            last.header.flags |= NLM_F_ACK;
        }
        self.push("commit a transaction".into(), control(ControlMessage::BatchEnd), 0);
        let mut bytes = Vec::new();
        for mut message in self.messages {
            message.finalize();
            let start = bytes.len();
            bytes.resize(start + message.buffer_len(), 0);
            message.serialize(bytes.split_at_mut(start).1);
        }
        (bytes, self.names)
    }
}

/// `NFNL_BATCH_GENID` and `NFNL_MSG_BATCH_BEGIN` (include/uapi/linux/netfilter/nfnetlink.h).
const GENID: u16 = 1;
const BEGIN: u8 = 16;

/// Elements of one message: the length of an attribute has 16 bits, and an element takes at most 112 bytes.
const PART: usize = 500;

/// Begin and end name the subsystem where others have their family (`nfnetlink_rcv_skb_batch`).
fn control(message: ControlMessage) -> NetfilterMessage {
    let subsystem = u16::try_from(libc::NFNL_SUBSYS_NFTABLES).unwrap_or_default();
    NetfilterMessage::new(NetfilterHeader::new(NetfilterProtoFamily::Unspec, 0, subsystem), message)
}

fn table(name: &str) -> TableMessage {
    TableMessage { attributes: vec![TableAttribute::Name(name.to_owned())] }
}

pub(super) fn get_table(name: &str) -> NfTablesMessage {
    NfTablesMessage::GetTable(table(name))
}

pub(super) fn get_rules(table: &str) -> NfTablesMessage {
    NfTablesMessage::GetRule(RuleMessage { attributes: vec![RuleAttribute::Table(table.to_owned())] })
}

/// The chain of a listed rule (`NFT_MSG_NEWRULE`, `NFTA_RULE_CHAIN` in include/uapi/linux/netfilter/nf_tables.h).
pub(crate) fn chain_of(message: &Raw) -> Option<String> {
    (message.numbers() == [SUBSYSTEM, 6]).then(|| message.text(2))?
}

pub(super) fn get_generation() -> NfTablesMessage {
    NfTablesMessage::GetGen(GenMessage { attributes: Vec::new() })
}

/// The generation in an answer (`NFT_MSG_NEWGEN`, `NFTA_GEN_ID`).
pub(crate) fn generation_of(message: &Raw) -> Option<u32> {
    let id = (message.numbers() == [SUBSYSTEM, 15]).then(|| message.attribute(1))??;
    id.first_chunk().map(|id| u32::from_be_bytes(*id))
}
