//! `start`: containerd asks for the address of a shim, and gets that of the pod's, which is started if need be.
//!
//! The listener exists before the reply is printed and is handed to the daemon as its standard input, so there is
//! nothing to wait for. Since containerd 2.3 question and answer are protobuf messages; before, the question was
//! empty or the runtime's options, and the answer an address, or JSON.

use std::collections::HashMap;
use std::ffi::OsStr;
use std::io::{self, Read};
use std::os::fd::OwnedFd;
use std::os::unix::process::CommandExt;
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};

use containerd_shim_protos::TASK_API_VERSION;
use containerd_shim_protos::bootstrap_api::{BootstrapParams, BootstrapResult, Extension};
use protobuf::Message;
use protobuf::well_known_types::any::Any;
use serde::Deserialize;

use super::args::Args;
use super::{Error, io_error, socket};
use crate::config::Config;
use crate::{entry, memory};

/// Containers of one group share a shim: annotations of the OCI configuration that name it, the first wins.
const GROUPS: [&str; 2] = ["io.containerd.runc.v2.group", "io.kubernetes.cri.sandbox-id"];

/// `BootstrapResult.extensions`, which containerd-shim-protos 0.12 does not know.
const EXTENSIONS: u32 = 6;

/// The part of a bundle's path that only containerd 2.0 and later make.
const SANDBOX_BUNDLES: &str = "io.containerd.sandbox.controller.v1.shim";

/// How the answer is written.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Reply {
    /// containerd 2.3 and later.
    Protobuf,
    /// containerd 2.0 to 2.2.
    Json,
    /// containerd 1.7 rejects every version above 2, and an address alone means 2.
    Plain,
}

/// What containerd said on standard input.
pub(super) struct Question {
    reply: Reply,
    socket_dir: PathBuf,
    events: Option<String>,
    debug: bool,
}

/// The annotations of a bundle's `config.json`.
#[derive(Deserialize)]
struct Spec {
    #[serde(default)]
    annotations: Option<HashMap<String, String>>,
}

/// Answers with the address of the group's shim. The working directory is the bundle.
#[inline(never)]
pub(super) fn start(args: &Args) -> Result<Vec<u8>, Error> {
    close_inherited().map_err(io_error("close inherited files"))?;
    // The daemon reads it too; here a mistake in it still reaches the user.
    Config::load()?;
    let mut input = Vec::new();
    io::stdin().read_to_end(&mut input).map_err(io_error("read the parameters"))?;
    let bundle = std::env::current_dir().map_err(io_error("find the bundle"))?;
    let question = question(args, &bundle, &input);
    let path = socket::path(&question.socket_dir, &args.address, &args.namespace, &group(args, &bundle)?);
    if !socket::answers(&path) {
        let listener = socket::bind(&path).map_err(file("listen at", &path))?;
        spawn(args, &question, listener.into()).map_err(io_error("start the daemon"))?;
    }
    let address = socket::address(&path);
    // containerd 1.7 reads it when it restarts, and `delete` always.
    let file_of_address = bundle.join("address");
    std::fs::write(&file_of_address, &address).map_err(file("write", &file_of_address))?;
    answer(question.reply, address)
}

fn file(op: &'static str, path: &Path) -> impl FnOnce(io::Error) -> Error {
    let path = path.to_owned();
    move |source| Error::File { op, path, source }
}

pub(super) fn question(args: &Args, bundle: &Path, input: &[u8]) -> Question {
    let legacy = match bundle.components().any(|part| part.as_os_str() == OsStr::new(SANDBOX_BUNDLES)) {
        true => Reply::Json,
        false => Reply::Plain,
    };
    // The options of an older containerd may parse as parameters by chance, but never name this container.
    let params = BootstrapParams::parse_from_bytes(input)
        .ok()
        .filter(|params| params.instance_id == args.id && params.namespace == args.namespace);
    let Some(params) = params else {
        return Question { reply: legacy, socket_dir: socket::DIR.into(), events: None, debug: args.debug };
    };
    Question {
        reply: Reply::Protobuf,
        socket_dir: params.socket_dir.filter(|dir| !dir.is_empty()).map_or(socket::DIR.into(), Into::into),
        events: Some(params.containerd_ttrpc_address).filter(|address| !address.is_empty()),
        debug: args.debug || params.log_level.value() < 0,
    }
}

