//! Measures TCP between two network namespaces: round trips, connections and throughput. One thread, blocking, nothing in between.
//!
//! ```text
//! netbench server --addr A --port P [--cpu N] [--congestion NAME]
//! netbench client rr|crr|stream --addr A --port P [--seconds S | --count N] [--cpu N] [--congestion NAME]
//! ```
//!
//! `rr` sends one byte and waits for one byte, over one connection; `crr` does so over a new connection each time; `stream` writes as
//! fast as it can over one connection and counts what the server has read. The first byte of a connection tells the server which.
//! The server serves one connection at a time, and ends when it is killed. The client prints one line of JSON; latencies are in
//! microseconds. A tenth of the rounds, at most 1000, are made first and not counted. Of `stream` the line tells what processor time
//! both ends have used, their softirqs included: the kernel counts those to the process that they interrupt (`account_system_index_time`
//! in kernel/sched/cputime.c), unless it is built with CONFIG_IRQ_TIME_ACCOUNTING or leaves them to ksoftirqd.
//!
//! Congestion control is cubic, Linux's own choice, whatever the machine's is: the timers by which bbr paces what it sends cost most of
//! a stream that never leaves the machine.

#![forbid(unsafe_code)]

use std::ffi::OsString;
use std::io::{self, Read, Write};
use std::net::{IpAddr, SocketAddr, TcpListener, TcpStream};
use std::process::ExitCode;
use std::time::{Duration, Instant};

use nix::sched::{CpuSet, sched_setaffinity};
use nix::sys::resource::{UsageWho, getrusage};
use nix::sys::socket::{setsockopt, sockopt::TcpCongestion};
use nix::sys::time::TimeValLike;
use nix::unistd::Pid;
use serde_json::{Value, json};

type Result<T> = std::result::Result<T, Box<dyn std::error::Error>>;

const ECHO: u8 = b'e';
const SINK: u8 = b's';
/// As iperf3 and netperf write by default.
const CHUNK: usize = 128 * 1024;

fn main() -> ExitCode {
    let arguments: Vec<String> = std::env::args().skip(1).collect();
    let words: Vec<&str> = arguments.iter().map(String::as_str).collect();
    match run(&words) {
        Ok(()) => ExitCode::SUCCESS,
        Err(why) => {
            #[expect(clippy::print_stderr, reason = "a command line program says why it ends")]
            {
                eprintln!("netbench: {why}");
            }
            ExitCode::FAILURE
        }
    }
}

fn run(words: &[&str]) -> Result<()> {
    match words {
        ["server", options @ ..] => serve(&Options::parse(options)?),
        ["client", kind @ ("rr" | "crr" | "stream"), options @ ..] => {
            let options = Options::parse(options)?;
            let mut result = match *kind {
                "stream" => stream(&options)?,
                "rr" => round_trips(&options)?,
                _ => connections(&options)?,
            };
            result["kind"] = json!(kind);
            #[expect(clippy::print_stdout, reason = "the result of a command line program")]
            {
                println!("{result}");
            }
            Ok(())
        }
        _ => Err("want: server|client rr|client crr|client stream --addr A --port P [--seconds S|--count N] [--cpu N] [--congestion NAME]".into()),
    }
}

struct Options {
    server: SocketAddr,
    limit: Limit,
    congestion: OsString,
}

#[derive(Clone, Copy)]
enum Limit {
    Time(Duration),
    Rounds(u64),
}

impl Options {
    /// Reads the options, and takes the processor that they name.
    fn parse(words: &[&str]) -> Result<Self> {
        let (mut address, mut port, mut limit) = (None, None, Limit::Time(Duration::from_secs(5)));
        let mut congestion = "cubic".into();
        for pair in words.chunks(2) {
            match *pair {
                ["--addr", value] => address = Some(value.parse::<IpAddr>()?),
                ["--port", value] => port = Some(value.parse::<u16>()?),
                ["--seconds", value] => limit = Limit::Time(Duration::try_from_secs_f64(value.parse()?)?),
                ["--count", value] => limit = Limit::Rounds(value.parse()?),
                ["--cpu", value] => pin(value.parse()?)?,
                ["--congestion", value] => congestion = value.into(),
                _ => return Err(format!("{}: not an option with a value", pair.join(" ")).into()),
            }
        }
        let (address, port) = (address.ok_or("--addr is missing")?, port.ok_or("--port is missing")?);
        Ok(Self { server: SocketAddr::new(address, port), limit, congestion })
    }

    fn connect(&self, kind: u8) -> io::Result<TcpStream> {
        let mut stream = TcpStream::connect(self.server)?;
        self.prepare(&stream)?;
        if kind == SINK {
            stream.write_all(&[kind])?;
        }
        Ok(stream)
    }

