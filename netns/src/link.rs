//! Links: looked up one by one, veth pairs, up, deleted.

use std::io;
use std::os::fd::{AsFd, AsRawFd};

use netlink_packet_route::RouteNetlinkMessage;
use netlink_packet_route::link::{
    AfSpecInet6, AfSpecUnspec, In6AddrGenMode, InfoData, InfoKind, InfoVeth, LinkAttribute, LinkFlags,
    LinkInfo, LinkMessage,
};
use nix::libc;

use crate::netlink::{errno, unreadable};
use crate::raw::{Raw, attribute, attributes, number_at, text};
use crate::{Error, LinkName, Mac, NetNs, Netlink};

// linux/if_link.h (`IFLA_*`)
const GSO_IPV4_MAX_SIZE: u16 = 63;
const GRO_IPV4_MAX_SIZE: u16 = 64;

/// A pair of virtual Ethernet links to be made (`veth(4)`).
#[derive(Debug)]
pub struct Veth<'a> {
    /// The end in the socket's namespace.
    pub name: LinkName,
    /// Its address.
    pub mac: Mac,
    /// Of both ends, in bytes.
    pub mtu: u32,
    /// Of both ends.
    pub packets: PacketSizes,
    /// The other end, born in `peer_ns`. Both are born down: the peer cannot be born up (`veth_open` in the kernel's
    /// drivers/net/veth.c, `ENOTCONN`), and how a link makes addresses is said between its birth and its rise.
    pub peer_name: LinkName,
    /// Its address.
    pub peer_mac: Mac,
    /// Where it is born.
    pub peer_ns: &'a NetNs,
}

/// The largest packets of IPv4, in bytes, that a link takes from the stack to be cut into frames later (GSO), and that are put together
/// from frames that come (GRO). What is larger, the kernel cuts into frames at once (`gso_features_check` in net/core/dev.c).
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct PacketSizes {
    /// What it takes.
    pub gso: u32,
    /// What is put together.
    pub gro: u32,
}

impl PacketSizes {
    /// What every link has until somebody raises it: what the length of an IPv4 packet can say (`GSO_LEGACY_MAX_SIZE`).
    pub const USUAL: u32 = 65_536;
}

impl Default for PacketSizes {
    fn default() -> Self {
        Self { gso: Self::USUAL, gro: Self::USUAL }
    }
}

/// What the kernel says of a link.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Link {
    /// Unique in its namespace while it lives.
    pub index: u32,
    /// Its name.
    pub name: String,
    /// Its Ethernet address; zeroes where it has none.
    pub mac: Mac,
    /// Bytes.
    pub mtu: u32,
    /// The usual ones where the kernel does not tell (before Linux 6.3).
    pub packets: PacketSizes,
    /// Whether it is set up (`IFF_UP`).
    pub up: bool,
    /// `veth`, `dummy`, …; `None` for hardware and `lo`.
    pub kind: Option<String>,
    /// The index of a veth's other end, in that end's namespace.
    pub peer_index: Option<u32>,
}

impl Netlink {
    /// The link of that name, if there is one.
    ///
    /// # Errors
    /// [`Error::Netlink`].
    pub fn link(&self, name: &LinkName) -> Result<Option<Link>, Error> {
        let mut message = LinkMessage::default();
        message.attributes.push(LinkAttribute::IfName(name.as_str().to_owned()));
        self.one_link(message, name.as_str())
    }

    /// The link of that index, if there is one.
    ///
    /// # Errors
    /// [`Error::Netlink`].
    pub fn link_by_index(&self, index: u32) -> Result<Option<Link>, Error> {
        let mut message = LinkMessage::default();
        message.header.index = index;
        self.one_link(message, &index.to_string())
    }

    fn one_link(&self, message: LinkMessage, object: &str) -> Result<Option<Link>, Error> {
        let failed = |source| Error::Netlink { op: "look up link", object: object.to_owned(), source };
        match self.query(RouteNetlinkMessage::GetLink(message)) {
            Ok(answer) => read(&answer).ok_or_else(|| failed(unreadable())).map(Some),
            Err(err) if is_absent(&err) => Ok(None),
            Err(err) => Err(failed(err)),
        }
    }

