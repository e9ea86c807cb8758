//! For the fuzz targets: requests about tasks, up to the first file; and what the kernel writes about cgroups.

use std::path::Path;

use containerd_shim_protos::api::{CheckpointTaskRequest, CreateTaskRequest, ExecProcessRequest};
use containerd_shim_protos::shim::oci::Options;
use containerd_shim_protos::types::mount::Mount;
use protobuf::Message;
use protobuf::well_known_types::any::Any;
use serde_json::Value;

use super::cgroup::Cgroup;
use super::target::Target;
use super::{OPTIONS, checkpoint, counters, create, exec, metrics_v1, metrics_v2, rootfs};
use crate::fuzz::check_error;

/// Create: options, mounts and streams.
pub(crate) fn create(bytes: &[u8]) {
    let Ok(request) = CreateTaskRequest::parse_from_bytes(bytes) else { return };
    if create::is_name(&request.id) {
        let path = Path::new("/run/r").join(&request.id);
        assert_eq!(path.parent(), Some(Path::new("/run/r")), "{:?} leads elsewhere", request.id);
    }
    match create::options(&request) {
        Ok(options) => drop(create::switches(&options)),
        Err(err) => check_error(&err, bytes),
    }
    for address in [&request.stdin, &request.stdout, &request.stderr] {
        if let Err(err) = Target::parse(address) {
            check_error(&err, bytes);
        }
    }
    rootfs::fuzz::mounts(&request.rootfs, bytes);
}

/// Exec: the process.
pub(crate) fn exec(bytes: &[u8]) {
    let Ok(request) = ExecProcessRequest::parse_from_bytes(bytes) else { return };
    match exec::spec(&request) {
        Ok(process) => {
            let process: Option<Value> = serde_json::from_slice(&process).ok();
            assert_eq!(process.map(|process| process["terminal"] == request.terminal), Some(true));
        }
        Err(err) => check_error(&err, bytes),
    }
}

/// Checkpoint: its options.
pub(crate) fn checkpoint(bytes: &[u8]) {
    let Ok(request) = CheckpointTaskRequest::parse_from_bytes(bytes) else { return };
    match checkpoint::options(&request) {
        Ok(options) => {
            checkpoint::arguments(&request.path, Path::new("/w"), &options);
        }
        Err(err) => check_error(&err, bytes),
    }
}

/// The text of a file of a cgroup, whichever it is.
pub(crate) fn cgroup(text: &str) {
    for v2 in [false, true] {
        Cgroup::parse(text, v2);
    }
    counters::keyed(text).count();
    counters::field(text, "oom_kill");
    counters::one(text);
    metrics_v1::cpu_usage(0, text, text);
    metrics_v1::throttle(text);
    metrics_v1::memory_stat(text);
    metrics_v1::oom_control(text);
    metrics_v1::blkio_entries(text);
    metrics_v2::cpu_stat(text);
    metrics_v2::memory_stat(text);
    metrics_v2::memory_events(text);
    metrics_v2::io_entries(text);
    metrics_v2::pressure(text);
}

pub(crate) fn seeds() -> Vec<Vec<u8>> {
    let options = Options { binary_name: "crun".into(), no_pivot_root: true, ..Default::default() };
    let options = Any {
        type_url: OPTIONS.into(),
        value: options.write_to_bytes().unwrap_or_default(),
        ..Default::default()
    };
    let mount = |type_: &str, source: &str, options: &[&str]| Mount {
        type_: type_.into(),
        source: source.into(),
        options: options.iter().map(|option| (*option).to_owned()).collect(),
        ..Default::default()
    };
    let create = CreateTaskRequest {
        id: "c".into(),
        bundle: "/run/b".into(),
        rootfs: vec![
            mount("bind", "/layers/0", &["ro", "rbind", "uidmap=0:65536:65536", "gidmap=0:65536:65536"]),
            mount("format/overlay", "overlay", &["lowerdir={{ overlay 0 0 }}", "upperdir={{ mount 0 }}"]),
        ],
        stdout: "binary:///bin/log?a=b%20c".into(),
        stderr: "file:///var/log/x".into(),
        options: Some(options).into(),
        ..Default::default()
    };
    let process = Any { value: br#"{"args":["sh"],"cwd":"/"}"#.to_vec(), ..Default::default() };
    let exec = ExecProcessRequest { spec: Some(process).into(), terminal: true, ..Default::default() };
    vec![
        [vec![b'c'], create.write_to_bytes().unwrap_or_default()].concat(),
        [vec![b'e'], exec.write_to_bytes().unwrap_or_default()].concat(),
    ]
}
