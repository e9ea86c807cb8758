//! One route-netlink socket: opened in a namespace, asked by whichever thread has it. The only file that speaks route netlink;
//! `link.rs`, `route.rs`, `qdisc.rs` and `ifb.rs` have the messages.
//!
//! The kernel answers within sendmsg(2), and goes on with a long list within recvmsg(2) (`rtnetlink_rcv` in net/core/rtnetlink.c,
//! `netlink_rcv_skb` and `netlink_recvmsg` in net/netlink/af_netlink.c). So nothing here waits: what is to be read is there.

use std::io;
use std::sync::{Mutex, PoisonError};

use netlink_packet_core::{
    NLM_F_ACK, NLM_F_CREATE, NLM_F_DUMP, NLM_F_ECHO, NLM_F_EXCL, NLM_F_REPLACE, NLM_F_REQUEST, NetlinkBuffer,
    NetlinkMessage, NetlinkPayload,
};
use netlink_packet_route::RouteNetlinkMessage;
use netlink_sys::Socket;
use netlink_sys::protocols::NETLINK_ROUTE;
use nix::libc;

use crate::raw::{Raw, attribute};
use crate::{Error, NetNs};

/// One read: the kernel makes no message of a list longer (`netlink_dump` in net/netlink/af_netlink.c), and what it says of one
/// object has a few kB.
const ANSWER: usize = 32 * 1024;

/// A socket in one namespace. Threads may share it: their requests are made one at a time, and each gets its own answer.
#[derive(Debug)]
pub struct Netlink {
    socket: Socket,
    talk: Mutex<Talk>,
}

/// Held from a request to the end of its answer.
#[derive(Debug)]
struct Talk {
    /// Of the last request: its answer bears the same number.
    sequence: u32,
    buffer: Vec<u8>,
}

impl Netlink {
    /// Opens a socket in the calling thread's namespace.
    ///
    /// # Errors
    /// [`Error::Socket`].
    pub fn open() -> Result<Netlink, Error> {
        let socket = Socket::new(NETLINK_ROUTE).map_err(Error::Socket)?;
        // Strict checking makes the kernel honour the filters of a dump (`NETLINK_GET_STRICT_CHK`, netlink(7)). Then its words for
        // what it did not like, right behind the header of the refused message.
        let set = socket.set_netlink_get_strict_chk(true).and_then(|()| socket.set_ext_ack(true));
        set.and_then(|()| socket.set_cap_ack(true)).map_err(Error::Socket)?;
        Ok(Netlink { socket, talk: Mutex::new(Talk { sequence: 0, buffer: Vec::with_capacity(ANSWER) }) })
    }

    /// Opens a socket in `netns`; the calling thread goes there and back.
    ///
    /// # Errors
    /// As [`Netlink::open`] and [`NetNs::join`].
    pub fn open_in(netns: &NetNs) -> Result<Netlink, Error> {
        netns.visit(Netlink::open)?
    }

    /// Asks for one object.
    pub(crate) fn query(&self, message: RouteNetlinkMessage) -> io::Result<Raw> {
        let answers = self.request(message, NLM_F_REQUEST)?;
        answers.into_iter().next().ok_or_else(unreadable)
    }

    /// Asks for one object of those that the kernel tells to whoever listens, and to the asker as an echo only. It is
    /// silent about what it made itself.
    pub(crate) fn query_echo(&self, message: RouteNetlinkMessage) -> io::Result<Option<Raw>> {
        Ok(self.request(message, NLM_F_REQUEST | NLM_F_ACK | NLM_F_ECHO)?.into_iter().next())
    }

    /// Asks for those objects that match.
    pub(crate) fn dump(&self, message: RouteNetlinkMessage) -> io::Result<Vec<Raw>> {
        self.request(message, NLM_F_REQUEST | NLM_F_DUMP)
    }

    /// Creates an object that must not exist yet, and returns it where the kernel echoes such a message.
    pub(crate) fn create(&self, message: RouteNetlinkMessage) -> io::Result<Option<Raw>> {
        let flags = NLM_F_REQUEST | NLM_F_ACK | NLM_F_CREATE | NLM_F_EXCL | NLM_F_ECHO;
        Ok(self.request(message, flags)?.into_iter().next())
    }

