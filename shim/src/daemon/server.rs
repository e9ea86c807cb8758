//! The daemon: one listener, one thread, until no task and no sandbox is left.
//!
//! No thread is ever started (no `tokio::fs`, no `spawn_blocking`): setns(2) moves a thread, not a process, and
//! `/proc/<pid>/ns` shows the namespaces of the main one.

use std::collections::HashMap;
use std::os::unix::net::UnixListener as StdUnixListener;
use std::path::PathBuf;
use std::pin::{Pin, pin};
use std::sync::Arc;
use std::time::Duration;

use nix::sys::signal::Signal;
use tokio::net::UnixListener;
use tokio::sync::Notify;
use tokio::time::timeout;
use ttrpc::asynchronous::transport::Listener;
use ttrpc::asynchronous::{Server, Service};

use super::args::Args;
use super::{Error, io_error, logger, socket};
use crate::config::Config;
use crate::entry::standard_input;
use crate::error::chain;
use crate::events::Events;
use crate::memory;
use crate::network::{self, Scope};
use crate::peers::Peers;
use crate::reaper::{self, Reaper};
use crate::sandbox::{self, Sandbox};
use crate::signals::Signals;
use crate::task::{self, TaskContext, Tasks};

/// How long containerd may take for the last events; a client that has gone takes none.
const FLUSH: Duration = Duration::from_secs(1);
/// How long whoever has run `start` may take to connect, which containerd does at once, and how long nobody may be connected before
/// the daemon looks whether it has been forgotten.
const WELCOME: Duration = Duration::from_secs(15);
/// Events of descriptors that are taken from the kernel at once: room for 1024, as by default, is 12 kB.
const IO_EVENTS: usize = 64;
/// How long clients may take to read their last answers and hang up.
const FAREWELL: Duration = Duration::from_secs(1);

/// Of containerd's API: what a later version may bring, and what shims of virtual machines have.
const NOT_SERVED: [&str; 4] = [
    "containerd.task.v4.Task",
    "containerd.runtime.sandbox.v2.Sandbox",
    "containerd.services.streaming.v1.Streaming",
    "containerd.services.transfer.v1.Transfer",
];

fn system(op: &'static str) -> impl FnOnce(nix::errno::Errno) -> Error {
    move |source| Error::System { op, source }
}

/// Serves until the last task and the sandbox are gone.
#[inline(never)]
pub(super) fn serve(args: &Args) -> Result<(), Error> {
    memory::keep_one_arena();
    let listener = take_listener()?;
    let of_socket = listener.local_addr().map_err(io_error("find the socket's path"))?;
    let path = of_socket.as_pathname().map(PathBuf::from).unwrap_or_default();
    if let Err(err) = logger::open(&args.id, args.debug) {
        // Not a reason to refuse a pod; there is no place left to say it.
        log::trace!("{err}");
    }
    nix::unistd::setsid().map_err(system("leave containerd's session"))?;
    nix::sys::prctl::set_name(c"containerd-shim").map_err(system("name the process"))?;
    reaper::become_subreaper().map_err(system("become a subreaper"))?;
    prefer_containers_when_memory_is_short();
    let config = Arc::new(Config::load()?);
    let mut runtime = tokio::runtime::Builder::new_current_thread();
    runtime
        .enable_io()
        .enable_time()
        .max_io_events_per_tick(IO_EVENTS)
        .on_thread_park(memory::before_waiting);
    let runtime = runtime.build().map_err(io_error("start the event loop"))?;
    runtime.block_on(work(args, config, listener, path))
}

/// On the heap, and made in a frame of its own: the event loop would have it on the stack twice, 2 kB each.
#[inline(never)]
fn work(
    args: &Args,
    config: Arc<Config>,
    listener: StdUnixListener,
    path: PathBuf,
) -> Pin<Box<dyn Future<Output = Result<(), Error>> + '_>> {
    Box::pin(run(args, config, listener, path))
}

/// `start` has put the listener where standard input was.
fn take_listener() -> Result<StdUnixListener, Error> {
    let fd = standard_input().try_clone_to_owned().map_err(io_error("take the listener"))?;
    let listener = StdUnixListener::from(fd);
    let null = std::fs::File::open("/dev/null").map_err(io_error("open /dev/null"))?;
    nix::unistd::dup2_stdin(null).map_err(system("close standard input"))?;
    listener.set_nonblocking(true).map_err(io_error("take the listener"))?;
    Ok(listener)
}

/// containerd itself is the last to be killed (-999); a shim is the last but one, and its containers choose.
fn prefer_containers_when_memory_is_short() {
    let file = "/proc/self/oom_score_adj";
    let score = std::fs::read_to_string(file).ok().and_then(|text| text.trim().parse::<i32>().ok());
    if let Some(score) = score
        && let Err(err) = std::fs::write(file, (score + 1).min(1000).to_string())
    {
        log::debug!("oom_score_adj stays at {score}: {err}");
    }
}

