//! One netfilter socket, for nftables and conntrack. The only file that speaks netfilter netlink; `nft/` and `conntrack.rs`
//! have the messages.
//!
//! The kernel answers within sendmsg(2) (`nfnetlink_rcv` in net/netfilter/nfnetlink.c), so nothing here waits, and nothing
//! needs an async runtime: answers are read until there is none.

use std::io;

use netlink_packet_core::{NLM_F_REQUEST, NetlinkMessage, NetlinkPayload};
use netlink_packet_netfilter::NetfilterMessage;
use netlink_sys::protocols::NETLINK_NETFILTER;
use netlink_sys::{AsyncSocket, AsyncSocketExt, Socket, TokioSocket};
use nix::libc;
use nix::sys::socket::setsockopt;
use nix::sys::socket::sockopt::SndBufForce;

use crate::Error;
use crate::netlink::{HEADER, refused};
use crate::nft::{self, Batch};
use crate::raw::{Raw, attribute};

/// What a socket takes at once without being told (`net.core.wmem_default` is 208 kB at least).
const USUAL: usize = 64 * 1024;
/// `NFNLGRP_NFTABLES` (include/uapi/linux/netfilter/nfnetlink.h).
const GROUP: u32 = 7;

/// One read: the kernel makes no message of a dump longer (`NLMSG_GOODSIZE` and `netlink_dump` in net/netlink/af_netlink.c).
const ANSWER: usize = 32 * 1024;

/// A socket in the namespace of the thread that opened it.
#[derive(Debug)]
pub struct Netfilter {
    socket: Socket,
}

/// What others change in nftables, as it happens.
pub struct Changes {
    socket: TokioSocket,
}

/// The names that nftables and conntrack have for the parts of a message.
impl Raw {
    /// Whose tables it speaks of: `NFPROTO_*`.
    pub(crate) fn family(&self) -> u8 {
        self.bytes.first().copied().unwrap_or_default()
    }

    /// What is behind `struct nfgenmsg`.
    pub(crate) fn attributes(&self) -> &[u8] {
        self.bytes.get(4..).unwrap_or_default()
    }

    /// The subsystem and the number of the message in it (`NFNL_SUBSYS_ID` in include/uapi/linux/netfilter/nfnetlink.h).
    pub(crate) fn numbers(&self) -> [u8; 2] {
        self.kind.to_be_bytes()
    }

    /// The value of the first attribute of a number.
    pub(crate) fn attribute(&self, number: u16) -> Option<&[u8]> {
        attribute(self.attributes(), number)
    }

    /// The same as text, which ends with a zero byte.
    pub(crate) fn text(&self, number: u16) -> Option<String> {
        let bytes = self.attribute(number)?;
        Some(String::from_utf8_lossy(bytes).trim_end_matches('\0').to_owned())
    }
}

impl Netfilter {
    /// Opens a socket in the calling thread's namespace.
    ///
    /// # Errors
    /// [`Error::Socket`].
    pub fn open() -> Result<Netfilter, Error> {
        let socket = Socket::new(NETLINK_NETFILTER).map_err(Error::Socket)?;
        socket.set_ext_ack(true).and_then(|()| socket.set_cap_ack(true)).map_err(Error::Socket)?;
        Ok(Netfilter { socket })
    }

    /// Closes the socket beside the caller. The kernel frees what a transaction has deleted after a grace period, and closing any
    /// netfilter socket waits for that (`nft_rcv_nl_event` in net/netfilter/nf_tables_api.c), for 10 ms and more.
    pub fn close_aside(self) {
        // Where there is no thread to be had, the caller waits: the closure is dropped, and the socket with it.
        drop(std::thread::Builder::new().name("nft".into()).spawn(move || drop(self)));
    }