    /// All ends of veth pairs in the socket's namespace. A dump, which grows with the node: not for the way of a pod.
    ///
    /// # Errors
    /// [`Error::Netlink`].
    pub fn veths(&self) -> Result<Vec<Link>, Error> {
        self.links_of(InfoKind::Veth)
    }

    /// All ifbs in the socket's namespace. A dump too.
    ///
    /// # Errors
    /// [`Error::Netlink`].
    pub fn ifbs(&self) -> Result<Vec<Link>, Error> {
        self.links_of(InfoKind::Ifb)
    }

    fn links_of(&self, kind: InfoKind) -> Result<Vec<Link>, Error> {
        let name = kind.to_string();
        let mut message = LinkMessage::default();
        // The kernel sends this kind only (`link_kind_filtered` in net/core/rtnetlink.c).
        message.attributes.push(LinkAttribute::LinkInfo(vec![LinkInfo::Kind(kind)]));
        let answers = self.dump(RouteNetlinkMessage::GetLink(message));
        let answers = answers.map_err(|source| Error::Netlink {
            op: "list links of kind",
            object: name.clone(),
            source,
        })?;
        let is_meant = |link: &Link| link.kind.as_ref() == Some(&name);
        Ok(answers.iter().filter_map(read).filter(is_meant).collect())
    }

    /// Creates the pair by one message, and returns the index of its first end.
    ///
    /// # Errors
    /// `EEXIST` if either name is taken.
    pub fn create_veth(&self, veth: &Veth<'_>) -> Result<u32, Error> {
        let failed = |source| Error::Netlink {
            op: "create veth",
            object: format!("{} {}", veth.name, veth.peer_name),
            source,
        };
        let mut peer = end(&veth.peer_name, veth.peer_mac, veth);
        peer.attributes.push(LinkAttribute::NetNsFd(veth.peer_ns.as_fd().as_raw_fd()));
        let mut message = end(&veth.name, veth.mac, veth);
        let info = vec![LinkInfo::Kind(InfoKind::Veth), LinkInfo::Data(InfoData::Veth(InfoVeth::Peer(peer)))];
        message.attributes.push(LinkAttribute::LinkInfo(info));
        let made = self.create(RouteNetlinkMessage::NewLink(message)).map_err(failed)?;
        self.index_of(made, &veth.name)
    }

    /// The index of a link that was just made, from the kernel's echo of it or else by its name.
    pub(crate) fn index_of(&self, made: Option<Raw>, name: &LinkName) -> Result<u32, Error> {
        if let Some(made) = made.as_ref().and_then(read) {
            return Ok(made.index);
        }
        // Older kernels do not echo what they made.
        let link = self.link(name)?;
        link.map(|link| link.index).ok_or_else(|| Error::AbsentLink(name.to_string()))
    }

    /// Sets a link up that makes no link-local address by itself: no duplicate address detection, no router solicitation.
    /// The kernel takes that for a link that exists only (`inet6_validate_link_af` in net/ipv6/addrconf.c refuses it at
    /// creation), and in a message of its own, for it acts on flags first (`do_setlink` in net/core/rtnetlink.c).
    ///
    /// # Errors
    /// `ENODEV` if it is gone.
    pub fn set_up_silent(&self, index: u32) -> Result<(), Error> {
        let mut message = LinkMessage::default();
        message.header.index = index;
        let silent = AfSpecUnspec::Inet6(vec![AfSpecInet6::AddrGenMode(In6AddrGenMode::None)]);
        message.attributes.push(LinkAttribute::AfSpecUnspec(vec![silent]));
        match self.act(RouteNetlinkMessage::SetLink(message)) {
            Ok(()) => {}
            // The kernel has no IPv6, or not on this link: there is nothing to silence.
            Err(err) if errno(&err) == Some(libc::EAFNOSUPPORT) => {}
            Err(source) => {
                return Err(Error::Netlink { op: "silence link", object: index.to_string(), source });
            }
        }
        self.set_up(index)
    }