async fn run(
    args: &Args,
    config: Arc<Config>,
    listener: StdUnixListener,
    path: PathBuf,
) -> Result<(), Error> {
    let idle = Arc::new(Notify::new());
    let reaper = Reaper::start().map_err(io_error("watch for ended children"))?;
    let owner = sandbox::Owner { namespace: args.namespace.clone(), id: args.id.clone() };
    let events = Arc::new(Events::start(std::env::var("TTRPC_ADDRESS").ok().as_deref(), &args.namespace));
    let network = network::service(Arc::clone(&config), Scope::Container(args.id.clone()));
    let network = network.map_err(|source| Error::Namespace { source })?;
    let sandbox = Sandbox::new(Arc::clone(&config), owner, Arc::clone(&reaper), Arc::clone(&idle));
    let tasks = Arc::new(Tasks::default());
    let context = TaskContext {
        config,
        namespace: args.namespace.clone(),
        events: Arc::clone(&events),
        reaper,
        sandbox: Arc::clone(&sandbox),
        tasks: Arc::clone(&tasks),
        idle: Arc::clone(&idle),
    };
    let listener = UnixListener::from_std(listener).map_err(io_error("take the listener"))?;
    let peers = Peers::default();
    let mut server = Server::new()
        .add_listener(Listener::new(peers.accept(listener)))
        .register_service(sandbox::service::service(Arc::clone(&sandbox), Arc::clone(&tasks)))
        .register_service(task::services(context))
        .register_service(network)
        .register_service(not_served());
    server.start().await.map_err(|source| Error::Serve { op: "serve", source })?;
    let nothing_left = || tasks.is_empty() && !sandbox.is_live();
    let is_forgotten = || if sandbox.is_live() { sandbox.is_forgotten() } else { tasks.are_forgotten() };
    tokio::select! {
        ended = until_idle(&idle, &peers, nothing_left, is_forgotten) => ended?,
        () = end_lost_input(&peers, &tasks) => {}
    }
    end_what_is_forgotten(&sandbox, &tasks).await;
    events.flush(FLUSH).await;
    socket::remove(&path).map_err(io_error("remove the socket"))?;
    if timeout(FAREWELL, peers.closed()).await.is_err() {
        log::debug!("clients are still connected");
    }
    server.shutdown().await.map_err(|source| Error::Serve { op: "close the connections", source })
}

/// What still lives has lost its bundle, or a `delete` that found no answer has taken it down from the outside.
async fn end_what_is_forgotten(sandbox: &Sandbox, tasks: &Tasks) {
    if sandbox.is_live() {
        log::warn!("the pod's bundle has gone, and nobody is connected: the pod ends");
        if let Err(err) = sandbox.shutdown(tasks).await {
            log::error!("{}", chain(&err));
        }
    } else if !tasks.is_empty() {
        log::warn!("the containers' bundles have gone, and nobody is connected: they end");
        tasks.kill_all().await;
        tasks.delete_all().await;
    }
}

/// ttrpc 0.10 answers `INVALID_ARGUMENT` for a service that it does not know, and has no place for a default one; Go's
/// answers `UNIMPLEMENTED`, on which a client tries an older version. So those that a client of a shim may look for are
/// there, without a method.
fn not_served() -> HashMap<String, Service> {
    let nothing = || Service { methods: HashMap::new(), streams: HashMap::new() };
    NOT_SERVED.iter().map(|name| ((*name).to_owned(), nothing())).collect()
}

/// Waits for a call that leaves nothing to do, or until nobody can call any more. Signals are not a reason to leave a pod alone.
///
/// A containerd whose client has gone away kills `start`, or reads its answer no more, and does not run `delete`
/// (`startShim` in core/runtime/v2/shim_manager.go): then nobody ever connects. And containerd 2.0 forgets its sandboxes
/// when it starts again, and removes their bundles: then nobody connects any more. Nor does anybody after a `delete` that
/// this daemon was too busy to answer ([`super::given_up`]).
async fn until_idle(
    idle: &Notify,
    peers: &Peers,
    nothing_left: impl Fn() -> bool,
    is_forgotten: impl Fn() -> bool,
) -> Result<(), Error> {
    let signals = Signals::of(&[Signal::SIGTERM, Signal::SIGINT]).map_err(io_error("watch for signals"))?;
    let mut alone = pin!(peers.away_for(WELCOME));
    loop {
        tokio::select! {
            () = idle.notified() => if nothing_left() { return Ok(()) },
            () = &mut alone => {
                if nothing_left() || is_forgotten() {
                    return Ok(());
                }
                alone.set(peers.away_for(WELCOME));
            }
            signal = signals.next() => {
                let signal = signal.map_err(io_error("watch for signals"))?;
                log::info!("{signal} is ignored while a pod lives");
            }
        }
    }
}

/// For ever: each time that the last client has gone, the input of execs ends with it. containerd knows its execs no more
/// when it comes back, and nobody would ever end it (`CloseIO`).
async fn end_lost_input(peers: &Peers, tasks: &Tasks) {
    loop {
        peers.closed().await;
        tasks.close_input_of_execs();
        peers.opened().await;
    }
}
