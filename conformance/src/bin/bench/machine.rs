//! On what the figures were taken, and with which versions.

use std::fs;
use std::process::Command;
use std::thread::available_parallelism;

use weft_conformance::run;

/// What `conformance/tools/build.sh` builds.
const PINNED: &str = include_str!("../../../tools/go.mod");

/// A list in Markdown.
pub(crate) fn describe() -> String {
    let cores = available_parallelism().expect("count the processors");
    let kernel = read("/proc/sys/kernel/osrelease");
    format!(
        "- Date: {}\n- Machine: {cores} × {}, {} GB\n- Kernel: Linux {}, HZ {}\n- Versions: weft {}, {}\n",
        run(Command::new("date").args(["-u", "+%F"])).trim(),
        after(&read("/proc/cpuinfo"), "model name").unwrap_or_else(|| "unknown".to_owned()),
        memory(),
        kernel.trim(),
        hertz(),
        env!("CARGO_PKG_VERSION"),
        [
            ("containerd", "github.com/containerd/containerd/v2"),
            ("runc", "github.com/opencontainers/runc"),
            ("CNI plugins", "github.com/containernetworking/plugins"),
        ]
        .map(|(name, module)| format!("{name} {}", pinned(module)))
        .join(", "),
    )
}

fn read(path: &str) -> String {
    fs::read_to_string(path).expect("read a file below /proc")
}

/// The value of `NAME : VALUE`.
fn after(text: &str, name: &str) -> Option<String> {
    let line = text.lines().find(|line| line.starts_with(name))?;
    Some(line.split_once(':')?.1.trim().to_owned())
}

/// To the nearest GB of 2^30 bytes.
fn memory() -> u64 {
    let total = after(&read("/proc/meminfo"), "MemTotal").expect("/proc/meminfo has MemTotal");
    let kilobytes: u64 = total.trim_end_matches(" kB").parse().expect("MemTotal is a number of kB");
    (kilobytes + (1 << 19)) >> 20
}

/// Grace periods and timers go by it. A kernel need not tell.
fn hertz() -> String {
    let of_kernel = Command::new("zcat").arg("/proc/config.gz").output().expect("run zcat(1)");
    let text = String::from_utf8_lossy(&of_kernel.stdout);
    let value = text.lines().find_map(|line| line.strip_prefix("CONFIG_HZ="));
    value.unwrap_or("unknown").to_owned()
}

fn pinned(module: &str) -> &'static str {
    let mut lines = PINNED.lines().map(|line| line.split_whitespace());
    let version = lines.find_map(|mut words| (words.next() == Some(module)).then(|| words.next())?);
    version.expect("go.mod pins what build.sh builds").trim_start_matches('v')
}
