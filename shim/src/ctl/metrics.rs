//! Prometheus' text format (version 0.0.4) over HTTP/1.1, for `weft serve --metrics`.
//!
//! One request a connection, three paths, no body read: what a scraper needs, and no HTTP server. `/healthz` says that this process
//! lives, `/readyz` that an ADD would find the store.

mod upkeep;

use std::io;
use std::os::unix::fs::FileTypeExt;
use std::path::PathBuf;
use std::sync::Arc;
use std::time::Duration;

use tokio::io::{AsyncRead, AsyncReadExt, AsyncWrite, AsyncWriteExt};
use tokio::net::{TcpListener, UnixListener};
use tokio::time::timeout;

use super::Error;
use super::serve::{self, Endpoint};
use crate::config::Config;
use crate::error::chain;
use crate::network;
use crate::proto::network as api;
use crate::state::Ledger;
use crate::tally::{self, BUCKETS, Count, OPERATIONS};

/// How long a client may take for its request, and to take the answer.
const PATIENCE: Duration = Duration::from_secs(5);
/// The longest head of a request that is read; scrapers' are a tenth of it.
const HEAD: usize = 8192;

/// The open endpoint.
pub(super) struct Metrics {
    listener: Socket,
    config: Arc<Config>,
    path: PathBuf,
}

enum Socket {
    Unix(UnixListener),
    Tcp(TcpListener),
}

/// Opens the endpoint.
pub(super) async fn listen(endpoint: &Endpoint, config: Arc<Config>) -> Result<Metrics, Error> {
    let path = match endpoint {
        Endpoint::Unix(path) => path.clone(),
        Endpoint::Tcp(address) => address.to_string().into(),
    };
    let failed = |source| Error::Serve { path: path.clone(), source };
    let listener = match endpoint {
        Endpoint::Unix(path) => {
            // A file that is no socket is somebody's.
            if std::fs::symlink_metadata(path).is_ok_and(|found| !found.file_type().is_socket()) {
                return Err(failed(io::ErrorKind::AlreadyExists.into()));
            }
            Socket::Unix(serve::listen(path).and_then(UnixListener::from_std).map_err(failed)?)
        }
        Endpoint::Tcp(address) => Socket::Tcp(TcpListener::bind(address).await.map_err(failed)?),
    };
    Ok(Metrics { listener, config, path })
}

impl Metrics {
    /// Answers until the socket breaks.
    pub(super) async fn serve(self) -> Result<(), Error> {
        loop {
            let config = Arc::clone(&self.config);
            let accepted = match &self.listener {
                Socket::Unix(listener) => {
                    listener.accept().await.map(|(peer, _)| drop(tokio::spawn(answer(peer, config))))
                }
                Socket::Tcp(listener) => {
                    listener.accept().await.map(|(peer, _)| drop(tokio::spawn(answer(peer, config))))
                }
            };
            match accepted {
                Ok(()) => {}
                // The peer was gone before it was accepted (accept(2)).
                Err(err) if err.kind() == io::ErrorKind::ConnectionAborted => {}
                Err(source) => return Err(Error::Serve { path: self.path, source }),
            }
        }
    }
}

/// Whoever does not wait for the answer does not want it.
async fn answer(mut peer: impl AsyncRead + AsyncWrite + Unpin, config: Arc<Config>) {
    let talk = async {
        let request = head(&mut peer).await?;
        let (status, body) = respond(&request, &config);
        let head = format!(
            "HTTP/1.1 {status}\r\nContent-Type: text/plain; version=0.0.4; charset=utf-8\r\nContent-Length: {}\r\n\
             Connection: close\r\n\r\n",
            body.len()
        );
        peer.write_all(head.as_bytes()).await?;
        peer.write_all(body.as_bytes()).await?;
        peer.shutdown().await
    };
    if let Ok(Err(err)) = timeout(PATIENCE, talk).await {
        log::debug!("answer a scraper: {err}");
    }
}

/// The request line; the rest of the head is read and not looked at.
async fn head(peer: &mut (impl AsyncRead + Unpin)) -> io::Result<String> {
    let mut head = Vec::new();
    let mut part = [0; 1024];
    while !head.windows(4).any(|end| end == b"\r\n\r\n") {
        let len = peer.read(&mut part).await?;
        if len == 0 || head.len() > HEAD {
            return Err(io::ErrorKind::InvalidData.into());
        }
        head.extend_from_slice(part.get(..len).unwrap_or_default());
    }
    let text = String::from_utf8_lossy(&head);
    Ok(text.lines().next().unwrap_or_default().to_owned())
}

