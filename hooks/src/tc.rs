//! The filters on a link, by route netlink: the clsact qdisc, and one cls_bpf filter on each side of it.
//!
//! Each has a priority and handle of its own and a name that says whose it is, so filters of others are never touched. A socket
//! and three messages of fixed shape, because aya attaches but cannot ask, and this is asked for (CNI CHECK). A socket belongs to
//! the network namespace of the thread that opened it.
//!
//! ```text
//! nlmsghdr, 16 bytes  length u32, type u16, flags u16, sequence u32, port u32
//! tcmsg, 20 bytes     family u8, 3 spare, ifindex i32, handle u32, parent u32, info u32 (priority << 16 | protocol)
//! nlattr              length u16 (without padding), type u16, payload, padded to 4 bytes
//! ```

use std::{
    fmt,
    os::fd::{AsRawFd as _, BorrowedFd, OwnedFd},
};

use nix::{
    errno::Errno,
    sys::socket::{AddressFamily, MsgFlags, SockFlag, SockProtocol, SockType, recv, send, socket},
};

// linux/rtnetlink.h, linux/netlink.h, linux/pkt_sched.h, linux/pkt_cls.h
const RTM_NEWQDISC: u16 = 36;
const RTM_NEWTFILTER: u16 = 44;
const RTM_DELTFILTER: u16 = 45;
const RTM_GETTFILTER: u16 = 46;
const NLMSG_ERROR: u16 = 2;
const NLM_F_REQUEST: u16 = 0x1;
const NLM_F_ACK: u16 = 0x4;
const NLM_F_REPLACE: u16 = 0x100;
const NLM_F_EXCL: u16 = 0x200;
const NLM_F_CREATE: u16 = 0x400;
const TCA_KIND: u16 = 1;
const TCA_OPTIONS: u16 = 2;
const TCA_BPF_FD: u16 = 6;
const TCA_BPF_NAME: u16 = 7;
const TCA_BPF_FLAGS: u16 = 8;
const TCA_BPF_ID: u16 = 11;
const TCA_BPF_FLAG_ACT_DIRECT: u32 = 1;
const NLA_TYPE_MASK: u16 = 0x3fff;
const TC_H_CLSACT: u32 = 0xffff_fff1;
const CLSACT_HANDLE: u32 = 0xffff_0000;
const CLSACT_INGRESS: u32 = 0xffff_fff2;
const CLSACT_EGRESS: u32 = 0xffff_fff3;
const ETH_P_ALL: u16 = 3;

const HEADER: usize = 16;
const TCMSG: usize = 20;

/// Before the 49152 and below that tc(8) gives to filters that ask for none; "weft" for the handle.
const PRIORITY: u32 = 0x5746;
const HANDLE: u32 = 0x7765_6674;
const OWNER: &str = "weft/";

/// A side of the host's end of a pod's veth pair.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Direction {
    /// What the pod sends.
    Ingress,
    /// What the stack sends to the pod.
    Egress,
}

impl Direction {
    /// Egress first: the fast path never runs without the program that guards it.
    pub(crate) const BOTH: [Self; 2] = [Self::Egress, Self::Ingress];

    fn parent(self) -> u32 {
        match self {
            Self::Ingress => CLSACT_INGRESS,
            Self::Egress => CLSACT_EGRESS,
        }
    }

    fn filter_name(self) -> String {
        format!("{OWNER}{}", self.program())
    }
}

impl fmt::Display for Direction {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Self::Ingress => "ingress",
            Self::Egress => "egress",
        })
    }
}

/// What hangs at the place that is weft's.
#[derive(Debug)]
pub(crate) struct Filter {
    /// As its maker called it.
    pub(crate) name: String,
    /// The kernel's number of its program.
    pub(crate) program: Option<u32>,
}

impl Filter {
    pub(crate) fn is_ours(&self) -> bool {
        self.name.starts_with(OWNER)
    }
}

/// A route netlink socket that asks for filters.
#[derive(Debug)]
pub(crate) struct Tc(OwnedFd);

/// One request: the message's type and flags, and where it points.
struct Request {
    kind: u16,
    flags: u16,
    ifindex: u32,
    handle: u32,
    parent: u32,
    info: u32,
}

