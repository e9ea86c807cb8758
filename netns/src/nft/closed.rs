//! Chains of anybody's that drop what is forwarded and what no rule of theirs accepts. Such a drop is final (nft(8), "drop"): no
//! rule in another table can undo it. Tables of iptables' older kind are not among them.

use netlink_packet_core::NLM_F_DUMP;
use netlink_packet_netfilter::nftables::{
    ChainAttribute, ChainMessage, Hook, HookNumber, InetHookNumber, NfTablesMessage,
};
use netlink_packet_netfilter::{NetfilterHeader, NetfilterMessage, NetfilterProtoFamily};

use crate::netfilter::Raw;
use crate::{Error, Netfilter};

/// `NF_DROP` (include/uapi/linux/netfilter.h).
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
fn closed(raw: &Raw) -> Option<String> {
    let family = match NetfilterProtoFamily::from(raw.family()) {
        NetfilterProtoFamily::Inet => "inet",
        NetfilterProtoFamily::IPv4 => "ip",
        NetfilterProtoFamily::IPv6 => "ip6",
        // A bridge or a device sees no forwarded packets of pods.
        _ => return None,
    };
    let Some(NfTablesMessage::NewChain(ChainMessage { attributes })) = super::parse(raw) else { return None };
    let (mut table, mut name, mut forwards, mut drops) = ("", "", false, false);
    for attribute in &attributes {
        match attribute {
            ChainAttribute::Table(text) => table = text,
            ChainAttribute::Name(text) => name = text,
            ChainAttribute::Policy(policy) => drops = *policy == DROP,
            ChainAttribute::Hook(hook) => {
                forwards = hook.contains(&Hook::Number(HookNumber::Inet(InetHookNumber::Forward)));
            }
            _ => {}
        }
    }
    (forwards && drops).then(|| format!("{family} {table} {name}"))
}
