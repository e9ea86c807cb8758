//! Who is connected: connections of our own user, counted while they are open.
//!
//! The last call of a pod's life is answered before the daemon ends, and only the client knows when it has read the
//! answer: it closes the connection then. ttrpc's own shutdown may overtake an answer that is still to be written.

use std::io;
use std::pin::Pin;
use std::sync::Arc;
use std::task::{Context, Poll};
use std::time::Duration;

use futures_util::stream::{self, Stream};
use tokio::io::{AsyncRead, AsyncWrite, ReadBuf};
use tokio::net::{UnixListener, UnixStream};
use tokio::sync::watch;
use tokio::time::sleep;

/// The open connections.
#[derive(Debug, Clone, Default)]
pub(crate) struct Peers(Arc<watch::Sender<usize>>);

impl Peers {
    /// The connections that come in. Those of another user are closed at once.
    pub(crate) fn accept(
        &self,
        listener: UnixListener,
    ) -> impl Stream<Item = io::Result<Peer>> + Send + use<> {
        stream::unfold((listener, self.clone()), async |(listener, peers)| {
            loop {
                match listener.accept().await.and_then(|(peer, _)| Ok((peer.peer_cred()?.uid(), peer))) {
                    Ok((uid, stream)) if uid == nix::unistd::geteuid().as_raw() => {
                        return Some((Ok(peers.open(stream)), (listener, peers)));
                    }
                    Ok((uid, _)) => log::warn!("refuse a connection of user {uid}"),
                    Err(err) => return Some((Err(err), (listener, peers))),
                }
            }
        })
    }

    fn open(&self, stream: UnixStream) -> Peer {
        self.0.send_modify(|open| *open += 1);
        Peer { stream, peers: self.clone() }
    }

    /// Waits until nobody has been connected for so long.
    pub(crate) async fn away_for(&self, long: Duration) {
        let mut open = self.0.subscribe();
        loop {
            self.closed().await;
            open.mark_unchanged();
            tokio::select! {
                () = sleep(long) => return,
                // The sender is ours, so the wait cannot fail.
                changed = open.changed() => drop(changed),
            }
        }
    }

    /// Waits until somebody is connected.
    pub(super) async fn opened(&self) {
        let mut open = self.0.subscribe();
        // The sender is ours, so the wait cannot fail.
        drop(open.wait_for(|open| *open > 0).await);
    }

    /// Waits until all have been closed.
    pub(crate) async fn closed(&self) {
        let mut open = self.0.subscribe();
        // The sender is ours, so the wait cannot fail.
        drop(open.wait_for(|open| *open == 0).await);
    }
}

/// One connection.
#[derive(Debug)]
pub(crate) struct Peer {
    stream: UnixStream,
    peers: Peers,
}

impl Drop for Peer {
    fn drop(&mut self) {
        self.peers.0.send_modify(|open| *open -= 1);
    }
}

impl AsyncRead for Peer {
    fn poll_read(
        mut self: Pin<&mut Self>,
        cx: &mut Context<'_>,
        buf: &mut ReadBuf<'_>,
    ) -> Poll<io::Result<()>> {
        Pin::new(&mut self.stream).poll_read(cx, buf)
    }
}

impl AsyncWrite for Peer {
    fn poll_write(mut self: Pin<&mut Self>, cx: &mut Context<'_>, buf: &[u8]) -> Poll<io::Result<usize>> {
        Pin::new(&mut self.stream).poll_write(cx, buf)
    }

    fn poll_flush(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        Pin::new(&mut self.stream).poll_flush(cx)
    }

    fn poll_shutdown(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        Pin::new(&mut self.stream).poll_shutdown(cx)
    }
}
