//! An intermediate functional block (ifb): a link through which the packets that come in on another one are led, so
//! that they pass its qdisc. They go on afterwards as if nothing had been: on the link where they came in, behind its
//! filters (`ifb_ri_tasklet` in the kernel's drivers/net/ifb.c, `tc_skip_classify`).

use netlink_packet_core::{DefaultNla, Emitable};
use netlink_packet_route::RouteNetlinkMessage;
use netlink_packet_route::link::{InfoKind, LinkAttribute, LinkInfo, LinkMessage};
use netlink_packet_route::tc::{
    TcAction, TcActionAttribute, TcActionMirror, TcActionMirrorOption, TcActionOption, TcActionType,
    TcAttribute, TcFilterBpf, TcFilterBpfOption, TcHandle, TcMessage, TcMirror, TcMirrorActionType, TcOption,
};
use nix::libc;

use crate::netlink::errno;
use crate::qdisc::{TCA_OPTIONS, TCMSG, of_link};
use crate::raw::{Raw, attribute, attributes, number_at};
use crate::{Error, LinkName, Mac, Netlink};

// linux/pkt_cls.h, linux/tc_act/tc_mirred.h, linux/if_ether.h
const TCA_BPF_ACT: u16 = 1;
const TCA_BPF_OPS_LEN: u16 = 4;
const TCA_BPF_OPS: u16 = 5;
const TCA_ACT_OPTIONS: u16 = 2;
const TCA_MIRRED_PARMS: u16 = 2;
const CLSACT_INGRESS: TcHandle = TcHandle { major: 0xffff, minor: 0xfff2 };
const ETH_P_ALL: u16 = 3;

/// The last of all: whatever else hangs on the link has seen the packet by then. "weft" for the handle.
const PRIORITY: u32 = 0xffff;
const HANDLE: u32 = 0x7765_6674;

/// A classic filter of one instruction, "return -1", which matches everything (`struct sock_filter`: code u16, jumps 2 u8,
/// k u32; `BPF_RET | BPF_K` is 6). The kernel has had it for as long as clsact; matchall and u32 are not everywhere.
fn match_all() -> Vec<u8> {
    [&6_u16.to_ne_bytes()[..], &[0, 0], &u32::MAX.to_ne_bytes()].concat()
}

impl Netlink {
    /// Creates an ifb, down, and returns its index.
    ///
    /// # Errors
    /// `EEXIST` if the name is taken, `EOPNOTSUPP` if the kernel has no ifb.
    pub fn create_ifb(&self, name: &LinkName, mac: Mac, mtu: u32) -> Result<u32, Error> {
        let failed = |source| Error::Netlink { op: "create ifb", object: name.to_string(), source };
        let mut message = LinkMessage::default();
        message.attributes = vec![
            LinkAttribute::IfName(name.as_str().to_owned()),
            LinkAttribute::Address(mac.bytes().to_vec()),
            LinkAttribute::Mtu(mtu),
            LinkAttribute::LinkInfo(vec![LinkInfo::Kind(InfoKind::Ifb)]),
        ];
        let made = self.create(RouteNetlinkMessage::NewLink(message)).map_err(failed)?;
        self.index_of(made, name)
    }

    /// Leads all that comes in on a link through the ifb. If the ifb goes, nothing passes any more.
    ///
    /// # Errors
    /// `ENODEV` if one of them is gone, `ENOENT` if the kernel lacks cls_bpf or mirred.
    pub fn lead_through(&self, index: u32, ifb: u32) -> Result<(), Error> {
        self.ensure_clsact(index)?;
        let actions = [redirect(ifb)];
        let mut bytes = vec![0; actions.as_slice().buffer_len()];
        actions.as_slice().emit(&mut bytes);
        let other = |kind, value| TcOption::Bpf(TcFilterBpfOption::Other(DefaultNla::new(kind, value)));
        let mut message = filter(index);
        message.attributes.push(TcAttribute::Options(vec![
            other(TCA_BPF_OPS_LEN, 1_u16.to_ne_bytes().to_vec()),
            other(TCA_BPF_OPS, match_all()),
            other(TCA_BPF_ACT, bytes),
        ]));
        let done = self.replace(RouteNetlinkMessage::NewTrafficFilter(message));
        done.map_err(|source| Error::Netlink {
            op: "lead through",
            object: format!("{ifb} link {index}"),
            source,
        })
    }

    /// Whether what comes in on a link is led through the ifb.
    ///
    /// # Errors
    /// [`Error::Netlink`].
    pub fn is_led_through(&self, index: u32, ifb: u32) -> Result<bool, Error> {
        match self.query(RouteNetlinkMessage::GetTrafficFilter(filter(index))) {
            Ok(found) => Ok(target(&found) == Some(ifb)),
            // EINVAL: the link has no clsact (net/sched/cls_api.c, __tcf_qdisc_find).
            Err(err) if matches!(errno(&err), Some(libc::ENOENT | libc::EINVAL)) => Ok(false),
            Err(source) => {
                Err(Error::Netlink { op: "look up the filter of link", object: index.to_string(), source })
            }
        }
    }
}

fn filter(index: u32) -> TcMessage {
    let mut message = of_link(index, CLSACT_INGRESS);
    message.header.handle = HANDLE.into();
    message.header.info = PRIORITY << 16 | u32::from(ETH_P_ALL.to_be());
    message.attributes.push(TcAttribute::Kind(TcFilterBpf::KIND.into()));
    message
}

fn redirect(to: u32) -> TcAction {
    let mut mirror = TcMirror::default();
    mirror.generic.action = TcActionType::Stolen;
    mirror.eaction = TcMirrorActionType::EgressRedir;
    mirror.ifindex = to;
    let options = vec![TcActionOption::Mirror(TcActionMirrorOption::Parms(mirror))];
    // The first of the filter's actions, which is what the default says.
    let mut action = TcAction::default();
    action.attributes =
        vec![TcActionAttribute::Kind(TcActionMirror::KIND.into()), TcActionAttribute::Options(options)];
    action
}

/// Where a filter redirects to.
pub(crate) fn target(found: &Raw) -> Option<u32> {
    let (_, rest) = found.parts::<TCMSG>(libc::RTM_NEWTFILTER)?;
    let actions = attribute(attribute(rest, TCA_OPTIONS)?, TCA_BPF_ACT)?;
    let (_, first) = attributes(actions).next()?;
    // struct tc_mirred (linux/tc_act/tc_mirred.h): 20 bytes that all actions have, what is done, the link.
    let parameters = attribute(attribute(first, TCA_ACT_OPTIONS)?, TCA_MIRRED_PARMS)?;
    number_at(parameters, 24)
}
