//! `-info` and `-v`: what the runtime is and can do, without a pod.

use std::process::Command;

use containerd_shim_protos::types::introspection::{RuntimeInfo, RuntimeVersion};
use protobuf::Message;
use protobuf::well_known_types::any::Any;
use serde_json::Value;

use super::{Error, io_error};
use crate::config::Config;

/// The type under which containerd looks for the features of an OCI runtime.
const FEATURES: &str = "types.containerd.io/opencontainers/runtime-spec/1/features/Features";

/// The line for `-v`.
pub(super) fn version() -> String {
    format!("containerd-shim-weft-v1 {}\n", env!("CARGO_PKG_VERSION"))
}

/// A `containerd.types.RuntimeInfo`. What containerd gives on standard input, the runtime's options, is not needed.
pub(super) fn info() -> Result<Vec<u8>, Error> {
    let config = Config::load()?;
    let mut info = RuntimeInfo { name: "io.containerd.weft.v1".into(), ..Default::default() };
    let version = RuntimeVersion { version: env!("CARGO_PKG_VERSION").into(), ..Default::default() };
    info.version = Some(version).into();
    let features = Any { type_url: FEATURES.into(), value: features(&config)?, ..Default::default() };
    info.features = Some(features).into();
    info.write_to_bytes().map_err(|source| Error::Message { op: "encode the runtime's features", source })
}

/// The answer of the OCI runtime's `features`, without what the shim itself cannot do.
fn features(config: &Config) -> Result<Vec<u8>, Error> {
    let output = Command::new(&config.runtime.binary)
        .arg("features")
        .output()
        .map_err(io_error("run the OCI runtime"))?;
    let parsed = serde_json::from_slice(&output.stdout);
    let mut features: Value =
        parsed.map_err(|source| Error::Json { path: config.runtime.binary.clone().into(), source })?;
    without_user_namespaces(&mut features);
    Ok(features.to_string().into_bytes())
}

/// The kubelet offers user namespaces for pods when it finds these two; a sandbox refuses them.
fn without_user_namespaces(features: &mut Value) {
    if let Some(namespaces) = features.pointer_mut("/linux/namespaces").and_then(Value::as_array_mut) {
        namespaces.retain(|name| name != "user");
    }
    if let Some(extensions) = features.pointer_mut("/linux/mountExtensions").and_then(Value::as_object_mut) {
        extensions.remove("idmap");
    }
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;

    #[test]
    fn only_user_namespaces_are_withheld() {
        let mut features = json!({ "linux": {
            "namespaces": ["cgroup", "user", "uts"],
            "mountExtensions": { "idmap": { "enabled": true }, "other": 1 },
        }});
        without_user_namespaces(&mut features);
        let want = json!({ "linux": { "namespaces": ["cgroup", "uts"], "mountExtensions": { "other": 1 } } });
        assert_eq!(features, want);
    }
}
