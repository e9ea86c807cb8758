//! `weft serve` as systemd runs it: a socket that was passed, an end when nobody needs it, and metrics.

use std::io::{Read, Write};
use std::net::TcpStream;
use std::os::fd::OwnedFd;
use std::os::unix::fs::PermissionsExt;
use std::os::unix::net::{UnixListener, UnixStream};
use std::process::Stdio;

use crate::api::Serve;
use crate::common::{Node, conf, pings};
use crate::network::{block_on, connect, soon, spawn};
use weft_shim::api::network::ListRequest;

/// `$$` is the process that becomes `weft`; systemd says so in the same words.
const ACTIVATE: &str = "exec 3<&0 </dev/null; LISTEN_PID=$$ LISTEN_FDS=1 exec \"$0\" serve --idle 1";

#[test]
fn a_passed_socket_is_served_until_nobody_needs_it() {
    let node = Node::new();
    node.add("a");
    let socket = node.dir.path().join("passed.sock");
    let listener = UnixListener::bind(&socket).unwrap();
    for turn in 0..2 {
        // The client comes first: systemd starts the server for it.
        let waiting = UnixStream::connect(&socket).unwrap();
        let mut command = node.command("sh");
        command.args(["-c", ACTIVATE, env!("CARGO_BIN_EXE_weft")]);
        command.stdin(Stdio::from(OwnedFd::from(listener.try_clone().unwrap())));
        let mut serve = spawn(&node, &mut command);
        block_on(async {
            let client = connect(&socket).await;
            let list = client.list(soon(), &ListRequest::new()).await.unwrap().attachments;
            assert_eq!(list.len(), 1, "{turn}");
            assert!(serve.try_wait().unwrap().is_none(), "somebody is connected");
        });
        drop(waiting);
        assert!(serve.wait().unwrap().success(), "{turn}");
        assert!(socket.exists(), "the socket is systemd's");
        assert!(!node.run_dir().join("weft.sock").exists(), "and no other was made");
    }
    node.cni("DEL", "a", &conf());
    node.assert_empty();
}

/// Status line and body.
pub(crate) fn get(mut stream: impl Read + Write, path: &str) -> (String, String) {
    write!(stream, "GET {path} HTTP/1.1\r\nHost: weft\r\n\r\n").unwrap();
    let mut text = String::new();
    stream.read_to_string(&mut text).unwrap();
    let (head, body) = text.split_once("\r\n\r\n").unwrap();
    (head.lines().next().unwrap().to_owned(), body.to_owned())
}

/// The value of a sample, which stands there once.
pub(crate) fn value(page: &str, sample: &str) -> f64 {
    let found: Vec<&str> =
        page.lines().filter_map(|line| line.strip_prefix(sample)?.strip_prefix(' ')).collect();
    assert_eq!(found.len(), 1, "{sample} in {page}");
    found[0].parse().unwrap()
}

/// What the format demands of every line (exposition format 0.0.4): a family is introduced, and a sample ends with a number.
pub(crate) fn check_format(page: &str) {
    let mut families = Vec::new();
    for line in page.lines() {
        if let Some(rest) = line.strip_prefix("# TYPE ") {
            families.push(rest.split(' ').next().unwrap().to_owned());
            continue;
        }
        if line.starts_with("# HELP ") {
            continue;
        }
        let (sample, value) = line.rsplit_once(' ').unwrap();
        value.parse::<f64>().unwrap();
        let name = sample.split('{').next().unwrap();
        let family = families.last().unwrap();
        let of_histogram = ["_bucket", "_sum", "_count"].iter().any(|end| name == format!("{family}{end}"));
        assert!(name == family || of_histogram, "{line} in family {family}");
        assert!(name.starts_with("weft_"), "{line}");
    }
    let mut once = families.clone();
    once.sort();
    once.dedup();
    assert_eq!(once.len(), families.len(), "each family once: {families:?}");
}

