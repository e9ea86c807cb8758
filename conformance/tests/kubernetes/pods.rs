//! The pods of the comparison: one of each kind of life that a pod can have.

use serde_json::{Value, json};
use weft_conformance::image::{BUSYBOX, WEB};
use weft_conformance::kubernetes::is_true;

/// A pod, and when it has got where it is going.
pub(crate) struct Case {
    pub(crate) pod: Value,
    pub(crate) settled: Settled,
}

pub(crate) enum Settled {
    /// As soon as it looks like this, for good.
    When(fn(&Value) -> bool),
    /// As soon as its container waits for this reason. The kubelet may show that for a moment only, between two syncs of a pod.
    Waiting(&'static str),
}

/// Busybox with a command of the shell's; with none, it idles until SIGTERM.
pub(crate) fn container(name: &str, script: &str) -> Value {
    let mut container = json!({ "name": name, "image": BUSYBOX, "imagePullPolicy": "Never" });
    if !script.is_empty() {
        container["command"] = json!(["sh", "-c", script]);
    }
    container
}

/// A pod of the containers that ends quickly when it is deleted.
pub(crate) fn pod(name: &str, containers: &[Value]) -> Value {
    json!({
        "apiVersion": "v1", "kind": "Pod", "metadata": { "name": name },
        "spec": { "containers": containers, "terminationGracePeriodSeconds": 5 },
    })
}

/// A pod that does nothing.
pub(crate) fn idle(name: &str) -> Value {
    pod(name, &[container("main", "")])
}

fn with(mut object: Value, spec: &Value) -> Value {
    let members = spec.as_object().expect("an object").clone();
    object.as_object_mut().expect("an object").extend(members);
    object
}

fn pod_with(name: &str, containers: &[Value], spec: &Value) -> Value {
    let mut pod = pod(name, containers);
    pod["spec"] = with(pod["spec"].take(), spec);
    pod
}

fn exec(command: &[&str]) -> Value {
    json!({ "exec": { "command": command } })
}

/// The state of the pod's first container, now (`state`) or before its last restart (`lastState`).
pub(crate) fn first<'p>(pod: &'p Value, state: &str) -> &'p Value {
    &pod["status"]["containerStatuses"][0][state]
}

fn is_ready(pod: &Value) -> bool {
    is_true(pod, "Ready")
}

fn has_ended(pod: &Value) -> bool {
    let phase = &pod["status"]["phase"];
    phase == "Succeeded" || phase == "Failed"
}

/// All cases.
pub(crate) fn cases() -> Vec<Case> {
    [running(), vec![unwell()], ending(), of_the_host()].into_iter().flatten().collect()
}

fn running() -> Vec<Case> {
    let quick = json!({ "periodSeconds": 1, "timeoutSeconds": 20, "failureThreshold": 30 });
    let probed = json!({
        "name": "web", "image": WEB, "imagePullPolicy": "Never",
        "startupProbe": with(json!({ "httpGet": { "path": "/", "port": 80 } }), &quick),
        "readinessProbe": with(json!({ "tcpSocket": { "port": 80 } }), &quick),
        "livenessProbe": with(exec(&["test", "-e", "/www/index.html"]), &quick),
        "ports": [{ "containerPort": 80 }],
        "resources": { "requests": { "cpu": "50m", "memory": "16Mi" }, "limits": { "memory": "64Mi" } },
    });
    let volumes = json!({ "volumes": [
        { "name": "shared", "emptyDir": {} },
        { "name": "fast", "emptyDir": { "medium": "Memory" } },
        { "name": "who", "downwardAPI": { "items": [{ "path": "name", "fieldRef": { "fieldPath": "metadata.name" } }] } },
    ] });
    let mounts = json!({ "volumeMounts": [
        { "name": "shared", "mountPath": "/shared" },
        { "name": "shared", "mountPath": "/part", "subPath": "part" },
        { "name": "fast", "mountPath": "/fast" },
        { "name": "who", "mountPath": "/who" },
    ] });
    let confined = json!({ "securityContext": {
        "runAsUser": 1000, "runAsNonRoot": true, "readOnlyRootFilesystem": true, "allowPrivilegeEscalation": false,
        "capabilities": { "drop": ["ALL"] }, "seccompProfile": { "type": "RuntimeDefault" },
    } });
    let hooked = json!({ "lifecycle": { "postStart": exec(&["touch", "/tmp/started"]) } });
    vec![
        Case { pod: pod("probed", &[probed]), settled: Settled::When(is_ready) },
        Case {
            pod: pod_with(
                "volumes",
                &[with(container("one", ""), &mounts), with(container("two", ""), &mounts)],
                &volumes,
            ),
            settled: Settled::When(is_ready),
        },
        Case {
            pod: pod("confined", &[with(container("main", ""), &confined)]),
            settled: Settled::When(is_ready),
        },
        Case {
            pod: pod("hooked", &[with(container("main", ""), &hooked)]),
            settled: Settled::When(is_ready),
        },
        Case {
            pod: pod_with(
                "shared-pids",
                &[container("one", ""), container("two", "")],
                &json!({ "shareProcessNamespace": true }),
            ),
            settled: Settled::When(is_ready),
        },
    ]
}

