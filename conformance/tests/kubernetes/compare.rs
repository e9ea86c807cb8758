//! What `kubectl get` says of a pod is the same whoever ran it.

use std::collections::{BTreeMap, BTreeSet};
use std::time::{Duration, Instant};

use serde_json::Value;
use weft_conformance::{run, wait_until};

use crate::items;
use crate::pods::{self, Settled, first};
use crate::side::{LONG, Side};

pub(crate) fn pods_are_what_runc_makes_of_them(weft: &Side<'_>, runc: &Side<'_>, stats: Stats) {
    let cases = pods::cases();
    for case in &cases {
        [weft, runc].iter().for_each(|side| side.run(&case.pod));
    }
    let mut different = Vec::new();
    for case in &cases {
        let name = case.pod["metadata"]["name"].as_str().expect("a pod has a name");
        let [ours, theirs] = [weft, runc].map(|side| {
            let pod = match case.settled {
                Settled::When(is) => side.wait_pod(name, "settled", is),
                Settled::Waiting(reason) => side.wait_waiting(name, reason),
            };
            must_be(name, &pod);
            comparable(&pod)
        });
        differences(name, &ours, &theirs, &mut different);
    }
    for (side, shim) in [(weft, "containerd-shim-weft-v1"), (runc, "containerd-shim-runc-v2")] {
        is_run_by(side, shim);
        inside_is_what_the_pod_says(side);
    }
    assert_eq!(different, [""; 0], "fields with weft, and with runc");
    statistics_name_the_same(weft, runc, stats);
    no_more_warnings(&warnings(weft), &warnings(runc));
    for side in [weft, runc] {
        side.kubectl(&["delete", "pods", "--all", "--wait=false"]);
        wait_until(LONG, "no pod stays", || side.kubectl(&["get", "pods", "-o", "name"]).is_empty());
    }
    // The kubelet may probe a container that has just ended on its order.
    let [ours, theirs] = [weft, runc].map(|side| {
        let mut warnings = warnings(side);
        warnings.retain(|(_, reason), _| reason != "Unhealthy");
        warnings
    });
    no_more_warnings(&ours, &theirs);
}

#[track_caller]
fn no_more_warnings(ours: &Warnings, theirs: &Warnings) {
    let more: Vec<_> = ours.iter().filter(|(warning, _)| !theirs.contains_key(warning)).collect();
    assert!(more.is_empty(), "warnings that only weft's pods have: {more:#?}, beside {theirs:#?}");
}

/// What both sides must say, lest they agree on nonsense.
#[track_caller]
fn must_be(name: &str, pod: &Value) {
    let ended = |code: i64, reason: &str| {
        let end = &first(pod, "state")["terminated"];
        assert_eq!((&end["exitCode"], &end["reason"]), (&code.into(), &reason.into()), "{name}: {end}");
    };
    match name {
        "succeeds" | "inits" => ended(0, "Completed"),
        "fails" => {
            ended(3, "Error");
            assert_eq!(first(pod, "state")["terminated"]["message"], "why\n");
        }
        "segfaults" => ended(139, "Error"),
        "hungry" => ended(137, "OOMKilled"),
        "no-program" => ended(128, "StartError"),
        "crashes" => {
            assert_eq!(first(pod, "lastState")["terminated"]["exitCode"], 4);
            let why = first(pod, "state")["waiting"]["message"].as_str().unwrap_or_default();
            assert!(why.starts_with("back-off "), "{why}");
        }
        "unwell" => assert_eq!(first(pod, "lastState")["terminated"]["exitCode"], 9),
        "hostnetwork" => assert_eq!(pod["status"]["podIP"], pod["status"]["hostIP"]),
        _ => {}
    }
}

/// Every pod that is up has a process of the shim's.
#[track_caller]
fn is_run_by(side: &Side<'_>, shim: &str) {
    let node = side.cluster.node();
    let sandboxes = node.crictl(&[
        "pods",
        "--quiet",
        "--no-trunc",
        "--state",
        "ready",
        "--namespace",
        &format!("^{}$", side.namespace),
    ]);
    assert!(sandboxes.lines().count() >= pods::cases().len() / 2, "{sandboxes}");
    for id in sandboxes.lines() {
        run(node.command("pgrep").args(["--full", &format!("{shim} .*-id {id}")]));
    }
}

