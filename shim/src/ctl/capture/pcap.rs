//! The file format of pcap(3): a head of 24 bytes, and 16 before each packet.
//!
//! ```text
//! head    magic a1b23c4d (times have nanoseconds), version u16 2, u16 4, zone i32 0, accuracy u32 0, snaplen u32, link type u32 1
//! packet  seconds u32, nanoseconds u32, length here u32, length on the wire u32, the packet from its Ethernet header on
//! ```
//! Numbers are in the writer's byte order; the reader knows it by the magic number (pcap-savefile(5)).

use std::io::{self, Write};
use std::time::Duration;

const MAGIC_NANOSECONDS: u32 = 0xa1b2_3c4d;
const VERSION: [u16; 2] = [2, 4];
/// `LINKTYPE_ETHERNET`.
const ETHERNET: u32 = 1;

/// One packet as it was taken.
#[derive(Debug)]
pub(super) struct Packet<'a> {
    /// Since 1970.
    pub(super) at: Duration,
    /// Of all of it.
    pub(super) len: usize,
    /// From the Ethernet header on, and as much as is kept.
    pub(super) bytes: &'a [u8],
}

/// A file being written.
pub(super) struct Pcap<W> {
    out: W,
    snaplen: u32,
}

impl<W: Write> Pcap<W> {
    /// Writes the head.
    pub(super) fn begin(mut out: W, snaplen: u32) -> io::Result<Pcap<W>> {
        let mut head = Vec::with_capacity(24);
        head.extend(MAGIC_NANOSECONDS.to_ne_bytes());
        head.extend(VERSION.map(u16::to_ne_bytes).as_flattened());
        head.extend([0, 0, snaplen, ETHERNET].map(u32::to_ne_bytes).as_flattened());
        out.write_all(&head)?;
        Ok(Pcap { out, snaplen })
    }

    pub(super) fn snaplen(&self) -> usize {
        self.snaplen as usize
    }

    /// Writes one packet.
    pub(super) fn write(&mut self, packet: &Packet<'_>) -> io::Result<()> {
        let small = |number: usize| u32::try_from(number).unwrap_or(u32::MAX);
        // In 2106 the seconds begin anew, as those of all such files.
        let seconds = packet.at.as_secs() as u32;
        let head = [seconds, packet.at.subsec_nanos(), small(packet.bytes.len()), small(packet.len)];
        self.out.write_all(head.map(u32::to_ne_bytes).as_flattened())?;
        self.out.write_all(packet.bytes)
    }

    pub(super) fn flush(&mut self) -> io::Result<()> {
        self.out.flush()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_bytes_are_those_of_the_format() {
        let mut out = Vec::new();
        let mut pcap = Pcap::begin(&mut out, 96).unwrap();
        let packet = Packet { at: Duration::new(7, 8), len: 1500, bytes: &[0xaa; 2] };
        pcap.write(&packet).unwrap();
        let number = |at: usize| u32::from_ne_bytes(out[at..at + 4].try_into().unwrap());
        assert_eq!(out.len(), 24 + 16 + 2);
        assert_eq!([number(0), number(16), number(20)], [0xa1b2_3c4d, 96, 1]);
        assert_eq!([number(24), number(28), number(32), number(36)], [7, 8, 2, 1500]);
        assert_eq!(out[40..], [0xaa, 0xaa]);
    }
}
