//! `-info` and `-v`: what the runtime is and can do, without a pod.

use std::io::{self, Read};
use std::process::Command;

use containerd_shim_protos::shim::oci::Options;
use containerd_shim_protos::types::introspection::{RuntimeInfo, RuntimeVersion};
use protobuf::Message;
use protobuf::well_known_types::any::Any;
use serde_json::Value;

use super::{Error, io_error};
use crate::config::Config;
use crate::task;

/// The type under which containerd looks for the features of an OCI runtime.
const FEATURES: &str = "types.containerd.io/opencontainers/runtime-spec/1/features/Features";

/// The line for `-v`.
pub(super) fn version() -> String {
    format!("containerd-shim-weft-v1 {}\n", env!("CARGO_PKG_VERSION"))
}

/// A `containerd.types.RuntimeInfo`. On standard input containerd gives the options of the handler that it asks for.
pub(super) fn info() -> Result<Vec<u8>, Error> {
    let config = Config::load()?;
    let mut input = Vec::new();
    io::stdin().read_to_end(&mut input).map_err(io_error("read the options"))?;
    let binary = named(&input)?.unwrap_or(config.runtime.binary);
    let mut info = RuntimeInfo { name: "io.containerd.weft.v1".into(), ..Default::default() };
    let version = RuntimeVersion { version: env!("CARGO_PKG_VERSION").into(), ..Default::default() };
    info.version = Some(version).into();
    let features = features(&binary)?;
    info.features =
        features.map(|value| Any { type_url: FEATURES.into(), value, ..Default::default() }).into();
    info.write_to_bytes().map_err(|source| Error::Message { op: "encode the runtime's features", source })
}

/// The OCI runtime that the options name, in the only type of options that Task.Create reads too.
pub(super) fn named(input: &[u8]) -> Result<Option<String>, Error> {
    let decode = |source| Error::Message { op: "decode the options", source };
    let any = Any::parse_from_bytes(input).map_err(decode)?;
    if any.type_url.trim_start_matches('/') != task::OPTIONS {
        return Ok(None);
    }
    let options = Options::parse_from_bytes(&any.value).map_err(decode)?;
    Ok(Some(options.binary_name).filter(|name| !name.is_empty()))
}

/// What the OCI runtime answers to `features`; older ones do not know the word.
fn features(binary: &str) -> Result<Option<Vec<u8>>, Error> {
    let output = Command::new(binary).arg("features").output();
    let output = output.map_err(|source| Error::File { op: "run", path: binary.into(), source })?;
    if !output.status.success() {
        return Ok(None);
    }
    let parsed: Result<Value, _> = serde_json::from_slice(&output.stdout);
    parsed.map_err(|source| Error::Json { path: binary.into(), source })?;
    Ok(Some(output.stdout))
}