fn respond(request: &str, config: &Config) -> (&'static str, String) {
    let mut words = request.split(' ');
    let (method, target) = (words.next().unwrap_or_default(), words.next().unwrap_or_default());
    let path = target.split('?').next().unwrap_or_default();
    match (method, path) {
        ("GET", "/healthz") => ("200 OK", "ok\n".into()),
        ("GET", "/readyz") => match Ledger::open(config).and_then(|ledger| ledger.records()) {
            Ok(_) => ("200 OK", "ok\n".into()),
            Err(err) => ("503 Service Unavailable", format!("{}\n", chain(&err))),
        },
        ("GET", "/metrics") => match text(config) {
            Ok(text) => ("200 OK", text),
            Err(err) => ("500 Internal Server Error", format!("{}\n", chain(&err))),
        },
        ("GET", _) => ("404 Not Found", "want /metrics, /healthz or /readyz\n".into()),
        _ => ("405 Method Not Allowed", "want GET\n".into()),
    }
}

fn text(config: &Config) -> Result<String, Error> {
    let status = network::node::status(config)?;
    let path = config.run_dir.join(tally::FILE);
    let failed = |source| Error::Serve { path: path.clone(), source };
    let counts = tally::read(&config.run_dir).map_err(failed)?;
    let events = tally::events(&config.run_dir).map_err(failed)?;
    let mut page = Page::default();
    page.gauge(
        "weft_build_info",
        "The version of weft serve.",
        &[(&[("version", status.version.as_str())], "1")],
    );
    attachments(&mut page, &status);
    data_path(&mut page, &status);
    pools(&mut page, &status.ranges);
    operations(&mut page, &counts);
    upkeep::upkeep(&mut page, &events, &status);
    Ok(page.0)
}