    /// Creates an object, in the place of one with the same key.
    pub(crate) fn replace(&self, message: RouteNetlinkMessage) -> io::Result<()> {
        self.request(message, NLM_F_REQUEST | NLM_F_ACK | NLM_F_CREATE | NLM_F_REPLACE).map(drop)
    }

    /// Changes or deletes an object.
    pub(crate) fn act(&self, message: RouteNetlinkMessage) -> io::Result<()> {
        self.request(message, NLM_F_REQUEST | NLM_F_ACK).map(drop)
    }

    fn request(&self, message: RouteNetlinkMessage, flags: u16) -> io::Result<Vec<Raw>> {
        let mut talk = self.talk.lock().unwrap_or_else(PoisonError::into_inner);
        let Talk { sequence, buffer } = &mut *talk;
        *sequence = sequence.wrapping_add(1);
        let mut request = NetlinkMessage::from(message);
        (request.header.flags, request.header.sequence_number) = (flags, *sequence);
        request.finalize();
        buffer.clear();
        buffer.resize(request.buffer_len(), 0);
        request.serialize(buffer);
        uninterrupted(|| self.socket.send(buffer, 0))?;
        let mut found = Vec::new();
        loop {
            self.receive(buffer)?;
            // An answer that was given up is still there, before this one.
            for (_, answer) in messages(buffer).filter(|(number, _)| number == sequence) {
                match answer {
                    Some(NetlinkPayload::InnerMessage(message)) => found.push(message),
                    Some(NetlinkPayload::Error(end)) => {
                        return refused(end.raw_code(), end.header.get(HEADER..)).map_or(Ok(found), Err);
                    }
                    Some(NetlinkPayload::Done(end)) => {
                        return refused(end.code, Some(&end.extended_ack)).map_or(Ok(found), Err);
                    }
                    _ => {}
                }
                // Nothing comes behind the one object that was asked for.
                if flags == NLM_F_REQUEST {
                    return Ok(found);
                }
            }
        }
    }

    /// Reads what the kernel has said next. Had it said nothing, that would be an error, and no wait without end.
    fn receive(&self, buffer: &mut Vec<u8>) -> io::Result<()> {
        loop {
            buffer.clear();
            let read = || self.socket.recv_from(buffer, libc::MSG_DONTWAIT | libc::MSG_TRUNC);
            let (length, from) = uninterrupted(read)?;
            if length > buffer.len() {
                // Without its end, it would look like a whole one.
                let text = format!("answer of {length} bytes, at most {} are read", buffer.len());
                return Err(io::Error::new(io::ErrorKind::InvalidData, text));
            }
            // Who has CAP_NET_ADMIN in the namespace may send to the socket too, but this number is the kernel's (netlink(7)).
            if from.port_number() == 0 {
                return Ok(());
            }
        }
    }
}

fn uninterrupted<T>(mut call: impl FnMut() -> io::Result<T>) -> io::Result<T> {
    loop {
        match call() {
            Err(err) if err.kind() == io::ErrorKind::Interrupted => {}
            done => return done,
        }
    }
}

/// The error of an answer that does not say what was asked for.
pub(crate) fn unreadable() -> io::Error {
    io::Error::new(io::ErrorKind::InvalidData, "unreadable answer")
}

/// The messages of a datagram, up to where it cannot be taken apart: the number of the request that each answers, and what it says.
/// `None` for an error that is cut short.
pub(crate) fn messages(datagram: &[u8]) -> impl Iterator<Item = (u32, Option<NetlinkPayload<Raw>>)> {
    let mut rest = datagram;
    std::iter::from_fn(move || {
        let header = NetlinkBuffer::new_checked(rest).ok()?;
        let (number, length) = (header.sequence_number(), header.length() as usize);
        let message = NetlinkMessage::deserialize(rest.get(..length)?);
        // Messages are padded to four bytes (netlink(7), `NLMSG_ALIGN`).
        rest = rest.get(length.next_multiple_of(4)..).unwrap_or_default();
        Some((number, message.ok().map(|message| message.payload)))
    })
}

/// Bytes of the refused message's header (`struct nlmsghdr`), which is repeated before the kernel's explanation.
pub(crate) const HEADER: usize = 16;

/// The kernel's errno, and its explanation where it gives one.
#[derive(Debug)]
struct Refusal {
    errno: io::Error,
    text: String,
}

impl std::fmt::Display for Refusal {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        write!(f, "{} ({})", self.errno, self.text)
    }
}

