//! On what the figures were taken, and with which versions.

use std::fs;
use std::process::Command;
use std::thread::{self, available_parallelism};
use std::time::{Duration, Instant};

use weft_conformance::run;

/// The part of the processors' time that the hypervisor may keep before it is in the figures.
pub(crate) const QUIET: f64 = 0.02;
/// How long all processors are kept busy to see it: the hypervisor takes nothing from those that idle. A part of [`QUIET`] is four
/// ticks of each.
const PROBE: Duration = Duration::from_secs(2);
/// Between two looks.
const PAUSE: Duration = Duration::from_secs(20);

/// What `conformance/tools/build.sh` builds.
const PINNED: &str = include_str!("../../../tools/go.mod");

/// A list in Markdown.
pub(crate) fn describe() -> String {
    let cores = available_parallelism().expect("count the processors");
    let kernel = read("/proc/sys/kernel/osrelease");
    format!(
        "- Date: {}\n- Machine: {cores} CPUs, {}, {} GB\n- Kernel: Linux {}, HZ {}, rcu_expedited {}, rcu_normal {}\n- Versions: weft {}, \
         {}\n",
        run(Command::new("date").args(["-u", "+%F"])).trim(),
        after(&read("/proc/cpuinfo"), "model name").unwrap_or_else(|| "unknown".to_owned()),
        memory(),
        kernel.trim(),
        hertz(),
        read("/sys/kernel/rcu_expedited").trim(),
        read("/sys/kernel/rcu_normal").trim(),
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
    fs::read_to_string(path).expect("read a file of the kernel's")
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

/// What the machine's processors have spent so far, in ticks (proc_stat(5)).
pub(crate) struct Time {
    all: u64,
    idle: u64,
    stolen: u64,
    pub(crate) at: Instant,
}

impl Time {
    pub(crate) fn now() -> Self {
        let text = read("/proc/stat");
        let first = text
            .lines()
            .next()
            .and_then(|line| line.strip_prefix("cpu "))
            .expect("all processors come first");
        let ticks: Vec<u64> =
            first.split_whitespace().map(|ticks| ticks.parse().expect("a number of ticks")).collect();
        // The time of guests is in that of users.
        let [_, _, _, idle, waiting, _, _, stolen, ..] = ticks[..] else {
            panic!("{first}: want eight figures")
        };
        Self { all: ticks[..8].iter().sum(), idle: idle + waiting, stolen, at: Instant::now() }
    }

    /// A line of the list: how the processors were shared meanwhile.
    pub(crate) fn describe_since(&self) -> String {
        let now = Self::now();
        format!(
            "- The run: {:.0} s, in which the processors were idle for {:.1} % of the time, and the hypervisor kept {:.2} % (steal)\n",
            self.at.elapsed().as_secs_f64(),
            self.part(&now, now.idle - self.idle) * 100.0,
            self.part(&now, now.stolen - self.stolen) * 100.0
        )
    }

    /// The hypervisor's part of the processors' time since then.
    pub(crate) fn stolen_since(&self) -> f64 {
        let now = Self::now();
        self.part(&now, now.stolen - self.stolen)
    }

    fn part(&self, now: &Self, ticks: u64) -> f64 {
        ticks as f64 / (now.all - self.all).max(1) as f64
    }
}

/// Waits until the hypervisor leaves the processors to those who work; no longer than `patience`, of which it takes what that took.
pub(crate) fn await_quiet(patience: &mut Duration) {
    while stolen_while_busy() > QUIET
        && let Some(left) = patience.checked_sub(PAUSE + PROBE)
    {
        thread::park_timeout(PAUSE);
        *patience = left;
    }
}

fn stolen_while_busy() -> f64 {
    let begin = Time::now();
    let cores = available_parallelism().expect("count the processors").get();
    thread::scope(|scope| {
        for _ in 0..cores {
            scope.spawn(|| while begin.at.elapsed() < PROBE {});
        }
    });
    begin.stolen_since()
}