fn group(args: &Args, bundle: &Path) -> Result<String, Error> {
    let path = bundle.join("config.json");
    let text = match std::fs::read(&path) {
        Ok(text) => text,
        // A sandbox has none.
        Err(err) if err.kind() == io::ErrorKind::NotFound => return Ok(args.id.clone()),
        Err(source) => return Err(Error::File { op: "read", path, source }),
    };
    let spec: Spec = serde_json::from_slice(&text).map_err(|source| Error::Json { path, source })?;
    let annotations = spec.annotations.unwrap_or_default();
    Ok(GROUPS.iter().find_map(|name| annotations.get(*name)).unwrap_or(&args.id).clone())
}

fn spawn(args: &Args, question: &Question, listener: OwnedFd) -> io::Result<()> {
    // The link leads to this very program even while an upgrade replaces the file.
    let mut daemon = Command::new("/proc/self/exe");
    daemon.arg0(entry::words().next().unwrap_or_default());
    daemon.args(["-namespace", &args.namespace, "-id", &args.id, "-address", &args.address]);
    if question.debug {
        daemon.arg("-debug");
    }
    if let Some(events) = &question.events {
        daemon.env("TTRPC_ADDRESS", events);
    }
    daemon.envs(memory::TUNABLES.iter().copied());
    daemon.stdin(listener).stdout(Stdio::null()).stderr(Stdio::null()).spawn().map(drop)
}

fn answer(reply: Reply, address: String) -> Result<Vec<u8>, Error> {
    let version = TASK_API_VERSION;
    match reply {
        Reply::Plain => Ok(address.into_bytes()),
        Reply::Json => {
            let json = serde_json::json!({ "version": version, "address": address, "protocol": "ttrpc" });
            Ok(json.to_string().into_bytes())
        }
        Reply::Protobuf => {
            let mut result =
                BootstrapResult { version, address, protocol: "ttrpc".into(), ..Default::default() };
            let fields = result.special_fields.mut_unknown_fields();
            fields.add_length_delimited(EXTENSIONS, mount_capabilities()?);
            result.write_to_bytes().map_err(|source| Error::Message { op: "encode the reply", source })
        }
    }
}

/// "The shim mounts nothing but what mount(2) does". Without this containerd 2.4 runs `-info` within the first
/// Task.Create to find out, which costs about 10 ms (`core/runtime/v2/task_mounts_deprecated.go`).
fn mount_capabilities() -> Result<Vec<u8>, Error> {
    // Both lists of the message are empty, and so are its bytes.
    let none = Any { type_url: "containerd.types.MountCapabilities".into(), ..Default::default() };
    let extension = Extension { value: Some(none).into(), ..Default::default() };
    extension.write_to_bytes().map_err(|source| Error::Message { op: "encode the reply", source })
}

/// A file that a careless launcher left open would stay open for the life of the pod.
fn close_inherited() -> io::Result<()> {
    let mut open = Vec::new();
    for entry in std::fs::read_dir("/proc/self/fd")? {
        open.extend(entry?.file_name().to_str().and_then(|name| name.parse::<i32>().ok()));
    }
    for fd in open.into_iter().filter(|fd| *fd > 2) {
        match nix::unistd::close(fd) {
            // The listing's own, closed when it ended.
            Ok(()) | Err(nix::errno::Errno::EBADF) => {}
            Err(err) => return Err(err.into()),
        }
    }
    Ok(())
}
