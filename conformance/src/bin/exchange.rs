//! Exchanges TCP and UDP between two network namespaces at a bounded rate, and tells what did not arrive.
//!
//! ```text
//! exchange serve PORT
//! exchange tcp|udp ADDRESS:PORT MICROSECONDS
//! ```
//!
//! The server sends back what it gets, until it is killed. The client sends a numbered block, or datagram, each so many
//! microseconds until its standard input ends; then it waits for what is on its way and prints one line of JSON. A stream must come
//! back byte for byte: anything else, as a reset, ends the program with an error. Of datagrams it is counted how many came back.

#![forbid(unsafe_code)]

use std::io::{self, Read, Write};
use std::net::{Ipv6Addr, Shutdown, SocketAddr, TcpListener, TcpStream, UdpSocket};
use std::process::ExitCode;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::thread;
use std::time::{Duration, Instant};

use nix::sys::socket::{setsockopt, sockopt};
use serde_json::{Value, json};

type Result<T> = std::result::Result<T, Box<dyn std::error::Error + Send + Sync>>;

const BLOCK: usize = 1024;
const DATAGRAM: usize = 64;
/// A busy machine may keep a reader from its socket for a while: what comes meanwhile waits here.
const BUFFER: usize = 16 << 20;
/// How long something may be on its way.
const LATEST: Duration = Duration::from_secs(5);

fn main() -> ExitCode {
    let arguments: Vec<String> = std::env::args().skip(1).collect();
    let words: Vec<&str> = arguments.iter().map(String::as_str).collect();
    match run(&words) {
        Ok(()) => ExitCode::SUCCESS,
        Err(why) => {
            #[expect(clippy::print_stderr, reason = "a command line program says why it ends")]
            {
                eprintln!("exchange {}: {why}", words.join(" "));
            }
            ExitCode::FAILURE
        }
    }
}

fn run(words: &[&str]) -> Result<()> {
    let told = match *words {
        ["serve", port] => return serve(port.parse()?),
        ["tcp", to, pause] => stream(to.parse()?, Duration::from_micros(pause.parse()?))?,
        ["udp", to, pause] => datagrams(to.parse()?, Duration::from_micros(pause.parse()?))?,
        _ => return Err("want: serve PORT | tcp|udp ADDRESS:PORT MICROSECONDS".into()),
    };
    #[expect(clippy::print_stdout, reason = "the result of a command line program")]
    {
        println!("{told}");
    }
    Ok(())
}

/// Of both families.
fn serve(port: u16) -> Result<()> {
    let datagrams = socket(SocketAddr::new(Ipv6Addr::UNSPECIFIED.into(), port))?;
    let listener = TcpListener::bind((Ipv6Addr::UNSPECIFIED, port))?;
    thread::spawn(move || {
        let mut bytes = [0; BLOCK];
        while let Ok((length, from)) = datagrams.recv_from(&mut bytes) {
            // Whoever has gone does not miss it.
            drop(datagrams.send_to(&bytes[..length], from));
        }
    });
    for stream in listener.incoming() {
        let stream = stream?;
        thread::spawn(move || io::copy(&mut &stream, &mut &stream));
    }
    Ok(())
}

fn socket(at: SocketAddr) -> Result<UdpSocket> {
    let socket = UdpSocket::bind(at)?;
    setsockopt(&socket, sockopt::RcvBufForce, &BUFFER)?;
    Ok(socket)
}

/// Is false once standard input has ended.
fn wanted() -> Arc<AtomicBool> {
    let wanted = Arc::new(AtomicBool::new(true));
    let until = Arc::clone(&wanted);
    thread::spawn(move || {
        // Nothing is ever said there, and an error is an end too.
        drop(io::copy(&mut io::stdin(), &mut io::sink()));
        until.store(false, Ordering::SeqCst);
    });
    wanted
}

fn stream(to: SocketAddr, pause: Duration) -> Result<Value> {
    let mut stream = TcpStream::connect_timeout(&to, LATEST)?;
    stream.set_nodelay(true)?;
    stream.set_write_timeout(Some(2 * LATEST))?;
    stream.set_read_timeout(Some(2 * LATEST))?;
    let answers = stream.try_clone()?;
    let reader = thread::spawn(move || read_blocks(answers));
    let (wanted, mut sent, started) = (wanted(), 0, Instant::now());
    let mut written = Ok(());
    while written.is_ok() && wanted.load(Ordering::SeqCst) && !reader.is_finished() {
        written = stream.write_all(&block(sent));
        sent += 1;
        thread::park_timeout(pause);
    }
    let written = written.and_then(|()| stream.shutdown(Shutdown::Write));
    // The reader's error is the first: after a reset a write says only that there is no connection.
    let (received, longest) = reader
        .join()
        .map_err(|_panic| "the reader panicked")?
        .map_err(|why| format!("after {sent} blocks, {:?}: {why}", started.elapsed()))?;
    written?;
    if received != sent {
        return Err(format!("{received} of {sent} blocks came back").into());
    }
    Ok(json!({ "sent": sent, "received": received, "longest_pause_ms": longest.as_millis() as u64 }))
}