fn attachments(page: &mut Page, status: &api::NodeStatusResponse) {
    let (attached, attaching) = (status.attached.to_string(), status.attaching.to_string());
    let samples: [Sample<'_>; 2] =
        [(&[("state", "attached")], &attached), (&[("state", "attaching")], &attaching)];
    page.gauge("weft_attachments", "Interfaces of pods, by how far their attach came.", &samples);
}

fn data_path(page: &mut Page, status: &api::NodeStatusResponse) {
    let is = |step: &str| if status.data_path == step { "1" } else { "0" };
    let samples: [Sample<'_>; 3] = [
        (&[("step", "redirect_peer")], is("redirect_peer")),
        (&[("step", "redirect")], is("redirect")),
        (&[("step", "routing")], is("routing")),
    ];
    page.gauge("weft_data_path", "The step of the ladder that new pods are put on.", &samples);
    let version = status.program_version.to_string();
    page.gauge("weft_program_version", "Version of the loaded programs, 0 for none.", &[(&[], &version)]);
    let Some(counters) = status.counters.as_ref() else { return };
    let ways = [
        ("redirected", &counters.redirected),
        ("passed", &counters.passed),
        ("returned", &counters.returned),
        ("dropped", &counters.dropped),
    ];
    for (name, help, bytes) in [
        ("weft_packets_total", "Packets that pods sent, by what became of them.", false),
        ("weft_bytes_total", "Bytes that pods sent, by what became of them.", true),
    ] {
        page.head(name, help, "counter");
        for (way, count) in ways {
            let value = if bytes { count.bytes } else { count.packets };
            page.sample(name, &[("outcome", way)], &value.to_string());
        }
    }
    let name = "weft_drops_total";
    page.head(name, "Packets of pods that were dropped, by reason.", "counter");
    for drop in &counters.drops {
        page.sample(name, &[("reason", drop.reason.as_str())], &drop.packets.to_string());
    }
}

fn pools(page: &mut Page, ranges: &[api::RangeStatus]) {
    type Value = fn(&api::RangeStatus) -> &str;
    let gauges: [(&str, &str, Value); 4] = [
        ("weft_pool_addresses", "Addresses that a range has for pods.", |range| &range.total),
        ("weft_pool_addresses_used", "Addresses that are leased.", |range| &range.used),
        ("weft_pool_addresses_cooling", "Free addresses that rest after their last pod.", |range| {
            &range.cooling
        }),
        ("weft_pool_addresses_free", "Addresses that are not leased.", |range| &range.free),
    ];
    for (name, help, value) in gauges {
        page.head(name, help, "gauge");
        for range in ranges {
            let labels = [("network", &range.network), ("first", &range.first), ("last", &range.last)];
            let labels = labels.map(|(key, value)| (key, value.as_str()));
            page.sample(name, &labels, value(range));
        }
    }
}

/// The same cut as `containerd_cri_network_plugin_operations*`, so that the two can be laid side by side.
fn operations(page: &mut Page, counts: &[Count]) {
    let name = "weft_network_plugin_operations";
    let counted = || OPERATIONS.iter().zip(counts);
    let total = format!("{name}_total");
    page.head(&total, "Calls of the CNI plugin.", "counter");
    for (operation, count) in counted() {
        page.sample(&total, &[("operation_type", operation)], &count.calls.to_string());
    }
    let errors = format!("{name}_errors_total");
    page.head(&errors, "Calls of the CNI plugin that failed.", "counter");
    for (operation, count) in counted() {
        page.sample(&errors, &[("operation_type", operation)], &count.failures.to_string());
    }
    let seconds = format!("{name}_duration_seconds");
    page.head(&seconds, "How long calls of the CNI plugin took, without its start.", "histogram");
    for (operation, count) in counted() {
        let bucket = format!("{seconds}_bucket");
        for (bound, within) in BUCKETS.iter().zip(count.within) {
            let bound = Duration::from_micros(*bound).as_secs_f64().to_string();
            page.sample(&bucket, &[("operation_type", operation), ("le", &bound)], &within.to_string());
        }
        let labels = [("operation_type", *operation), ("le", "+Inf")];
        page.sample(&bucket, &labels, &count.calls.to_string());
        let took = count.took.as_secs_f64().to_string();
        page.sample(&format!("{seconds}_sum"), &[("operation_type", operation)], &took);
        page.sample(&format!("{seconds}_count"), &[("operation_type", operation)], &count.calls.to_string());
    }
}

/// Labels and value.
type Sample<'a> = (&'a [(&'a str, &'a str)], &'a str);

/// The text, family by family.
#[derive(Default)]
struct Page(String);

impl Page {
    fn gauge(&mut self, name: &str, help: &str, samples: &[Sample<'_>]) {
        self.head(name, help, "gauge");
        for (labels, value) in samples {
            self.sample(name, labels, value);
        }
    }

    fn head(&mut self, name: &str, help: &str, kind: &str) {
        self.add(&format!("# HELP {name} {help}\n# TYPE {name} {kind}\n"));
    }

    fn sample(&mut self, name: &str, labels: &[(&str, &str)], value: &str) {
        let escape = |text: &str| text.replace('\\', r"\\").replace('"', "\\\"").replace('\n', "\\n");
        let labels: Vec<String> =
            labels.iter().map(|(key, value)| format!("{key}=\"{}\"", escape(value))).collect();
        let labels = if labels.is_empty() { String::new() } else { format!("{{{}}}", labels.join(",")) };
        self.add(&format!("{name}{labels} {value}\n"));
    }

    fn add(&mut self, text: &str) {
        self.0.push_str(text);
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_sample_is_written_as_the_format_says() {
        let mut page = Page::default();
        page.gauge("weft_x", "What.", &[(&[], "1"), (&[("a", "b\"c\\d\ne"), ("f", "g")], "2.5")]);
        assert_eq!(
            page.0,
            "# HELP weft_x What.\n# TYPE weft_x gauge\nweft_x 1\nweft_x{a=\"b\\\"c\\\\d\\ne\",f=\"g\"} 2.5\n"
        );
    }

    #[test]
    fn a_histogram_ends_with_all_calls() {
        let mut page = Page::default();
        let count =
            Count { calls: 3, failures: 1, took: Duration::from_millis(5), within: [2; BUCKETS.len()] };
        operations(&mut page, &[count; OPERATIONS.len()]);
        for line in [
            "weft_network_plugin_operations_total{operation_type=\"ADD\"} 3",
            "weft_network_plugin_operations_errors_total{operation_type=\"GC\"} 1",
            "weft_network_plugin_operations_duration_seconds_bucket{operation_type=\"ADD\",le=\"0.0005\"} 2",
            "weft_network_plugin_operations_duration_seconds_bucket{operation_type=\"ADD\",le=\"10\"} 2",
            "weft_network_plugin_operations_duration_seconds_bucket{operation_type=\"ADD\",le=\"+Inf\"} 3",
            "weft_network_plugin_operations_duration_seconds_sum{operation_type=\"DEL\"} 0.005",
            "weft_network_plugin_operations_duration_seconds_count{operation_type=\"DEL\"} 3",
        ] {
            assert!(page.0.lines().any(|found| found == line), "{line} in {}", page.0);
        }
    }

    #[test]
    fn only_three_paths_are_answered() {
        let config = Config::default();
        for (request, status) in [
            ("GET /healthz HTTP/1.1", "200 OK"),
            ("GET / HTTP/1.1", "404 Not Found"),
            ("POST /metrics HTTP/1.1", "405 Method Not Allowed"),
            ("", "405 Method Not Allowed"),
        ] {
            assert_eq!(respond(request, &config).0, status, "{request}");
        }
    }
}
