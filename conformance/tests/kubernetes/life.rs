//! Deployments, deletion, and restarts of those who look after the pods.

use std::collections::{BTreeMap, BTreeSet};
use std::fs;

use nix::sys::signal::Signal;
use serde_json::{Value, json};
use weft_conformance::kubernetes::AGNHOST;
use weft_conformance::wait_until;

use crate::items;
use crate::pods::{container, first, idle, pod};
use crate::side::{LONG, Side};

fn servers() -> Value {
    let often = |probe: Value| {
        let mut probe = probe;
        probe["periodSeconds"] = json!(1);
        probe["timeoutSeconds"] = json!(20);
        probe
    };
    json!({
        "apiVersion": "apps/v1", "kind": "Deployment", "metadata": { "name": "servers" },
        "spec": {
            "replicas": 2,
            "selector": { "matchLabels": { "app": "servers" } },
            "template": {
                "metadata": { "labels": { "app": "servers" } },
                "spec": { "terminationGracePeriodSeconds": 3, "containers": [{
                    "name": "main", "image": AGNHOST, "imagePullPolicy": "Never", "args": ["netexec", "--http-port=8080"],
                    "command": ["/agnhost"],
                    "readinessProbe": often(json!({ "httpGet": { "path": "/healthz", "port": 8080 } })),
                    "livenessProbe": often(json!({ "exec": { "command": ["/agnhost", "--version"] } })),
                }] },
            },
        },
    })
}

pub(crate) fn a_deployment_serves_and_rolls(side: &Side<'_>) {
    side.run(&servers());
    let rolled = || side.kubectl(&["rollout", "status", "deployment/servers", "--timeout=120s"]);
    rolled();
    let first = reach_each_other(side);
    side.kubectl(&["rollout", "restart", "deployment/servers"]);
    rolled();
    wait_until(LONG, "the replaced pods are gone", || items(&side.get(&["pods"])).count() == 2);
    let second = reach_each_other(side);
    assert!(first.is_disjoint(&second), "{first:?}, {second:?}");
    side.kubectl(&["scale", "deployment/servers", "--replicas=0"]);
    wait_until(LONG, "no server stays", || items(&side.get(&["pods"])).next().is_none());
}

/// Each pod fetches its own name from every pod, itself too, in both families; the names.
fn reach_each_other(side: &Side<'_>) -> BTreeSet<String> {
    let pods = side.get(&["pods"]);
    let text = |value: &Value| value.as_str().expect("a text").to_owned();
    let all: Vec<(String, Vec<String>)> = items(&pods)
        .map(|pod| {
            let ips = pod["status"]["podIPs"].as_array().expect("a pod has addresses").iter();
            (text(&pod["metadata"]["name"]), ips.map(|ip| text(&ip["ip"])).collect())
        })
        .collect();
    assert_eq!(all.len(), 2);
    for (from, _) in &all {
        for (to, addresses) in &all {
            assert_eq!(addresses.len(), 2, "{to} has both families");
            for address in addresses {
                let port = |port: u16| {
                    std::net::SocketAddr::new(address.parse().expect("an address"), port).to_string()
                };
                side.exec(from, &["/agnhost", "connect", &port(8080), "--timeout=10s"]);
                let mut fetch = side.cluster.node().command("busybox");
                let said = weft_conformance::run(fetch.args([
                    "wget",
                    "-q",
                    "-O-",
                    &format!("http://{}/hostname", port(8080)),
                ]));
                assert_eq!(&said, to);
            }
        }
    }
    all.into_iter().map(|(name, _)| name).collect()
}

