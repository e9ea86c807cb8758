//! For the fuzz targets: what containerd writes to the standard input of `start` and `-info`.

use std::path::Path;

use containerd_shim_protos::bootstrap_api::BootstrapParams;
use protobuf::Message;

use super::args::Args;
use super::{bootstrap, info};
use crate::fuzz::check_error;

/// The parameters of `start`.
pub(crate) fn bootstrap(bytes: &[u8]) {
    let args = Args { namespace: "k8s.io".into(), id: "p".into(), ..Args::default() };
    for bundle in ["/run/x/io.containerd.sandbox.controller.v1.shim/p", "/run/x/p"] {
        bootstrap::question(&args, Path::new(bundle), bytes);
    }
}

/// The options of `-info`.
pub(crate) fn options(bytes: &[u8]) {
    if let Err(err) = info::named(bytes) {
        check_error(&err, bytes);
    }
}

pub(crate) fn seeds() -> Vec<Vec<u8>> {
    let params = BootstrapParams {
        instance_id: "p".into(),
        namespace: "k8s.io".into(),
        containerd_ttrpc_address: "/run/containerd/containerd.sock.ttrpc".into(),
        socket_dir: Some("/run/s".into()),
        ..Default::default()
    };
    vec![[vec![b'b'], params.write_to_bytes().unwrap_or_default()].concat()]
}