impl std::error::Error for Refusal {}

/// The errno that [`refusal`] put into an error.
pub(crate) fn errno(err: &io::Error) -> Option<i32> {
    let explained = || err.get_ref()?.downcast_ref::<Refusal>()?.errno.raw_os_error();
    err.raw_os_error().or_else(explained)
}

/// The error that a negative code says, with what comes behind it.
pub(crate) fn refused(code: i32, attributes: Option<&[u8]>) -> Option<io::Error> {
    let errno = (code != 0).then(|| io::Error::from_raw_os_error(code.saturating_neg()))?;
    Some(match attributes.and_then(explanation) {
        Some(text) => io::Error::new(errno.kind(), Refusal { errno, text }),
        None => errno,
    })
}

/// The text of `NLMSGERR_ATTR_MSG` (1) among attributes (include/uapi/linux/netlink.h).
fn explanation(bytes: &[u8]) -> Option<String> {
    let text = attribute(bytes, 1)?;
    Some(String::from_utf8_lossy(text).trim_end_matches('\0').to_owned())
}

#[cfg(test)]
mod tests {
    use netlink_packet_core::ErrorMessage;
    use netlink_packet_route::link::LinkMessage;
    use netlink_sys::SocketAddr;

    use super::*;

    fn bytes(sequence: u32, payload: NetlinkPayload<RouteNetlinkMessage>) -> Vec<u8> {
        let mut message = NetlinkMessage::new(Default::default(), payload);
        (message.header.flags, message.header.sequence_number) = (NLM_F_REQUEST | NLM_F_ACK, sequence);
        message.finalize();
        let mut bytes = vec![0; message.buffer_len()];
        message.serialize(&mut bytes);
        bytes
    }

    #[test]
    fn an_answer_that_was_left_is_not_the_next_requests() {
        let netlink = Netlink::open_in(&NetNs::create().unwrap()).unwrap();
        let mut lo = LinkMessage::default();
        lo.header.index = 1;
        let lo = NetlinkPayload::from(RouteNetlinkMessage::GetLink(lo));
        netlink.socket.send(&bytes(77, lo), 0).unwrap();
        assert_eq!(netlink.link_by_index(4711).unwrap(), None);
        assert_eq!(netlink.link_by_index(1).unwrap().unwrap().name, "lo");
    }

    #[test]
    fn what_others_send_is_no_answer() {
        let host = NetNs::create().unwrap();
        let netlink = Netlink::open_in(&host).unwrap();
        netlink.link_by_index(1).unwrap();
        let mut address = SocketAddr::new(0, 0);
        netlink.socket.get_address(&mut address).unwrap();
        let mut forged = ErrorMessage::default();
        forged.code = std::num::NonZeroI32::new(-libc::ENODEV);
        forged.header = vec![0; HEADER];
        let forged = bytes(2, NetlinkPayload::Error(forged));
        let send = || Socket::new(NETLINK_ROUTE).unwrap().send_to(&forged, &address, 0).unwrap();
        assert_eq!(host.run(send).unwrap(), forged.len());
        assert_eq!(netlink.link_by_index(1).unwrap().unwrap().name, "lo");
    }

    #[test]
    fn a_datagram_is_read_as_far_as_it_goes() {
        let whole = [bytes(1, NetlinkPayload::Noop), bytes(2, NetlinkPayload::Noop)].concat();
        for len in 0..=whole.len() {
            let numbers: Vec<u32> = messages(&whole[..len]).map(|(number, _)| number).collect();
            assert_eq!(numbers, [1, 2][..len / HEADER], "{len}");
        }
    }

    #[test]
    fn the_kernels_words_are_found_behind_other_attributes() {
        let mut bytes = Vec::new();
        bytes.extend([8_u16.to_ne_bytes(), 2_u16.to_ne_bytes()].concat());
        bytes.extend(52_u32.to_ne_bytes());
        bytes.extend([9_u16.to_ne_bytes(), 1_u16.to_ne_bytes()].concat());
        bytes.extend(b"why\0\0\0\0\0");
        assert_eq!(explanation(&bytes).as_deref(), Some("why"));
        for len in 0..bytes.len() {
            // Cut anywhere, it is either found whole or not at all.
            assert!(explanation(&bytes[..len]).is_none_or(|text| text == "why"), "{len}");
        }
    }
}
