//! Which changes of nftables take something of a table away.

use netlink_packet_core::{NetlinkMessage, NetlinkPayload};

use crate::raw::Raw;

/// `NFT_MSG_DELTABLE`, `NFT_MSG_DELCHAIN`, `NFT_MSG_DELRULE`, `NFT_MSG_DELSET` (include/uapi/linux/netfilter/nf_tables.h).
const DELETIONS: [u8; 4] = [2, 5, 8, 11];
/// `NFTA_TABLE_NAME`, `NFTA_CHAIN_TABLE`, `NFTA_RULE_TABLE`, `NFTA_SET_TABLE`.
const TABLE: u16 = 1;

/// Whether the table, or a chain, a rule or a set of it is gone. Elements come and go.
pub(crate) fn is_loss(message: &NetlinkMessage<Raw>, table: &str) -> bool {
    let NetlinkPayload::InnerMessage(message) = &message.payload else { return false };
    let [subsystem, number] = message.numbers();
    subsystem == super::SUBSYSTEM
        && DELETIONS.contains(&number)
        && message.text(TABLE).is_some_and(|name| name == table)
}

#[cfg(test)]
mod tests {
    use super::is_loss;
    use crate::netfilter::each;

    fn attribute(kind: u16, value: &[u8]) -> Vec<u8> {
        let length = u16::try_from(4 + value.len()).unwrap();
        let mut bytes = [&length.to_ne_bytes()[..], &kind.to_ne_bytes(), value].concat();
        bytes.resize(bytes.len().next_multiple_of(4), 0);
        bytes
    }

    /// One message of nftables, as the kernel tells it.
    fn tells(number: u8, attributes: &[u8]) -> bool {
        let length = u32::try_from(20 + attributes.len()).unwrap();
        let header = [&length.to_ne_bytes()[..], &[number, 10], &[0; 10], &[1, 0, 0, 0]].concat();
        each(&[&header, attributes].concat(), |message| is_loss(&message, "weft")).unwrap()
    }

    #[test]
    fn what_is_deleted_from_the_table_is_a_loss() {
        for number in [2, 5, 8, 11] {
            assert!(tells(number, &attribute(1, b"weft\0")), "{number}");
            assert!(!tells(number, &attribute(1, b"other\0")), "{number}");
            assert!(!tells(number, &[]), "{number}");
        }
        // A new table, new elements, elements that go.
        for number in [0, 12, 14] {
            assert!(!tells(number, &attribute(1, b"weft\0")), "{number}");
        }
    }

    /// netlink-packet-netfilter 0.4.0 panics at this one, and `weft serve` is told of everybody's changes.
    #[test]
    fn an_element_whose_data_is_cut_short_is_no_loss() {
        let cut = attribute(2, &[0, 0, 1, 0]);
        let list = attribute(3, &attribute(1, &cut));
        assert!(!tells(12, &[attribute(1, b"weft\0"), list].concat()));
    }
}
