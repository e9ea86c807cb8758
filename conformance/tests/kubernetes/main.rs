//! A Kubernetes node whose pods weft runs, beside the same pods under the reference handler `runc` on the same node.
//!
//! Kubernetes takes minutes to build, so `make test-kubernetes` runs these and `cargo test` does not.

#![expect(clippy::expect_used, reason = "a test that cannot go on panics")]

mod compare;
mod kubectl;
mod life;
mod pods;
mod side;

use compare::Stats;
use serde_json::{Value, json};
use side::Side;
use weft_conformance::kubernetes::Cluster;
use weft_conformance::{NodeSpec, Subject};

/// A name, and what is to be done.
type Scenario<'s> = (&'static str, Box<dyn FnOnce() + Send + 's>);

/// Runs every scenario on a cluster where `class` makes weft run a pod: a RuntimeClass, or nothing if weft is the default.
#[track_caller]
fn everything(cluster: &Cluster, class: Option<&'static str>, stats: Stats) {
    let weft = |name| Side::new(cluster, name, class);
    let runc = |name| Side::new(cluster, name, Some("runc"));
    let scenarios: Vec<Scenario<'_>> = vec![
        (
            "compare",
            Box::new(|| compare::pods_are_what_runc_makes_of_them(&weft("a-weft"), &runc("a-runc"), stats)),
        ),
        ("kubectl", Box::new(|| kubectl::every_verb_works(&weft("kubectl")))),
        ("deployment", Box::new(|| life::a_deployment_serves_and_rolls(&weft("deployment")))),
        ("deletion", Box::new(|| life::deletion_is_graceful(&weft("deletion")))),
    ];
    let failed = std::thread::scope(|scope| {
        let threads: Vec<_> = scenarios
            .into_iter()
            .map(|(name, scenario)| {
                let thread = std::thread::Builder::new().name(name.to_owned());
                thread.spawn_scoped(scope, scenario).expect("start a thread")
            })
            .collect();
        threads.into_iter().map(|thread| thread.join()).filter(Result::is_err).count()
    });
    assert_eq!(failed, 0, "scenarios that failed; each has said why");
    // Nothing else may need the kubelet or containerd now.
    life::pods_live_through_restarts(&weft("restarts"));
}

#[test]
#[ignore = "run by make test-kubernetes"]
fn weft_as_a_runtime_class() {
    let cluster = Cluster::start(NodeSpec::new(Subject::Weft), &["weft", "runc"], &json!({}));
    everything(&cluster, Some("weft"), Stats::CAdvisor);
    cluster.finish();
}

/// Here the kubelet takes all its statistics from CRI, as it will once cAdvisor is gone (KEP 2371).
#[test]
#[ignore = "run by make test-kubernetes"]
fn weft_as_the_default_runtime() {
    let spec = NodeSpec { default_handler: "weft", ..NodeSpec::new(Subject::Weft) };
    let cluster = Cluster::start(spec, &["runc"], &json!({ "PodAndContainerStatsFromCRI": true }));
    everything(&cluster, None, Stats::Cri);
    cluster.finish();
}

/// A pod with `hostUsers: false`: root in it is somebody without rights on the node.
#[test]
#[ignore = "run by make test-kubernetes"]
fn a_pod_has_users_of_its_own() {
    let cluster = Cluster::start(NodeSpec::new(Subject::Weft), &["weft", "runc"], &json!({}));
    for class in ["weft", "runc"] {
        let side = Side::new(&cluster, class, Some(class));
        let mut pod = pods::idle("users");
        pod["spec"]["hostUsers"] = json!(false);
        side.run(&pod);
        side.wait_ready("users");
        let map = side.exec("users", &["cat", "/proc/self/uid_map"]);
        let map: Vec<&str> = map.split_whitespace().collect();
        assert_eq!((map[0], map[2]), ("0", "65536"), "{class}");
        assert_ne!(map[1], "0", "{class}");
        assert_eq!(side.exec("users", &["id", "-u"]), "0\n");
        let token = "/var/run/secrets/kubernetes.io/serviceaccount/token";
        assert_eq!(side.exec("users", &["stat", "-c", "%u", token]), "0\n", "volumes are mapped too");
        side.kubectl(&["delete", "pod", "users"]);
    }
    cluster.finish();
}

/// The items of a list, as kubectl and the API give it.
fn items(list: &Value) -> impl Iterator<Item = &Value> {
    list["items"].as_array().expect("a list").iter()
}
