//! Chains of anybody's that drop what is forwarded and what no rule of theirs accepts. Such a drop is final (nft(8), "drop"): no
//! rule in another table can undo it. Tables of iptables' older kind are not among them.

use netlink_packet_core::NLM_F_DUMP;
use netlink_packet_netfilter::nftables::{ChainMessage, NfTablesMessage};
use netlink_packet_netfilter::{NetfilterHeader, NetfilterMessage, NetfilterProtoFamily};

use crate::raw::{Raw, attribute};
use crate::{Error, Netfilter};

/// `NFNL_SUBSYS_NFTABLES` and `NFT_MSG_NEWCHAIN`.
const CHAIN: [u8; 2] = [10, 3];
/// `NFTA_CHAIN_TABLE`, `..._NAME`, `..._HOOK`, `..._POLICY`, and `NFTA_HOOK_HOOKNUM` (include/uapi/linux/netfilter/nf_tables.h).
const TABLE: u16 = 1;
const NAME: u16 = 3;
const HOOK: u16 = 4;
const POLICY: u16 = 5;
const HOOK_NUMBER: u16 = 1;
/// `NF_INET_FORWARD`, `NF_DROP` (include/uapi/linux/netfilter.h).
const FORWARD: u32 = 2;
const DROP: u32 = 0;

impl Netfilter {
    /// The base chains with `policy drop` in the forward hook, as `ip filter FORWARD`.
    ///
    /// # Errors
    /// [`Error::Netfilter`].
    pub fn closed_to_forwarding(&self) -> Result<Vec<String>, Error> {
        let header = NetfilterHeader::new(NetfilterProtoFamily::Unspec, 0, 0);
        let all = NfTablesMessage::GetChain(ChainMessage { attributes: Vec::new() });
        let found = self.ask(NetfilterMessage::new(header, all), NLM_F_DUMP);
        let found = found.map_err(|source| Error::Netfilter { op: "list chains".into(), source })?;
        Ok(found.iter().filter_map(closed).collect())
    }
}

/// The name of a chain that is closed.
pub(crate) fn closed(raw: &Raw) -> Option<String> {
    let family = match NetfilterProtoFamily::from(raw.family()) {
        NetfilterProtoFamily::Inet => "inet",
        NetfilterProtoFamily::IPv4 => "ip",
        NetfilterProtoFamily::IPv6 => "ip6",
        // A bridge or a device sees no forwarded packets of pods.
        _ => return None,
    };
    if raw.numbers() != CHAIN {
        return None;
    }
    let number = |bytes: &[u8]| <[u8; 4]>::try_from(bytes).map_or(u32::MAX, u32::from_be_bytes);
    let hook = raw.attribute(HOOK).and_then(|hook| attribute(hook, HOOK_NUMBER));
    let forwards = hook.is_some_and(|value| number(value) == FORWARD);
    let drops = raw.attribute(POLICY).is_some_and(|policy| number(policy) == DROP);
    let (table, name) = (raw.text(TABLE)?, raw.text(NAME)?);
    (forwards && drops).then(|| format!("{family} {table} {name}"))
}
