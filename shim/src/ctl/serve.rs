//! `weft serve`: the node's pods over ttrpc, on one socket, until it is told to stop or nobody needs it; and a table of nftables
//! that stays.

use std::future::pending;
use std::io;
use std::net::SocketAddr;
use std::os::fd::{FromRawFd, OwnedFd};
use std::os::unix::fs::PermissionsExt;
use std::os::unix::net::{UnixListener, UnixStream};
use std::path::{Path, PathBuf};
use std::str::FromStr;
use std::sync::Arc;
use std::time::Duration;

use nix::fcntl::{FcntlArg, FdFlag, fcntl};
use nix::sys::signal::Signal;
use ttrpc::asynchronous::Server;
use ttrpc::asynchronous::transport::Listener;

use super::{Error, args, metrics};
use crate::config::Config;
use crate::network::{self, Scope};
use crate::peers::Peers;
use crate::signals::Signals;
use crate::{journal, nat};

/// The first descriptor that systemd passes (`SD_LISTEN_FDS_START`, sd_listen_fds(3)).
const PASSED: i32 = 3;

/// Where Prometheus is answered.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) enum Endpoint {
    /// A socket in the file system, for its owner only.
    Unix(PathBuf),
    /// On the loopback interface: what is told there, every process of the node may know.
    Tcp(SocketAddr),
}

impl FromStr for Endpoint {
    type Err = String;

    fn from_str(text: &str) -> Result<Endpoint, String> {
        if let Some(path) = text.strip_prefix("unix:").filter(|path| !path.is_empty()) {
            return Ok(Endpoint::Unix(path.into()));
        }
        match text.parse::<SocketAddr>() {
            Ok(address) if address.ip().is_loopback() => Ok(Endpoint::Tcp(address)),
            Ok(address) => Err(format!("{} is not an address of the loopback interface", address.ip())),
            Err(_) => Err("want unix:PATH, 127.0.0.1:PORT or [::1]:PORT".to_owned()),
        }
    }
}

/// Serves on the socket that systemd passed, or else on `<run_dir>/weft.sock`, mode 0600.
pub(super) async fn run(config: Config, args: &args::Serve) -> Result<(), Error> {
    journal::open();
    let config = Arc::new(config);
    // Before the other socket: whoever finds that one finds both.
    let metrics = match &args.metrics {
        Some(endpoint) => Some(metrics::listen(endpoint, Arc::clone(&config)).await?),
        None => None,
    };
    let ended = serve(&config, metrics, args.idle).await;
    let removed = match &args.metrics {
        Some(Endpoint::Unix(path)) => remove(path),
        _ => Ok(()),
    };
    ended.and(removed)
}

async fn serve(
    config: &Arc<Config>,
    metrics: Option<metrics::Metrics>,
    seconds: Option<u64>,
) -> Result<(), Error> {
    let path = config.run_dir.join("weft.sock");
    let failed = |source| Error::Serve { path: path.clone(), source };
    let end = Signals::of(&[Signal::SIGTERM, Signal::SIGINT]).map_err(failed)?;
    let passed = passed().map_err(failed)?;
    let is_own = passed.is_none();
    let listener = passed.map_or_else(|| listen(&path), Ok).map_err(failed)?;
    let listener = tokio::net::UnixListener::from_std(listener).map_err(failed)?;
    let peers = Peers::default();
    let service = network::service(Arc::clone(config), Scope::Node)?;
    let mut server =
        Server::new().add_listener(Listener::new(peers.accept(listener))).register_service(service);
    server.start().await?;
    tokio::select! {
        signal = end.next() => drop(signal.map_err(failed)?),
        () = idle(&peers, seconds) => {}
        ended = serve_metrics(metrics) => ended?,
        // Without end, unless it fails.
        kept = nat::keep(config) => kept?,
    }
    server.shutdown().await?;
    // systemd listens on, and starts the next one.
    if is_own { remove(&path) } else { Ok(()) }
}

fn remove(path: &Path) -> Result<(), Error> {
    std::fs::remove_file(path).map_err(|source| Error::Serve { path: path.to_owned(), source })
}

async fn idle(peers: &Peers, seconds: Option<u64>) {
    match seconds {
        Some(seconds) => peers.away_for(Duration::from_secs(seconds)).await,
        None => pending().await,
    }
}

async fn serve_metrics(metrics: Option<metrics::Metrics>) -> Result<(), Error> {
    match metrics {
        Some(metrics) => metrics.serve().await,
        None => pending().await,
    }
}

/// The socket that this process was started for (sd_listen_fds(3)).
fn passed() -> io::Result<Option<UnixListener>> {
    let number = |name| std::env::var(name).ok().and_then(|text| text.parse::<u32>().ok());
    if number("LISTEN_PID") != Some(std::process::id()) || number("LISTEN_FDS").unwrap_or(0) == 0 {
        return Ok(None);
    }
    // SAFETY: whoever set both variables for this process has passed the descriptor to it, and nobody else here takes it.
    let fd = unsafe { OwnedFd::from_raw_fd(PASSED) };
    fcntl(&fd, FcntlArg::F_SETFD(FdFlag::FD_CLOEXEC))?;
    let listener = UnixListener::from(fd);
    listener.set_nonblocking(true)?;
    Ok(Some(listener))
}

/// A socket that nobody answers on is left over from a process that was killed, and is replaced.
pub(super) fn listen(path: &Path) -> io::Result<UnixListener> {
    if let Some(dir) = path.parent() {
        std::fs::create_dir_all(dir)?;
    }
    if UnixStream::connect(path).is_ok() {
        return Err(io::Error::from(io::ErrorKind::AddrInUse));
    }
    // Under its name it is for its owner only from the start; a rename puts it in the place of what is left over.
    let new = path.with_extension("new");
    match std::fs::remove_file(&new) {
        Err(err) if err.kind() != io::ErrorKind::NotFound => return Err(err),
        _ => {}
    }
    let listener = UnixListener::bind(&new)?;
    listener.set_nonblocking(true)?;
    std::fs::set_permissions(&new, std::fs::Permissions::from_mode(0o600))?;
    std::fs::rename(&new, path)?;
    Ok(listener)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn metrics_are_for_this_node_only() {
        let parse = |text: &str| text.parse::<Endpoint>();
        assert_eq!(parse("unix:/run/m"), Ok(Endpoint::Unix("/run/m".into())));
        assert_eq!(parse("127.0.0.1:9100"), Ok(Endpoint::Tcp("127.0.0.1:9100".parse().unwrap())));
        assert_eq!(parse("[::1]:9100"), Ok(Endpoint::Tcp("[::1]:9100".parse().unwrap())));
        for text in ["0.0.0.0:9100", "192.0.2.1:1", "[::]:1", "9100", "localhost:1", "unix:", ""] {
            assert!(parse(text).is_err(), "{text}");
        }
    }
}
