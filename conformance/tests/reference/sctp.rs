//! SCTP packets made and taken by hand (RFC 9260), for kernels without SCTP sockets: raw sockets, opened by a caller that is in the
//! namespace where they belong.

use std::net::{IpAddr, SocketAddr, SocketAddrV4, SocketAddrV6};
use std::os::fd::{AsRawFd, OwnedFd};
use std::time::{Duration, Instant};

use nix::sys::socket::{
    AddressFamily, MsgFlags, SockFlag, SockProtocol, SockType, SockaddrIn, SockaddrIn6, recv, sendto,
    setsockopt, socket, sockopt::ReceiveTimeout,
};
use nix::sys::time::TimeVal;

/// The number of the protocol in an IP header.
const SCTP: u8 = 132;
/// Chunk types of section 3.2.
pub(crate) const INIT: u8 = 1;
pub(crate) const INIT_ACK: u8 = 2;
/// What either side calls the association; the first word of a chunk INIT and INIT ACK.
const TAG: u32 = 0x7765_6674;

/// One packet as it was heard.
#[derive(Debug, PartialEq, Eq)]
pub(crate) struct Heard {
    pub(crate) from: SocketAddr,
    pub(crate) to: SocketAddr,
    pub(crate) chunk: u8,
    /// Whether the CRC32c fits.
    pub(crate) intact: bool,
}

/// Sends a packet with one chunk.
pub(crate) fn send(from: SocketAddr, to: SocketAddr, chunk: u8) {
    let packet = packet(from, to, chunk);
    let family = if to.is_ipv4() { AddressFamily::Inet } else { AddressFamily::Inet6 };
    // IPPROTO_RAW: the header is the caller's (raw(7), ipv6(7)).
    let raw = socket(family, SockType::Raw, SockFlag::SOCK_CLOEXEC, SockProtocol::Raw).unwrap();
    let sent = match to.ip() {
        IpAddr::V4(ip) => {
            let to = SockaddrIn::from(SocketAddrV4::new(ip, 0));
            sendto(raw.as_raw_fd(), &packet, &to, MsgFlags::empty())
        }
        IpAddr::V6(ip) => {
            let to = SockaddrIn6::from(SocketAddrV6::new(ip, 0, 0, 0));
            sendto(raw.as_raw_fd(), &packet, &to, MsgFlags::empty())
        }
    };
    assert_eq!(sent, Ok(packet.len()));
}

/// Hears all packets of its namespace from now on.
pub(crate) struct Ear(OwnedFd);

impl Ear {
    pub(crate) fn open() -> Ear {
        let (family, flags) = (AddressFamily::Packet, SockFlag::SOCK_CLOEXEC);
        let ear = socket(family, SockType::Datagram, flags, SockProtocol::EthAll).unwrap();
        setsockopt(&ear, ReceiveTimeout, &TimeVal::new(0, 100_000)).unwrap();
        Ear(ear)
    }

    /// The next SCTP packet that is meant for `to`, within `patience`.
    pub(crate) fn hears(&self, to: SocketAddr, patience: Duration) -> Option<Heard> {
        let (mut bytes, deadline) = ([0; 2048], Instant::now() + patience);
        while Instant::now() < deadline {
            let Ok(length) = recv(self.0.as_raw_fd(), &mut bytes, MsgFlags::empty()) else { continue };
            if let Some(heard) = read(&bytes[..length]).filter(|heard| heard.to == to) {
                return Some(heard);
            }
        }
        None
    }
}

fn packet(from: SocketAddr, to: SocketAddr, chunk: u8) -> Vec<u8> {
    let mut sctp = Vec::new();
    sctp.extend(from.port().to_be_bytes());
    sctp.extend(to.port().to_be_bytes());
    // The receiver's tag: none in an INIT, for there is none yet.
    sctp.extend(if chunk == INIT { 0 } else { TAG }.to_be_bytes());
    sctp.extend([0; 4]);
    // An INIT ACK has a state cookie, which is a parameter of at least four bytes.
    let cookie: &[u8] = if chunk == INIT_ACK { &[0, 7, 0, 8, 1, 2, 3, 4] } else { &[] };
    sctp.extend([chunk, 0]);
    sctp.extend(u16::try_from(20 + cookie.len()).unwrap().to_be_bytes());
    sctp.extend(TAG.to_be_bytes());
    sctp.extend(65_536_u32.to_be_bytes());
    sctp.extend([0, 1, 0, 1]);
    sctp.extend(1_u32.to_be_bytes());
    sctp.extend(cookie);
    let sum = crc32c(&sctp).to_le_bytes();
    sctp[8..12].copy_from_slice(&sum);
    let mut packet = header(from.ip(), to.ip(), u16::try_from(sctp.len()).unwrap());
    packet.extend(sctp);
    packet
}

/// RFC 791 and RFC 8200; the kernel fills in IPv4's identification and checksum.
fn header(from: IpAddr, to: IpAddr, payload: u16) -> Vec<u8> {
    match (from, to) {
        (IpAddr::V4(from), IpAddr::V4(to)) => {
            let mut header = vec![0x45, 0];
            header.extend((20 + payload).to_be_bytes());
            header.extend([0, 0, 0, 0, 64, SCTP, 0, 0]);
            header.extend(from.octets());
            header.extend(to.octets());
            header
        }
        (IpAddr::V6(from), IpAddr::V6(to)) => {
            let mut header = vec![0x60, 0, 0, 0];
            header.extend(payload.to_be_bytes());
            header.extend([SCTP, 64]);
            header.extend(from.octets());
            header.extend(to.octets());
            header
        }
        _ => panic!("{from} and {to} are of two families"),
    }
}

fn read(bytes: &[u8]) -> Option<Heard> {
    let word = |at: usize| Some(u16::from_be_bytes([*bytes.get(at)?, *bytes.get(at + 1)?]));
    let four = |at: usize| <[u8; 4]>::try_from(bytes.get(at..at + 4)?).ok().map(IpAddr::from);
    let sixteen = |at: usize| <[u8; 16]>::try_from(bytes.get(at..at + 16)?).ok().map(IpAddr::from);
    let (from, to, at, end) = match (bytes.first()? >> 4, bytes.get(9), bytes.get(6)) {
        (4, Some(&SCTP), _) => (four(12)?, four(16)?, 20, usize::from(word(2)?)),
        (6, _, Some(&SCTP)) => (sixteen(8)?, sixteen(24)?, 40, 40 + usize::from(word(4)?)),
        _ => return None,
    };
    let mut sctp = bytes.get(at..end)?.to_vec();
    let sum = <[u8; 4]>::try_from(sctp.get(8..12)?).ok()?;
    let chunk = *sctp.get(12)?;
    sctp[8..12].fill(0);
    Some(Heard {
        from: SocketAddr::new(from, word(at)?),
        to: SocketAddr::new(to, word(at + 2)?),
        chunk,
        intact: u32::from_le_bytes(sum) == crc32c(&sctp),
    })
}

/// RFC 9260, appendix A: the polynomial 0x1EDC6F41, here bit by bit and reflected.
fn crc32c(bytes: &[u8]) -> u32 {
    !bytes.iter().fold(!0, |crc: u32, byte| {
        (0..8).fold(crc ^ u32::from(*byte), |crc, _| crc >> 1 ^ (crc & 1).wrapping_mul(0x82f6_3b78))
    })
}