    /// Does all of a batch or nothing of it.
    ///
    /// # Errors
    /// [`Error::Netfilter`] for the first message that the kernel refuses: `ENOENT` where the table, a chain, a set or an element
    /// to delete is missing, `EEXIST` for an element that exists, `ERESTART` as [`Batch::unless_changed_since`] says.
    pub fn commit(&self, batch: Batch) -> Result<(), Error> {
        let (bytes, names) = batch.finish();
        let failed = |name: &str, source| Error::Netfilter { op: name.to_owned(), source };
        if bytes.len() > USUAL {
            // `netlink_sendmsg` refuses what the buffer for sending does not hold.
            let size = bytes.len() + ANSWER;
            setsockopt(&self.socket, SndBufForce, &size)
                .map_err(|err| failed("make room for a transaction", err.into()))?;
        }
        self.socket.send(&bytes, 0).map_err(|err| failed("send a transaction", err))?;
        let mut first = None;
        self.answers(|message| {
            if let NetlinkPayload::Error(answer) = message.payload
                && let Some(err) = refused(answer.raw_code(), answer.header.get(HEADER..))
                && first.is_none()
            {
                let name = usize::try_from(message.header.sequence_number).ok().and_then(|at| names.get(at));
                first = Some(failed(name.map_or("commit a transaction", String::as_str), err));
            }
        })
        .map_err(|err| failed("read the answer to a transaction", err))?;
        first.map_or(Ok(()), Err)
    }

    /// Asks, and reads the whole answer.
    pub(crate) fn ask(&self, message: NetfilterMessage, flags: u16) -> io::Result<Vec<Raw>> {
        let mut request = NetlinkMessage::from(message);
        request.header.flags = NLM_F_REQUEST | flags;
        request.finalize();
        let mut bytes = vec![0; request.buffer_len()];
        request.serialize(&mut bytes);
        self.socket.send(&bytes, 0)?;
        let (mut found, mut refusal) = (Vec::new(), None);
        self.answers(|message| match message.payload {
            NetlinkPayload::InnerMessage(message) => found.push(message),
            NetlinkPayload::Error(answer) => {
                refusal = refused(answer.raw_code(), answer.header.get(HEADER..));
            }
            NetlinkPayload::Done(end) => refusal = refused(end.code, Some(&end.extended_ack)),
            _ => {}
        })?;
        refusal.map_or(Ok(found), Err)
    }

    /// Reads all that is there.
    fn answers(&self, mut take: impl FnMut(NetlinkMessage<Raw>)) -> io::Result<()> {
        loop {
            let mut buffer = Vec::with_capacity(ANSWER);
            match self.socket.recv(&mut buffer, libc::MSG_DONTWAIT) {
                Ok(_) => {}
                Err(err) if err.kind() == io::ErrorKind::WouldBlock => return Ok(()),
                Err(err) => return Err(err),
            }
            each(&buffer, |message| {
                take(message);
                false
            })?;
        }
    }
}

impl Changes {
    /// Listens in the calling thread's namespace, within a tokio runtime.
    ///
    /// # Errors
    /// [`Error::Socket`].
    pub fn listen() -> Result<Changes, Error> {
        let mut socket = TokioSocket::new(NETLINK_NETFILTER).map_err(Error::Socket)?;
        let open = socket.socket_mut();
        open.bind_auto().map(drop).and_then(|()| open.add_membership(GROUP)).map_err(Error::Socket)?;
        Ok(Changes { socket })
    }

    /// Waits until something of the table is deleted that is no element, or changes were missed.
    ///
    /// # Errors
    /// [`Error::Netfilter`].
    pub async fn loss(&mut self, table: &str) -> Result<(), Error> {
        loop {
            match self.socket.recv_from_full().await {
                Ok((bytes, _)) if each(&bytes, |message| nft::is_loss(&message, table)).unwrap_or(true) => {
                    return Ok(());
                }
                Ok(_) => {}
                Err(err) if err.raw_os_error() == Some(libc::ENOBUFS) => return Ok(()),
                Err(source) => return Err(Error::Netfilter { op: "listen to nftables".into(), source }),
            }
        }
    }
}

/// Whether `is` holds for one of the messages at least.
pub(crate) fn each(bytes: &[u8], mut is: impl FnMut(NetlinkMessage<Raw>) -> bool) -> io::Result<bool> {
    let (mut rest, mut found) = (bytes, false);
    while !rest.is_empty() {
        let message = NetlinkMessage::<Raw>::deserialize(rest)
            .map_err(|err| io::Error::new(io::ErrorKind::InvalidData, err))?;
        // Messages are padded to four bytes (netlink(7), `NLMSG_ALIGN`).
        let length = usize::try_from(message.header.length).unwrap_or(rest.len()).next_multiple_of(4);
        found |= is(message);
        rest = rest.get(length..).unwrap_or_default();
    }
    Ok(found)
}
