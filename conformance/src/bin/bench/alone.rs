//! A container's life by runc alone: what no shim can be without.

use std::fs::{self, File};
use std::path::Path;
use std::process::{Command, Stdio};
use std::time::Duration;

use weft_conformance::{run, wait_until};

use crate::bundle::{Bundle, took};
use crate::task::Times;

/// Where runc keeps its state, as for the shims on a tmpfs.
const ROOT: &str = "/run/bench-runc";

pub(crate) struct Alone(Bundle);

impl Alone {
    pub(crate) fn new(node: &Path, id: &str) -> Self {
        Self(Bundle::new(node, id))
    }

    /// The steps have the places that they have in a shim's life.
    pub(crate) fn live(self) -> Times {
        let Self(bundle) = &self;
        let (rootfs, pid_file) = (bundle.file("rootfs"), bundle.file("pid"));
        run(Command::new("mount").args(["--rbind", &bundle.file("image"), &rootfs]));
        let process = bundle.file("process.json");
        fs::write(&process, bundle.exec(&["/bin/busybox", "true"]).to_string()).expect("write a process");
        let mut times = Times::default();
        times[1] = self.step(&["create", "--bundle", &bundle.file(""), "--pid-file", &pid_file]);
        times[2] = self.step(&["start"]);
        times[3] =
            self.step(&["exec", "--detach", "--process", &process, "--pid-file", &bundle.file("exec")]);
        times[4] = self.step(&["exec", "--process", &process]);
        run(Command::new("runc").args(["--root", ROOT, "kill", &bundle.id, "KILL"]));
        let pid = fs::read_to_string(&pid_file).expect("runc has written it");
        wait_until(Duration::from_secs(20), "the container is dead", || {
            !Path::new("/proc").join(pid.trim()).exists()
        });
        times[6] = self.step(&["delete"]);
        run(Command::new("umount").arg(&rootfs));
        times
    }

    fn step(&self, words: &[&str]) -> Option<f64> {
        let mut command = Command::new("runc");
        let log = self.0.file("runc.log");
        command.args(["--root", ROOT, "--log", &log, "--log-format", "json"]).args(words).arg(&self.0.id);
        // Files of its own: a container keeps its output open.
        let null = || File::options().read(true).write(true).open("/dev/null").expect("open /dev/null");
        command.stdin(Stdio::null()).stdout(null()).stderr(null());
        took(|| {
            let status = command.status().expect("run runc");
            assert!(status.success(), "{words:?}: {}", fs::read_to_string(&log).unwrap_or_default());
        })
    }
}
