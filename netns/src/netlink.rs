//! One route-netlink socket: opened in a namespace, driven by the caller's tokio runtime. The only file that speaks
//! rtnetlink; `link.rs`, `route.rs`, `qdisc.rs` and `ifb.rs` have the messages.
//!
//! rtnetlink's own `NetworkNamespace` is not used: it forks. Its requests for single objects are built here by hand, so that
//! a lookup of one link is one message and never a dump of all.

use std::io;

use futures_util::StreamExt;
use netlink_packet_core::{
    NLA_F_NESTED, NLA_F_NET_BYTEORDER, NLM_F_ACK, NLM_F_CREATE, NLM_F_DUMP, NLM_F_ECHO, NLM_F_EXCL,
    NLM_F_REPLACE, NLM_F_REQUEST, NetlinkMessage, NetlinkPayload,
};
use netlink_packet_route::RouteNetlinkMessage;
use rtnetlink::{Handle, new_connection_with_strict_check};

use crate::{Error, NetNs};

/// A socket in one namespace. Requests may overlap: each waits for its own answer. The socket is closed when the last clone
/// is dropped.
#[derive(Debug, Clone)]
pub struct Netlink {
    handle: Handle,
}

impl Netlink {
    /// Opens a socket in the calling thread's namespace. Must be called within a tokio runtime with I/O enabled, which then
    /// drives it.
    ///
    /// # Errors
    /// [`Error::Socket`].
    pub fn open() -> Result<Netlink, Error> {
        // Strict checking makes the kernel honour the filters of a dump (`NETLINK_GET_STRICT_CHK`, netlink(7)).
        let (mut connection, handle, _) = new_connection_with_strict_check().map_err(Error::Socket)?;
        let socket = connection.socket_mut();
        let socket = netlink_sys::AsyncSocket::socket_mut(socket);
        // The kernel's words for what it did not like, right behind the header of the refused message.
        socket.set_ext_ack(true).and_then(|()| socket.set_cap_ack(true)).map_err(Error::Socket)?;
        // Without its last message, an answer that was cut short would look like a whole one.
        connection.set_forward_ack(true);
        connection.set_forward_done(true);
        tokio::spawn(connection);
        Ok(Netlink { handle })
    }

    /// Opens a socket in `netns`; the calling thread does not enter it.
    ///
    /// # Errors
    /// As [`Netlink::open`] and [`NetNs::run`].
    pub fn open_in(netns: &NetNs) -> Result<Netlink, Error> {
        let runtime =
            tokio::runtime::Handle::try_current().map_err(|err| Error::Socket(io::Error::other(err)))?;
        netns.run(|| {
            let _runtime = runtime.enter();
            Netlink::open()
        })?
    }

    /// Asks for one object.
    pub(crate) async fn query(&self, message: RouteNetlinkMessage) -> io::Result<RouteNetlinkMessage> {
        // The parser drops what it cannot read, a name that is not UTF-8 for one: the acknowledgement ends the wait.
        let answers = self.request(message, NLM_F_REQUEST | NLM_F_ACK).await?;
        answers
            .into_iter()
            .next()
            .ok_or_else(|| io::Error::new(io::ErrorKind::InvalidData, "unreadable answer"))
    }

    /// Asks for one object of those that the kernel tells to whoever listens, and to the asker as an echo only. It is
    /// silent about what it made itself.
    pub(crate) async fn query_echo(
        &self,
        message: RouteNetlinkMessage,
    ) -> io::Result<Option<RouteNetlinkMessage>> {
        Ok(self.request(message, NLM_F_REQUEST | NLM_F_ACK | NLM_F_ECHO).await?.into_iter().next())
    }

    /// Asks for those objects that match.
    pub(crate) async fn dump(&self, message: RouteNetlinkMessage) -> io::Result<Vec<RouteNetlinkMessage>> {
        self.request(message, NLM_F_REQUEST | NLM_F_DUMP).await
    }

    /// Creates an object that must not exist yet, and returns it where the kernel echoes such a message.
    pub(crate) async fn create(
        &self,
        message: RouteNetlinkMessage,
    ) -> io::Result<Option<RouteNetlinkMessage>> {
        let flags = NLM_F_REQUEST | NLM_F_ACK | NLM_F_CREATE | NLM_F_EXCL | NLM_F_ECHO;
        Ok(self.request(message, flags).await?.into_iter().next())
    }

    /// Creates an object, in the place of one with the same key.
    pub(crate) async fn replace(&self, message: RouteNetlinkMessage) -> io::Result<()> {
        self.request(message, NLM_F_REQUEST | NLM_F_ACK | NLM_F_CREATE | NLM_F_REPLACE).await.map(drop)
    }

    /// Changes or deletes an object.
    pub(crate) async fn act(&self, message: RouteNetlinkMessage) -> io::Result<()> {
        self.request(message, NLM_F_REQUEST | NLM_F_ACK).await.map(drop)
    }

    async fn request(
        &self,
        message: RouteNetlinkMessage,
        flags: u16,
    ) -> io::Result<Vec<RouteNetlinkMessage>> {
        let mut request = NetlinkMessage::from(message);
        request.header.flags = flags;
        let mut handle = self.handle.clone();
        let mut answers = handle.request(request).map_err(io::Error::other)?;
        let mut found = Vec::new();
        while let Some(answer) = answers.next().await {
            match answer.payload {
                NetlinkPayload::InnerMessage(message) => found.push(message),
                NetlinkPayload::Error(end) => {
                    return refused(end.raw_code(), end.header.get(HEADER..)).map_or(Ok(found), Err);
                }
                NetlinkPayload::Done(end) => {
                    return refused(end.code, Some(&end.extended_ack)).map_or(Ok(found), Err);
                }
                _ => return Err(io::ErrorKind::InvalidData.into()),
            }
        }
        // The runtime ended, or the socket broke: nobody knows whether it was done.
        Err(io::ErrorKind::ConnectionAborted.into())
    }
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
    let text = attributes(bytes).find_map(|(kind, value)| (kind == 1).then_some(value))?;
    Some(String::from_utf8_lossy(text).trim_end_matches('\0').to_owned())
}

/// Kinds and values of attributes, up to the first that is cut short (netlink(7)): each has two bytes of length, itself
/// included, two of kind, and is padded to four. The two highest bits of a kind are flags.
pub(crate) fn attributes(bytes: &[u8]) -> impl Iterator<Item = (u16, &[u8])> {
    let mut rest = bytes;
    std::iter::from_fn(move || {
        let (header, _) = rest.split_first_chunk::<4>()?;
        let [a, b, c, d] = *header;
        let (len, kind) = (usize::from(u16::from_ne_bytes([a, b])), u16::from_ne_bytes([c, d]));
        let value = rest.get(4..len)?;
        rest = rest.get(len.next_multiple_of(4)..).unwrap_or_default();
        Some((kind & !(NLA_F_NESTED | NLA_F_NET_BYTEORDER), value))
    })
}

#[cfg(test)]
mod tests {
    use super::explanation;

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
