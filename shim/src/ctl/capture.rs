//! `weft capture POD`: the packets of one pod, as pcap.
//!
//! They are taken from the pod's own interface, inside its namespace: that is where both directions meet, and where a packet that the fast
//! path hands over arrives (`bpf_redirect_peer` makes it come in there; the host's end never sees it). The socket is opened inside
//! and read outside.
//!
//! An open socket keeps its namespace alive, so the capture ends with the pod: every commit to the store is a reason to look
//! whether it is still attached.

mod pcap;
mod socket;

use std::io::{self, BufWriter, Write};

use nix::sys::signal::Signal;
use weft_netns::{LinkName, NetNs, Netlink};

use super::{Error, args, pod};
use crate::config::Config;
use crate::network::watch::Commits;
use crate::record::Record;
use crate::signals::Signals;
use crate::state::{self, Ledger};
use pcap::Pcap;
use socket::PacketSocket;

fn failed(op: &'static str) -> impl Fn(io::Error) -> Error {
    move |source| Error::Capture { op, source }
}

/// Captures until COUNT, a signal, the end of the pod, or of whoever reads.
pub(super) async fn run(config: &Config, args: &args::Capture, out: &mut impl Write) -> Result<(), Error> {
    let records = pod::find(Ledger::open(config)?.records()?, &args.pod)?;
    let record = records.into_iter().find(|record| record.interface == args.interface);
    let record = record
        .ok_or_else(|| Error::NoInterface { pod: args.pod.clone(), interface: args.interface.clone() })?;
    // Before the socket is opened, so that no end of the pod is missed.
    let ends = Ends {
        commits: Commits::watch(config).map_err(failed("watch the store"))?,
        signals: Signals::of(&[Signal::SIGTERM, Signal::SIGINT]).map_err(failed("watch for signals"))?,
    };
    let socket = open(&record)?;
    let limit = args.count.unwrap_or(u64::MAX);
    let copied = if args.write.as_os_str() == "-" {
        let pcap = Pcap::begin(out, args.snaplen);
        copy(config, &record, &socket, &ends, pcap, limit).await
    } else {
        let file = std::fs::File::create(&args.write);
        let file = file.map_err(|source| Error::Write { path: args.write.clone(), source })?;
        let pcap = Pcap::begin(BufWriter::new(file), args.snaplen);
        copy(config, &record, &socket, &ends, pcap, limit).await
    };
    let dropped = socket.dropped().map_err(failed("read the kernel's counters"))?;
    let captured = copied?;
    let text = format!("weft: {captured} packets captured, {dropped} dropped by the kernel");
    // The packets are what was asked for, and this only stands beside them.
    drop(writeln!(io::stderr(), "{text}"));
    Ok(())
}

/// The socket on the pod's interface. The namespace is the one that was attached, not what is at its path now.
fn open(record: &Record) -> Result<PacketSocket, Error> {
    let netns = NetNs::open(&record.netns.path)?;
    if netns.identity() != record.identity() {
        return Err(Error::Gone(record.container.clone()));
    }
    let name: LinkName = record.interface.parse()?;
    let link = Netlink::open_in(&netns)?.link(&name)?;
    let link = link.ok_or_else(|| weft_netns::Error::AbsentLink(name.to_string()))?;
    let socket = netns.run(|| socket::open(link.index))?.and_then(PacketSocket::new);
    socket.map_err(failed("open a packet socket"))
}

/// What ends a capture besides its packets.
struct Ends {
    commits: Commits,
    signals: Signals,
}

/// Writes what the socket has, until something ends it; the number of packets.
async fn copy(
    config: &Config,
    record: &Record,
    socket: &PacketSocket,
    ends: &Ends,
    pcap: io::Result<Pcap<impl Write>>,
    limit: u64,
) -> Result<u64, Error> {
    let mut captured = 0;
    let done = async {
        let mut pcap = pcap?;
        let mut buffer = vec![0; pcap.snaplen()];
        loop {
            // Whoever looks on sees each packet when nothing more is waiting.
            while let Some(packet) = socket.next(&mut buffer)? {
                pcap.write(&packet)?;
                captured += 1;
                if captured == limit {
                    return pcap.flush();
                }
            }
            pcap.flush()?;
            tokio::select! {
                ready = socket.readable() => ready?,
                signal = ends.signals.next() => return signal.map(drop),
                committed = ends.commits.next() => {
                    // A store that has been removed has no pods.
                    if committed.is_err() || !is_attached(config, record) {
                        return Ok(());
                    }
                }
            }
        }
    };
    let ended: io::Result<()> = done.await;
    match ended {
        // Whoever read has seen enough.
        Err(err) if err.kind() == io::ErrorKind::BrokenPipe => Ok(captured),
        // The interface has gone, or was set down.
        Err(err) if err.raw_os_error() == Some(nix::libc::ENETDOWN) => Ok(captured),
        Err(err) => Err(failed("copy packets")(err)),
        Ok(()) => Ok(captured),
    }
}

/// The write that was heard of comes before the commit can be read: see [`crate::network::watch`].
fn is_attached(config: &Config, record: &Record) -> bool {
    let found = state::owner(record).and_then(|owner| Ledger::open(config)?.read_settled(&owner));
    matches!(found, Ok(Some(found)) if found.identity() == record.identity())
}