impl Tc {
    pub(crate) fn open() -> Result<Self, Errno> {
        let (family, kind) = (AddressFamily::Netlink, SockType::Raw);
        socket(family, kind, SockFlag::SOCK_CLOEXEC, SockProtocol::NetlinkRoute).map(Self)
    }

    /// Give the link a clsact qdisc, if it has none.
    pub(crate) fn add_clsact(&self, ifindex: u32) -> Result<(), Errno> {
        let (handle, parent) = (CLSACT_HANDLE, TC_H_CLSACT);
        let request = Request {
            kind: RTM_NEWQDISC,
            flags: NLM_F_CREATE | NLM_F_EXCL,
            ifindex,
            handle,
            parent,
            info: 0,
        };
        let mut kind = Vec::new();
        attribute(&mut kind, TCA_KIND, b"clsact\0");
        match self.ask(&request, &kind) {
            Ok(_) | Err(Errno::EEXIST) => Ok(()),
            Err(errno) => Err(errno),
        }
    }

    /// Hang the program on the link; `EEXIST` if something hangs there.
    pub(crate) fn add(
        &self,
        ifindex: u32,
        direction: Direction,
        program: BorrowedFd<'_>,
    ) -> Result<(), Errno> {
        self.set(ifindex, direction, program, NLM_F_CREATE | NLM_F_EXCL)
    }

    /// Put the program in the place of the one that hangs there, without a packet between; `ENOENT` if none does.
    pub(crate) fn replace(
        &self,
        ifindex: u32,
        direction: Direction,
        program: BorrowedFd<'_>,
    ) -> Result<(), Errno> {
        self.set(ifindex, direction, program, NLM_F_REPLACE)
    }

    fn set(
        &self,
        ifindex: u32,
        direction: Direction,
        program: BorrowedFd<'_>,
        flags: u16,
    ) -> Result<(), Errno> {
        let mut options = Vec::new();
        attribute(&mut options, TCA_BPF_FD, &program.as_raw_fd().to_ne_bytes());
        attribute(&mut options, TCA_BPF_NAME, format!("{}\0", direction.filter_name()).as_bytes());
        attribute(&mut options, TCA_BPF_FLAGS, &TCA_BPF_FLAG_ACT_DIRECT.to_ne_bytes());
        let mut attributes = Vec::new();
        attribute(&mut attributes, TCA_KIND, b"bpf\0");
        attribute(&mut attributes, TCA_OPTIONS, &options);
        self.ask(&filter(RTM_NEWTFILTER, flags, ifindex, direction), &attributes).map(drop)
    }

    /// What hangs at our place; `None` if nothing does, or there is no qdisc or link.
    pub(crate) fn find(&self, ifindex: u32, direction: Direction) -> Result<Option<Filter>, Errno> {
        let mut kind = Vec::new();
        attribute(&mut kind, TCA_KIND, b"bpf\0");
        match self.ask(&filter(RTM_GETTFILTER, 0, ifindex, direction), &kind) {
            Ok(reply) => Ok(reply.map(|body| read_filter(&body))),
            // A link without clsact answers EINVAL (net/sched/cls_api.c, __tcf_qdisc_find).
            Err(Errno::ENOENT | Errno::ENODEV | Errno::EINVAL) => Ok(None),
            Err(errno) => Err(errno),
        }
    }

    /// Take down what hangs at our place.
    pub(crate) fn delete(&self, ifindex: u32, direction: Direction) -> Result<(), Errno> {
        self.ask(&filter(RTM_DELTFILTER, 0, ifindex, direction), &[]).map(drop)
    }

    /// Send one request and read to its acknowledgement; returns the body of the message before that, if there was one.
    fn ask(&self, request: &Request, attributes: &[u8]) -> Result<Option<Vec<u8>>, Errno> {
        let fd = self.0.as_raw_fd();
        send(fd, &encode(request, attributes), MsgFlags::empty())?;
        let (mut buffer, mut body) = (vec![0; 8192], None);
        loop {
            let length = recv(fd, &mut buffer, MsgFlags::empty())?;
            for (kind, message) in messages(&buffer[..length]) {
                match kind {
                    NLMSG_ERROR => return acknowledged(message).map(|()| body),
                    RTM_NEWTFILTER => body = Some(message.to_vec()),
                    _ => {}
                }
            }
        }
    }
}

