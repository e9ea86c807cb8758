//! Streams and datagrams that go on beside a test, of which nothing may be lost: the program `exchange`.

use std::io::Read;
use std::net::SocketAddr;
use std::process::{Command, Stdio};
use std::time::Duration;

use nix::sys::signal::Signal;
use serde_json::Value;

use crate::background::Background;
use crate::wait::{try_run, wait_until};

/// What ends may take: datagrams that are on their way get five seconds.
const END: Duration = Duration::from_secs(20);

/// What sends everything back.
pub struct Server(#[expect(dead_code, reason = "the server ends with it")] Background);

impl Server {
    /// At this port, TCP and UDP of both families. `command` makes one of a program where the server is to be.
    #[track_caller]
    pub fn start(program: &str, port: u16, command: impl Fn(&str) -> Command) -> Self {
        let server = Background::start(command(program).args(["serve", &port.to_string()]));
        wait_until(END, "the server listens", || {
            // UDP is bound first.
            let listening = try_run(command("ss").args(["-ltnH"])).unwrap_or_default();
            listening.contains(&format!(":{port} "))
        });
        Self(server)
    }
}

/// A stream, or a flow of datagrams, under way.
pub struct Exchange {
    what: String,
    client: Background,
}

/// What became of it.
#[derive(Debug, Clone)]
pub struct Exchanged {
    /// Blocks or datagrams.
    pub sent: u64,
    /// The longest time without any.
    pub longest_pause: Duration,
}

impl Exchange {
    /// `kind` is `tcp` or `udp`; one block or datagram each `pause`.
    #[track_caller]
    pub fn start(mut client: Command, kind: &str, to: SocketAddr, pause: Duration) -> Self {
        client.args([kind, &to.to_string(), &pause.as_micros().to_string()]);
        client.stdin(Stdio::piped()).stdout(Stdio::piped()).stderr(Stdio::piped());
        Self { what: format!("{kind} to {to}"), client: Background::start(&mut client) }
    }

    /// Ends it. The error says what was lost, or how it broke.
    pub fn end(mut self) -> Result<Exchanged, String> {
        drop(self.client.child().stdin.take());
        let what = &self.what;
        let mut said = [String::new(), String::new()];
        let child = self.client.child();
        let [out, err] = &mut said;
        let read = child.stdout.take().map(|mut pipe| pipe.read_to_string(out));
        let read = (read, child.stderr.take().map(|mut pipe| pipe.read_to_string(err)));
        if !matches!(read, (Some(Ok(_)), Some(Ok(_)))) {
            return Err(format!("{what}: what it said cannot be read"));
        }
        let told: Value = serde_json::from_str(out).unwrap_or_default();
        let number = |name: &str| told[name].as_u64();
        match (number("sent"), number("received")) {
            (Some(sent), Some(received)) if sent == received && sent > 0 => {
                let longest_pause = Duration::from_millis(number("longest_pause_ms").unwrap_or_default());
                Ok(Exchanged { sent, longest_pause })
            }
            _ => Err(format!("{what}: {out}{err}")),
        }
    }

    /// Ends it at once, whatever becomes of it.
    pub fn kill(self) {
        self.client.end(Signal::SIGKILL);
    }
}