    /// Sets a link up.
    ///
    /// # Errors
    /// `ENODEV` if it is gone.
    pub fn set_up(&self, index: u32) -> Result<(), Error> {
        let mut message = LinkMessage::default();
        message.header.index = index;
        message.header.flags = LinkFlags::Up;
        message.header.change_mask = LinkFlags::Up;
        let done = self.act(RouteNetlinkMessage::SetLink(message));
        done.map_err(|source| Error::Netlink { op: "set up link", object: index.to_string(), source })
    }

    /// Deletes a link, and with a veth its other end; waits for the kernel's grace periods. `false` if it is gone already.
    ///
    /// # Errors
    /// `EOPNOTSUPP` for what cannot be deleted, `lo` for one.
    pub fn delete_link(&self, index: u32) -> Result<bool, Error> {
        let mut message = LinkMessage::default();
        message.header.index = index;
        match self.act(RouteNetlinkMessage::DelLink(message)) {
            Ok(()) => Ok(true),
            Err(err) if is_absent(&err) => Ok(false),
            Err(source) => Err(Error::Netlink { op: "delete link", object: index.to_string(), source }),
        }
    }
}

fn is_absent(err: &io::Error) -> bool {
    errno(err) == Some(libc::ENODEV)
}

fn end(name: &LinkName, mac: Mac, veth: &Veth<'_>) -> LinkMessage {
    let mut message = LinkMessage::default();
    message.attributes = vec![
        LinkAttribute::IfName(name.as_str().to_owned()),
        LinkAttribute::Address(mac.bytes().to_vec()),
        LinkAttribute::Mtu(veth.mtu),
        // What a veth uses of the queues that it gets unasked, one for each processor, is one too; but giving the others up makes the
        // kernel wait for a grace period, for each end (`veth_init_queues` in drivers/net/veth.c).
        LinkAttribute::NumTxQueues(1),
        LinkAttribute::NumRxQueues(1),
    ];
    // Older kernels pass over what they do not know.
    let PacketSizes { gso, gro } = veth.packets;
    let sizes = [(gso, LinkAttribute::GsoIpv4MaxSize(gso)), (gro, LinkAttribute::GroIpv4MaxSize(gro))];
    let raised = sizes.into_iter().filter(|(size, _)| *size > PacketSizes::USUAL);
    message.attributes.extend(raised.map(|(_, attribute)| attribute));
    message
}

/// The link of an answer; `None` for another one, or a name that is not UTF-8.
pub(crate) fn read(answer: &Raw) -> Option<Link> {
    // struct ifinfomsg (linux/rtnetlink.h): family u8, a spare byte, type u16, index, flags and their mask of 32 bits each.
    let (header, rest) = answer.parts::<16>(libc::RTM_NEWLINK)?;
    let mut link = Link {
        index: number_at(header, 4)?,
        name: String::new(),
        mac: Mac::new([0; 6]),
        mtu: 0,
        packets: PacketSizes::default(),
        up: number_at(header, 8)? & libc::IFF_UP.cast_unsigned() != 0,
        kind: None,
        peer_index: None,
    };
    for (kind, value) in attributes(rest) {
        let number = number_at(value, 0);
        match kind {
            libc::IFLA_IFNAME => link.name = text(value)?,
            libc::IFLA_ADDRESS => link.mac = value.try_into().map_or(link.mac, Mac::new),
            libc::IFLA_MTU => link.mtu = number?,
            GSO_IPV4_MAX_SIZE => link.packets.gso = number?,
            GRO_IPV4_MAX_SIZE => link.packets.gro = number?,
            libc::IFLA_LINK => link.peer_index = number,
            libc::IFLA_LINKINFO => link.kind = attribute(value, libc::IFLA_INFO_KIND).and_then(text),
            _ => {}
        }
    }
    Some(link)
}
