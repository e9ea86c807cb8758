//! Which changes of nftables take something of a table away.

use netlink_packet_core::{NetlinkMessage, NetlinkPayload};
use netlink_packet_netfilter::NetfilterMessageInner;
use netlink_packet_netfilter::nftables::{
    ChainAttribute, NfTablesMessage, RuleAttribute, SetAttribute, TableAttribute,
};

use crate::netfilter::Raw;

/// Whether the table, or a chain, a rule or a set of it is gone. Elements come and go.
pub(crate) fn is_loss(message: &NetlinkMessage<Raw>, table: &str) -> bool {
    let NetlinkPayload::InnerMessage(message) = &message.payload else { return false };
    let Some(NetfilterMessageInner::NfTables(message)) = message.parse() else { return false };
    match message {
        NfTablesMessage::DeleteTable(message) => {
            message.attributes.iter().any(|one| matches!(one, TableAttribute::Name(name) if name == table))
        }
        NfTablesMessage::DeleteChain(message) => {
            message.attributes.iter().any(|one| matches!(one, ChainAttribute::Table(name) if name == table))
        }
        NfTablesMessage::DeleteRule(message) => {
            message.attributes.iter().any(|one| matches!(one, RuleAttribute::Table(name) if name == table))
        }
        NfTablesMessage::DeleteSet(message) => {
            message.attributes.iter().any(|one| matches!(one, SetAttribute::Table(name) if name == table))
        }
        _ => false,
    }
}