/// A second witness for what the JSON claims: the containers themselves.
#[track_caller]
fn inside_is_what_the_pod_says(side: &Side<'_>) {
    assert_eq!(side.exec("volumes", &["cat", "/who/name"]), "volumes");
    side.exec("volumes", &["sh", "-c", "echo seen >/shared/file"]);
    assert_eq!(side.kubectl(&["exec", "volumes", "-c", "two", "--", "cat", "/shared/file"]), "seen\n");
    side.exec("volumes", &["cp", "/shared/file", "/part/copy"]);
    assert_eq!(side.exec("volumes", &["cat", "/shared/part/copy"]), "seen\n");
    assert_eq!(side.exec("volumes", &["stat", "-f", "-c", "%T", "/fast"]), "tmpfs\n");
    side.exec("volumes", &["test", "-s", "/var/run/secrets/kubernetes.io/serviceaccount/token"]);
    side.exec("hooked", &["test", "-e", "/tmp/started"]);
    let status = side.exec("confined", &["cat", "/proc/self/status"]);
    for line in ["Uid:\t1000\t1000\t1000\t1000", "CapBnd:\t0000000000000000", "NoNewPrivs:\t1", "Seccomp:\t2"]
    {
        assert!(status.contains(line), "{line} is in {status}");
    }
    let shared = side.exec("shared-pids", &["ps", "-o", "pid,args"]);
    assert_eq!(
        shared.matches("sleep 1000000").count(),
        4,
        "a shell and its sleep in each container: {shared}"
    );
    let node = side.cluster.node();
    let own = |kind: &str| run(node.command("readlink").arg(format!("/proc/self/ns/{kind}")));
    for (pod, kind) in [("hostnetwork", "net"), ("hostpid", "pid"), ("hostipc", "ipc")] {
        for other in ["net", "pid", "ipc"] {
            let inside = side.exec(pod, &["readlink", &format!("/proc/self/ns/{other}")]);
            assert_eq!(inside == own(other), kind == other, "{pod} has the node's {other}");
        }
    }
}

/// The pod without what differs between any two pods.
fn comparable(pod: &Value) -> Value {
    let mut pod = pod.clone();
    let metadata = pod["metadata"].take();
    pod["metadata"]["labels"] = metadata["labels"].clone();
    let own = ["namespace", "uid"].map(|key| metadata[key].as_str().expect("a pod has it").to_owned());
    if let Some(spec) = pod["spec"].as_object_mut() {
        spec.remove("runtimeClassName");
    }
    // What the kubelet has read from the pod's own cgroup, if it happened to look before a short-lived pod had ended.
    if let Some(status) = pod["status"].as_object_mut() {
        status.remove("resources");
    }
    clean(&mut pod, &own);
    pod
}

fn clean(value: &mut Value, own: &[String]) {
    const DIFFERENT: [&str; 8] = [
        "containerID",
        "finishedAt",
        "hostIP",
        "lastProbeTime",
        "lastTransitionTime",
        "podIP",
        "startTime",
        "startedAt",
    ];
    match value {
        Value::Object(members) => {
            members.retain(|key, _| !DIFFERENT.contains(&key.as_str()));
            // How often it has crashed by now, and how long the kubelet therefore waits.
            if members.get("state").is_some_and(|state| state["waiting"]["reason"] == "CrashLoopBackOff") {
                members.remove("restartCount");
                members["state"]["waiting"]["message"].take();
            }
            if let Some(ips) = members.get_mut("podIPs") {
                *ips = ips.as_array().map_or(0, Vec::len).into();
            }
            members.values_mut().for_each(|member| clean(member, own));
        }
        Value::Array(items) => items.iter_mut().for_each(|item| clean(item, own)),
        Value::String(text) => {
            own.iter().for_each(|word| *text = text.replace(word.as_str(), "OWN"));
            if text.starts_with("kube-api-access-") {
                text.truncate("kube-api-access-".len());
            }
        }
        _ => {}
    }
}

