//! The measuring program between two pods.

use std::time::Duration;

use serde_json::Value;
use weft_conformance::{Background, Node, PodSpec, Subject, run, wait_until};

const NETBENCH: &str = env!("CARGO_BIN_EXE_netbench");

#[test]
fn every_kind_of_measurement_gives_numbers() {
    let node = Node::start(Subject::Reference);
    let (a, b) = (node.run_pod(&PodSpec::new("a")), node.run_pod(&PodSpec::new("b")));
    for address in [b.ipv4().to_string(), b.ipv6().to_string()] {
        let at = ["--addr", &address, "--port", "7000", "--cpu", "0"];
        let server = Background::start(b.command(NETBENCH).arg("server").args(at));
        wait_until(Duration::from_secs(10), "the server listens", || {
            run(b.command("ss").args(["-ltnH"])).contains(":7000")
        });
        let client = |arguments: &[&str]| -> Value {
            let printed = run(a.command(NETBENCH).arg("client").args(arguments).args(at));
            serde_json::from_str(&printed).expect("one line of JSON")
        };
        for kind in ["rr", "crr"] {
            let result = client(&[kind, "--count", "50"]);
            assert_eq!((&result["kind"], &result["rounds"]), (&kind.into(), &50.into()));
            assert!(
                result["p50_us"].as_f64() > Some(0.0)
                    && result["p50_us"].as_f64() <= result["p99_us"].as_f64()
            );
        }
        let result = client(&["stream", "--count", "100"]);
        assert_eq!(result["bytes"], 100 * 128 * 1024);
        assert!(
            result["cpu_seconds"].as_f64() < result["seconds"].as_f64().map(|s| s * 1.1),
            "one processor: {result}"
        );
        assert!(result["cpu_seconds"].as_f64() > Some(0.0));
        assert!(client(&["rr", "--seconds", "0.1"])["per_second"].as_f64() > Some(0.0));
        drop(server);
    }
    node.finish();
}
