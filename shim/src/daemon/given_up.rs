//! What containerd has lost sight of while its daemon lives: the daemon is told to end it.
//!
//! containerd closes a connection and runs `delete` when it has removed what was behind it, and also when a shim took
//! too long to answer after a restart, or a client has gone away in the middle of RunPodSandbox or StartContainer. It
//! then forgets the shim and removes the bundle (`cleanupAfterDeadShim` in core/runtime/v2/shim.go, `cleanupShim` in
//! plugins/sandbox/controller.go of 2.4.2), so that nobody would ever end the pod. The two are told apart by what is
//! left: a container or a sandbox that was removed is not known to the daemon any more.

use std::path::Path;
use std::time::Duration;

use containerd_shim_protos::api::{DeleteRequest, DeleteResponse, KillRequest, ShutdownRequest, WaitRequest};
use containerd_shim_protos::sandbox_api::ShutdownSandboxRequest;
use containerd_shim_protos::sandbox_async::SandboxClient;
use containerd_shim_protos::shim_async::{Client, TaskClient};
use tokio::time::timeout;
use ttrpc::context::Context;
use ttrpc::{Code, Error};

use super::socket;

/// What the daemon may take. containerd kills a `delete` after five seconds (`io.containerd.timeout.shim.cleanup`), and
/// the rest is for doing it without the daemon.
const PATIENCE: Duration = Duration::from_secs(2);

/// Ends a sandbox; one that has ended, and the id of anything else, change nothing. False: the daemon does not do it.
pub(super) async fn end_sandbox(path: &Path, id: &str) -> bool {
    let work = async {
        let client = SandboxClient::new(connect(path).await?);
        let request = ShutdownSandboxRequest { sandbox_id: id.to_owned(), ..Default::default() };
        client.shutdown_sandbox(context(), &request).await.map(drop)
    };
    is_done(timeout(PATIENCE, work).await.unwrap_or_else(|_elapsed| Err(hangs())))
}

/// Ends a container, and the daemon with it if it was the last and there is no sandbox. False: the daemon does not do it.
pub(super) async fn end_task(path: &Path, id: &str, response: &mut DeleteResponse) -> bool {
    let work = async {
        let client = TaskClient::new(connect(path).await?);
        let id = id.to_owned();
        let kill = KillRequest { id: id.clone(), signal: 9, all: true, ..Default::default() };
        match client.kill(context(), &kill).await {
            // Dead already.
            Err(err) if is_unknown(&err) => {}
            killed => drop(killed?),
        }
        let wait = WaitRequest { id: id.clone(), ..Default::default() };
        client.wait(context(), &wait).await?;
        let delete = DeleteRequest { id: id.clone(), ..Default::default() };
        *response = client.delete(context(), &delete).await?;
        client.shutdown(context(), &ShutdownRequest { id, ..Default::default() }).await.map(drop)
    };
    timeout(PATIENCE, work).await.unwrap_or_else(|_elapsed| Err(hangs())).is_ok()
}

async fn connect(path: &Path) -> Result<Client, Error> {
    Client::connect(&socket::address(path)).await
}

fn context() -> Context {
    ttrpc::context::with_duration(PATIENCE)
}

fn hangs() -> Error {
    Error::Others("the daemon does not answer".to_owned())
}

fn is_unknown(err: &Error) -> bool {
    matches!(err, Error::RpcStatus(status) if status.code() == Code::NOT_FOUND)
}

fn is_done(done: Result<(), Error>) -> bool {
    match done {
        Ok(()) => true,
        Err(err) => is_unknown(&err),
    }
}