    fn prepare(&self, stream: &TcpStream) -> io::Result<()> {
        stream.set_nodelay(true)?;
        Ok(setsockopt(stream, TcpCongestion, &self.congestion)?)
    }
}

fn pin(cpu: usize) -> nix::Result<()> {
    let mut set = CpuSet::new();
    set.set(cpu)?;
    sched_setaffinity(Pid::from_raw(0), &set)
}

fn serve(options: &Options) -> Result<()> {
    let listener = TcpListener::bind(options.server)?;
    let mut buffer = vec![0; CHUNK];
    loop {
        let (mut stream, _) = listener.accept()?;
        options.prepare(&stream)?;
        // A client that goes away in the middle is the client's business.
        match answer(&mut stream, &mut buffer) {
            Err(e) if ![io::ErrorKind::ConnectionReset, io::ErrorKind::BrokenPipe].contains(&e.kind()) => {
                return Err(e.into());
            }
            _ => {}
        }
    }
}

fn answer(stream: &mut TcpStream, buffer: &mut [u8]) -> io::Result<()> {
    let mut byte = [0];
    let mut sunk = 0_u64;
    let before = cpu_time()?;
    while stream.read(&mut byte)? == 1 {
        if byte[0] != SINK {
            stream.write_all(&byte)?;
            continue;
        }
        loop {
            match stream.read(buffer)? {
                0 => {
                    let used = (cpu_time()? - before).as_micros() as u64;
                    return stream.write_all(&[sunk.to_be_bytes(), used.to_be_bytes()].concat());
                }
                length => sunk += length as u64,
            }
        }
    }
    Ok(())
}

/// Of this process.
fn cpu_time() -> io::Result<Duration> {
    let usage = getrusage(UsageWho::RUSAGE_SELF)?;
    let micros = usage.user_time().num_microseconds() + usage.system_time().num_microseconds();
    Ok(Duration::from_micros(micros.unsigned_abs()))
}

fn round_trips(options: &Options) -> Result<Value> {
    let mut stream = options.connect(ECHO)?;
    measure(options.limit, || echo(&mut stream))
}

fn connections(options: &Options) -> Result<Value> {
    measure(options.limit, || echo(&mut options.connect(ECHO)?))
}

fn echo(stream: &mut TcpStream) -> io::Result<()> {
    let mut byte = [ECHO];
    stream.write_all(&byte)?;
    stream.read_exact(&mut byte)
}

fn measure(limit: Limit, mut round: impl FnMut() -> io::Result<()>) -> Result<Value> {
    let (warm, total) = match limit {
        Limit::Time(_) => (1000, u64::MAX),
        Limit::Rounds(rounds) => ((rounds / 10).min(1000), rounds),
    };
    (0..warm).try_for_each(|_| round())?;
    let mut times: Vec<Duration> = Vec::with_capacity(1 << 20);
    let start = Instant::now();
    let mut before = start;
    while (times.len() as u64) < total {
        round()?;
        let now = Instant::now();
        times.push(now - before);
        before = now;
        if matches!(limit, Limit::Time(time) if now - start >= time) {
            break;
        }
    }
    let seconds = (before - start).as_secs_f64();
    times.sort_unstable();
    let micros = |part: usize| {
        times.get(times.len().saturating_sub(1) * part / 100).map(|time| time.as_secs_f64() * 1e6)
    };
    let rate = times.len() as f64 / seconds;
    Ok(
        json!({ "rounds": times.len(), "seconds": seconds, "per_second": rate, "p50_us": micros(50), "p99_us": micros(99) }),
    )
}

fn stream(options: &Options) -> Result<Value> {
    let mut stream = options.connect(SINK)?;
    let chunk = vec![0; CHUNK];
    let (start, before) = (Instant::now(), cpu_time()?);
    let mut chunks = 0;
    loop {
        stream.write_all(&chunk)?;
        chunks += 1;
        let done = match options.limit {
            Limit::Time(time) => start.elapsed() >= time,
            Limit::Rounds(rounds) => chunks >= rounds,
        };
        if done {
            break;
        }
    }
    stream.shutdown(std::net::Shutdown::Write)?;
    // The server answers when it has read all of it: what is still in buffers counts with its time.
    let mut answer = [[0; 8]; 2];
    for number in &mut answer {
        stream.read_exact(number)?;
    }
    let [bytes, server] = answer.map(u64::from_be_bytes);
    let (seconds, client) = (start.elapsed().as_secs_f64(), cpu_time()? - before);
    let cpu = (client + Duration::from_micros(server)).as_secs_f64();
    Ok(
        json!({ "bytes": bytes, "seconds": seconds, "gbit_per_second": bytes as f64 * 8e-9 / seconds, "cpu_seconds": cpu }),
    )
}
