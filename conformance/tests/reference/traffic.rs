//! Packets between namespaces: connections, datagrams, echoes.

use std::io::{ErrorKind, Read, Write};
use std::net::{IpAddr, SocketAddr, TcpListener, TcpStream, UdpSocket};
use std::process::Command;
use std::thread;
use std::time::{Duration, Instant};

use crate::space::Space;

/// For what is expected to arrive; a refusal comes at once.
const PATIENCE: Duration = Duration::from_secs(2);

pub(crate) fn at(address: &str, port: u16) -> SocketAddr {
    SocketAddr::new(address.parse().unwrap(), port)
}

/// Whether an echo request is answered.
pub(crate) fn pings(from: &Space, address: &str) -> bool {
    from.exec(Command::new("ping").args(["-n", "-c", "1", "-W", "2", address]), b"").status.success()
}

/// A connection to `target`, taken by whoever listens in `server`: the client as the server sees it, if words went both ways.
pub(crate) fn tcp(client: &Space, target: SocketAddr, server: &Space, port: u16) -> Option<IpAddr> {
    let listener = bound(server, target.is_ipv4(), port, TcpListener::bind::<SocketAddr>);
    listener.set_nonblocking(true).unwrap();
    thread::scope(|scope| {
        let asking = scope.spawn(|| {
            client.run(|| {
                let mut stream = TcpStream::connect_timeout(&target, PATIENCE).ok()?;
                stream.set_read_timeout(Some(PATIENCE)).unwrap();
                let mut answer = String::new();
                stream.read_to_string(&mut answer).ok().filter(|_| answer == "here")
            })
        });
        let mut seen = None;
        while !asking.is_finished() {
            match listener.accept() {
                Ok((mut stream, from)) => {
                    stream.write_all(b"here").unwrap();
                    seen = Some(from.ip().to_canonical());
                }
                Err(_) => thread::park_timeout(Duration::from_millis(5)),
            }
        }
        asking.join().unwrap().and(seen)
    })
}

/// A datagram to `target` and its answer: the client as the server sees it.
pub(crate) fn udp(client: &UdpSocket, target: SocketAddr, server: &Space, port: u16) -> Option<IpAddr> {
    let listener = bound(server, target.is_ipv4(), port, UdpSocket::bind::<SocketAddr>);
    listener.set_read_timeout(Some(PATIENCE)).unwrap();
    client.set_read_timeout(Some(PATIENCE)).unwrap();
    client.send_to(b"ping", target).ok()?;
    let mut bytes = [0; 16];
    let (_, from) = listener.recv_from(&mut bytes).ok()?;
    listener.send_to(b"pong", from).unwrap();
    let (_, answered) = client.recv_from(&mut bytes).ok()?;
    (answered == target).then_some(from.ip())
}

pub(crate) fn socket(space: &Space, ipv4: bool) -> UdpSocket {
    bound(space, ipv4, 0, UdpSocket::bind::<SocketAddr>)
}

/// How long `bytes` take from one namespace to another.
pub(crate) fn transfer(client: &Space, target: &str, server: &Space, bytes: usize) -> Duration {
    let target = at(target, 7070);
    let listener = bound(server, target.is_ipv4(), 7070, TcpListener::bind::<SocketAddr>);
    let mut sending = client.run(|| TcpStream::connect_timeout(&target, PATIENCE)).unwrap();
    let (mut stream, _) = listener.accept().unwrap();
    thread::scope(|scope| {
        let started = Instant::now();
        scope.spawn(move || sending.write_all(&vec![7; bytes]).unwrap());
        let mut all = Vec::new();
        stream.read_to_end(&mut all).unwrap();
        assert_eq!(all.len(), bytes);
        started.elapsed()
    })
}

/// A socket of a namespace. The one before it may still be open for a moment in a child that has not come to its exec yet.
fn bound<T: Send>(space: &Space, ipv4: bool, port: u16, bind: fn(SocketAddr) -> std::io::Result<T>) -> T {
    let any = at(if ipv4 { "0.0.0.0" } else { "::" }, port);
    let deadline = Instant::now() + 5 * PATIENCE;
    loop {
        match space.run(|| bind(any)) {
            Err(err) if err.kind() == ErrorKind::AddrInUse && Instant::now() < deadline => {
                thread::park_timeout(Duration::from_millis(5));
            }
            bound => return bound.unwrap(),
        }
    }
}