fn block(number: u64) -> Vec<u8> {
    number.to_be_bytes().repeat(BLOCK / 8)
}

/// Until the other side says that this is all; how many there were, and the longest time without any.
fn read_blocks(mut stream: TcpStream) -> Result<(u64, Duration)> {
    let (mut count, mut longest, mut last) = (0, Duration::ZERO, Instant::now());
    let mut bytes = vec![0; BLOCK];
    loop {
        match stream.read(&mut bytes[..1])? {
            0 => return Ok((count, longest)),
            _ => stream.read_exact(&mut bytes[1..])?,
        }
        if bytes != block(count) {
            return Err(format!("block {count} is not what was sent").into());
        }
        (count, longest) = (count + 1, longest.max(last.elapsed()));
        last = Instant::now();
    }
}

fn datagrams(to: SocketAddr, pause: Duration) -> Result<Value> {
    let any: SocketAddr = if to.is_ipv4() { "0.0.0.0:0".parse()? } else { "[::]:0".parse()? };
    let socket = socket(any)?;
    socket.connect(to)?;
    socket.set_read_timeout(Some(Duration::from_millis(100)))?;
    let sent = Arc::new(AtomicU64::new(0));
    let is_over = Arc::new(AtomicBool::new(false));
    let reader = {
        let (socket, sent, is_over) = (socket.try_clone()?, Arc::clone(&sent), Arc::clone(&is_over));
        thread::spawn(move || read_datagrams(&socket, &sent, &is_over))
    };
    let wanted = wanted();
    while wanted.load(Ordering::SeqCst) && !reader.is_finished() {
        let number = sent.load(Ordering::SeqCst);
        // Before it is sent: the answer may be there sooner than this thread goes on.
        sent.store(number + 1, Ordering::SeqCst);
        let length = socket.send(&number.to_be_bytes().repeat(DATAGRAM / 8))?;
        if length != DATAGRAM {
            return Err(format!("{length} bytes of a datagram went out").into());
        }
        thread::park_timeout(pause);
    }
    is_over.store(true, Ordering::SeqCst);
    let (seen, longest) = reader.join().map_err(|_panic| "the reader panicked")??;
    let received = seen.iter().filter(|times| **times == 1).count();
    let doubled = seen.iter().filter(|times| **times > 1).count();
    let lost = seen.iter().position(|times| *times == 0);
    Ok(json!({
        "sent": sent.load(Ordering::SeqCst), "received": received, "doubled": doubled, "first_lost": lost,
        "longest_pause_ms": longest.as_millis() as u64,
    }))
}

/// How often each came back, and the longest time in which none did.
fn read_datagrams(socket: &UdpSocket, sent: &AtomicU64, is_over: &AtomicBool) -> Result<(Vec<u8>, Duration)> {
    let (mut seen, mut count, mut longest) = (Vec::new(), 0, Duration::ZERO);
    let (mut last, mut over) = (Instant::now(), None);
    let mut bytes = [0; DATAGRAM + 1];
    loop {
        match socket.recv(&mut bytes) {
            Ok(length) => {
                let number = usize::try_from(u64::from_be_bytes(bytes[..8].try_into()?))?;
                if length != DATAGRAM || number as u64 >= sent.load(Ordering::SeqCst) {
                    return Err(format!("a datagram of {length} bytes came that was not sent").into());
                }
                seen.resize(seen.len().max(number + 1), 0);
                seen[number] += 1;
                (count, longest, last) = (count + 1, longest.max(last.elapsed()), Instant::now());
            }
            Err(err) if matches!(err.kind(), io::ErrorKind::WouldBlock | io::ErrorKind::TimedOut) => {}
            Err(err) => return Err(err.into()),
        }
        if is_over.load(Ordering::SeqCst) {
            let all = sent.load(Ordering::SeqCst);
            let since: &mut Instant = over.get_or_insert_with(Instant::now);
            if count >= all || since.elapsed() > LATEST {
                seen.resize(usize::try_from(all)?, 0);
                return Ok((seen, longest));
            }
        }
    }
}