fn differences(path: &str, ours: &Value, theirs: &Value, found: &mut Vec<String>) {
    match (ours, theirs) {
        (Value::Object(one), Value::Object(other)) => {
            let keys: BTreeSet<&String> = one.keys().chain(other.keys()).collect();
            keys.iter().for_each(|key| {
                let at =
                    |members: &serde_json::Map<String, Value>| members.get(*key).cloned().unwrap_or_default();
                differences(&format!("{path}.{key}"), &at(one), &at(other), found);
            });
        }
        (Value::Array(one), Value::Array(other)) if one.len() == other.len() => {
            one.iter()
                .zip(other)
                .enumerate()
                .for_each(|(n, (one, other))| differences(&format!("{path}[{n}]"), one, other, found));
        }
        _ if ours != theirs => found.push(format!("{path}: {ours}, and {theirs}")),
        _ => {}
    }
}

/// What they say, by the pod's name and the reason.
type Warnings = BTreeMap<(String, String), String>;

/// The warnings of the pods. That a startup probe fails for a while is what it is for.
fn warnings(side: &Side<'_>) -> Warnings {
    let events = side.get(&["events"]);
    let text = |event: &Value, path: &str| {
        event.pointer(path).and_then(Value::as_str).unwrap_or_default().to_owned()
    };
    let warnings = items(&events).filter(|event| event["type"] == "Warning");
    let warnings = warnings.map(|event| {
        ((text(event, "/involvedObject/name"), text(event, "/reason")), text(event, "/message"))
    });
    warnings.filter(|(_, message)| !message.starts_with("Startup probe failed")).collect()
}

/// Where the kubelet has its statistics from.
#[derive(Clone, Copy, PartialEq, Eq)]
pub(crate) enum Stats {
    /// Its default. cAdvisor counts the network of what containerd knows as a container, and a sandbox that is not a pause container is none
    /// (container/containerd/handler.go): pods have no network there, whichever shim is the sandboxer.
    CAdvisor,
    /// containerd (`PodAndContainerStatsFromCRI`).
    Cri,
}

/// The kubelet's statistics of pods that run have the same parts on both sides.
#[track_caller]
fn statistics_name_the_same(weft: &Side<'_>, runc: &Side<'_>, stats: Stats) {
    let start = Instant::now();
    loop {
        let (ours, mut theirs) = (parts(weft), parts(runc));
        if stats == Stats::CAdvisor {
            theirs.retain(|part| !part.contains(".network."));
        }
        if complete(&theirs, stats) && ours == theirs {
            return;
        }
        let [more, less] = [(&ours, &theirs), (&theirs, &ours)]
            .map(|(one, other)| one.difference(other).collect::<Vec<_>>());
        assert!(
            start.elapsed() < LONG,
            "statistics of weft's pods only: {more:#?}, of runc's only: {less:#?}"
        );
        std::thread::park_timeout(Duration::from_secs(1));
    }
}

/// The kubelet has looked at every container; before, both sides are alike in having nothing.
fn complete(parts: &BTreeSet<String>, stats: Stats) -> bool {
    let has = |part: String| parts.contains(&part);
    let network = stats == Stats::CAdvisor || has("confined.network.rxBytes".to_owned());
    network && RUNNING.iter().all(|pod| has(format!("{pod}.containers[main].memory.workingSetBytes")))
}

/// Pods with a container `main` that goes on.
const RUNNING: [&str; 4] = ["confined", "hooked", "hostpid", "hostnetwork"];

fn parts(side: &Side<'_>) -> BTreeSet<String> {
    let summary = side.cluster.raw("/api/v1/nodes/n1/proxy/stats/summary");
    let pods = summary["pods"].as_array().expect("a list of pods");
    let mut parts = BTreeSet::new();
    for pod in pods.iter().filter(|pod| pod["podRef"]["namespace"] == side.namespace) {
        let name = pod["podRef"]["name"].as_str().expect("a pod has a name");
        if RUNNING.contains(&name) {
            name_parts(name, pod, &mut parts);
        }
    }
    parts
}

fn name_parts(path: &str, value: &Value, parts: &mut BTreeSet<String>) {
    match value {
        Value::Object(members) => {
            members.iter().for_each(|(key, member)| name_parts(&format!("{path}.{key}"), member, parts))
        }
        Value::Array(items) => items.iter().for_each(|item| {
            let name = item["name"].as_str().unwrap_or_default();
            let name = if name.starts_with("kube-api-access-") { "token" } else { name };
            name_parts(&format!("{path}[{name}]"), item, parts);
        }),
        _ => {
            parts.insert(path.to_owned());
        }
    }
}
