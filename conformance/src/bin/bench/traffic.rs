//! What `netbench` measures between two places, for several pairs of places that take turns: each measurement is short, there are many
//! of them, and each is compared with the others of its round, so that a machine that gets slower or busier is the same for all.

use std::env;
use std::fs;
use std::path::{Path, PathBuf};
use std::process::Command;
use std::time::Duration;

use serde_json::Value;
use weft_conformance::{Background, run, wait_until};

use crate::report::{Estimate, Samples, Table, Verdict, brief};

const PORT: &str = "7000";
/// The server stays where it is; the client sits beside it or on another processor.
const SERVER_CPU: &str = "1";
const PLACES: [(&str, &str); 2] = [("two CPUs", "0"), ("one CPU", SERVER_CPU)];

/// What is wanted of weft's figure, as a part of another's.
#[derive(Clone, Copy)]
pub(crate) enum Wanted {
    Least(f64),
    Most(f64),
    Nothing,
}

/// A figure of netbench's answer.
pub(crate) struct Figure {
    pub(crate) what: &'static str,
    pub(crate) read: fn(&Value) -> Option<f64>,
    /// One for each arm but the first.
    pub(crate) wanted: &'static [Wanted],
}

/// What netbench is asked for, and the figures that are taken from its answer.
pub(crate) struct Traffic {
    pub(crate) arguments: [&'static str; 3],
    pub(crate) figures: &'static [Figure],
}

/// Bytes for each second that a processor worked, wherever it did: the most work is the kernel's, on behalf of either end.
pub(crate) fn bytes_per_cpu(answer: &Value) -> Option<f64> {
    Some(answer["bytes"].as_f64()? * 1e-9 / answer["cpu_seconds"].as_f64()?)
}

/// A server, and the place that its clients run in.
pub(crate) struct Arm<'a> {
    name: &'static str,
    client: Place<'a>,
    address: String,
    _server: Background,
}

/// Makes a command of a program's path.
pub(crate) type Place<'a> = Box<dyn Fn(&Path) -> Command + 'a>;

impl<'a> Arm<'a> {
    pub(crate) fn start(name: &'static str, client: Place<'a>, server: &Place<'_>, address: String) -> Self {
        let at = ["server", "--addr", &address, "--port", PORT, "--cpu", SERVER_CPU];
        let process = Background::start(server(&netbench()).args(at));
        wait_until(Duration::from_secs(10), "the server listens", || {
            run(server(Path::new("ss")).args(["-ltnH"])).contains(&format!("{address}:{PORT}"))
        });
        // A client's port waits for a minute until it is free, but over loopback for a second only (`tcp_tw_reuse` in ip-sysctl.rst),
        // and the more of them wait, the longer is the search for one that does not.
        let ports = "echo 1024 65535 >/proc/sys/net/ipv4/ip_local_port_range; echo 1 >/proc/sys/net/ipv4/tcp_tw_reuse";
        run(client(Path::new("sh")).args(["-ec", ports]));
        Self { name, client, address, _server: process }
    }

    /// What netbench answers, and in it the time of ksoftirqd that it cannot see.
    fn measure(&self, traffic: &Traffic, client_cpu: &str) -> Value {
        let mut command = (self.client)(&netbench());
        command.arg("client").args(traffic.arguments);
        command.args(["--addr", &self.address, "--port", PORT, "--cpu", client_cpu]);
        let before = ksoftirqd();
        let answer = run(&mut command);
        let softirqs = ksoftirqd().saturating_sub(before);
        let mut answer: Value = serde_json::from_str(&answer).expect("netbench prints JSON");
        if let Some(seconds) = answer["cpu_seconds"].as_f64() {
            answer["cpu_seconds"] = (seconds + softirqs.as_secs_f64()).into();
        }
        answer
    }
}

