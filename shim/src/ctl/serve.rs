//! `weft serve`: the node's pods over ttrpc, on one socket, until it is told to stop; and a table of nftables that stays.

use std::io;
use std::os::unix::fs::PermissionsExt;
use std::os::unix::net::{UnixListener, UnixStream};
use std::path::Path;
use std::sync::Arc;

use nix::sys::signal::Signal;
use ttrpc::asynchronous::Server;
use ttrpc::asynchronous::transport::Listener;

use super::Error;
use crate::config::Config;
use crate::nat;
use crate::network::{self, Scope};
use crate::peers::Peers;
use crate::signals::Signals;

/// Serves on `<run_dir>/weft.sock`, mode 0600: whoever may read the store may connect.
pub(super) async fn run(config: Config) -> Result<(), Error> {
    let path = config.run_dir.join("weft.sock");
    let failed = |source| Error::Serve { path: path.clone(), source };
    let listener = listen(&path).and_then(tokio::net::UnixListener::from_std).map_err(failed)?;
    let end = Signals::of(&[Signal::SIGTERM, Signal::SIGINT]).map_err(failed)?;
    let config = Arc::new(config);
    let service = network::service(Arc::clone(&config), Scope::Node)?;
    let mut server = Server::new()
        .add_listener(Listener::new(Peers::default().accept(listener)))
        .register_service(service);
    server.start().await?;
    tokio::select! {
        ended = end.next() => drop(ended.map_err(failed)?),
        // Without end, unless it fails.
        kept = nat::keep(&config) => kept?,
    }
    server.shutdown().await?;
    std::fs::remove_file(&path).map_err(failed)
}

/// A socket that nobody answers on is left over from a process that was killed, and is replaced.
fn listen(path: &Path) -> io::Result<UnixListener> {
    if let Some(dir) = path.parent() {
        std::fs::create_dir_all(dir)?;
    }
    if UnixStream::connect(path).is_ok() {
        return Err(io::Error::from(io::ErrorKind::AddrInUse));
    }
    match std::fs::remove_file(path) {
        Err(err) if err.kind() != io::ErrorKind::NotFound => return Err(err),
        _ => {}
    }
    let listener = UnixListener::bind(path)?;
    listener.set_nonblocking(true)?;
    std::fs::set_permissions(path, std::fs::Permissions::from_mode(0o600))?;
    Ok(listener)
}
