//! Folders that cannot be used, as a process meets them whose mounts or capabilities are others.
#![expect(clippy::unwrap_used, reason = "a test that cannot go on panics")]

mod processes;
mod support;

use std::fs::{self, Permissions};
use std::os::unix::fs::PermissionsExt;
use std::path::Path;
use std::process::Command;

use processes::{spawn, worker};
use support::folder;
use weft_ipam::Store;

fn main() {
    processes::run(
        &[
            ("a_read_only_file_system_is_named", a_read_only_file_system_is_named),
            ("a_folder_without_permission_is_named", a_folder_without_permission_is_named),
        ],
        &[("open", open)],
    );
}

fn open(arguments: &[String]) {
    let [dir, errno] = arguments else { panic!("{arguments:?}") };
    let err = Store::open(Path::new(dir)).unwrap_err();
    assert_eq!(err.errno(), Some(errno.parse().unwrap()), "{err:?}");
    assert!(err.to_string().ends_with(dir), "{err}");
    assert!(std::error::Error::source(&err).is_some());
}

/// Runs the worker by a command that changes what the process may do.
fn open_by(command: &mut Command, dir: &Path, errno: i32) {
    let worker = worker("open");
    command.arg(worker.get_program()).args(worker.get_args()).arg(dir).arg(errno.to_string());
    let status = spawn(command).wait().unwrap();
    assert!(status.success(), "{status}");
}

fn a_read_only_file_system_is_named() {
    let dir = folder();
    let mut command = Command::new("unshare");
    let script = r#"mount -t tmpfs -o ro none "$0"; exec "$@""#;
    open_by(command.args(["--mount", "sh", "-ec", script]).arg(dir.path()), dir.path(), nix::libc::EROFS);
}

fn a_folder_without_permission_is_named() {
    let dir = folder();
    fs::set_permissions(dir.path(), Permissions::from_mode(0o000)).unwrap();
    // Root without CAP_DAC_OVERRIDE is a user like any other.
    for dir in [dir.path().into(), dir.path().join("store")] {
        let mut command = Command::new("setpriv");
        open_by(command.args(["--bounding-set=-all", "--inh-caps=-all", "--"]), &dir, nix::libc::EACCES);
    }
}