fn filter(kind: u16, flags: u16, ifindex: u32, direction: Direction) -> Request {
    let info = PRIORITY << 16 | u32::from(ETH_P_ALL.to_be());
    Request { kind, flags, ifindex, handle: HANDLE, parent: direction.parent(), info }
}

fn encode(request: &Request, attributes: &[u8]) -> Vec<u8> {
    let length = (HEADER + TCMSG + attributes.len()) as u32;
    let mut message = Vec::with_capacity(length as usize);
    message.extend(length.to_ne_bytes());
    message.extend(request.kind.to_ne_bytes());
    message.extend((request.flags | NLM_F_REQUEST | NLM_F_ACK).to_ne_bytes());
    message.extend([0; 8]); // sequence: one request is under way at a time; port: the kernel's
    message.extend([0; 4]); // AF_UNSPEC
    for word in [request.ifindex, request.handle, request.parent, request.info] {
        message.extend(word.to_ne_bytes());
    }
    message.extend(attributes);
    message
}

fn attribute(to: &mut Vec<u8>, kind: u16, payload: &[u8]) {
    to.extend((payload.len() as u16 + 4).to_ne_bytes());
    to.extend(kind.to_ne_bytes());
    to.extend(payload);
    to.resize(to.len().next_multiple_of(4), 0);
}

/// The messages of one datagram: type and what follows the header. Ends at what is cut short.
pub(crate) fn messages(datagram: &[u8]) -> impl Iterator<Item = (u16, &[u8])> {
    let mut rest = datagram;
    std::iter::from_fn(move || {
        let length = u32::from_ne_bytes(*rest.first_chunk()?) as usize;
        let kind = u16::from_ne_bytes(*rest.get(4..)?.first_chunk()?);
        let body = rest.get(HEADER..length)?;
        rest = rest.get(length.next_multiple_of(4)..).unwrap_or_default();
        Some((kind, body))
    })
}

/// The attributes of a message: type and payload.
fn attributes(bytes: &[u8]) -> impl Iterator<Item = (u16, &[u8])> {
    let mut rest = bytes;
    std::iter::from_fn(move || {
        let length = usize::from(u16::from_ne_bytes(*rest.first_chunk()?));
        let kind = u16::from_ne_bytes(*rest.get(2..)?.first_chunk()?) & NLA_TYPE_MASK;
        let payload = rest.get(4..length)?;
        rest = rest.get(length.next_multiple_of(4)..).unwrap_or_default();
        Some((kind, payload))
    })
}

/// `struct nlmsgerr`: minus the error number, or zero.
pub(crate) fn acknowledged(body: &[u8]) -> Result<(), Errno> {
    match body.first_chunk().map(|code| i32::from_ne_bytes(*code)) {
        Some(0) => Ok(()),
        Some(code) => Err(Errno::from_raw(code.saturating_neg())),
        None => Err(Errno::EBADMSG),
    }
}

pub(crate) fn read_filter(body: &[u8]) -> Filter {
    let mut found = Filter { name: String::new(), program: None };
    for (kind, payload) in attributes(body.get(TCMSG..).unwrap_or_default()) {
        if kind != TCA_OPTIONS {
            continue;
        }
        for (kind, payload) in attributes(payload) {
            match kind {
                TCA_BPF_NAME => {
                    found.name = String::from_utf8_lossy(payload).trim_end_matches('\0').to_owned();
                }
                TCA_BPF_ID => found.program = payload.first_chunk().map(|id| u32::from_ne_bytes(*id)),
                _ => {}
            }
        }
    }
    found
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn an_error_number_that_cannot_be_is_an_error() {
        for code in [i32::MIN, i32::MAX, -9999] {
            assert!(acknowledged(&code.to_ne_bytes()).is_err(), "{code}");
        }
        assert_eq!(acknowledged(&(-2_i32).to_ne_bytes()), Err(Errno::ENOENT));
        assert_eq!(acknowledged(&[0; 4]), Ok(()));
        assert_eq!(acknowledged(&[0; 3]), Err(Errno::EBADMSG));
    }
}