/// Fails its liveness probe once.
fn unwell() -> Case {
    // The first life ends once the probe fails, the second one goes on.
    let unwell = "if [ -e /keep/second ]; then touch /tmp/well; fi; touch /keep/second; trap 'exit 9' TERM; sleep 10000 & wait";
    let kept = json!({
        "volumeMounts": [{ "name": "keep", "mountPath": "/keep" }],
        "livenessProbe": with(exec(&["test", "-e", "/tmp/well"]), &json!({ "periodSeconds": 1, "failureThreshold": 1, "timeoutSeconds": 20 })),
    });
    Case {
        pod: pod_with(
            "unwell",
            &[with(container("main", unwell), &kept)],
            &json!({ "volumes": [{ "name": "keep", "emptyDir": {} }] }),
        ),
        settled: Settled::When(|pod| {
            is_ready(pod) && pod["status"]["containerStatuses"][0]["restartCount"] == 1
        }),
    }
}

fn ending() -> Vec<Case> {
    let never = json!({ "restartPolicy": "Never" });
    let once = |name: &str, container: Value| Case {
        pod: pod_with(name, &[container], &never),
        settled: Settled::When(has_ended),
    };
    let missing = json!({ "command": ["/no/such/program"] });
    // `dd` is the container's only process, so nobody else can be chosen.
    let hungry = json!({
        "command": ["dd", "if=/dev/zero", "of=/dev/null", "bs=256M", "count=1"],
        "resources": { "limits": { "memory": "64Mi" } },
    });
    let sidecar = with(container("sidecar", ""), &json!({ "restartPolicy": "Always" }));
    let inits = json!({
        "restartPolicy": "Never",
        "initContainers": [container("first", "exit 0"), sidecar, container("second", "exit 0")],
    });
    let bad_init = json!({ "restartPolicy": "Never", "initContainers": [container("first", "exit 5")] });
    vec![
        once("succeeds", container("main", "exit 0")),
        once("fails", container("main", "echo why >/dev/termination-log; exit 3")),
        once("segfaults", container("main", "sleep 100 & kill -SEGV $!; wait $!")),
        once("no-program", with(container("main", ""), &missing)),
        once("hungry", with(container("main", ""), &hungry)),
        Case {
            pod: pod_with("inits", &[container("main", "exit 0")], &inits),
            settled: Settled::When(has_ended),
        },
        Case {
            pod: pod_with("bad-init", &[container("main", "exit 0")], &bad_init),
            settled: Settled::When(has_ended),
        },
        Case {
            pod: pod("crashes", &[container("main", "exit 4")]),
            settled: Settled::Waiting("CrashLoopBackOff"),
        },
    ]
}

fn of_the_host() -> Vec<Case> {
    ["hostNetwork", "hostPID", "hostIPC"]
        .map(|kind| {
            let spec = json!({ kind: true, "dnsPolicy": "Default" });
            Case {
                pod: pod_with(&kind.to_lowercase(), &[container("main", "")], &spec),
                settled: Settled::When(is_ready),
            }
        })
        .into()
}