#[test]
fn metrics_tell_what_happened() {
    let node = Node::new();
    for pod in ["a", "b"] {
        node.add(pod);
    }
    assert!(!node.cni("ADD", "c", &conf()).status.success(), "without a namespace");
    assert!(pings(&node.pod_ns("a"), "10.88.0.3"));
    assert!(node.cni("DEL", "b", &conf()).status.success());
    let socket = node.dir.path().join("metrics.sock");
    let serve = Serve::start(&node, &["--metrics", &format!("unix:{}", socket.display())]);
    assert_eq!(std::fs::metadata(&socket).unwrap().permissions().mode() & 0o777, 0o600);
    let ask = |path: &str| get(UnixStream::connect(&socket).unwrap(), path);
    let (status, page) = ask("/metrics");
    assert_eq!(status, "HTTP/1.1 200 OK");
    check_format(&page);
    let of = |operation: &str, what: &str| {
        let sample = format!("weft_network_plugin_operations_{what}{{operation_type=\"{operation}\"}}");
        value(&page, &sample)
    };
    assert_eq!((of("ADD", "total"), of("ADD", "errors_total")), (3.0, 1.0));
    assert_eq!((of("DEL", "total"), of("DEL", "errors_total"), of("CHECK", "total")), (1.0, 0.0, 0.0));
    assert_eq!(of("ADD", "duration_seconds_count"), 3.0);
    let took = of("ADD", "duration_seconds_sum");
    assert!(took > 0.0005 && took < 60.0, "{took}");
    let version = format!("weft_build_info{{version=\"{}\"}}", env!("CARGO_PKG_VERSION"));
    let pool = "{network=\"test\",first=\"10.88.0.2\",last=\"10.88.0.254\"}";
    for (sample, wanted) in [
        (version.as_str(), 1.0),
        ("weft_attachments{state=\"attached\"}", 1.0),
        ("weft_data_path{step=\"redirect_peer\"}", 1.0),
        ("weft_data_path{step=\"routing\"}", 0.0),
        ("weft_packets_total{outcome=\"redirected\"}", 2.0),
        ("weft_packets_total{outcome=\"dropped\"}", 0.0),
        ("weft_drops_total{reason=\"source_address\"}", 0.0),
        (&format!("weft_pool_addresses{pool}"), 253.0),
        (&format!("weft_pool_addresses_used{pool}"), 1.0),
        (&format!("weft_pool_addresses_cooling{pool}"), 1.0),
        (&format!("weft_pool_addresses_free{pool}"), 252.0),
    ] {
        assert_eq!(value(&page, sample), wanted, "{sample}");
    }
    assert_eq!(ask("/healthz"), ("HTTP/1.1 200 OK".into(), "ok\n".into()));
    assert_eq!(ask("/readyz").0, "HTTP/1.1 200 OK");
    assert_eq!(ask("/").0, "HTTP/1.1 404 Not Found");
    drop(serve);
    assert!(!socket.exists(), "it goes with the server");
    node.cni("DEL", "a", &conf());
    node.assert_empty();
}

#[test]
fn metrics_are_answered_on_the_loopback_interface() {
    let node = Node::new();
    let _serve = Serve::start(&node, &["--metrics", "127.0.0.1:9100"]);
    let connect = || node.host.run(|| TcpStream::connect("127.0.0.1:9100")).unwrap();
    let (status, page) = get(connect().unwrap(), "/metrics?x=y");
    assert_eq!(status, "HTTP/1.1 200 OK");
    check_format(&page);
    assert_eq!(value(&page, "weft_program_version"), 0.0, "nothing is loaded yet");
    let (status, _) = get(connect().unwrap(), "/");
    assert_eq!(status, "HTTP/1.1 404 Not Found");
}

/// Metrics were opened after the socket that a client waits for, and could not be asked for yet when it was there.
#[test]
fn whoever_finds_the_socket_finds_the_metrics() {
    let node = Node::new();
    let (socket, metrics) = (node.run_dir().join("weft.sock"), node.dir.path().join("metrics.sock"));
    let refused = |why: &str| {
        let endpoint = format!("unix:{}", metrics.display());
        let serve =
            node.run(node.command(env!("CARGO_BIN_EXE_weft")).args(["serve", "--metrics", &endpoint]), "");
        let told = String::from_utf8_lossy(&serve.stderr).into_owned();
        assert!(!serve.status.success() && told.contains(why), "{told}");
    };
    std::fs::write(&metrics, "somebody's").unwrap();
    refused(&format!("serve on {}", metrics.display()));
    assert!(!socket.exists(), "it is not there without the metrics");
    assert_eq!(std::fs::read_to_string(&metrics).unwrap(), "somebody's");
    std::fs::remove_file(&metrics).unwrap();
    let _first = Serve::start(&node, &[]);
    refused(&format!("serve on {}", socket.display()));
    assert!(!metrics.exists(), "nor are they without the socket");
}