/// The processor time of the kernel's threads that work when softirqs are too many for the process they interrupt.
fn ksoftirqd() -> Duration {
    let all = fs::read_dir("/proc").expect("list /proc").flatten().map(|entry| entry.path());
    // None has a number above the first few hundred, and they are the kernel's, which live as long as it does.
    let first = all.filter(|path| path.file_name().is_some_and(|name| name.len() <= 3));
    let meant = first.filter(|path| {
        fs::read_to_string(path.join("comm")).is_ok_and(|name| name.starts_with("ksoftirqd/"))
    });
    let nanoseconds = meant.map(|path| {
        let told = fs::read_to_string(path.join("schedstat")).expect("read what the scheduler counts");
        told.split(' ').next().and_then(|word| word.parse::<u64>().ok()).expect("a number")
    });
    Duration::from_nanos(nanoseconds.sum())
}

/// For each figure, each arm's samples.
type Samplings<const ARMS: usize> = Vec<[Samples; ARMS]>;

/// All figures of all kinds, at both places of the client.
pub(crate) fn measure<const ARMS: usize>(
    arms: &[Arm<'_>; ARMS],
    kinds: &[Traffic],
    rounds: usize,
) -> Vec<Samplings<ARMS>> {
    let runs = || kinds.iter().flat_map(|kind| PLACES.map(|place| (kind, place.1)));
    let none = |kind: &Traffic| kind.figures.iter().map(|_| std::array::from_fn(|_| Samples::default()));
    let mut all: Vec<Samplings<ARMS>> = runs().map(|(kind, _)| none(kind).collect()).collect();
    for round in 0..rounds {
        for ((kind, cpu), samples) in runs().zip(&mut all) {
            for turn in 0..ARMS {
                let arm = (round + turn) % ARMS;
                let answer = arms[arm].measure(kind, cpu);
                for (figure, samples) in kind.figures.iter().zip(samples.iter_mut()) {
                    samples[arm].push((figure.read)(&answer).expect("netbench prints the figure"));
                }
            }
        }
    }
    all
}

/// A row for each figure and each arm that the first is compared with.
pub(crate) fn table<const ARMS: usize>(
    title: &'static str,
    text: String,
    arms: &[Arm<'_>; ARMS],
    kinds: &[Traffic],
    measured: &[Samplings<ARMS>],
) -> Table {
    let header = ["medians", "weft", "beside", "its", "weft / it (p10 – p90)", "expected", "reached"];
    let mut table = Table::new(title, text, &header);
    let runs = kinds.iter().flat_map(|kind| PLACES.map(|(place, _)| (kind, place)));
    for ((kind, place), samples) in runs.zip(measured) {
        for (figure, samples) in kind.figures.iter().zip(samples) {
            let (weft, others) = samples.split_first().expect("weft is the first arm");
            for ((other, arm), wanted) in others.iter().zip(&arms[1..]).zip(figure.wanted) {
                row(&mut table, &format!("{}, {place}", figure.what), weft, (arm.name, other), *wanted);
            }
        }
    }
    table
}

fn row(table: &mut Table, what: &str, weft: &Samples, (name, other): (&str, &Samples), wanted: Wanted) {
    let ratios = weft.ratios(other);
    let ratio = ratios.median();
    let judged = Estimate::of([&ratios], |[ratios]| ratios.median());
    let verdict = |expected, reached| Some(Verdict::of(judged, expected, reached));
    let verdict = match wanted {
        Wanted::Least(least) => verdict(format!("≥ {least}"), judged.least(least)),
        Wanted::Most(most) => verdict(format!("≤ {most}"), judged.most(most)),
        Wanted::Nothing => None,
    };
    let cells = [
        what.to_owned(),
        brief(weft.median()),
        name.to_owned(),
        brief(other.median()),
        format!("{ratio:.3} ({:.2} – {:.2})", ratios.p10(), ratios.p90()),
    ];
    table.judged(cells.into(), verdict);
}

/// The program beside this one.
pub(crate) fn netbench() -> PathBuf {
    beside("netbench")
}

/// Another program of this crate.
pub(crate) fn beside(name: &str) -> PathBuf {
    let path = env::current_exe().expect("the path of this program").with_file_name(name);
    assert!(path.exists(), "{} is not built: cargo build -p weft-conformance --bins", path.display());
    path
}
