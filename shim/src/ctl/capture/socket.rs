//! A packet socket (packet(7)): every packet that an interface of a namespace sends or receives, from its Ethernet header on.

use std::io::{self, IoSliceMut};
use std::os::fd::{AsRawFd, OwnedFd};
use std::time::Duration;

use nix::errno::Errno;
use nix::libc;
use nix::sys::socket::sockopt::{RcvBufForce, ReceiveTimestampns};
use nix::sys::socket::{
    AddressFamily, ControlMessageOwned, LinkAddr, MsgFlags, SockFlag, SockType, SockaddrLike, bind, recvmsg,
    setsockopt, socket,
};
use nix::sys::time::TimeSpec;
use tokio::io::Interest;
use tokio::io::unix::AsyncFd;

use super::pcap::Packet;

/// What the kernel keeps while nobody reads: 50 ms of 10 Gbit/s.
const BUFFER: usize = 64 << 20;
/// linux/if_packet.h; `libc` does not have these two.
const PACKET_STATISTICS: libc::c_int = 6;

#[repr(C)]
#[derive(Default)]
struct Statistics {
    packets: libc::c_uint,
    drops: libc::c_uint,
}

/// Opens a socket on the interface with this index; it stays in the namespace of the calling thread.
pub(super) fn open(index: u32) -> io::Result<OwnedFd> {
    let flags = SockFlag::SOCK_CLOEXEC | SockFlag::SOCK_NONBLOCK;
    // Without a protocol it hears nothing until it is bound: not a packet of another interface.
    let fd = socket(AddressFamily::Packet, SockType::Raw, flags, None)?;
    setsockopt(&fd, RcvBufForce, &BUFFER)?;
    setsockopt(&fd, ReceiveTimestampns, &true)?;
    bind(fd.as_raw_fd(), &everything_on(index)?)?;
    Ok(fd)
}

fn everything_on(index: u32) -> io::Result<LinkAddr> {
    let address = libc::sockaddr_ll {
        sll_family: libc::AF_PACKET as u16,
        sll_protocol: (libc::ETH_P_ALL as u16).to_be(),
        sll_ifindex: i32::try_from(index).map_err(io::Error::other)?,
        sll_hatype: 0,
        sll_pkttype: 0,
        sll_halen: 0,
        sll_addr: [0; 8],
    };
    let len = size_of_val(&address) as libc::socklen_t;
    // SAFETY: it points to a whole address of the family that it names, of that length.
    let address = unsafe { LinkAddr::from_raw((&raw const address).cast(), Some(len)) };
    address.ok_or_else(|| io::ErrorKind::InvalidInput.into())
}

/// The socket as something to wait for.
pub(super) struct PacketSocket(AsyncFd<OwnedFd>);

impl PacketSocket {
    pub(super) fn new(fd: OwnedFd) -> io::Result<PacketSocket> {
        // SAFETY: the descriptor is the value's own and open as long as the value; nobody exchanges it.
        Ok(PacketSocket(unsafe { AsyncFd::register_with_interest(fd, Interest::READABLE) }?))
    }

    /// Waits until there may be packets. Whoever is told reads until there are none.
    pub(super) async fn readable(&self) -> io::Result<()> {
        self.0.readable().await?.clear_ready();
        Ok(())
    }

    /// The next packet, or as much of it as the buffer takes; `None` if there is none.
    pub(super) fn next<'b>(&self, buffer: &'b mut [u8]) -> io::Result<Option<Packet<'b>>> {
        let mut control = nix::cmsg_space!(TimeSpec);
        let mut slices = [IoSliceMut::new(buffer)];
        // MSG_TRUNC: the answer is the packet's length on the wire (recv(2)).
        let flags = MsgFlags::MSG_TRUNC;
        let received = match recvmsg::<()>(self.0.as_raw_fd(), &mut slices, Some(&mut control), flags) {
            Err(Errno::EAGAIN) => return Ok(None),
            received => received?,
        };
        let time = received.cmsgs()?.find_map(|message| match message {
            ControlMessageOwned::ScmTimestampns(time) => Some(Duration::from(time)),
            _ => None,
        });
        let (len, at) = (received.bytes, time.unwrap_or_default());
        let kept = len.min(buffer.len());
        Ok(Some(Packet { at, len, bytes: buffer.get(..kept).unwrap_or_default() }))
    }

    /// How many packets the kernel had no room for since the last question.
    pub(super) fn dropped(&self) -> io::Result<u32> {
        let mut statistics = Statistics::default();
        let mut len = size_of::<Statistics>() as libc::socklen_t;
        // SAFETY: the kernel writes at most `len` bytes, which is the size of what the pointer names (packet(7)).
        let done = unsafe {
            libc::getsockopt(
                self.0.as_raw_fd(),
                libc::SOL_PACKET,
                PACKET_STATISTICS,
                (&raw mut statistics).cast(),
                &raw mut len,
            )
        };
        Errno::result(done)?;
        Ok(statistics.drops)
    }
}
