//! An OCI bundle of busybox on the node's tmpfs.

use std::fs::{self, File};
use std::path::{Path, PathBuf};
use std::process::Command;
use std::time::{Duration, Instant};

use serde_json::{Value, json};
use weft_conformance::run;

/// Removed on drop.
pub(crate) struct Bundle {
    pub(crate) path: PathBuf,
    pub(crate) id: String,
    /// Somebody reads: the shim's log, and the output of the container.
    _readers: Vec<File>,
}

impl Bundle {
    /// The cgroup is below those of the node's pods, which the harness removes.
    pub(crate) fn new(node: &Path, id: &str) -> Self {
        let path = Path::new("/run/bench").join(id);
        for below in ["rootfs", "image/bin", "image/proc", "image/dev", "image/sys"] {
            fs::create_dir_all(path.join(below)).expect("make a directory of a bundle");
        }
        fs::copy("/bin/busybox", path.join("image/bin/busybox")).expect("copy busybox");
        run(Command::new("runc").args(["spec", "--bundle"]).arg(&path));
        let config = path.join("config.json");
        let text = fs::read_to_string(&config).expect("read what runc wrote");
        let mut spec: Value = serde_json::from_str(&text).expect("a configuration is JSON");
        spec["process"] = process(&spec["process"], &["/bin/busybox", "sleep", "1000"]);
        spec["linux"]["cgroupsPath"] =
            json!(Path::new("/").join(node.file_name().expect("a name")).join("bench").join(id));
        let namespaces = spec["linux"]["namespaces"].as_array_mut().expect("a list of namespaces");
        namespaces.retain(|namespace| namespace["type"] != "network");
        fs::write(&config, spec.to_string()).expect("write the configuration");
        let readers = ["log", "stdout", "stderr"].map(|name| fifo(&path.join(name)));
        Self { path, id: id.to_owned(), _readers: readers.into() }
    }

    /// The OCI process of an exec.
    pub(crate) fn exec(&self, command: &[&str]) -> Value {
        let text = fs::read_to_string(self.path.join("config.json")).expect("read the configuration");
        let spec: Value = serde_json::from_str(&text).expect("a configuration is JSON");
        process(&spec["process"], command)
    }

    pub(crate) fn file(&self, name: &str) -> String {
        self.path.join(name).display().to_string()
    }
}

impl Drop for Bundle {
    fn drop(&mut self) {
        fs::remove_dir_all(&self.path).expect("remove a bundle: nothing is mounted there");
    }
}

fn process(like: &Value, command: &[&str]) -> Value {
    let mut process = like.clone();
    process["args"] = json!(command);
    process["terminal"] = json!(false);
    process
}

fn fifo(path: &Path) -> File {
    run(Command::new("mkfifo").arg(path));
    // Both ends: nobody waits for the other.
    File::options().read(true).write(true).open(path).expect("open a fifo")
}

/// In ms.
pub(crate) fn took(work: impl FnOnce()) -> Option<f64> {
    let start = Instant::now();
    work();
    Some(milliseconds(start.elapsed()))
}

pub(crate) fn milliseconds(time: Duration) -> f64 {
    time.as_secs_f64() * 1e3
}
