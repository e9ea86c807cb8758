//! `delete`: containerd has lost the connection to a shim and wants nothing to be left.
//!
//! It is run after every normal end too, for sandboxes and for each of their containers, and then finds nothing. What
//! it finds was given up: by a daemon that has died, and then everything is taken down from the outside, from what the
//! daemon has written to disk; or by containerd alone, and then the daemon is asked ([`given_up`]). The bundle, which
//! is the working directory, may be gone.

use std::path::{Path, PathBuf};
use std::time::SystemTime;

use containerd_shim_protos::api::DeleteResponse;
use protobuf::Message;
use serde::Deserialize;

use super::args::Args;
use super::{Error, given_up, io_error, socket};
use crate::config::Config;
use crate::pod::{self, DetachError, Links};
use crate::sandbox::leftovers;
use crate::standalone;
use crate::task;

/// The part of containerd's `bootstrap.json` that is needed.
#[derive(Deserialize)]
struct Bootstrap {
    address: String,
}

/// Cleans up, and answers how the task has ended.
#[inline(never)]
pub(super) fn delete(args: &Args) -> Result<Vec<u8>, Error> {
    let config = Config::load()?;
    let socket = match address(&args.bundle) {
        Some(address) => socket::of_address(&address),
        None => socket::path(Path::new(socket::DIR), &args.address, &args.namespace, &args.id),
    };
    // What nobody has seen the end of counts as killed.
    let mut response = DeleteResponse { exit_status: 137, ..Default::default() };
    response.exited_at = Some(SystemTime::now().into()).into();
    match socket::answers(&socket) {
        false => clean(&config, args, &socket, &mut response)?,
        // A container: the pod's other containers live on, whatever becomes of this one.
        true if args.bundle.join("config.json").exists() => {
            if task::is_left(&config, &args.namespace, &args.id, &args.bundle)
                && !wait_for(given_up::end_task(&socket, &args.id, &mut response))?
            {
                errors_of(clean_task(&config, args, &mut response))?;
            }
        }
        true => {
            if !wait_for(given_up::end_sandbox(&socket, &args.id))? {
                clean(&config, args, &socket, &mut response)?;
            }
        }
    }
    response.write_to_bytes().map_err(|source| Error::Message { op: "encode the answer", source })
}

/// The address of the pod's daemon, in the words of `start` or of containerd, which knows it for every container.
fn address(bundle: &Path) -> Option<String> {
    std::fs::read_to_string(bundle.join("address")).ok().or_else(|| {
        let text = std::fs::read(bundle.join("bootstrap.json")).ok()?;
        serde_json::from_slice::<Bootstrap>(&text).ok().map(|bootstrap| bootstrap.address)
    })
}

/// Goes on past every failure, and returns all of them.
fn clean(config: &Config, args: &Args, path: &Path, response: &mut DeleteResponse) -> Result<(), Error> {
    let mut errors = clean_task(config, args, response);
    // None: not a sandbox, or one that has ended as it should.
    if let Some(more) = leftovers::remove(config, &args.namespace, &args.id) {
        errors.extend(more.into_iter().map(Error::Sandbox));
        errors.extend(detached(pod::detach_all(config, &args.id, Links::DieWithNamespace)).err());
    }
    let removed = socket::remove(path);
    errors.extend(removed.err().map(|source| Error::File {
        op: "remove",
        path: PathBuf::from(path),
        source,
    }));
    errors_of(errors)
}

fn errors_of(errors: Vec<Error>) -> Result<(), Error> {
    if errors.is_empty() { Ok(()) } else { Err(Error::Several(errors)) }
}

fn clean_task(config: &Config, args: &Args, response: &mut DeleteResponse) -> Vec<Error> {
    let mut errors = Vec::new();
    match task::cleanup(config, &args.namespace, &args.id, &args.bundle) {
        Ok(cleaned) => {
            response.pid = cleaned.pid;
            response.exit_status = cleaned.exit_status;
            response.exited_at = Some(cleaned.exited_at.into()).into();
        }
        Err(source) => errors.push(Error::Task { id: args.id.clone(), source }),
    }
    errors.extend(detached(standalone::detach(config, &args.namespace, &args.id)).err());
    errors
}

fn detached(work: impl Future<Output = Result<(), DetachError>>) -> Result<(), Error> {
    wait_for(work)?
        .or_else(DetachError::unless_kept)
        .map_err(|err| Error::Sandbox(crate::sandbox::Error::Detach(err)))
}

fn wait_for<T>(work: impl Future<Output = T>) -> Result<T, Error> {
    let runtime = tokio::runtime::Builder::new_current_thread().enable_io().enable_time().build();
    Ok(runtime.map_err(io_error("start the event loop"))?.block_on(work))
}