/// The hook runs before the signal, both before the end; who ignores the signal is killed.
pub(crate) fn deletion_is_graceful(side: &Side<'_>) {
    let notes = side.cluster.host_path("notes");
    fs::create_dir(&notes).expect("make a directory");
    let volumes = json!([{ "name": "notes", "hostPath": { "path": notes } }]);
    let mounts = json!([{ "name": "notes", "mountPath": "/notes" }]);
    let mut polite =
        container("main", "trap 'sleep 0.3; echo term >>/notes/polite; exit 0' TERM; sleep 100000 & wait");
    polite["volumeMounts"] = mounts.clone();
    polite["lifecycle"]["preStop"]["exec"]["command"] =
        json!(["sh", "-c", "sleep 0.3; echo hook >>/notes/polite"]);
    let mut polite = pod("polite", &[polite]);
    polite["spec"]["volumes"] = volumes.clone();
    polite["spec"]["terminationGracePeriodSeconds"] = json!(60);
    let mut deaf = container("main", "trap 'echo term >>/notes/deaf' TERM; while :; do sleep 0.1; done");
    deaf["volumeMounts"] = mounts;
    let mut deaf = pod("deaf", &[deaf]);
    deaf["spec"]["volumes"] = volumes;
    deaf["spec"]["terminationGracePeriodSeconds"] = json!(2);
    for (name, pod, noted) in [("polite", polite, "hook\nterm\n"), ("deaf", deaf, "term\n")] {
        side.run(&pod);
        side.wait_ready(name);
        side.kubectl(&["delete", "pod", name, "--wait=false"]);
        side.wait_gone(&format!("pod/{name}"));
        assert_eq!(fs::read_to_string(notes.join(name)).expect("the pod has written"), noted);
    }
    side.run(&idle("hurried"));
    side.wait_ready("hurried");
    side.kubectl(&["delete", "pod", "hurried", "--grace-period=0", "--force"]);
    side.wait_gone("pod/hurried");
}

pub(crate) fn pods_live_through_restarts(side: &Side<'_>) {
    let notes = side.cluster.host_path("restarts");
    fs::create_dir(&notes).expect("make a directory");
    for name in ["steady", "sidecars"] {
        let mut pod = idle(name);
        if name == "sidecars" {
            let mut sidecar = container("sidecar", "");
            sidecar["restartPolicy"] = json!("Always");
            pod["spec"]["initContainers"] = json!([container("first", "exit 0"), sidecar]);
        }
        side.run(&pod);
        side.wait_ready(name);
    }
    let before = identities(side);
    assert_eq!(before.len(), 4, "every container of both pods");
    for (round, signal) in [
        ("kubelet-term", Signal::SIGTERM),
        ("kubelet-kill", Signal::SIGKILL),
        ("containerd-term", Signal::SIGTERM),
        ("containerd-kill", Signal::SIGKILL),
    ] {
        let mut ends = container("main", "until [ -e /notes/$HOSTNAME ]; do sleep 0.1; done; exit 7");
        ends["volumeMounts"] = json!([{ "name": "notes", "mountPath": "/notes" }]);
        let mut ends = pod(round, &[ends]);
        ends["spec"]["volumes"] = json!([{ "name": "notes", "hostPath": { "path": notes } }]);
        ends["spec"]["restartPolicy"] = json!("Never");
        side.run(&ends);
        side.wait_ready(round);
        if round.starts_with("kubelet") {
            side.cluster.restart_kubelet(signal);
        } else {
            side.cluster.node().restart_containerd(signal);
        }
        // The pod's end is seen, and so are all others: the kubelet has looked at every container again.
        fs::write(notes.join(round), "").expect("write a file");
        let ended = side.wait_pod(round, "ended", |pod| pod["status"]["phase"] == "Failed");
        assert_eq!(first(&ended, "state")["terminated"]["exitCode"], 7, "{round}");
        side.kubectl(&["delete", "pod", round]);
        assert_eq!(side.exec("steady", &["echo", "still here"]), "still here\n");
        assert_eq!(identities(side), before, "{round}");
    }
    side.kubectl(&["delete", "pods", "--all"]);
}

/// The id and the number of restarts of every container, by pod and name.
fn identities(side: &Side<'_>) -> BTreeMap<String, (String, u64)> {
    let pods = side.get(&["pods"]);
    let mut found = BTreeMap::new();
    for pod in items(&pods) {
        for kind in ["containerStatuses", "initContainerStatuses"] {
            for status in pod["status"][kind].as_array().into_iter().flatten() {
                let name = format!("{}/{}", pod["metadata"]["name"], status["name"]);
                let id = status["containerID"].as_str().expect("a container has an id").to_owned();
                found.insert(name, (id, status["restartCount"].as_u64().expect("a number")));
            }
        }
    }
    found
}
